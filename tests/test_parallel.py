"""What a notebook cannot test of `dtwb.core.parallel`: real signals, scripts, clusters."""

import contextlib
import os
import re
import signal
import socketserver
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from distributed import Client
from waiting import wait_for

from dtwb.core.errors import SettingsError
from dtwb.core.parallel import ItemError, Stopped, pmap
from dtwb.sweeps.results import Sweep
from dtwb.sweeps.runner import run_sweep

PYTHON = sys.executable


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def note_pid_and_wait(item):
    "Item 1 waits to be killed, the first time."
    folder, name = item
    again = any(folder.glob("1.*"))
    (folder / f"{name}.{os.getpid()}").touch()
    if name == 1 and not again:
        time.sleep(3000)
    return name


def test_killed_worker_is_replaced_and_each_result_comes_once(tmp_path):
    """kill -9 from outside, in the middle of item 1: only item 1 is done twice."""
    killed, told = [], []

    def kill(*_):
        for path in tmp_path.glob("1.*"):
            if not killed:
                killed.append(int(path.suffix[1:]))
                os.kill(killed[0], signal.SIGKILL)

    items = [(tmp_path, n) for n in range(12)]
    results = pmap(
        note_pid_and_wait, items, workers=2, retries=1, stop=kill, progress=lambda done, total: told.append(done)
    )
    assert results == list(range(12))
    assert killed and not alive(killed[0])
    assert told == list(range(1, 13))
    assert sorted(int(p.stem) for p in tmp_path.iterdir()) == sorted([*range(12), 1])


def test_retries_are_not_for_errors(tmp_path):
    def fail(item):
        (tmp_path / str(time.monotonic_ns())).touch()
        raise ValueError("always")

    with pytest.raises(ItemError, match="always"):
        pmap(fail, [1], workers=1, retries=5)
    assert len(list(tmp_path.iterdir())) == 1


def test_stop_ends_workers_and_what_they_started(tmp_path):
    def with_child(item):
        child = subprocess.Popen([PYTHON, "-c", "import time; time.sleep(3000)"])
        (tmp_path / f"{child.pid}").touch()
        (tmp_path / f"{os.getpid()}").touch()
        time.sleep(3000)

    with pytest.raises(Stopped, match="0 of 2"):
        pmap(with_child, range(2), workers=2, stop=lambda: len(list(tmp_path.iterdir())) == 4)
    pids = [int(p.name) for p in tmp_path.iterdir()]
    wait_for(lambda: not any(map(alive, pids)))


def test_exception_that_cannot_be_pickled():
    class Strange(Exception):
        def __init__(self, a, b):
            super().__init__(f"{a} and {b}")

    def fail(item):
        raise Strange(1, 2)

    with pytest.raises(ItemError, match=r"item 0 .*1 and 2"):
        pmap(fail, [0], workers=1)


