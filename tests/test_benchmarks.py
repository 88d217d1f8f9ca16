"The scheduling benchmarks go on where they were, and believe nobody."

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT

BENCHMARKS = ROOT / "nbs/benchmarks"


@pytest.fixture
def runner(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import run_scheduling

    return run_scheduling


def test_runs_what_is_missing_only(runner, tmp_path):
    said = []
    asked = ["own/ft06", "random/6x4x2"], ["rules"]
    rows = runner.run_all("x", *asked, limit=60, folder=tmp_path, say=said.append)
    assert len(said) == 2 and all(row["valid"] for row in rows)
    path = tmp_path / "x.jsonl"
    text = path.read_text()
    path.write_text(text[:-40])  # killed while it was writing
    again = runner.run_all("x", *asked, limit=60, folder=tmp_path, say=said.append)
    assert len(said) == 3 and "6x4x2" in said[-1]
    assert [row["objective"] for row in again] == [row["objective"] for row in rows]
    assert runner.run_all("x", *asked, limit=60, folder=tmp_path, say=said.append) == again and len(said) == 3
    runner.forget(path, ["rules"])
    assert path.read_text() == ""


def test_a_wrong_claim_is_seen(runner):
    problem = runner.load("own/ft06")
    n = len(problem.operations)
    machines = [problem.operation(o).modes[0].machine for o in range(n)]
    one_by_one, clock = [], 0
    for o, m in enumerate(machines):
        one_by_one.append(clock)
        clock += problem.duration(o, m)
    assert runner.verified(problem, "makespan", one_by_one, machines, clock) == {"valid": True}
    assert not runner.verified(problem, "makespan", one_by_one, machines, clock - 1)["valid"]
    assert not runner.verified(problem, "makespan", [0] * n, machines, 10)["valid"]
    assert not runner.verified(problem, "makespan", one_by_one, [0] * n, clock)["valid"]


def test_killed_it_leaves_nothing_behind(tmp_path):
    command = [
        sys.executable,
        BENCHMARKS / "run_scheduling.py",
        "jobshop",
        "--methods",
        "plain_cpsat",
        "--results",
        tmp_path,
    ]
    command += ["--instances", "own/ft06,random/30x10", "--limit", "600"]
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT)
    path = tmp_path / "jobshop.jsonl"
    patience = time.monotonic() + 600
    while not path.exists() or not psutil.Process(process.pid).children():
        assert time.monotonic() < patience and process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 143
    assert not psutil.wait_procs(children, 300)[1]
    assert [json.loads(line)["instance"] for line in path.read_text().splitlines()] == ["own/ft06"]
