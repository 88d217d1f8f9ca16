"""Telemetry on disk: what a killed writer leaves, what a slice reads, how much memory it takes."""

import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from conftest import ROOT

from dtwb.core.errors import StoreError
from dtwb.store.telemetry import append_telemetry, read_telemetry

WRITER = """
import sys
sys.path[:0] = ["tests", "."]
from test_telemetry import append_telemetry, readings
row = 0
while True:
    append_telemetry(sys.argv[1], readings(row, 7), chunk=50)
    row += 7
    print(row, flush=True)
"""


def readings(first: int, n: int, machines: int = 3) -> xr.Dataset:
    "Rows whose values say which row they are."
    rows = np.arange(first, first + n, dtype=float)
    value = rows[:, None] + np.arange(machines) / 10
    coords = {"time": ("time", 60 * rows, {"units": "s"}), "machine": [f"m{i}" for i in range(machines)]}
    dims = "time", "machine"
    data = {"vibration": (dims, value, {"units": "mm/s"}), "current": (dims, -value, {"units": "A"})}
    return xr.Dataset(data, coords)


def test_a_killed_writer_leaves_whole_rows_and_the_next_goes_on(tmp_path):
    path = tmp_path / "telemetry.zarr"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    told = 0
    for line in writer.stdout:  # killed wherever it is, after a while
        told = int(line)
        if told > 140:
            time.sleep(np.random.default_rng().uniform(0, 0.02))
            break
    writer.kill()
    told = max([told, *(int(line) for line in writer.stdout)])
    writer.wait()
    data = read_telemetry(path)
    rows = data.sizes["time"]
    assert rows >= told and rows % 7 == 0
    xr.testing.assert_identical(data, readings(0, rows))
    assert append_telemetry(path, readings(rows, 30)) == rows + 30
    xr.testing.assert_identical(read_telemetry(path), readings(0, rows + 30))


@pytest.mark.parametrize("array", ["time", "current", "vibration"])
def test_an_append_that_dies_half_way_does_not_count(tmp_path, monkeypatch, array):
    import zarr

    path = tmp_path / "telemetry.zarr"
    append_telemetry(path, readings(0, 30), chunk=20)
    write = zarr.Array.__setitem__

    def full(self, selection, value):
        if self.name.endswith(array):
            raise OSError(28, "No space left on device")
        write(self, selection, value)

    with monkeypatch.context() as patched:
        patched.setattr(zarr.Array, "__setitem__", full)
        with pytest.raises(StoreError, match=r"No space left.*what was stored before is intact"):
            append_telemetry(path, readings(30, 30))
    xr.testing.assert_identical(read_telemetry(path), readings(0, 30))
    append_telemetry(path, readings(30, 5))
    xr.testing.assert_identical(read_telemetry(path), readings(0, 35))


def test_a_slice_touches_only_its_chunks(tmp_path):
    path = tmp_path / "telemetry.zarr"
    append_telemetry(path, readings(0, 1000), chunk=100)
    for file in (path / "vibration").glob("[0-9]*"):
        if file.name not in ("4.0", "5.0"):
            file.write_bytes(b"spoilt")
    for file in (path / "current").glob("[0-9]*"):
        file.unlink()
    part = read_telemetry(path, 450 * 60, 549 * 60, ["m2"], ["vibration"])
    xr.testing.assert_identical(part, readings(450, 100)[["vibration"]].isel(machine=[2]))
    with pytest.raises(StoreError, match="vibration is damaged"):
        read_telemetry(path, sensors=["vibration"])
    with pytest.raises(StoreError, match="current has lost its rows 400 to 499"):
        read_telemetry(path, 450 * 60, 549 * 60)


def test_memory_does_not_grow_with_what_is_there(tmp_path):
    path = tmp_path / "telemetry.zarr"
    append_telemetry(path, readings(0, 500, 40), chunk=500)
    tracemalloc.start()
    for first in range(500, 10_000, 500):
        append_telemetry(path, readings(first, 500, 40))
    read_telemetry(path, 9000 * 60, 9100 * 60)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000 * 40 * 8 / 2  # half of what one sensor's readings take


def test_it_says_what_is_no_telemetry(tmp_path):
    with pytest.raises(StoreError, match="there is no telemetry"):
        read_telemetry(tmp_path / "nothing.zarr")
    readings(0, 3).to_zarr(tmp_path / "other.zarr", zarr_format=2, consolidated=False)
    with pytest.raises(StoreError, match="it is no telemetry"):
        read_telemetry(tmp_path / "other.zarr")
