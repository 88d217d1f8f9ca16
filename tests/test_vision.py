"""Vision, where a notebook cannot test it: stopped processes, full disks, hostile files, real photos."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dtwb.core.errors import DtwbError, ImageError, ModelError

ROOT = Path(__file__).resolve().parent.parent
TILES = ROOT.parent / "shared/data/magnetic_tile"
DEMO = ROOT / "models/tile_demo"

TRAIN = """
import sys
from pathlib import Path
from dtwb.vision.synthetic import generate_images
from dtwb.vision.training import train
print("ready", flush=True)
images = generate_images(160, seed=2, size=(64, 64))
small = dict(model="resnet_small", start=None, size=(64, 64), epoch_size=64, batch_size=16)
train(images, Path(sys.argv[1]), **small, epochs=500, patience=500, progress=False)
"""


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_training_leaves_no_bundle(tmp_path, stop):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(tmp_path / "bundle")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "ready\n"
    until = time.monotonic() + 600
    while not any(tmp_path.glob("dtwb-train-*/**/last.ckpt")):  # until an epoch is done
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(stop)
    _, err = process.communicate(timeout=600)
    assert process.returncode != 0
    assert not (tmp_path / "bundle").exists() and not list(tmp_path.glob(".bundle*"))
    if stop == signal.SIGINT:
        assert err.strip().endswith("KeyboardInterrupt"), err
        assert not list(tmp_path.glob("dtwb-train-*"))


def test_a_full_disk_leaves_no_bundle(tmp_path):
    """The limit on a file's size stands for a full disk: it holds for root too."""
    code = """
import resource, signal, sys
from dtwb.core.errors import ModelError
from dtwb.vision.bundle import Meta
from dtwb.vision.export import export_bundle
from dtwb.vision.models import create_model
from dtwb.vision.preprocess import Preprocess
import numpy as np
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
meta = Meta(("good", "crack"), Preprocess(64, 64), "resnet_small", "segmentation")
try:
    export_bundle(create_model("resnet_small", 2, size=(64, 64)), meta, sys.argv[1], [np.zeros((64, 64), np.uint8)])
except ModelError as e:
    print(f"ModelError {e}")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bundle")], capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert done.stdout.startswith("ModelError") and str(tmp_path / "bundle") in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_hostile_image_bytes_are_read_or_refused(tmp_path):
    from dtwb.vision.images import read_image

    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    refused = 0
    for suffix in (".png", ".jpg", ".bmp", ".tiff", ".webp"):
        whole = np.frombuffer(cv2.imencode(suffix, picture)[1].tobytes(), np.uint8)
        for _ in range(40):
            data = whole[: rng.integers(1, len(whole))].copy() if rng.random() < 0.5 else whole.copy()
            data[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            path = tmp_path / f"x{suffix}"
            path.write_bytes(data.tobytes())
            try:
                image = read_image(path)
                assert image.dtype == np.uint8 and image.ndim in (2, 3)
            except ImageError as e:
                refused += 1
                assert str(path) in str(e) and "\n" not in str(e)
    assert refused > 50


def test_hostile_meta_is_refused(tmp_path):
    from dtwb.vision.bundle import read_bundle

    if not (DEMO / "meta.json").is_file():
        pytest.skip("no demo bundle")
    import shutil

    bundle = tmp_path / "bundle"
    shutil.copytree(DEMO, bundle)
    good = json.loads((bundle / "meta.json").read_text())
    rng = np.random.default_rng(1)
    values = [None, -1, 1e300, "", "../x", [], {}, True, "x" * 10_000, [[[]]], float("nan")]
    for key in good:
        for value in values:
            (bundle / "meta.json").write_text(json.dumps(good | {key: value}))
            try:
                read_bundle(bundle)
            except ModelError as e:
                assert "meta.json" in str(e) and "\n" not in str(e)
    text = json.dumps(good)
    for _ in range(50):
        cut = int(rng.integers(len(text)))
        (bundle / "meta.json").write_text(text[:cut])
        with pytest.raises(ModelError):
            read_bundle(bundle)


def test_the_demo_bundle_knows_good_from_bad():
    from dtwb.vision.images import GOOD
    from dtwb.vision.inspector import Inspector, evaluate
    from dtwb.vision.synthetic import generate_images

    if not (DEMO / "meta.json").is_file():
        pytest.skip("no demo bundle")
    images = generate_images(200, seed=4321, shots=1)
    evaluation = evaluate(Inspector.load(DEMO), images, rounds=20)
    assert evaluation.figures["auroc"].value >= 0.95
    assert evaluation.figures["accuracy"].value >= 0.88
    assert evaluation.figures["pointing"].value >= 0.8
    assert sum(p.stat().st_size for p in DEMO.iterdir()) < 3_100_000
    assert set(images.table.label) == set(evaluation.confusion.columns) and GOOD in evaluation.confusion.columns


@pytest.mark.shared
def test_the_real_tiles_are_read_as_they_are():
    from dtwb.vision.images import read_images

    if not TILES.is_dir():
        pytest.skip("no real photos here")
    images = read_images(TILES)
    assert len(images) == 1344 and images.table.group.nunique() == 199
    assert images.table.groupby("group").split.nunique().max() == 1
    assert dict(images.select(split="test").table.label.value_counts()) == {
        "good": 240, "blowhole": 30, "uneven": 24, "break": 19, "crack": 12, "fray": 8,
    }  # fmt: skip
    row = int(np.flatnonzero(images.table.label == "crack")[0])
    mask = images.mask(row)
    assert mask is not None and mask.shape == images.image(row).shape[:2]


def test_errors_are_one_line():
    from dtwb.vision.images import read_images

    with pytest.raises(DtwbError) as caught:
        read_images("/nowhere")
    assert str(caught.value).startswith("/nowhere: ")
