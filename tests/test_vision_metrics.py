"""Figures of an inspector against independent implementations, on verdicts with ties, groups and missing types."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs

from dtwb.vision.metrics import bootstrap, calibration_error, score_images
from dtwb.vision.places import aupro, count_pixels, pixel_ap, score_boxes


@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(1, 4), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_image_figures_are_scikit_learns_on_every_draw(seed, n, kinds, levels):
    rng = np.random.default_rng(seed)
    truth, decided = rng.integers(0, kinds + 1, n), rng.integers(0, kinds + 1, n)
    p, groups = rng.integers(0, levels + 1, n) / levels, rng.integers(0, max(1, n // 2), n)
    ours = score_images(truth, p, decided, groups, rounds=8)

    def both(r):
        return 0 < (truth[r] > 0).sum() < len(r)

    figures = {
        "auroc": lambda r: theirs.roc_auc_score(truth[r] > 0, p[r]) if both(r) else np.nan,
        "ap": lambda r: theirs.average_precision_score(truth[r] > 0, p[r]) if both(r) else np.nan,
        "accuracy": lambda r: theirs.accuracy_score(truth[r] > 0, decided[r] > 0),
        "macro_f1": lambda r: theirs.f1_score(
            truth[r], decided[r], labels=np.unique(truth[r]), average="macro", zero_division=0
        ),
    }
    for name, figure in figures.items():
        slow = bootstrap(figure, groups, rounds=8)
        want, got = [(m.value, m.low, m.high) for m in (slow, ours[name])]
        np.testing.assert_allclose(got, want, atol=1e-9, err_msg=name)


def test_calibration_error_and_curves_are_torchmetrics():
    import torch

    import dtwb.vision.models  # noqa: F401  it mends torchvision's import, which torchmetrics needs

    tm = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(0)
    for n in (5, 400):
        p, truth = rng.uniform(size=n), np.append(rng.integers(0, 2, n - 2), [0, 1])
        tensors = torch.from_numpy(p), torch.from_numpy(truth)
        for bins in (3, 15):
            want = float(tm.binary_calibration_error(*tensors, n_bins=bins))
            assert calibration_error(truth, p, bins=bins, rounds=0).value == pytest.approx(want, abs=1e-6)
        ours = score_images(truth, p, (p > 0.5).astype(int), np.arange(n), rounds=0)
        assert ours["auroc"].value == pytest.approx(float(tm.binary_auroc(*tensors)), abs=1e-6)
        assert ours["ap"].value == pytest.approx(float(tm.binary_average_precision(*tensors)), abs=1e-6)


def _plain_aupro(map, mask, regions, limit):
    """By the definition (Bergmann et al. 2021): the mean overlap of regions over the false positive rate."""
    thresholds = np.unique(map)[::-1]
    x = [0.0] + [(map[~mask] >= t).mean() for t in thresholds]
    y = [0.0] + [np.mean([(map[r] >= t).mean() for r in regions]) for t in thresholds]
    inside = [x[k] for k in range(len(x)) if x[k] < limit] + [limit]
    return np.trapezoid(np.interp(inside, x, y), inside) / limit


@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.3, 1.0]))
@settings(max_examples=25, deadline=None)
def test_aupro_is_its_definition(seed, limit):
    rng = np.random.default_rng(seed)
    mask, regions = np.zeros((24, 30), bool), []
    for k in range(rng.integers(1, 4)):
        region = np.zeros_like(mask)
        region[8 * k : 8 * k + rng.integers(1, 7), 2 : 2 + rng.integers(1, 20)] = True
        regions.append(region)
        mask |= region
    map = np.linspace(0.02, 0.98, mask.size)[rng.permutation(mask.size)].reshape(mask.shape)  # no two at one level
    map = np.where(mask & (rng.uniform(size=mask.shape) < 0.5), 0.999, map) if seed % 2 else map
    assert aupro([map], [mask], limit) == pytest.approx(_plain_aupro(map, mask, regions, limit), abs=0.01)
    assert pixel_ap([map], [mask]) == pytest.approx(theirs.average_precision_score(mask.ravel(), map.ravel()), abs=0.01)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_counts_lose_no_pixel_and_maps_only_rank(seed):
    rng = np.random.default_rng(seed)
    map, mask = rng.uniform(size=(20, 33)), rng.uniform(size=(20, 33)) < 0.2
    counts = count_pixels(map, mask)
    assert (counts.bad.sum(), counts.good.sum()) == (mask.sum(), (~mask).sum())
    assert counts.shares.sum() == pytest.approx(counts.regions)
    assert pixel_ap([mask * 0.7 + 0.1], [mask]) == pytest.approx(1.0)
    assert aupro([np.full(mask.shape, 0.4)], [mask]) == pytest.approx(0.15, abs=1e-6)  # the diagonal


def test_boxes_find_regions_once():
    mask = np.zeros((40, 40), bool)
    mask[2:10, 2:10] = mask[20:30, 20:30] = True
    assert score_boxes([(2, 2, 8, 8), (2, 2, 8, 8), (20, 20, 10, 10)], mask) == (2, 2, 3)
    assert score_boxes([(0, 0, 40, 40)], mask) == (0, 2, 1)