def script(tmp_path, body):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(body))
    return subprocess.Popen(
        [PYTHON, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_script_without_a_guard_runs_once(tmp_path):
    """`multiprocessing` would run the script again in each worker."""
    process = script(
        tmp_path,
        """
        print("started")
        from dtwb.core.parallel import pmap
        class Result:
            def __init__(self, n): self.n = n
        print([r.n for r in pmap(lambda x: Result(x + 1), range(4), workers=2)])
        """,
    )
    out, err = process.communicate(timeout=600)
    assert (out, process.returncode) == ("started\n[1, 2, 3, 4]\n", 0), err


SLEEPER = """
    import os, pathlib, time
    from dtwb.core.parallel import pmap
    folder = pathlib.Path({folder!r})
    def sleep(x):
        (folder / str(os.getpid())).touch()
        time.sleep(3000)
    pmap(sleep, range(4), executor={executor!r}, workers=2)
"""


@pytest.mark.parametrize("executor", ["local", "dask"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_orphans(tmp_path, sent, executor):
    """Ctrl-C (to the whole group, as a terminal does) and kill -9 of the parent: the workers go too."""
    pids = tmp_path / "pids"
    pids.mkdir()
    process = script(tmp_path, SLEEPER.format(folder=str(pids), executor=executor))
    found = wait_for(lambda: [int(p.name) for p in pids.iterdir()] if len(list(pids.iterdir())) == 2 else None)
    (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
    _, err = process.communicate(timeout=600)  # the workers sleep for 3000
    assert process.returncode == -sent
    wait_for(lambda: not any(map(alive, found)))
    if sent == signal.SIGINT:
        assert err.rstrip().endswith("KeyboardInterrupt")


class Dask:
    "A scheduler and workers, started by their own commands: with the dtwb that is tested or, if `bare`, without any."

    def __init__(self, folder: Path):
        self.folder, self.address, self.processes = folder, "tcp://127.0.0.1:0", {}

    def start(self, name: str, *command: str, bare: bool = False):
        here = Path(__file__).parent
        path = [sysconfig.get_path("purelib")] if bare else [str(here), str(here.parent)]
        with (self.folder / f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(
                [PYTHON, *(["-S"] if bare else []), "-m", *command],  # without `site`, an editable install is not seen
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
                cwd=self.folder,
            )

    def scheduler(self, **how):
        "Again at the address that it had."
        port, log = self.address.rpartition(":")[2], self.folder / "scheduler.log"
        before = log.stat().st_size if log.exists() else 0
        command = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"]
        self.start("scheduler", *command, **how)
        self.address = wait_for(lambda: re.search(r"Scheduler at:\s+(tcp://\S+)", log.read_text()[before:]))[1]

    def worker(self, name: str, *options: str, **how):
        command = ["distributed.cli.dask_worker", self.address, "--nthreads", "1", "--name", name, "--no-dashboard"]
        self.start(name, *command, "--local-directory", str(self.folder), *options, **how)

    def wait_for_workers(self, n: int):
        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(n, timeout=600)

    def kill(self, name: str):
        process = self.processes.pop(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()
        process.wait(300)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and two workers, started by their own commands."""
    dask = Dask(tmp_path_factory.mktemp("dask"))
    dask.scheduler()
    for name in "ab":
        dask.worker(name)
    dask.wait_for_workers(2)
    yield dask.address
    for name in list(dask.processes):
        dask.kill(name)


def test_dask_two_workers(cluster, tmp_path):
    def draw(item, seed):
        import numpy as np

        (tmp_path / f"{item}.{os.getpid()}").touch()
        while len({path.suffix for path in tmp_path.iterdir()}) < 2:  # until the other worker has one, too
            time.sleep(0.01)
        return np.random.default_rng(seed).integers(1000) + item

    told = []
    results = pmap(
        draw,
        range(8),
        executor="dask",
        scheduler=cluster,
        seed=3,
        progress=lambda done, total: told.append((done, total)),
    )
    assert len({p.suffix for p in tmp_path.iterdir()}) == 2
    assert results == pmap(draw, range(8), executor="serial", seed=3)  # both have been here
    assert told == [(n, 8) for n in range(1, 9)]


def test_dask_error_names_its_item(cluster):
    with pytest.raises(ItemError, match=r"item 2 \(0\): ZeroDivisionError") as info:
        pmap(lambda x: 1 / x, [2, 1, 0], executor="dask", scheduler=cluster)
    assert isinstance(info.value.__cause__, ZeroDivisionError)


def test_dask_stops(cluster, tmp_path):
    def wait(item):
        while item > 1 and not (tmp_path / "over").exists():
            time.sleep(0.02)

    asked = []
    with pytest.raises(Stopped) as info:
        pmap(wait, range(4), executor="dask", scheduler=cluster, stop=lambda: asked.append(1) or len(asked) > 10)
    (tmp_path / "over").touch()
    assert set(info.value.done) <= {0, 1}


def test_dask_killed_worker_is_retried(cluster, tmp_path):
    def die_once(item):
        if item == 1 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    assert pmap(die_once, range(6), executor="dask", scheduler=cluster, retries=1) == list(range(6))
    assert (tmp_path / "died").exists()


def test_dask_sweep_ends_complete_though_a_worker_is_killed(cluster, tmp_path):
    """Run 2 kills the worker that makes it, the first time: it is made once more, all others once."""
    v4 = nbformat.v4
    code = """
import os, pathlib, signal
import psutil
tried = pathlib.Path(place, f"tried-{x}")
with tried.open("a") as file: file.write("x")
if x == 2 and tried.stat().st_size == 1:
    parent = psutil.Process().parent()
    os.kill(parent.ppid(), signal.SIGKILL)  # the warm parent's own: the dask worker
    parent.wait(60)
pathlib.Path(os.environ["DTWB_RECORD"], "result.json").write_text(f'{{"y": {x * 2}}}')
"""
    parameters = v4.new_code_cell("x = 0\nplace = ''", metadata={"tags": ["parameters"]})
    nbformat.write(v4.new_notebook(cells=[parameters, v4.new_code_cell(code)]), tmp_path / "t.ipynb")
    points = [{"x": x, "place": str(tmp_path)} for x in range(6)]
    folder = run_sweep(tmp_path / "t.ipynb", points, "spread", tmp_path, executor="dask", scheduler=cluster)
    runs = Sweep.load(folder).runs
    assert sorted((run.parameters["x"], run.how, run.result["y"]) for run in runs) == [
        (x, "finished", 2 * x) for x in range(6)
    ]
    assert [(tmp_path / f"tried-{x}").stat().st_size for x in range(6)] == [1, 1, 2, 1, 1, 1]
    assert not list(folder.glob(".*.tmp"))


def test_dask_batch_is_whole_though_a_worker_is_killed(cluster, tmp_path):
    """Who reads image 5 first is killed: each image has one row and one picture all the same."""
    import cv2

    from dtwb.vision.batch import BatchProcessor
    from dtwb.vision.inspector import Inspector
    from dtwb.vision.photos import read_image
    from dtwb.vision.synthetic import generate_images

    photos, flag = tmp_path / "photos", tmp_path / "died"
    photos.mkdir()
    tiles = generate_images(12, seed=5, size=(64, 64))
    for i in range(12):
        cv2.imwrite(str(photos / f"{i:02}.png"), tiles.image(i))

    def read(path):
        if path.name == "05.png" and not flag.exists() and os.getpid() != here:
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read_image(path)

    here = os.getpid()
    inspector = Inspector.load(Path(__file__).parents[1] / "models/tile_demo")
    alone = BatchProcessor(inspector, read=read).run(photos)
    out = tmp_path / "seen"
    spread = BatchProcessor(inspector, read=read).run(photos, out, executor="dask", scheduler=cluster)
    assert flag.exists() and not spread.failed
    types, boxes = ([[row[what] for row in r.rows] for r in (alone, spread)] for what in ("defect_type", "bbox"))
    assert types[0] == types[1] and [row["name"] for row in alone.rows] == [row["name"] for row in spread.rows]
    for a, b in zip(*boxes):  # another number of threads adds up in another order: a pixel at the threshold
        assert (a is None) == (b is None) and (a is None or b == pytest.approx(a, abs=2))
    assert len((out / "detections.jsonl").read_text().splitlines()) == 12
    assert len(list(out.glob("*.png"))) == 12


def test_dask_worker_with_other_code_refuses(cluster, monkeypatch):
    monkeypatch.setattr("dtwb.core.cluster._own_code", lambda: "another")
    with pytest.raises(SettingsError, match=r"dask worker tcp://.*: its dtwb .* is not that of who asks"):
        pmap(abs, [1], executor="dask", scheduler=cluster)


def test_dask_scheduler_that_dies(tmp_path, monkeypatch):
    """kill -9, in the middle. Back again, it goes on; else there is one line, and the same call makes what is left.

    It has no dtwb: it needs none. A worker needs it, and says so.
    """
    v4 = nbformat.v4
    parameters = v4.new_code_cell("x = 0\nplace = ''", metadata={"tags": ["parameters"]})
    code = """
import os, pathlib, time
tried = pathlib.Path(place, f"tried-{x}")
with tried.open("a") as file: file.write("x")
while x and not tried.with_name("go").exists(): time.sleep(0.02)
pathlib.Path(os.environ["DTWB_RECORD"], "result.json").write_text(f'{{"y": {x * 2}}}')
"""
    nbformat.write(v4.new_notebook(cells=[parameters, v4.new_code_cell(code)]), tmp_path / "t.ipynb")
    dask = Dask(tmp_path)

    def begin():
        dask.scheduler(bare=True)
        dask.worker("a", "--no-nanny")

    def sweep(name, first_is_done, **how):
        folder = tmp_path / f"{name}-runs"
        folder.mkdir(exist_ok=True)
        points = [{"x": x, "place": str(folder)} for x in range(3)]

        def second_has_begun(run):
            if not (folder / "go").exists():
                wait_for((folder / "tried-1").exists)
                first_is_done()
                (folder / "go").touch()

        return run_sweep(tmp_path / "t.ipynb", points, name, tmp_path, track=second_has_begun, **how)

    def die():
        dask.kill("scheduler")
        dask.kill("a")

    def made(name):
        runs = Sweep.load(tmp_path / name).runs
        return sorted((run.parameters["x"], run.how, run.result["y"]) for run in runs if run.how != "running")

    def die_and_come_back():
        die()
        begin()

    try:
        begin()
        there = {"executor": "dask", "scheduler": dask.address}
        sweep("back", die_and_come_back, **there)
        assert made("back") == [(x, "finished", 2 * x) for x in range(3)]
        assert [(tmp_path / f"back-runs/tried-{x}").stat().st_size for x in range(3)] == [1, 2, 1]
        assert not list((tmp_path / "back").glob(".*.tmp"))

        monkeypatch.setattr("dtwb.core.cluster._PATIENCE", 1)
        with pytest.raises(SettingsError, match=r"tcp://\S+: the dask scheduler has gone, with 2 of 3 not done"):
            sweep("gone", die, **there)
        assert made("gone") == [(0, "finished", 0)]
        sweep("gone", None, executor="serial")
        assert made("gone") == [(x, "finished", 2 * x) for x in range(3)]
        assert [(tmp_path / f"gone-runs/tried-{x}").stat().st_size for x in range(3)] == [1, 2, 1]
        assert not list((tmp_path / "gone").glob(".*.tmp"))

        dask.scheduler(bare=True)
        dask.worker("b", "--no-nanny", bare=True)
        with pytest.raises(SettingsError, match=r"dask worker tcp://\S+: it has no dtwb, or an old one"):
            pmap(abs, [1], executor="dask", scheduler=dask.address)
    finally:
        for name in list(dask.processes):
            dask.kill(name)


def test_dask_own_cluster(tmp_path):
    def pid(item):
        return os.getpid()

    pids = pmap(pid, range(6), executor="dask", workers=2)
    assert os.getpid() not in pids
    wait_for(lambda: not any(map(alive, pids)))


def test_dask_unreachable():
    with pytest.raises(SettingsError, match="no dask scheduler answers"):
        pmap(abs, [1], executor="dask", scheduler="tcp://127.0.0.1:9")


def test_dask_says_that_something_else_listens():
    """Such as the scheduler's own dashboard: dask's client would wait for ever."""

    class Page(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(SettingsError, match="no dask scheduler answers"):
            pmap(abs, [1], executor="dask", scheduler=f"tcp://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
