"""What a notebook cannot test of `dtwb.store`: several processes, kill -9, full and read-only disks, PostgreSQL."""

import importlib.util
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest

from dtwb.core.errors import StoreError
from dtwb.core.events import RunEnded, SensorRead
from dtwb.store.database import Store
from dtwb.store.runs import Run, list_runs

PRELUDE = """
import sys
from pathlib import Path
from dtwb.core.errors import StoreError
from dtwb.core.events import EventBus, SensorRead, RunStarted
from dtwb.store.database import Store, StoreWriter
from dtwb.store.runs import run_folder
folder = Path(sys.argv[1])
url = f"sqlite:///{folder}/dtwb.sqlite"
def reading(n): return SensorRead(float(n), "press_1", sensor="force", value=n / 7, unit="kN")
"""


def start(body, folder, **kwargs):
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(body), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def finish(process, timeout=600):
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out


def url(folder):
    return f"sqlite:///{folder}/dtwb.sqlite"


def check_file(path):
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_many_processes_make_one_store_and_write_at_once(tmp_path):
    """Four processes open a store that isn't there yet and write 2,000 events each into their own runs."""
    body = """
    import time
    print("ready", flush=True)
    while not (folder / "go").exists(): time.sleep(0.001)
    store = Store.open(url)
    run = store.start_run("simulation")
    with StoreWriter(store, run, size=50) as writer:
        for n in range(2000): writer(reading(n))
    store.finish_run(run)
    print(run)
    """
    processes = [start(body, tmp_path) for _ in range(4)]
    assert all(process.stdout.readline() == "ready\n" for process in processes)
    (tmp_path / "go").touch()
    ids = [finish(process).strip() for process in processes]
    with Store.open(url(tmp_path)) as store:
        assert set(store.runs()["status"]) == {"finished"} and len(store.runs()) == 4
        for run_id in ids:
            assert [event.time for event in store.events(run_id)] == list(range(2000))
    check_file(tmp_path / "dtwb.sqlite")


