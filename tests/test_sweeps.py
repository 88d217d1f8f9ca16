"""Sweeps: what a folder of runs says, whoever wrote it; runs made once; a recorded sweep that can be made again."""

import json
import math
import shutil

import numpy as np
import pytest
import xarray as xr
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtwb.core.errors import StoreError, SweepError
from dtwb.sweeps.recorded import find_sweep
from dtwb.sweeps.results import Sweep, SweepRun, list_sweeps, read_arrays
from dtwb.sweeps.runner import run_sweep
from dtwb.sweeps.space import Space
from dtwb.sweeps.template import read_template, run_id

LOADED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
TEMPLATE = ROOT / "nbs" / "experiments" / "line_buffers.ipynb"


def write(folder, parameters, result=None, **more):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"parameters": parameters, "how": "finished"} | more))
    (folder / "result.json").write_text(json.dumps(result or {}))


VALUES = st.one_of(st.integers(-5, 5), st.floats(-9, 9), st.sampled_from(["air", "argon"]), st.booleans(), st.none())
POINTS = st.dictionaries(
    st.tuples(VALUES, st.integers(0, 4)), st.one_of(st.none(), st.floats(-1e9, 1e9)), min_size=2, max_size=12
)


@given(POINTS)
@settings(LOADED, max_examples=60)
def test_every_result_is_where_its_parameters_say(points):
    runs = [
        SweepRun(f"r{i}", parameters={"a": a, "b": b}, result={} if value is None else {"y": value})
        for i, ((a, b), value) in enumerate(points.items())
    ]
    sweep = Sweep(ROOT, runs)
    data = sweep.results(by_run=False) if sweep.swept else sweep.results()
    ids = data.run.values.ravel().tolist()
    assert sorted(filter(None, ids)) == sorted(run.id for run in runs)
    assert (data.how.values.ravel() == "missing").sum() == ids.count("")
    for run in runs:
        value = data["y"].values.ravel()[ids.index(run.id)] if "y" in data else math.nan
        assert np.array_equal(value, run.result.get("y", math.nan), equal_nan=True)


@given(
    st.dictionaries(
        st.sampled_from(["run.json", "result.json", "out.ipynb", "log.txt"]),
        st.one_of(
            st.binary(max_size=60),
            st.recursive(
                st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=9)),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from("parameters how started ended error metadata papermill cells".split())
                        | st.text(max_size=6),
                        inner,
                        max_size=4,
                    )
                ),
                max_leaves=12,
            ).map(lambda data: json.dumps(data).encode()),
        ),
        max_size=4,
    )
)
@settings(LOADED, max_examples=150)
def test_no_folder_is_fatal(tmp_path, files):
    shutil.rmtree(tmp_path / "s", ignore_errors=True)
    write(tmp_path / "s" / "good1", {"a": 1}, {"y": 2})
    write(tmp_path / "s" / "good2", {"a": 2}, {"y": 3})
    (tmp_path / "s" / "odd").mkdir()
    for name, content in files.items():
        (tmp_path / "s" / "odd" / name).write_bytes(content)
    (tmp_path / "s" / "sweep.json").write_bytes(files.get("run.json", b"{}"))
    sweep = Sweep.load(tmp_path / "s")
    assert {"good1", "good2"} <= set(sweep.by_id)
    assert sweep.results().to_dataframe() is not None and len(sweep.to_dataframe()) == 3
    assert isinstance(sweep.traceback("odd"), str)


def test_an_index_that_lies_is_not_believed(tmp_path):
    folder = tmp_path / "s"
    for i in range(250):
        write(folder / f"r{i}", {"a": i}, {"y": i})
    first = Sweep.load(folder).results()
    index = json.loads((folder / ".index.json").read_text())
    assert len(index) == 250 and Sweep.load(folder).results().identical(first)
    index["r7"][1][1] = {"<script>": 1}
    for text in (json.dumps(index), "[]", '{"r1": 3}', "{", ""):
        (folder / ".index.json").write_text(text)
        assert Sweep.load(folder).results().identical(first)
    shutil.rmtree(folder / "r7")
    write(folder / "r7", {"a": 7}, {"y": -1})
    assert Sweep.load(folder).results().y.sel(a=7) == -1


