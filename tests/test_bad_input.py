"""What a user gets wrong is answered in one clear line, with exit code 2, and nothing that was stored is lost."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from conftest import ROOT, placed

FACTORY = ROOT / "data/factories/tile_plant.yaml"
BUNDLE = ROOT / "models/tile_demo"
FT06 = """6 6
2 1 0 3 1 6 3 7 5 3 4 6
1 8 2 5 4 10 5 10 0 10 3 4
2 5 3 4 5 8 0 9 1 1 4 7
1 5 0 5 2 5 3 3 4 8 5 9
2 9 1 3 4 5 5 4 0 3 3 1
1 3 3 3 5 9 0 10 4 4 2 1
"""


def refused(done: subprocess.CompletedProcess, *words: str, code: int = 2):
    "One line on stderr that holds `words`, and the exit code."
    assert done.returncode == code, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def spoil_typo(plant):
    plant["machines"][0]["bufer"] = "kiln_in"


def spoil_machine(plant):
    plant["products"][0]["operations"][0]["modes"][0]["machine"] = "press_9"


def spoil_duration(plant):
    plant["products"][0]["operations"][0]["modes"][0]["duration"] = -600


def spoil_cycle(plant):
    plant["products"][0]["operations"][0]["after"] = ["pack"]


def spoil_mtbf(plant):
    plant["machines"][0]["failure"]["mtbf"] = 0


def spoil_routing(plant):
    plant["products"][1]["routing"] = {"entry": {"press": 1}, "press": {"press": 1}}


@pytest.mark.parametrize(
    "spoil, words",
    [
        (spoil_typo, ["machines.press_1.bufer", "no such field"]),
        (spoil_machine, ["products.arc.operations.press.modes.0.machine", "press_9"]),
        (spoil_duration, ["duration", "greater than 0", "-600"]),
        (spoil_cycle, ["products.arc.operations", "wait for each other"]),
        (spoil_mtbf, ["machines.press_1.failure.mtbf.mean", "greater than 0, not 0"]),
        (spoil_routing, ["products.block.routing.entry", "a route without end"]),
    ],
)
def test_factory(workbench, tmp_path, spoil, words, command="simulate"):
    plant = yaml.safe_load(FACTORY.read_text())
    spoil(plant)
    path = tmp_path / "plant.yaml"
    path.write_text(yaml.safe_dump(plant))
    refused(workbench(command, path), "plant.yaml", *words)


@pytest.mark.parametrize("command", ["schedule", "run"])
def test_factory_for_other_commands(workbench, tmp_path, command):
    test_factory(workbench, tmp_path, spoil_machine, ["press_9"], command)


@pytest.mark.parametrize(
    "text, words",
    [
        (FT06[:60], ["ft06.txt"]),
        (FT06.replace("4 10", "4 ten"), ["ft06.txt", "ten"]),
        (FT06.replace("2 1 0 3", "2 -1 0 3"), ["ft06.txt", "-1"]),
        (FT06.replace("2 1 0 3", "9 1 0 3"), ["ft06.txt", "9"]),
        ("", ["ft06.txt", "empty"]),
        ("\x00\x01\x02", ["ft06.txt"]),
    ],
    ids=["cut", "text", "negative", "machine", "empty", "binary"],
)
def test_instance(workbench, tmp_path, text, words):
    path = tmp_path / "ft06.txt"
    path.write_text(text)
    refused((workbench if text else workbench.fresh)("schedule", path), *words)


def test_instance_as_plant(workbench, tmp_path):
    path = tmp_path / "ft06.txt"
    path.write_text(FT06[:60])
    refused(workbench("run", "--instance", path), "ft06.txt")


def picture(kind: str, folder: Path) -> Path:
    "A file that is not quite a photo."
    path = folder / f"{kind}.png"
    good = np.full((224, 160), 128, np.uint8)
    if kind == "truncated":
        path.write_bytes(cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (224, 160), np.uint8))[1][:900])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is not an image")
    elif kind == "sixteen_bit":
        cv2.imwrite(str(path), good.astype(np.uint16) * 257)
    elif kind == "cmyk":
        from PIL import Image

        path = path.with_suffix(".jpg")
        Image.fromarray(np.dstack([good] * 4), "CMYK").save(path)
    return path


@pytest.mark.parametrize("kind", ["truncated", "empty", "text"])
def test_image_refused(workbench, tmp_path, kind):
    path = picture(kind, tmp_path)
    refused(workbench("inspect", BUNDLE, path), path.name)


@pytest.mark.parametrize("kind", ["sixteen_bit", "cmyk"])
def test_image_read_right_or_refused(workbench, tmp_path, kind):
    path = picture(kind, tmp_path)
    done = workbench("inspect", BUNDLE, path, "--out", tmp_path / "out")
    if done.returncode:
        refused(done, path.name)
    else:
        assert path.name in done.stdout


@pytest.mark.parametrize("part", ["model.onnx", "meta.json"])
@pytest.mark.parametrize("command", ["inspect", "run"])
def test_changed_bundle(workbench, tmp_path, part, command):
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLE, bundle)
    data = bytearray((bundle / part).read_bytes())
    data[len(data) // 2] ^= 255
    (bundle / part).write_bytes(data)
    photo = tmp_path / "a.png"
    cv2.imwrite(str(photo), np.full((224, 160), 128, np.uint8))
    arguments = ["inspect", bundle, photo] if command == "inspect" else ["run", "--model", bundle]
    refused(workbench(*arguments), "bundle")


def test_settings_with_a_wrong_key(workbench, tmp_path):
    (tmp_path / "settings.ini").write_text("[logging]\nlevle = INFO\n")
    refused(workbench("info", DTWB_ROOT=str(tmp_path)), "settings.ini", "levle")


def test_variable_with_a_wrong_key(workbench):
    refused(workbench("info", DTWB_LOGGING__LEVLE="INFO"), "DTWB_LOGGING__LEVLE")


def runs_of(data: Path) -> list[tuple[str, str]]:
    "The runs in a store, and how they ended; read by sqlite3 alone."
    with sqlite3.connect(data / "dtwb.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return connection.execute("SELECT id, status FROM runs ORDER BY id").fetchall()


def begin(data: Path, *args: str) -> subprocess.Popen:
    "Start `dtwb run` and wait until it has written events."
    environment = os.environ | placed(data)
    command = [sys.executable, "-m", "dtwb.cli", "run", *args]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        if (data / "dtwb.sqlite").exists():
            try:
                with sqlite3.connect(data / "dtwb.sqlite", timeout=10) as connection:
                    if connection.execute("SELECT count(*) FROM events").fetchone()[0]:
                        return process
            except sqlite3.OperationalError:
                pass
        time.sleep(0.05)
    raise AssertionError(f"no events in time: {process.communicate()}")


def test_interrupted_by_the_user(workbench):
    process = begin(workbench.data, "--replications", "50")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert [status for _, status in runs_of(workbench.data)] == ["cancelled"]


def test_killed(workbench):
    process = begin(workbench.data, "--replications", "50")
    process.kill()
    process.communicate()
    done = workbench.fresh("info", "--json")
    assert done.returncode == 0, done.stderr
    [(run, status)] = runs_of(workbench.data)
    assert status == "interrupted"
    with sqlite3.connect(workbench.data / "dtwb.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM events WHERE run_id = ?", [run]).fetchone()[0] > 0


def test_two_runs_at_once(workbench):
    first = begin(workbench.data, "--replications", "0")
    second = workbench.fresh("run", "--replications", "0", "--seed", "2")
    out, err = first.communicate(timeout=600)
    assert first.returncode == 0, out + err
    assert second.returncode == 0, second.stderr
    assert [status for _, status in runs_of(workbench.data)] == ["finished", "finished"]


@pytest.fixture
def small_disk(tmp_path):
    "A file system of four megabytes; needs root."
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system can only be mounted by root")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=False)


def place(folder: Path) -> dict[str, str]:
    return {"DTWB_PATHS__DATA": str(folder), "DTWB_PATHS__RUNS": str(folder / "runs")}


def test_full_disk(workbench, small_disk):
    first = workbench.fresh("simulate", FACTORY, **place(small_disk))
    assert first.returncode == 0, first.stderr
    before = runs_of(small_disk)
    with open(small_disk / "filler", "wb") as filler:
        try:
            while True:
                filler.write(b"0" * 65536)
                filler.flush()
        except OSError:
            pass
    refused(workbench("simulate", FACTORY, **place(small_disk)), "full")
    (small_disk / "filler").unlink()
    assert [run for run in runs_of(small_disk) if run in before] == before
    assert workbench("simulate", FACTORY, **place(small_disk)).returncode == 0


def test_read_only_disk(workbench, small_disk):
    assert workbench("simulate", FACTORY, **place(small_disk)).returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused(workbench("simulate", FACTORY, **place(small_disk)), "read")
