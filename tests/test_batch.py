"""Batches that are killed, interrupted, or out of disk; and the real photos' folds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
TILES = ROOT.parent / "shared/data/magnetic_tile"
BUNDLE = ROOT / "models/tile_demo"
N = 150

BATCH = """
import sys, time
from dtwb.vision.batch import BatchProcessor
from dtwb.vision.inspector import Inspector
def hold(done, n):  # it is not done before it is killed
    while done >= int(sys.argv[4]):
        time.sleep(1)
processor = BatchProcessor(Inspector.load(sys.argv[1]), batch_size=2, workers=2)
print("ready", flush=True)
processor.run(sys.argv[2], sys.argv[3], resume=True, formats=("csv", "pictures"), progress=hold)
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    from dtwb.vision.synthetic import generate_images

    cv2 = pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("photos")
    images = generate_images(N, seed=3, size=(96, 96))
    for i in range(N):
        cv2.imwrite(str(folder / f"{i:04}.png"), images.image(i))
    (folder / "0077.png").write_bytes((folder / "0077.png").read_bytes()[:900])
    return folder


def start(photos: Path, out: Path, limit: str = "", last: int = 100) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", limit + BATCH, str(BUNDLE), str(photos), str(out), str(last)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


INSPECT = """
import sys, time
from contextlib import contextmanager
from dtwb import cli
@contextmanager
def slow():  # it is not done before it is interrupted
    yield lambda what, done, n: time.sleep(0.5 * (done >= 80))
cli.progress = slow
cli.main()
"""


def lines(out: Path) -> list[bytes]:
    journal = out / "detections.jsonl"
    return journal.read_bytes().splitlines() if journal.is_file() else []


def wait_for_lines(out: Path, n: int, process: subprocess.Popen) -> None:
    "Until it has written so many."
    until = time.monotonic() + 600
    while len(lines(out)) < n:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.005)


def test_a_killed_batch_goes_on(photos, tmp_path):
    from dtwb.vision.batch import BatchProcessor
    from dtwb.vision.inspector import Inspector

    process = start(photos, tmp_path)
    wait_for_lines(tmp_path, 10, process)
    process.kill()
    process.communicate(timeout=600)
    done = len(lines(tmp_path))
    assert 10 <= done < N
    report = BatchProcessor(Inspector.load(BUNDLE)).run(photos, tmp_path, resume=True, formats=("csv", "pictures"))
    assert [Path(row["name"]).name for row in report.rows] == [f"{i:04}.png" for i in range(N)]
    assert N - done - 1 <= report.new <= N - done + 1  # the torn line, and the damaged file once more
    assert [Path(row["name"]).name for row in report.failed] == ["0077.png"]
    pictures = {path.name for path in tmp_path.glob("*.png") if not path.name.startswith(".")}
    assert pictures == {Path(row["picture"]).name for row in report.rows if not row["error"]}


def test_ctrl_c_keeps_what_there_is(photos, tmp_path):
    command = [sys.executable, "-c", INSPECT, "inspect", str(BUNDLE), str(photos), "--out", str(tmp_path / "out"),
               "--format", "json,pictures", "--batch", "1"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    wait_for_lines(tmp_path / "out", 10, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    rows = json.loads((tmp_path / "out/detections.json").read_text())
    assert process.returncode == 130 and "--resume" in err, err
    assert 10 <= len(rows) == len(lines(tmp_path / "out")) < N


def test_a_full_disk_stops_it_and_loses_nothing(photos, tmp_path):
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (21_900, 21_900))\n"  # the 46th picture is larger
    _, err = start(photos, tmp_path, limit, N + 1).communicate(timeout=600)
    assert "StoreError" in err and "resume=True" in err.splitlines()[-1], err
    whole = [json.loads(line) for line in lines(tmp_path)[:-1]]
    assert 0 < len(whole) < N and not list(tmp_path.glob(".*.png.*.tmp"))


@pytest.mark.shared
def test_the_real_tiles_in_folds():
    from dtwb.vision.images import folds, near_copies, read_images

    if not TILES.is_dir():
        pytest.skip("no real photos here")
    images = read_images(TILES)
    group, split, fold = (images.table[c].to_numpy() for c in ("group", "split", "fold"))
    pairs = near_copies(images, turned=True)
    assert len(pairs) > 1000 and np.mean([group[i] == group[j] for i, j in pairs]) > 0.995
    assert all(split[i] == split[j] and fold[i] == fold[j] for i, j in pairs)
    at_random = np.random.default_rng(0).choice(["train", "test"], len(images))
    assert sum(at_random[i] != at_random[j] for i, j in pairs) > 500
    for i, one in enumerate(folds(images)):
        test = one.table.split == "test"
        assert (one.table.fold[test] == i).all() and (one.table.fold[~test] != i).all()
        assert one.table.groupby("group").split.nunique().max() == 1
        assert (one.counts() > 0).all(axis=None)
    empty = [i for i in np.flatnonzero(images.table.label == "uneven") if images.mask(i) is None]
    assert len(empty) == 4