def test_arrays_that_lead_elsewhere_are_not_read(tmp_path):
    xr.DataArray(np.arange(4.0), dims="t", name="level").to_dataset().to_zarr(
        tmp_path / "arrays.zarr", consolidated=False, zarr_format=2
    )
    assert read_arrays(tmp_path)["level"].values.tolist() == [0, 1, 2, 3]
    chunk = tmp_path / "arrays.zarr" / "level" / "0"
    chunk.unlink()
    chunk.symlink_to("/etc/passwd")
    with pytest.raises(StoreError, match=r"arrays\.zarr"):
        read_arrays(tmp_path)


def test_a_sweep_is_made_once_and_like_the_recorded_one(tmp_path):
    "By plain papermill in real kernels: a run that finishes, and one that fails with its traceback."
    recorded = Sweep.load(find_sweep("line_buffers"))
    wanted = recorded.best("throughput")
    broken = {"places": 0, "repair": 0.0, "seed": 0}
    folder = run_sweep(TEMPLATE, [wanted.parameters, broken], "again", tmp_path)
    sweep = Sweep.load(folder)
    assert {run.how for run in sweep.runs} == {"finished", "failed"}
    good, bad = (next(run for run in sweep.runs if run.how == how) for how in ("finished", "failed"))
    assert good.result == pytest.approx(wanted.result, rel=1e-9)
    assert read_arrays(folder / good.id)["rate"].sizes == {"hour": 20}
    assert "FactoryError" in bad.error and "machines.m1.failure.mttr.mean" in sweep.traceback(bad.id)
    assert "\x1b" not in sweep.traceback(bad.id)
    made = (folder / good.id).stat().st_mtime_ns
    shutil.rmtree(folder / bad.id)
    (folder / f".{bad.id}.tmp").mkdir()  # killed in the middle of it
    (folder / f".{bad.id}.tmp" / "run.json").write_text("{")
    assert [run.how for run in Sweep.load(folder).runs if run.id == bad.id] == ["running"]
    run_sweep(TEMPLATE, [wanted.parameters], "again", tmp_path)
    assert (folder / good.id).stat().st_mtime_ns == made
    assert [path.name for path in list_sweeps(tmp_path)] == ["again"]


def test_templates_that_cannot_be_swept(tmp_path):
    with pytest.raises(SweepError, match="cannot be read"):
        read_template(tmp_path / "nowhere.ipynb")
    (tmp_path / "x.ipynb").write_text("[1]")
    with pytest.raises(SweepError, match="not a notebook"):
        read_template(tmp_path / "x.ipynb")
    with pytest.raises(SweepError, match="no name for a sweep"):
        run_sweep(TEMPLATE, [{"places": 1}], "../up", tmp_path)
    with pytest.raises(SweepError, match="no point"):
        run_sweep(TEMPLATE, [], "empty", tmp_path)
    notebook = read_template(TEMPLATE)
    assert run_id(notebook, {"places": 1}) != run_id(notebook, {"places": 1}, code="another")


@pytest.mark.parametrize(
    "points, words",
    [
        ([{"plces": 1}], "it has no parameter 'plces'"),
        ([{"places": 1}, {"places": "two"}], "'two' is not of type int"),
        (Space({"repair": [5.0]}, seeds=[1, 2.5]), "2.5 is not of type int"),
    ],
)
def test_what_the_template_does_not_take_is_refused_before_anything_runs(tmp_path, points, words):
    with pytest.raises(SweepError, match=words):
        run_sweep(TEMPLATE, points, "wrong", tmp_path)
    assert not (tmp_path / "wrong").exists()


def test_a_template_with_a_mistake_is_refused(tmp_path):
    notebook = json.loads(TEMPLATE.read_text())
    notebook["cells"][9]["source"] = "def broken(:"
    (tmp_path / "broken.ipynb").write_text(json.dumps(notebook))
    with pytest.raises(SweepError, match=r"broken\.ipynb: cell 10: invalid syntax"):
        run_sweep(tmp_path / "broken.ipynb", [{"places": 1}], "wrong", tmp_path)
