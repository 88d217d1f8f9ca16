"What a folder of good photos is enough for: a bundle that finds defects nobody showed it, the same on every road."

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import cv2
import numpy as np
import pytest

import dtwb.vision.models  # noqa: F401  # first: it mends torchvision's import
from dtwb.core.errors import ImageError, ModelError
from dtwb.vision.attention import explain
from dtwb.vision.bundle import read_bundle
from dtwb.vision.images import read_images
from dtwb.vision.inspector import Inspector
from dtwb.vision.one_class_training import fit_one_class
from dtwb.vision.synthetic import DEFECTS, generate_tile
from dtwb.vision.training import train

TINY = {"start": "models/tile_demo", "size": (128, 128), "stages": (1, 2), "patches": 300, "sample": 6000}


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


@cache
def folder() -> Path:  # in MVTec's layout: nobody has a defect before the test
    root, rng = Path(mkdtemp()), np.random.default_rng(0)
    for i in range(70):
        write(root / f"train/good/{i:03d}.png", generate_tile(rng, size=(96, 96))[0])
    for i in range(30):
        write(root / f"test/good/{i:03d}.png", generate_tile(rng, size=(96, 96))[0])
    for defect in DEFECTS:
        for i in range(5):
            image, mask = generate_tile(rng, defect, (96, 96), severity=0.8)
            write(root / f"test/{defect}/{i:03d}.png", image)
            write(root / f"ground_truth/{defect}/{i:03d}_mask.png", mask.astype(np.uint8) * 255)
    return root


@cache
def trained() -> tuple[Path, dict]:
    out = Path(mkdtemp()) / "bank"
    report = train(read_images(folder(), resplit=None), out, model="memory_bank", progress=False, **TINY)
    return out, report.to_json()


def test_a_folder_without_a_single_known_defect_becomes_a_bundle_that_finds_them():
    out, report = trained()
    meta = read_bundle(out)
    assert (meta.kind, meta.map, meta.classes) == ("memory_bank", "distance", ("good", "defect"))
    assert report["test"]["auroc"]["value"] > 0.85
    test = read_images(folder(), resplit=None).select(split="test")
    inspector = Inspector.load(out)
    said = inspector.predict_batch([test.image(i) for i in range(len(test))])
    wrong = test.table.label.to_numpy() != "good"
    found = np.array([d.is_defect for d in said])
    assert found[~wrong].mean() <= 0.2 and found[wrong].mean() > 0.5, (found[~wrong].mean(), found[wrong].mean())
    dark = [d.attention_map.max() for d, bad in zip(said, wrong) if not bad and not d.is_defect]
    assert np.median(dark) < 0.5  # no photo's map is stretched to its own minimum and maximum


def test_torch_and_onnx_say_the_same_of_it_in_any_batch():
    out, _ = trained()
    rng = np.random.default_rng(5)
    images = [generate_tile(rng, d, (int(s), 96))[0] for d, s in zip((None, *DEFECTS), rng.integers(60, 120, 6))]
    by_torch, by_onnx = (Inspector.load(out, backend) for backend in ("torch", "onnx"))
    alone = [by_onnx.predict(image) for image in images]
    for batch_size, inspector in ((4, by_onnx), (3, by_torch)):
        for a, b in zip(alone, inspector.predict_batch(images, batch_size=batch_size)):
            assert a.defect_type == b.defect_type and abs(a.confidence - b.confidence) < 1e-4
            assert np.abs(a.attention_map - b.attention_map).max() < 2e-3


def test_its_map_is_the_explanation_and_lies_on_the_defect():
    out, _ = trained()
    image, mask = generate_tile(np.random.default_rng(3), "blowhole", (96, 96), severity=1.0)
    map = explain(out, image)
    assert map.shape == image.shape and 0 <= map.min() <= map.max() <= 1
    near = cv2.dilate(mask.astype(np.uint8), np.ones((25, 25))) > 0
    assert map[near].mean() > map[~near].mean()


def test_the_same_seed_gives_the_same_bundle_and_another_one_does_not():
    images = read_images(folder(), resplit=None)
    one, same, other = (fit_one_class(images, seed=seed, **TINY).model.state_dict() for seed in (1, 1, 2))
    assert all((one[k] == same[k]).all() for k in one)
    assert (one["bank"] != other["bank"]).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t[t.label != "good"], ImageError, "no good images in train"),
        (lambda t: t[(t.split == "train") & (t.label == "good")].head(1), ImageError, "too few"),
        (lambda t: t[(t.split == "train") & (t.label == "good")].head(9), ImageError, "too few"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(change, error, message):
    from dataclasses import replace

    images = read_images(folder(), resplit=None)
    with pytest.raises(error, match=message):
        fit_one_class(replace(images, table=change(images.table).reset_index(drop=True)), **TINY)


def test_options_that_do_not_fit_are_refused():
    images = read_images(folder(), resplit=None)
    for options, message in (
        ({"size": (16, 16), "stages": (2,)}, "a larger size"),
        ({"stages": (9,)}, "stages 0 to 3"),
        ({"patches": 50_000}, "needs more"),
        ({"start": "models/nothing"}, "not a file of weights|there is no such"),
    ):
        with pytest.raises(ModelError, match=message):
            fit_one_class(images, **{**TINY, **options})


def test_a_bundle_whose_options_were_changed_is_refused():
    import shutil

    out = Path(mkdtemp()) / "changed"
    shutil.copytree(trained()[0], out)
    meta = json.loads((out / "meta.json").read_text())
    meta["options"]["patches"] = 7
    (out / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ModelError, match="do not fit"):
        Inspector.load(out, "torch")
