"""Telemetry: what a killed writer leaves, what a slice reads; wear and sensors rebuilt from a run, and closed forms."""

import inspect
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import xarray as xr
import yaml
from conftest import ROOT

from dtwb.core.errors import StoreError
from dtwb.core.factory import Factory
from dtwb.store.telemetry import append_telemetry, read_telemetry
from dtwb.twin.degradation import first_passage, readings, telemetry, wear_path
from dtwb.twin.kpis import status_intervals
from dtwb.twin.simulation import simulate

WRITER = """
import sys

import numpy as np
import xarray as xr

from dtwb.store.telemetry import append_telemetry

{made_up}
row = 0
while True:
    append_telemetry(sys.argv[1], made_up(row, 7), chunk=50)
    row += 7
    print(row, flush=True)
"""


def made_up(first: int, n: int, machines: int = 3) -> xr.Dataset:
    "Rows whose values say which row they are."
    rows = np.arange(first, first + n, dtype=float)
    value = rows[:, None] + np.arange(machines) / 10
    coords = {"time": ("time", 60 * rows, {"units": "s"}), "machine": [f"m{i}" for i in range(machines)]}
    dims = "time", "machine"
    data = {"vibration": (dims, value, {"units": "mm/s"}), "current": (dims, -value, {"units": "A"})}
    return xr.Dataset(data, coords)


def test_a_killed_writer_leaves_whole_rows_and_the_next_goes_on(tmp_path):
    path = tmp_path / "telemetry.zarr"
    program = WRITER.format(made_up=inspect.getsource(made_up))
    writer = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    told = 0
    for line in writer.stdout:  # killed wherever it is by then
        told = int(line)
        if told > 140:
            break
    writer.kill()
    told = max([told, *(int(line) for line in writer.stdout)])
    writer.wait()
    data = read_telemetry(path)
    rows = data.sizes["time"]
    assert rows >= told and rows % 7 == 0
    xr.testing.assert_identical(data, made_up(0, rows))
    assert append_telemetry(path, made_up(rows, 30)) == rows + 30
    xr.testing.assert_identical(read_telemetry(path), made_up(0, rows + 30))


@pytest.mark.parametrize("array", ["time", "current", "vibration"])
def test_an_append_that_dies_half_way_does_not_count(tmp_path, monkeypatch, array):
    import zarr

    path = tmp_path / "telemetry.zarr"
    append_telemetry(path, made_up(0, 30), chunk=20)
    write = zarr.Array.__setitem__

    def full(self, selection, value):
        if self.name.endswith(array):
            raise OSError(28, "No space left on device")
        write(self, selection, value)

    with monkeypatch.context() as patched:
        patched.setattr(zarr.Array, "__setitem__", full)
        with pytest.raises(StoreError, match=r"No space left.*what was stored before is intact"):
            append_telemetry(path, made_up(30, 30))
    xr.testing.assert_identical(read_telemetry(path), made_up(0, 30))
    append_telemetry(path, made_up(30, 5))
    xr.testing.assert_identical(read_telemetry(path), made_up(0, 35))


@pytest.mark.parametrize("longer", ["time", "current", "vibration"])
def test_a_writer_killed_while_it_made_room_is_read_as_far_as_it_counts(tmp_path, longer):
    import zarr

    path = tmp_path / "telemetry.zarr"
    append_telemetry(path, made_up(0, 30), chunk=20)
    array = zarr.open_group(path, mode="r+")[longer]
    array.resize((37, *array.shape[1:]))
    xr.testing.assert_identical(read_telemetry(path), made_up(0, 30))


def test_a_slice_touches_only_its_chunks(tmp_path):
    path = tmp_path / "telemetry.zarr"
    append_telemetry(path, made_up(0, 1000), chunk=100)
    for file in (path / "vibration").glob("[0-9]*"):
        if file.name not in ("4.0", "5.0"):
            file.write_bytes(b"spoilt")
    for file in (path / "current").glob("[0-9]*"):
        file.unlink()
    part = read_telemetry(path, 450 * 60, 549 * 60, ["m2"], ["vibration"])
    xr.testing.assert_identical(part, made_up(450, 100)[["vibration"]].isel(machine=[2]))
    with pytest.raises(StoreError, match="vibration is damaged"):
        read_telemetry(path, sensors=["vibration"])
    with pytest.raises(StoreError, match="current has lost its rows 400 to 499"):
        read_telemetry(path, 450 * 60, 549 * 60)


def test_memory_does_not_grow_with_what_is_there(tmp_path):
    path = tmp_path / "telemetry.zarr"
    append_telemetry(path, made_up(0, 500, 40), chunk=500)
    tracemalloc.start()
    for first in range(500, 6_000, 500):
        append_telemetry(path, made_up(first, 500, 40))
    read_telemetry(path, 5000 * 60, 5100 * 60)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6_000 * 40 * 8 / 2  # half of what one sensor's readings take


def test_it_says_what_is_no_telemetry(tmp_path):
    with pytest.raises(StoreError, match="there is no telemetry"):
        read_telemetry(tmp_path / "nothing.zarr")
    made_up(0, 3).to_zarr(tmp_path / "other.zarr", zarr_format=2, consolidated=False)
    with pytest.raises(StoreError, match="it is no telemetry"):
        read_telemetry(tmp_path / "other.zarr")


