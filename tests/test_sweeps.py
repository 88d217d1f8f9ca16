"""Sweeps: what a folder of runs says, whoever wrote it; runs made once; a recorded sweep that can be made again."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import papermill
import psutil
import pytest
import xarray as xr
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtwb.core.errors import StoreError, SweepError
from dtwb.sweeps.recorded import find_sweep
from dtwb.sweeps.results import Sweep, SweepRun, list_sweeps, read_arrays
from dtwb.sweeps.runner import run_point, run_sweep
from dtwb.sweeps.space import Space
from dtwb.sweeps.template import code_version, read_template, run_id
from dtwb.sweeps.warm import close_warm_parent, warm_parent

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


def wait_for(what, seconds):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def notebook(path, *cells):  # source, or source and tags; the first one has the parameters
    "A template."
    v4 = nbformat.v4
    made = [v4.new_code_cell(cells[0], metadata={"tags": ["parameters"]})]
    for cell in cells[1:]:
        source, *tags = cell if isinstance(cell, tuple) else (cell,)
        made.append(v4.new_code_cell(source, metadata={"tags": tags} if tags else {}))
    nbformat.write(v4.new_notebook(cells=made), path)
    return path


EVERYTHING = [
    "x = 1",
    "import this\nimport os, sys, time, asyncio, subprocess, threading, warnings, logging, multiprocessing\n"
    "import matplotlib.pyplot as plt\nfrom IPython.display import HTML, Markdown, clear_output, display",
    "print('out'); print('err', file=sys.stderr); print('out again')",
    "print('before'); os.system('echo shell'); time.sleep(0.5); print('after')",
    "display(HTML('<b>hi</b>')); print('between'); display(Markdown('*m*'))\nx * 2",
    "_ + 1",
    "h = display('first', display_id='d1')",
    "h.update('second')\ndisplay('again', display_id='d1')",
    "for i in range(3):\n    clear_output(wait=True)\n    print(i)",
    "await asyncio.sleep(0.01)\nasync def five(): return 5\nawait five()",
    "plt.figure(figsize=(2, 1), dpi=30); plt.plot([1, 2, 3]);",
    "fig, ax = plt.subplots(figsize=(2, 1), dpi=30); fig",
    "%who_ls",
    "%%bash\necho from bash; echo to err >&2",
    "lines = !printf 'a\\nb'\nlines, os.path.basename(os.getcwd()), sys.stdin.read()",
    "warnings.warn('careful'); logging.warning('logged')",
    "try:\n    input('? ')\nexcept Exception as e:\n    print(type(e).__name__, e)",
    ("'skipped'", "skip-execution"),
    "",
    "import ipywidgets as w\nw.IntSlider(value=3)",
    "o = w.Output()\nwith o:\n    print('inside')\no",
    "from tqdm.auto import tqdm\nfor _ in tqdm(range(3), bar_format='{n}'): pass",
    "class Both:\n    def _repr_html_(self): return '<i>r</i>'\n    def _repr_png_(self): return b'\\x89PNG'\n"
    "    def __repr__(self): return 'both'\nBoth()",
    "?os.getcwd",
    "get_ipython().__class__.__name__, 'IPKernelApp' in get_ipython().config, __name__, In[2][:4], len(Out)",
    "subprocess.run(['echo', 'direct']); time.sleep(0.5)",
    "t = threading.Thread(target=lambda: print('thread')); t.start(); t.join()",
    "p = multiprocessing.get_context('fork').Process(target=print, args=('forked',)); p.start(); p.join()\n"
    "time.sleep(0.5); p.exitcode",
    "def deep(n):\n    return deep(n - 1) if n else {}['missing']\ndeep(3)",
    "'not reached'",
]


def told(cell):
    "What a reader sees of a cell; neighbouring streams each in one piece; without addresses and other chances."
    outputs, streams = [], {}
    for output in json.loads(json.dumps(cell.get("outputs", []))):
        if output["output_type"] != "stream":
            outputs, streams = [*outputs, *(streams[name] for name in sorted(streams, reverse=True)), output], {}
        elif output["name"] in streams:
            streams[output["name"]]["text"] += output["text"]
        else:
            streams[output["name"]] = output
    outputs += [streams[name] for name in sorted(streams, reverse=True)]
    about = [cell["metadata"].get("papermill", {}).get(key) for key in ("status", "exception")]
    text = json.dumps([cell["cell_type"], cell["source"], cell.get("execution_count"), about, outputs], indent=1)
    return re.sub(r"ipykernel_\d+/\d+|0x[0-9a-f]{8,}|[0-9a-f]{32}", "?", text)


def test_a_warm_kernel_gives_what_plain_papermill_gives_cell_by_cell(tmp_path, monkeypatch):
    "Streams, displays and their updates, figures, magics, await, widgets, tqdm, child processes, a traceback."
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # ipykernel takes nothing up from file descriptors where there is one
    template = notebook(tmp_path / "everything.ipynb", *EVERYTHING)
    made = {}
    assert run_point(template, {"x": 5}, tmp_path / "warm", "warm") == "failed"
    with pytest.raises(papermill.PapermillExecutionError):
        papermill.execute_notebook(
            str(template),
            str(tmp_path / "plain.ipynb"),
            {"x": 5},
            kernel_name="python3",
            language="python",
            cwd=tmp_path,
            progress_bar=False,
        )
    made = [nbformat.read(path, 4) for path in (tmp_path / "warm" / "out.ipynb", tmp_path / "plain.ipynb")]
    warm, plain = ([told(cell) for cell in one.cells] for one in made)
    assert len(warm) > len(EVERYTHING)
    for ours, theirs in zip(warm, plain):
        assert ours == theirs
    widgets = [one.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"] for one in made]
    assert sorted(w["model_name"] for w in widgets[0].values()) == sorted(w["model_name"] for w in widgets[1].values())
    assert "out again" in (tmp_path / "warm" / "log.txt").read_text()


HOSTILE = """
import os, signal, subprocess, sys, threading, time
if case == "exit": os._exit(7)
if case == "killed": os.kill(os.getpid(), 9)
if case == "broken": import ctypes; ctypes.string_at(0)
if case == "prints": [print("x" * 1_000_000) for _ in range(100)]
if case == "shell": os.system("yes | head -c 20000000")
if case == "endless": signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)
if case == "large": x = [bytearray(50_000_000) for _ in iter(lambda: time.sleep(0.02), 1)]
if case == "threads": [threading.Thread(target=time.sleep, args=(1000,)).start() for _ in range(5)]
if case == "leaves": subprocess.Popen(["sleep", "4321.5"], start_new_session=True)
if case == "removes": import shutil; shutil.rmtree(os.environ["DTWB_RECORD"])
if case == "kills": os.kill(os.getppid(), 9); time.sleep(30)
if case == "open": left = open(os.environ["DTWB_RECORD"] + "/left.txt", "w"); left.write("kept")
if case == "raises": raise ValueError("as asked")
"""
ENDS = {
    "exit": "its kernel has left with exit code 7",
    "killed": "killed by signal 9; often out of memory",
    "broken": "killed by signal 11",
    "prints": None,
    "shell": None,
    "endless": "time limit of 2 s",
    "large": "memory limit of 0.8 GB",
    "threads": None,
    "leaves": None,
    "removes": "its folder was removed",
    "kills": "killed by signal 9; often out of memory",
    "open": None,
    "raises": "ValueError: as asked",
}


def test_what_a_notebook_does_to_its_process_is_told_and_leaves_nothing_behind(tmp_path):
    template = notebook(tmp_path / "hostile.ipynb", "case = ''", HOSTILE, "print('next')")
    found, before = {}, psutil.Process().num_fds()
    for case in ENDS:
        limits = {"endless": {"time_limit": 2}, "large": {"memory_limit": 0.8e9}}.get(case, {})
        how = run_point(template, {"case": case}, tmp_path / case, retries=0, **limits)
        run = json.loads((tmp_path / case / "run.json").read_text())
        assert (how, run["how"]) == (("failed", "failed") if ENDS[case] else ("finished", "finished")), run
        found[case] = run["error"]
        assert not (tmp_path / f".{case}.tmp").exists()
    assert found == ENDS
    assert "as asked" in (tmp_path / "raises" / "log.txt").read_text()
    for case in ("prints", "shell"):
        text = (tmp_path / case / "out.ipynb").read_text()
        assert "the rest is not kept" in text and len(text) < 20_000_000
        assert (tmp_path / case / "log.txt").stat().st_size < 20_000_000
    assert (tmp_path / "open" / "left.txt").read_text() == "kept"
    assert not [p for p in psutil.process_iter(["cmdline"]) if "4321.5" in (p.info["cmdline"] or [])]
    close_warm_parent()
    assert psutil.Process().num_fds() <= before + 2
    assert not [p for p in psutil.Process().children(recursive=True) if "dtwb.sweeps.warm" in " ".join(p.cmdline())]


def test_a_crash_is_tried_again_and_an_error_is_not(tmp_path):
    template = notebook(
        tmp_path / "once.ipynb",
        "place = ''\ncase = ''",
        "import os, pathlib\ntried = pathlib.Path(place, case)\nwith tried.open('a') as file: file.write('x')\n"
        "if case == 'crash' and tried.stat().st_size == 1: os.kill(os.getpid(), 9)\nassert case == 'crash'",
    )
    for case, how in (("crash", "finished"), ("error", "failed")):
        assert run_point(template, {"place": str(tmp_path), "case": case}, tmp_path / f"{case}_run") == how
    assert [(tmp_path / case).read_text() for case in ("crash", "error")] == ["xx", "x"]


def test_imports_that_start_threads_are_left_to_the_runs(tmp_path):
    (tmp_path / "threaded.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    template = notebook(tmp_path / "t.ipynb", "x = 1", "import threaded\nimport json", "json.dumps(x)")
    assert run_point(template, {"x": 2}, tmp_path / "run") == "finished"
    parent = warm_parent(read_template(template), tmp_path, code_version(read_template(template)))
    assert parent.without == ["import threaded"]
    close_warm_parent()


def test_runs_share_no_randomness_and_no_folder(tmp_path):
    template = notebook(
        tmp_path / "random.ipynb",
        "x = 1",
        "import os, random\nimport numpy as np",
        "open('here.txt', 'a').write(f'{x} ')\nos.chdir('/')",
        "print(random.random(), np.random.rand(), os.environ['OMP_NUM_THREADS'])",
    )
    folder = run_sweep(template, [{"x": x} for x in range(3)], "random", tmp_path, executor="serial", threads=2)
    logs = [path.read_text().split() for path in folder.glob("*/log.txt")]
    assert len({log[0] for log in logs}) == len({log[1] for log in logs}) == 3 and {log[2] for log in logs} == {"2"}
    assert sorted((tmp_path / "here.txt").read_text().split()) == ["0", "1", "2"]


SWEEP = """
import sys
from dtwb.sweeps.runner import run_sweep
points = [{"x": x, "place": sys.argv[2]} for x in range(6)]
if __name__ == "__main__":
    run_sweep(sys.argv[1], points, "kept", sys.argv[2], workers=2)
