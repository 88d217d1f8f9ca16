"""Results of sweeps: whatever is in the folders, what they say is there, once, and can be drawn and taken elsewhere."""

import json
import os

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtwb.core.errors import SweepError
from dtwb.sweeps.pictures import KINDS, averaged, picture
from dtwb.sweeps.recorded import SWEEPS, find_sweep, findings, recorded_sweeps
from dtwb.sweeps.results import load_sweep
from dtwb.sweeps.space import check_values
from dtwb.twin.replications import mean_interval

LOADED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def write(folder, parameters, result=None, **more):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"parameters": parameters, "how": "finished"} | more))
    (folder / "result.json").write_text(json.dumps(result or {}))


def write_arrays(folder, **arrays):
    data = {name: (dims, np.array(values)) for name, (dims, values) in arrays.items() if dims != "labels"}
    labels = {name: values for name, (dims, values) in arrays.items() if dims == "labels"}
    xr.Dataset(data, labels).to_zarr(folder / "arrays.zarr", consolidated=False, zarr_format=2)


# what is in the folders

NAMES = st.sampled_from(["a", "b", "seed", "run", "how", "sizes", "dims", "y", "started"])
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(), st.text(max_size=4), st.lists(st.integers())
)


@given(st.lists(st.tuples(st.dictionaries(NAMES, VALUES, max_size=3), st.dictionaries(NAMES, VALUES, max_size=3))))
@settings(LOADED, max_examples=60)
def test_any_names_and_values_become_arrays_tables_and_files(tmp_path_factory, runs):
    folder = tmp_path_factory.mktemp("sweep")
    for i, (parameters, result) in enumerate(runs):
        write(folder / f"r{i}", parameters, result)
    sweep = load_sweep(folder)
    data = sweep.results()
    assert sorted(filter(None, data.run.values.ravel())) == sorted(set(data.run.values.ravel()) - {""})
    assert {"run", "how"} <= set(map(str, data.variables)) and "run" not in sweep.swept and "how" not in sweep.measured
    assert len(sweep.to_dataframe()) == len(runs)
    again = xr.open_dataset(sweep.save(folder.with_suffix(".nc")), engine="scipy").load()
    assert dict(again.sizes) | {} == {k: v for k, v in data.sizes.items()} or not data.sizes
    for name in sweep.measured:
        if name in data.data_vars:
            np.testing.assert_array_equal(again[name].values, data[name].values)
    assert len(pd.read_csv(sweep.save(folder.with_suffix(".csv")))) == len(runs)


def test_what_is_no_folder_of_a_run_is_named_or_left_alone(tmp_path):
    folder = tmp_path / "s"
    for i in range(3):
        write(folder / f"g{i}", {"a": i}, {"y": i})
    (folder / "link").symlink_to(folder / "g0")
    (folder / "up").symlink_to("/")
    (folder / "g1" / "result.json").unlink()
    (folder / "g1" / "result.json").symlink_to("/etc/passwd")
    os.mkfifo(folder / "g2" / "log.txt")
    with open(folder / "sweep.json", "wb") as file:
        file.truncate(5_000_000_000)  # a sparse file: nothing of it is on the disk
    os.mkfifo(folder / ".index.json")
    (folder / "a b").mkdir()
    (folder / ".g0.tmp").mkdir()  # the run has been made since
    write(folder / ".late.tmp", {"a": 3}, {"y": 3}, how="running")
    sweep = load_sweep(folder)
    assert {run.id: run.how for run in sweep.runs} == {
        "g0": "finished",
        "g1": "unreadable",
        "g2": "finished",
        "late": "running",
    }
    told = " ".join(sweep.problems)
    assert "sweep.json: it is too large" in told and "'a b'" in told and "g1: result.json" in told