HARD = """
name: hard
calendars: [{id: shift, period: 1000, open: [[0, 700]]}]
machines:
  - id: two
    capacity: 2
    degradation: {life: 3000, cv: 0.5, defects: {scratch: 1}}
    failure: {mtbf: {distribution: exponential, mean: 900}, mttr: 40}
  - id: oven
    batch_capacity: 3
    degradation: {life: 4000, cv: 0.3, defects: {crack: 1}}
    sensors: [{id: temperature, unit: degC, new: 900, worn: 960, noise: 4}, {id: current, unit: A, new: 20, worn: 20}]
    maintenance: {duration: 60, every: 1500}
  - id: press
    calendar: shift
    closing: pause
    degradation: {life: 5000, cv: 0, defects: {crack: 1}}
    sensors: [{id: current, unit: A, new: 10, worn: 12, noise: 0.1}]
    failure: {mtbf: {distribution: weibull, mean: 700, shape: 2}, mttr: 30}
    maintenance: {duration: 50, at_wear: 0.3}
products:
  - id: a
    operations:
      - {id: turn, modes: [{machine: two, duration: {distribution: lognormal, mean: 50, cv: 0.4}}]}
      - {id: bake, modes: [{machine: oven, duration: {distribution: lognormal, mean: 120, cv: 0.3}}]}
      - {id: press, modes: [{machine: press, duration: {distribution: gamma, mean: 40, cv: 0.5}}]}
orders: [{id: o, product: a, quantity: 90}]
"""


@pytest.mark.parametrize("seed, engine, antithetic", [(1, "simpy", False), (2, "simpy", True), (3, "fast", False)])
def test_what_was_recorded_is_what_is_rebuilt(seed, engine, antithetic):
    "With servers side by side, batches, work that stops at the end of a shift, failures and maintenance."
    factory = Factory.model_validate(yaml.safe_load(HARD))
    how = {"rule": "fifo", "seed": seed, "engine": engine, "antithetic": antithetic}
    run = simulate(factory, **how, record_sensors=True)
    told = [(e.time, e.subject, e.sensor, e.value, e.unit) for e in run.events if e.kind == "SensorRead"]
    kinds = {e.kind for e in run.events}
    assert {"OperationInterrupted", "MaintenanceFinished", "MachineRepaired"} <= kinds and len(told) > 200
    rebuilt = readings(run)
    assert [tuple(row[i] for i in (0, 1, 2, 4)) for row in rebuilt.itertuples(index=False)] == [
        (time, machine, sensor, unit) for time, machine, sensor, _, unit in told
    ]
    np.testing.assert_allclose(rebuilt.value, [value for *_, value, _ in told], rtol=1e-9)
    quiet = simulate(factory, **how)
    np.testing.assert_array_equal(readings(quiet).value, rebuilt.value)


def test_without_disturbances_nothing_wears_and_nothing_is_read():
    factory = Factory.model_validate(yaml.safe_load(HARD))
    run = simulate(factory, rule="fifo", disturbances=False, record_sensors=True, engine="simpy")
    assert not [e for e in run.events if e.kind == "SensorRead"] and readings(run).empty
    assert all(path.wear.max() == 0 for path in wear_path(run).values())


def test_telemetry_shows_the_wear_where_there_is_no_noise():
    factory = Factory.model_validate(yaml.safe_load(HARD.replace("noise: 0.1", "noise: 0")))
    run = simulate(factory, rule="fifo", seed=3)
    data, path = telemetry(run, every=5), wear_path(run)["press"]
    shown, times = data.current.sel(machine="press"), data.time.values
    at_work = np.isfinite(shown.values)
    np.testing.assert_allclose(shown.values[at_work], 10 + 2 * path.at(times[at_work]), rtol=1e-6)
    running = np.zeros(len(times), bool)
    intervals = status_intervals(run.events)
    for _, _, start, end in intervals[(intervals.machine == "press") & (intervals.status == "RUNNING")].itertuples(
        False
    ):
        running |= (times >= start) & (times < end)
    np.testing.assert_array_equal(at_work, running)
    assert data.temperature.sel(machine="press").isnull().all()
    assert (data.current.units, data.temperature.units) == ("A", "degC")


def test_maintenance_at_a_wear_is_a_first_passage():
    "How many pieces of work fit between two maintenances, against the closed form of the gamma process."
    wears = {"life": 1000, "cv": 0.6, "defects": {"crack": 1}}
    press = {"id": "press", "degradation": wears, "maintenance": {"duration": 10, "at_wear": 0.45}}
    route = [{"id": "press", "modes": [{"machine": "press", "duration": 50}]}]
    jobs = {"id": "s", "products": {"a": 1}, "interarrival": 60, "limit": 2500}
    data = {"name": "one", "machines": [press], "products": [{"id": "a", "operations": route}], "sources": [jobs]}
    run = simulate(factory := Factory.model_validate(data), rule="fifo", seed=7)
    kinds = "".join({"OperationFinished": "f", "MaintenanceStarted": "m"}.get(e.kind, "") for e in run.events)
    counts = np.array([len(pieces) for pieces in kinds.split("m")[:-1]])
    n = np.arange(60)
    above = 1 - first_passage(factory.machine("press").degradation, 50, 0.45, n[1:])  # more than n
    mean = 1 + above.sum()
    variance = 1 + ((2 * n[1:] + 1) * above).sum() - mean**2
    assert abs(counts.mean() - mean) < 4 * (variance / len(counts)) ** 0.5
    assert abs((counts <= 9).mean() - (1 - above[8])) < 4 * (0.25 / len(counts)) ** 0.5
