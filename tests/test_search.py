"""Searches: shared by processes, killed and gone on with, failing in part; and `dtwb sweep` as its user meets it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import nbformat
import pytest
from test_store import postgres  # noqa: F401
from typer.testing import CliRunner

from dtwb.cli import app
from dtwb.core.errors import SweepError
from dtwb.core.settings import settings
from dtwb.store.database import write_json
from dtwb.sweeps.record import Pruned, pipes, record
from dtwb.sweeps.results import load_sweep
from dtwb.sweeps.search import load_search, search
from dtwb.sweeps.space import Range, Space

WIDE = {"x": Range(-4.0, 4.0), "y": Range(-4.0, 4.0)}


def write_template(path, parameters, *cells):
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)]), path)
    return path


@pytest.fixture
def bowl(tmp_path):
    return write_template(tmp_path / "bowl.ipynb", "x = 0.0\ny = 0.0\nseed = 0")


def in_place(template, parameters, folder, **options):
    "A run without a kernel, to see how the search does."
    folder.mkdir()
    loss = parameters["x"] ** 2 + parameters["y"] ** 2 + parameters.get("seed", 0)
    write_json(folder / "result.json", {"loss": loss})
    write_json(folder / "run.json", {"parameters": parameters, "how": "finished"})


def wait_for(condition):
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def process(function, *arguments):
    started = multiprocessing.get_context("fork").Process(target=function, args=arguments, daemon=True)
    started.start()
    return started


def go_on(template, root, trials, make_run, **options):
    options = {"executor": "serial", "root": root, "make_run": make_run} | options
    return search(template, WIDE, {"loss": "min"}, trials=trials, **options)


def test_killed_and_gone_on_with_it_makes_the_trials_it_would_have_made(bowl, tmp_path):
    whole = go_on(bowl, tmp_path / "whole", 9, in_place).to_dataframe()

    def stuck(template, parameters, folder, **options):
        if len(load_sweep(folder.parent).runs) == 5:
            (tmp_path / "reached").touch()
            time.sleep(3600)
        in_place(template, parameters, folder)

    killed = process(go_on, bowl, tmp_path / "parts", 9, stuck)
    wait_for((tmp_path / "reached").exists)
    killed.kill()
    killed.join()
    assert [*load_search("bowl", tmp_path / "parts").to_dataframe().how] == ["finished"] * 5 + ["running"]
    parts = go_on(bowl, tmp_path / "parts", 9, in_place).to_dataframe()
    assert parts.drop(columns="seconds").equals(whole.drop(columns="seconds"))
    assert len(go_on(bowl, tmp_path / "parts", 9, in_place).trials) == 9  # nothing is left to do


def test_two_processes_share_a_study(bowl, tmp_path):
    calls = tmp_path / "calls"
    calls.mkdir()

    def both(template, parameters, folder, **options):
        (calls / f"{os.getpid()}-{folder.name}").touch()
        wait_for(lambda: len({path.name.partition("-")[0] for path in calls.iterdir()}) == 2)
        in_place(template, parameters, folder)

    team = [process(go_on, bowl, tmp_path, 12, both) for _ in range(2)]
    for one in team:
        one.join()
        assert one.exitcode == 0
    found = load_search("bowl", tmp_path)
    table = found.to_dataframe()
    assert [*table.trial] == [*range(12)] and set(table.how) == {"finished"}
    made = [path.name.partition("-")[2] for path in calls.iterdir()]
    assert sorted(made) == sorted(run.id for run in found.sweep.runs) == sorted(run for (run,) in table.runs)


def test_failed_runs_are_failed_trials_and_seeds_are_replications(bowl, tmp_path):
    def fragile(template, parameters, folder, **options):
        in_place(template, parameters, folder)
        if parameters["x"] > 0:
            write_json(folder / "run.json", {"parameters": parameters, "how": "failed", "error": "ValueError: x > 0"})

    space = Space(WIDE, "random", draws=1, seeds=(0, 1, 5))
    found = search(bowl, space, {"loss": "min"}, trials=12, root=tmp_path, executor="serial", make_run=fragile)
    table = found.to_dataframe()
    assert set(table.how) == {"finished", "failed"} and len(table) == 12
    for row in table.itertuples():
        if row.how == "failed":
            assert row.x > 0 and "ValueError: x > 0" in row.error
        else:
            assert len(row.runs) == 3 and row.loss == pytest.approx(row.x**2 + row.y**2 + 2)
    assert found.best["x"] <= 0


def test_a_run_does_not_wait_for_a_search_that_has_died(tmp_path, monkeypatch):
    folder = tmp_path / ".0123.tmp"
    folder.mkdir()
    for path in pipes(folder):
        os.mkfifo(path)
    ends = [os.open(path, os.O_RDWR) for path in pipes(folder)]
    monkeypatch.setenv("DTWB_RECORD", str(folder))
    run = threading.Thread(target=record, kwargs={"loss": 1.0, "step": 0}, daemon=True)
    run.start()
    assert os.read(ends[0], 99) == b'{"step": 0, "loss": 1.0}\n'
    for end in ends:
        os.close(end)
    run.join(300)
    assert not run.is_alive()
    record(loss=0.5, step=1)  # nobody listens
    ends = [os.open(path, os.O_RDWR) for path in pipes(folder)]
    os.write(ends[1], b"prune\n")
    with pytest.raises(Pruned, match="step 2"):
        record(loss=0.4, step=2)
    for end in ends:
        os.close(end)
    assert len((folder / "progress.jsonl").read_text().splitlines()) == 3


def test_a_search_is_not_taken_for_another(bowl, tmp_path):
    go_on(bowl, tmp_path, 1, in_place)
    with pytest.raises(SweepError, match="another space"):
        search(bowl, {"x": Range(0.0, 1.0)}, {"loss": "min"}, trials=2, root=tmp_path, make_run=in_place)
    with pytest.raises(SweepError, match="there is no sampler 'magic'"):
        go_on(bowl, tmp_path, 2, in_place, sampler="magic")
    with pytest.raises(SweepError, match="'most' is neither max nor min"):
        search(bowl, WIDE, {"loss": "most"}, trials=2, root=tmp_path)


def test_postgresql_holds_a_study(bowl, tmp_path, postgres):  # noqa: F811
    for trials in 3, 5:
        found = go_on(bowl, tmp_path, trials, in_place, storage=postgres)
    assert [*found.to_dataframe().how] == ["finished"] * 5
    assert len(load_search("bowl", tmp_path, storage=postgres).trials) == 5


def test_runs_are_in_mlflow_once(tmp_path):
    pytest.importorskip("mlflow", reason="mlflow, an extra of dtwb, is not installed")
    from dtwb.sweeps.tracking import track_sweep

    folder, uri = tmp_path / "line" / "0123", f"sqlite:///{tmp_path / 'mlflow.db'}"
    folder.mkdir(parents=True)
    about = {"parameters": {"x": 1}, "how": "failed", "error": "ValueError: no", "ended": "2026-11-26T07:00:00+00:00"}
    write_json(folder / "run.json", about)
    assert [track_sweep(tmp_path / "line", uri) for _ in range(2)] == [1, 0]
    write_json(folder / "run.json", about | {"how": "finished", "error": None, "ended": "2026-11-26T08:00:00+00:00"})
    write_json(folder / "result.json", {"loss": 0.5})
    assert [track_sweep(tmp_path / "line", uri) for _ in range(2)] == [1, 0]
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("line").experiment_id])
    assert run.info.status == "FINISHED" and run.data.metrics == {"loss": 0.5} and run.data.params == {"x": "1"}


SQUARE = "from dtwb.sweeps.record import record\nrecord(square=x * x)"


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    "`dtwb sweep ...` with a folder of its own, in this process; gives what typer's runner gives."
    monkeypatch.setenv("DTWB_PATHS__RUNS", str(tmp_path / "runs"))
    settings.cache_clear()
    yield lambda *words: CliRunner().invoke(app, ["sweep", *map(str, words)])
    settings.cache_clear()


def test_what_failed_is_named_and_made_again(sweep, tmp_path):
    broken = "assert x < 3, 'it is too hot'"
    template = write_template(tmp_path / "square.ipynb", "x = 1", broken, SQUARE)
    done = sweep(template, "-p", "x=2,3", "--executor", "serial")
    assert done.exit_code == 1, done.output
    folder = tmp_path / "runs" / "square"
    (bad,) = [run for run in load_sweep(folder).runs if run.how == "failed"]
    assert f"run {bad.id}: AssertionError: it is too hot" in done.stderr
    assert str(folder / bad.id / "out.ipynb") in done.stderr and (folder / bad.id / "out.ipynb").exists()
    assert "1 of 2 runs finished" in done.stdout
    status = json.loads(sweep("status", "square", "--json").stdout)
    assert status["counts"] == {"finished": 1, "failed": 1} and status["missing"] == 0
    write_template(template, "x = 1", SQUARE)  # mended
    assert sweep("retry", "square", "--executor", "serial").exit_code == 0
    hot = [(run.how, run.result) for run in load_sweep(folder).runs if run.parameters["x"] == 3]
    assert hot == [("finished", {"square": 9.0})]
    assert sweep("results", "square", "--csv", tmp_path / "runs.csv").exit_code == 0
    assert (tmp_path / "runs.csv").read_text().count("\n") == 3


def test_ctrl_c_ends_with_one_line_and_the_same_command_goes_on(sweep, tmp_path):
    wait = f"import pathlib, time\nif x == 3 and not pathlib.Path('{tmp_path}/go').exists():\n"
    wait += f"    pathlib.Path('{tmp_path}/reached').touch(); time.sleep(3600)"
    template = write_template(tmp_path / "square.ipynb", "x = 1", wait, SQUARE)
    arguments = [str(template), "-p", "x=2,3", "--workers", "1"]
    command = [sys.executable, "-m", "dtwb.cli", "sweep", *arguments]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "reached").exists() or started.poll() is not None)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=300)
    assert started.returncode == 130 and "same command goes on" in said.strip().splitlines()[-1], said
    assert "Traceback" not in said
    folder = tmp_path / "runs" / "square"
    first = [run for run in load_sweep(folder).runs if run.how == "finished"]
    assert [run.parameters["x"] for run in first] == [2]
    (tmp_path / "go").touch()
    done = sweep(*arguments, "--executor", "serial", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["runs"] == 2, done.output
    again = load_sweep(folder).runs
    assert [run.how for run in again] == ["finished"] * 2 and first[0] in again


def test_refused_before_anything_runs(sweep, tmp_path):
    template = write_template(tmp_path / "square.ipynb", "x = 1\ny = 0.5\nseed = 0", SQUARE)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1")]), tmp_path / "plain.ipynb")
    odd = write_template(tmp_path / "odd.ipynb", "x = 1", "y = (")
    for arguments, said in (
        ([template, "-p", "x=0:1000000000"], "x: 1,000,000,000 points"),
        ([template, "-p", "x=0:1000", "-p", "y=0:1000", "-p", "seed=0:1000"], "1,000,000,000 points"),
        ([template, "-p", "z=1"], "it has no parameter 'z' (known: x, y, seed)"),
        ([template, "-p", "x=warm"], "x: 'warm' is not of type int"),
        ([template, "-p", "x=5:5"], "'5:5' is empty"),
        ([template, "-p", "y=0..1"], "--sobol 32"),
        ([template], "there is no parameter to vary"),
        ([template, "-p", "x=1", "--name", "../up"], "this is no name for a sweep"),
        ([template, "-p", "x=1", "--memory-limit", "lots"], "'lots' is no size"),
        ([template, "-p", "y=0..1", "--search", "9"], "name a result: --maximize"),
        ([template, "-p", "y=0..1", "--search", "9", "--sobol", "4"], "they exclude each other"),
        ([template, "-p", "y=0..1", "--search", "9", "--maximize", "f", "--sampler", "magic"], "no sampler 'magic'"),
        ([template, "-p", "x=1", "--scheduler", "tcp://127.0.0.1:8786"], "give --executor dask"),
        ([tmp_path / "nowhere.ipynb", "-p", "x=1"], "cannot be read"),
        ([tmp_path / "plain.ipynb", "-p", "x=1"], "no cell is tagged `parameters`"),
        ([odd, "-p", "x=1"], "odd.ipynb: cell 2"),
        (["status", "nosuch"], "there is no such sweep"),
        (["results", "nosuch"], "there is no such sweep"),
        (["retry", "nosuch"], "there is no such sweep"),
    ):
        done = sweep(*arguments)
        assert isinstance(done.exception, SweepError) and said in str(done.exception), (arguments, done.exception)
    dry = sweep(template, "-p", "x=0:50", "--dry-run")
    assert dry.exit_code == 0 and "50 points" in dry.stdout
    assert not (tmp_path / "runs").exists()


def test_failed_trials_of_a_search_are_made_again(sweep, tmp_path):
    "The study keeps the old trial, and has the same point once more; both count as one."
    cold = f"import pathlib\nassert x < 0 or pathlib.Path('{tmp_path}/mended').exists(), 'too hot'"
    template = write_template(tmp_path / "square.ipynb", "x = 1.0\nseed = 0", cold, SQUARE)
    words = [template, "-p", "x=-1..1", "-p", "seed=0,1", "--minimize", "square", "--executor", "serial"]
    words += ["--sampler", "sobol", "--search"]
    assert sweep(*words, 4).exit_code == 1
    before = load_search("square").to_dataframe()
    assert set(before.how) == {"finished", "failed"}
    (tmp_path / "mended").touch()
    assert sweep("retry", "square", "--executor", "serial").exit_code == 0
    after = load_search("square").to_dataframe()
    assert [*after.how[:4]] == ["made again" if how == "failed" else how for how in before.how]
    assert {*after.x[4:]} == {*before.x[before.how == "failed"]} and (after.square[4:] == after.x[4:] ** 2).all()
    assert sweep(*words, 4).exit_code == 0 and len(load_search("square").trials) == len(after)
    assert "no run has failed" in sweep("retry", "square").stdout