def test_runs_by_an_older_version_of_the_code_are_not_mixed_in(tmp_path):
    for i, code in enumerate(["old", "new", None]):
        write(tmp_path / f"r{i}", {"a": 1 if i < 2 else 2}, {"y": i}, **({"code": code} if code else {}))
    (tmp_path / "sweep.json").write_text(json.dumps({"code": "new", "axes": {"a": [1, 2]}}))
    sweep = load_sweep(tmp_path)
    assert sorted(run.id for run in sweep.runs) == ["r1", "r2"] and sweep.results().y.values.tolist() == [1, 2]
    assert sweep.problems == ["1 runs are by another version of the code"]
    assert len(load_sweep(tmp_path, outdated=True).runs) == 3


def test_arrays_of_other_lengths_and_labels_go_together(tmp_path):
    for i in range(3):
        write(tmp_path / f"r{i}", {"a": i}, {"y": i})
    write_arrays(tmp_path / "r0", short=("t", [1.0, 2.0]), level=("h", [1.0, 2.0]), h=("labels", [1, 2]))
    write_arrays(tmp_path / "r1", short=("t", [3.0, 4.0, 5.0]), level=("h", [7.0, 8.0]), h=("labels", [2, 3]))
    write_arrays(tmp_path / "r2", other=("t", [9.0]), twice=("k", [1.0, 2.0]), k=("labels", [1, 1]))
    data = load_sweep(tmp_path).results(arrays=True)
    np.testing.assert_array_equal(data.short.sel(a=0), [1, 2, np.nan])
    np.testing.assert_array_equal(data.short.sel(a=1), [3, 4, 5])
    np.testing.assert_array_equal(data.other.sel(a=2), [9, np.nan, np.nan])
    np.testing.assert_array_equal(data.level.sel(a=[0, 1], h=[1, 2, 3]), [[1, 2, np.nan], [np.nan, 7, 8]])
    frame = averaged(data, "level", ["h"], {})
    assert frame["mean"].tolist() == [1, 4.5, 8] and frame.runs.tolist() == [1, 2, 1]


# pictures


@pytest.fixture(scope="module")
def buffers():
    return load_sweep(find_sweep("line_buffers"))


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_every_picture_is_a_file(buffers, kind):
    how = {"against": "blocked", "lines": "repair"} if kind == "tradeoff" else {}
    assert b"<svg" in picture(buffers.plot("throughput", kind, **how))


def test_means_over_seeds_are_those_of_students_t(buffers):
    data = buffers.results()
    row = averaged(data, "throughput", ["places"], {"repair": 15}).set_index("places").loc[8]
    expected = mean_interval(data.throughput.sel(places=8, repair=15).values)
    assert (row["mean"], row.low, row.high, row.runs) == (expected.mean, expected.low, expected.high, 3)


def test_what_cannot_be_drawn_is_said(buffers):
    for words, ask in {
        "there is no 'speed'": lambda: buffers.plot("speed"),
        "there is no picture 'pie'": lambda: buffers.plot("throughput", "pie"),
        "there is no 'plces'": lambda: buffers.plot("throughput", x="plces"),
        "no run has 'throughput' there": lambda: buffers.plot("throughput", at={"repair": 0.0}),
    }.items():
        with pytest.raises(SweepError, match=words):
            ask()


# experiments


@pytest.mark.parametrize("name", SWEEPS)
def test_a_recorded_sweep_is_one_of_its_template(name):
    template = ROOT / "nbs" / "experiments" / f"{name}.ipynb"
    sweep = load_sweep(find_sweep(name))
    points = [dict(point) for point in SWEEPS[name]]
    axes = {key: [point[key] for point in points if key in point] for key in points[0]}
    check_values(axes, template)
    made = {tuple(sorted(run.parameters.items())) for run in sweep.runs}
    assert made == {tuple(sorted(point.items())) for point in points} and len(sweep.runs) == len(points)
    told = {cell["source"][0] for cell in json.loads(template.read_text())["cells"] if cell["metadata"].get("tags")}
    assert "## What a sweep of it says\n" in told
    assert name in recorded_sweeps()


def test_within_a_run_there_is_nothing_to_say_yet(monkeypatch):
    assert findings("line_buffers", "held_up", x="places") is not None
    monkeypatch.setenv("DTWB_RECORD", "somewhere")
    assert findings("line_buffers", "held_up", x="places") is None