def test_two_writers_of_one_run_number_without_a_gap(tmp_path):
    with Store.open(url(tmp_path)) as store:
        run_id = store.start_run("live")
    body = """
    run = sys.stdin.readline().strip()
    store = Store.open(url)
    for n in range(40): store.append(run, [reading(n)] * 5)
    """
    processes = [start(body, tmp_path, stdin=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        process.stdin.write(run_id + "\n")
        process.stdin.flush()
    for process in processes:
        finish(process)
    with Store.open(url(tmp_path)) as store:
        assert store.event_count(run_id) == 400 == len(list(store.events(run_id)))


def test_killed_run_is_readable_and_marked_interrupted(tmp_path):
    """kill -9 in the middle of a run: what was written is there, in the store and in the folder."""
    body = """
    import numpy as np, pandas as pd, time
    bus = EventBus()
    with run_folder("simulation", {"rule": "EDD"}, seed=3, store=Store.open(url), root=folder / "runs", bus=bus) as run:
        run.save_table("jobs", pd.DataFrame({"job": ["a"]}))
        run.save_result(jobs=1)
        for n in range(100_000_000):
            bus.publish(reading(n))
            if n == 3000: print(run.id, flush=True)
    """
    process = start(body, tmp_path)
    run_id = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert Run.load(run_id, tmp_path / "runs").how == "running"
    with Store.open(url(tmp_path)) as store:
        row = store.run(run_id)
        assert (row["status"], row["ended"]) == ("interrupted", None)
        times = [event.time for event in store.events(run_id)]
        assert len(times) >= 3000 and times == list(range(len(times)))
        assert store.latest_run() == run_id
    run = Run.load(run_id, tmp_path / "runs")
    assert (run.how, run.folder.name, run.result) == ("interrupted", run_id, {"jobs": 1.0})
    assert run.table("jobs")["job"].tolist() == ["a"]
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [run_id]
    check_file(tmp_path / "dtwb.sqlite")


def test_a_running_run_is_left_alone(tmp_path):
    body = """
    with run_folder("simulation", store=Store.open(url), root=folder / "runs") as run:
        print(run.id, flush=True)
        sys.stdin.readline()
    """
    process = start(body, tmp_path, stdin=subprocess.PIPE)
    run_id = process.stdout.readline().strip()
    with Store.open(url(tmp_path)) as store:
        assert store.run(run_id)["status"] == "running"
        assert list_runs(tmp_path / "runs")[0].how == "running"
        process.communicate("\n", timeout=600)
        assert store.run(run_id)["status"] == "finished"
    assert Run.load(run_id, tmp_path / "runs").how == "finished"


def test_ctrl_c_cancels(tmp_path):
    body = """
    import time
    with run_folder("simulation", store=Store.open(url), root=folder / "runs") as run:
        run.writer(reading(1))
        print(run.id, flush=True)
        time.sleep(3000)
    """
    process = start(body, tmp_path)
    run_id = process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    with Store.open(url(tmp_path)) as store:
        assert (store.run(run_id)["status"], store.event_count(run_id)) == ("cancelled", 1)
    assert Run.load(run_id, tmp_path / "runs").how == "cancelled"


@contextmanager
def small_disk(folder, *options):
    """A file system of its own, which needs root; a test without it says so."""
    if os.geteuid() or subprocess.run(["mount", *options, folder], capture_output=True).returncode:
        pytest.skip("only root, where it may mount, can make a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


FILL = """
store = Store.open(url)
done = store.start_run("simulation")
store.append(done, [reading(n) for n in range(100)])
store.finish_run(done)
bus = EventBus()
import logging; logging.disable(logging.CRITICAL)
try:
    with run_folder("simulation", store=store, root=folder / "runs", bus=bus) as run:
        print(done, run.id)
        for n in range(200_000): bus.publish(reading(n))
except StoreError as e:
    print(e)
else:
    sys.exit("it fitted")
"""


def check_after_full(folder, out):
    (done, broken), (message,) = (line.split(" ", 1) if n == 0 else [line] for n, line in enumerate(out.splitlines()))
    assert "the disk" in message and "what was stored before is intact" in message
    with Store.open(url(folder)) as store:
        assert [event.time for event in store.events(done)] == list(range(100))
        times = [event.time for event in store.events(broken)]
        assert times == list(range(len(times))) and len(times) % 500 == 0 and len(times) > 0
        return done, broken


def test_full_disk(tmp_path):
    with small_disk(tmp_path, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        ballast = tmp_path / "ballast"
        ballast.write_bytes(b"0" * 1_000_000)
        done, broken = check_after_full(tmp_path, finish(start(FILL, tmp_path)))
        ballast.unlink()
        with Store.open(url(tmp_path)) as store:
            assert store.run(broken)["status"] in ("failed", "interrupted")
            assert store.append(done, [RunEnded(100.0, "run")]) == 101
        check_file(tmp_path / "dtwb.sqlite")
        run = Run.load(broken, tmp_path / "runs")
        assert (run.how, run.folder.name) in [("failed", broken), ("interrupted", broken)]


def test_file_size_limit(tmp_path):
    """The same without root: no file may grow beyond 1 MB (of the write-ahead log, in practice)."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
    check_after_full(tmp_path, finish(start(limit + FILL, tmp_path)))


def test_full_disk_for_files(tmp_path):
    body = """
    import numpy as np, pandas as pd, xarray as xr
    limit = sys.stdin.readline()
    with run_folder("simulation", store=Store.open(url), root=folder / "runs") as run:
        table = pd.DataFrame({"x": np.random.default_rng(1).normal(size=100)})
        run.save_table("x", table)
        run.save_arrays(xr.Dataset({"x": ("n", table["x"].values)}))
        import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        big = np.random.default_rng(1).normal(size=1_000_000)
        for save in (lambda: run.save_table("x", pd.DataFrame({"x": big})),
                     lambda: run.save_arrays(xr.Dataset({"x": ("n", big)})),
                     lambda: run.save_picture("x", (big[:900_000].reshape(1000, 900) * 50).astype("uint8"))):
            try: save()
            except StoreError as e: print(e)
            else: sys.exit("it fitted")
    print(run.id)
    """
    *messages, run_id = finish(start(body, tmp_path, stdin=subprocess.PIPE)).splitlines()
    assert len(messages) == 3 and all("cannot be written" in message for message in messages)
    run = Run.load(run_id, tmp_path / "runs")
    assert run.how == "finished" and len(run.table("x")) == 100 and run.arrays().sizes == {"n": 100}
    assert [p for p in run.folder.rglob("*.tmp")] == []


def test_read_only_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        with Store.open(url(disk)) as store:
            run_id = store.start_run("simulation")
            store.append(run_id, [SensorRead(0.0, "press_1")])
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for place in (disk, disk / "new"):
            with pytest.raises(StoreError) as info:
                Store.open(url(place))
            assert "\n" not in str(info.value) and str(place) in str(info.value)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        with Store.open(url(disk)) as store:
            assert store.event_count(run_id) == 1


def test_locked(tmp_path, monkeypatch):
    monkeypatch.setattr("dtwb.store.database._PATIENCE", 0.3)
    with Store.open(url(tmp_path)) as store:
        run_id = store.start_run("simulation")
        other = sqlite3.connect(tmp_path / "dtwb.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            store.append(run_id, [RunEnded(1.0, "run")])
        assert store.event_count(run_id) == 0  # readers don't wait
        other.execute("ROLLBACK")
        assert store.append(run_id, [RunEnded(1.0, "run")]) == 1


@pytest.mark.parametrize(
    "content", [b"Dear plant manager, " * 400, bytes(range(256)) * 16, b"SQLite format 3\0" + b"x" * 5000]
)
def test_not_a_database(tmp_path, content):
    path = tmp_path / "dtwb.sqlite"
    path.write_bytes(content)
    with pytest.raises(StoreError) as info:
        Store.open(url(tmp_path))
    assert str(path) in str(info.value) and "\n" not in str(info.value)
    assert path.read_bytes() == content


def test_damaged(tmp_path):
    with Store.open(url(tmp_path)) as store:
        run_id = store.start_run("simulation")
        store.append(run_id, [SensorRead(float(n), "press_1", sensor="x" * 200) for n in range(3000)])
    path = tmp_path / "dtwb.sqlite"
    with path.open("r+b") as file:
        for page in range(20, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    with pytest.raises(StoreError, match="damaged"), Store.open(url(tmp_path)) as store:
        list(store.events(run_id))


def test_somebody_elses_database(tmp_path):
    with sqlite3.connect(tmp_path / "dtwb.sqlite") as connection:
        connection.execute("CREATE TABLE wages (name)")
    with pytest.raises(StoreError, match="no store of dtwb"):
        Store.open(url(tmp_path))
    with sqlite3.connect(tmp_path / "dtwb.sqlite") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("wages",)]


def test_folder_in_the_place_of_the_store(tmp_path):
    (tmp_path / "dtwb.sqlite").mkdir()
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(url(tmp_path))


def test_reused_process_number_is_not_mistaken(tmp_path):
    """The number of a dead run's process now belongs to another, living one."""
    with Store.open(url(tmp_path)) as store:
        run_id = store.start_run("simulation")
        with store._connection(write=True) as connection:
            connection.exec_driver_sql("UPDATE runs SET process = 'an earlier boot 123'")
    with Store.open(url(tmp_path)) as store:
        assert store.run(run_id)["status"] == "interrupted"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """A PostgreSQL server of our own, where there is one to be started."""
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg, the optional driver of PostgreSQL, is not installed")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    binaries = found[-1] if found else Path(shutil.which("initdb") or "").parent
    if not (binaries / "initdb").exists():
        pytest.skip("there is no PostgreSQL server on this machine")
    folder = Path("/tmp") / f"dtwb-test-postgres-{os.getpid()}"
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    subprocess.run([*as_user, "mkdir", folder], check=True)
    run = lambda *command: subprocess.run([*as_user, *command], check=True, capture_output=True, cwd="/tmp")
    try:
        run(binaries / "initdb", "-D", folder / "data", "-U", "dtwb", "--auth=trust")
        options = f"-k {folder} -c listen_addresses="
        run(binaries / "pg_ctl", "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start")
        try:
            yield f"postgresql://dtwb@/postgres?host={folder}"
        finally:
            run(binaries / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_postgres(postgres):
    """The same store, by its URL: migrations, events, results, append-only."""
    events = [SensorRead(float(n), "press_1", sensor="force", value=n / 7) for n in range(6000)]
    for _ in range(2):  # the second one finds the tables made
        with Store.open(postgres) as store:
            run_id = store.start_run("simulation", "tile_plant", {"rule": "EDD"}, seed=2**53 - 1)
            store.append(run_id, events[:3500])
            store.append(run_id, events[3500:])
            assert list(store.events(run_id)) == events
            store.add_detections(run_id, [{"defect_type": "crack", "confidence": 0.9, "bbox": (1, 2, 3, 4)}])
            store.add_schedule(run_id, [("a", "press", "press_1", 0.0, 1.0, None)])
            store.add_kpis(run_id, {"oee": (0.7, "1")})
            store.finish_run(run_id)
            assert store.detections(run_id).loc[0, "bbox"] == [1, 2, 3, 4]
            assert store.kpis(run_id).loc["oee", "value"] == 0.7
            assert store.runs().loc[run_id, "seed"] == 2**53 - 1 and store.latest_run() == run_id
            for statement in ("DELETE FROM events", "UPDATE events SET time = 0", "TRUNCATE events"):
                with pytest.raises(StoreError, match="append-only"), store._connection(write=True) as connection:
                    connection.exec_driver_sql(statement)
            assert store.event_count(run_id) == 6000
