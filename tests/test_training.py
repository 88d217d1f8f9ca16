"""Training, where a notebook cannot test it: killed processes, full disks, the command line, several processes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUIET = os.environ | {"OMP_NUM_THREADS": "1"}

FIT = """
import resource, signal, sys, time
from pathlib import Path
from dtwb.core.errors import ModelError
from dtwb.vision.synthetic import generate_images
from dtwb.vision.training import fit

small = dict(model="resnet_small", start=None, size=(64, 64), epochs=3, epoch_size=64, precision="32-true")

if __name__ == "__main__":
    images = generate_images(160, seed=2, size=(64, 64))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the limit on a file's size stands for a full disk
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        fit(images, **small, progress=False, resume=sys.argv[1])
    except ModelError as e:
        print(e, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def hold(done, total):  # in the last epoch: it is not done before it is killed
        while done > 0.7 * total:
            time.sleep(1)

    fit(images, **small, progress=hold, resume=sys.argv[1])
"""


def hash_of(fitted) -> str:
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in fitted.model.state_dict().values())).hexdigest()


def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path):
    """And before that, on a full disk, it says so in one line and leaves nothing torn."""
    run, script = tmp_path / "run", tmp_path / "fit.py"
    script.write_text(FIT)
    process = subprocess.Popen(
        [sys.executable, script, run],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=QUIET | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout
    line = process.stdout.readline()
    assert str(run) in line and "cannot be written" in line, line
    torn = [p.name for p in run.iterdir() if p.name not in ("run.json", "start.ckpt")]
    until = time.monotonic() + 600
    while not (run / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()

    import torch

    from dtwb.vision.synthetic import generate_images
    from dtwb.vision.training import fit
    from dtwb.vision.weights import load_plain

    torch.set_num_threads(1)  # as there: sums in another order are other sums
    assert not torn
    seen = len(load_plain(run / "last.ckpt")["dtwb"]["history"])
    assert 1 <= seen < 3 and not (run / "finished").exists()
    images = generate_images(160, seed=2, size=(64, 64))
    small = dict(model="resnet_small", start=None, size=(64, 64), epochs=3, epoch_size=64, precision="32-true")
    gone_on = fit(images, **small, progress=False, resume=run)
    assert len(gone_on.history) == 3
    assert hash_of(gone_on) == hash_of(fit(images, **small, progress=False))


def test_the_command_line_trains_and_measures(tmp_path, workbench):
    place = tmp_path / "place"
    data, out = "synthetic:tiles?n=80&size=64", place / "bundle"
    (place / "bundle.run").mkdir(parents=True)
    small = [
        "--model",
        "resnet_small",
        "--start",
        "none",
        "--size",
        "64",
        "--time-limit",
        "2",
        "--epochs",
        "2",
        "--out",
        out,
    ]
    refused = workbench("train", data, *small)
    assert refused.returncode == 2 and "--resume" in refused.stderr and refused.stderr.count("\n") == 1
    (place / "bundle.run").rmdir()
    done = workbench("train", data, *small, "--json")
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout)
    assert sorted(p.name for p in place.iterdir()) == ["bundle"]
    measured = json.loads(workbench("evaluate", out, data, "--json").stdout)
    assert measured["n"] == trained["test"]["n"]
    assert abs(measured["auroc"]["value"] - trained["test"]["auroc"]["value"]) < 1e-3