"""


def test_a_sweep_goes_on_where_it_was_interrupted_or_killed(tmp_path):
    "Ctrl-C, then kill -9, then to the end: each run is made once, and nothing is left of those that were cut off."
    template = notebook(
        tmp_path / "slow.ipynb",
        "x = 0\nplace = ''",
        "import os, pathlib, time\nbegun = pathlib.Path(place, f'begun-{x}')\nbegun.touch()\n"
        "while x >= pathlib.Path(place, 'until').stat().st_size: time.sleep(0.05)",
    )
    (tmp_path / "sweep.py").write_text(SWEEP)
    kept = tmp_path / "kept"

    def made():
        return {path.parent.name: path.stat().st_mtime_ns for path in kept.glob("[!.]*/run.json")}

    def kernels():
        marks = [(p.info["environ"] or {}).get("DTWB_RECORD", "") for p in psutil.process_iter(["environ"])]
        return [mark for mark in marks if mark.startswith(str(kept))]

    before = {}
    for until, sent in ((2, signal.SIGINT), (4, signal.SIGKILL)):
        (tmp_path / "until").write_text("x" * until)
        command = [sys.executable, str(tmp_path / "sweep.py"), str(template), str(tmp_path)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, process_group=0)
        wait_for(lambda n=until: len(made()) == n and (tmp_path / f"begun-{n}").exists(), 120)
        if sent == signal.SIGINT:
            with pytest.raises(SweepError, match=f"it is being run by process {process.pid}"):
                run_sweep(template, [{"x": 0, "place": str(tmp_path)}], "kept", tmp_path)
        os.kill(process.pid, sent)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-sent), err
        assert made().items() >= before.items() and len(made()) == until
        before = made()
        if sent == signal.SIGINT:
            assert not list(kept.glob(".*.tmp"))
        wait_for(lambda: not kernels(), 60)
    (tmp_path / "until").write_text("x" * 6)
    run_sweep(template, [{"x": x, "place": str(tmp_path)} for x in range(6)], "kept", tmp_path, workers=2)
    sweep = Sweep.load(kept)
    assert sorted(run.parameters["x"] for run in sweep.runs) == list(range(6))
    assert {run.how for run in sweep.runs} == {"finished"} and made().items() >= before.items()
    assert not list(kept.glob(".*.tmp"))
    other = notebook(tmp_path / "other.ipynb", "x = 1")
    with pytest.raises(SweepError, match=r"it is a sweep of slow\.ipynb"):
        run_sweep(other, [{"x": 1}], "kept", tmp_path)


def test_a_run_that_fills_the_disk_is_one_failed_run(tmp_path, monkeypatch):
    "The disk is full until what that run has written is thrown away."
    from dtwb.sweeps import runner

    execute = runner._Run.execute

    def full(run, *how):
        if run.about["parameters"]["x"] == 1:
            run.prepare()
            (run.aside / "big").write_text("x")
            raise OSError(28, "No space left on device")
        return execute(run, *how)

    monkeypatch.setattr(runner._Run, "execute", full)
    template = notebook(tmp_path / "fills.ipynb", "x = 0")
    folder = run_sweep(template, [{"x": x} for x in range(3)], "fills", tmp_path, executor="serial")
    runs = {run.parameters["x"]: (run.how, run.error) for run in Sweep.load(folder).runs}
    assert runs[1] == ("failed", "it cannot be written: No space left on device")
    assert runs[0][0] == runs[2][0] == "finished" and not list(folder.rglob("big"))
    monkeypatch.setattr(runner, "write_json", lambda *ignored: (_ for _ in ()).throw(StoreError("full")))
    with pytest.raises(SweepError, match="is the disk full"):
        run_point(template, {"x": 1}, folder / "other")
    assert not list(folder.glob("*other*"))


@pytest.mark.parametrize("when", ["once it is imported", "from the start"])
def test_no_kernel_is_forked_where_cuda_is_in_use(tmp_path, monkeypatch, when):
    "A torch that has a CUDA context: its import is left to each run; where it is there before, so is the whole run."
    fake = "class cuda:\n    is_initialized = staticmethod(lambda: True)\n"
    (tmp_path / "torch.py").write_text(fake)
    if when == "from the start":
        (tmp_path / "sitecustomize.py").write_text("import torch")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', ROOT)}")
    template = notebook(tmp_path / "cuda.ipynb", "x = 0", "import torch", "assert torch.cuda.is_initialized()")
    assert run_point(template, {"x": 1}, tmp_path / "one") == "finished"
    said = (tmp_path / "one" / "log.txt").read_text()
    parent = warm_parent(read_template(template), tmp_path, code_version(read_template(template)))
    if when == "from the start":
        assert parent is None and "a plain kernel, for no warm one can be forked: CUDA is in use" in said
    else:
        assert parent and parent.without == ["import torch"] and "plain" not in said
    close_warm_parent()
