"""`dtwb schedule` as a user meets it: answers, files, refusals, Ctrl-C, a terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import icalendar
import pytest
from conftest import ROOT
from test_bad_input import FT06, refused

from dtwb.scheduling.exchange import read_schedule

FACTORY = ROOT / "data/factories/tile_plant.yaml"


@pytest.fixture
def ft06(tmp_path):
    path = tmp_path / "ft06.txt"
    path.write_text(FT06)
    return path


@pytest.fixture
def hard(tmp_path):
    "A job shop that nobody proves in a minute."
    import numpy as np

    rng = np.random.default_rng(3)
    lines = [" ".join(f"{m} {rng.integers(1, 100)}" for m in rng.permutation(20)) for _ in range(30)]
    path = tmp_path / "hard.txt"
    path.write_text("30 20\n" + "\n".join(lines) + "\n")
    return path


def test_answer_and_files(workbench, ft06, tmp_path):
    files = {kind: tmp_path / f"plan.{kind}" for kind in ("json", "html", "ics")}
    options = ["--json", "--out", files["json"], "--gantt", files["html"], "--time-limit", "300"]
    done = workbench.fresh("schedule", ft06, *options)
    assert done.returncode == 0 and not done.stderr, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["value"], answer["bound"], answer["status"], answer["interrupted"]) == (55, 55, "optimal", False)
    assert answer["values"]["makespan"] == 55 and len(answer["schedule"]) == 36
    assert [list(row)[:5] for row in answer["schedule"]] == [list(row)[:5] for row in read_schedule(files["json"]).rows]
    assert "Bokeh" in files["html"].read_text()
    # the plan is where the next search begins, and the answer itself can be read as a plan
    said = tmp_path / "said.json"
    said.write_text(done.stdout)
    for hint in (files["json"], said):
        again = workbench("schedule", ft06, "--json", "--warm-start", hint, "--time-limit", "1")
        assert json.loads(again.stdout)["value"] == 55, again.stderr
    dated = ["--out", files["ics"], "--start", "2026-11-30T06:00+01:00"]
    done = workbench("schedule", ft06, "--hint", files["json"], "--time-limit", "1", *dated)
    assert done.returncode == 0 and "verified" in done.stdout and f"Wrote {files['ics']}" in done.stdout
    assert len(icalendar.Calendar.from_ical(files["ics"].read_bytes()).events) == 36


def test_objectives_as_text(workbench, tmp_path):
    for objective in ("number_late", "weighted_tardiness + 0.1*makespan"):
        done = workbench("schedule", FACTORY, "--objective", objective, "--method", "rules", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["objective"] == objective


@pytest.mark.parametrize(
    "options, words",
    [
        (["--time-limit", "0"], ["--time-limit", "above 0"]),
        (["--time-limit", "-5"], ["--time-limit", "-5"]),
        (["--time-limit", "nan"], ["--time-limit", "nan"]),
        (["--time-limit", "inf"], ["--time-limit", "inf"]),
        (["--workers", "0"], ["--workers", "0"]),
        (["--workers", "-1"], ["--workers", "-1"]),
        (["--method", "magic"], ["magic", "known", "cpsat"]),
        (["--objective", "profit"], ["profit", "makespan", "weighted_tardiness"]),
        (["--objective", ""], ["objective", "makespan"]),
        (["--objective", "-1*makespan"], ["objective"]),
        (["--objective", "makespan +"], ["objective"]),
        (["--out", "plan.xlsx"], ["plan.xlsx", ".csv, .json, .xml, .ics"]),
        (["--out", "plan"], ["suffix"]),
        (["--out", "plan.ics"], ["needs dates", "--start"]),
        (["--out", "plan.xml", "--start", "monday"], ["--start", "monday", "2026-11-30"]),
        (["--gantt", "plan.png"], ["plan.png", ".html"]),
        (["--hint", "nowhere.json"], ["nowhere.json", "cannot be read"]),
        (["--hint", "plan.doc"], ["plan.doc", "known"]),
    ],
)
def test_refused_before_the_search(workbench, ft06, options, words):
    refused(workbench("schedule", ft06, *options), *words)


def test_a_hint_for_another_problem(workbench, ft06, tmp_path):
    hint = tmp_path / "hint.json"
    hint.write_text('[["o1-1", "press", "press_1", 0, 5]]')
    refused(workbench("schedule", ft06, "--hint", hint), "hint.json", "none of its operations is of ft06", "o1-1 press")


SEARCH = """
import sys
from pathlib import Path
from dtwb import cli
told, say = Path(sys.argv.pop(1)), cli.say_search
cli.say_search = lambda *news: told.touch() or say(*news)
cli.main()
"""


def begin(told: Path, *args) -> subprocess.Popen:
    "`dtwb schedule`, which leaves a file once it has found a plan."
    command = [sys.executable, "-c", SEARCH, str(told), "schedule", *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_keeps_the_best(hard, tmp_path):
    out, told = tmp_path / "plan.csv", tmp_path / "told"
    process = begin(told, hard, "--time-limit", "3000", "--out", out, "--json")
    until = time.monotonic() + 600
    while not told.exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, error = process.communicate(timeout=600)
    assert process.returncode == 130 and "Traceback" not in error, error
    assert [line for line in error.splitlines() if line.strip()] == ["interrupted: this is the best plan so far"]
    answer = json.loads(said)
    assert answer["interrupted"] and answer["seconds"] < 3000
    assert len(answer["schedule"]) == len(read_schedule(out)) == 600


def test_in_a_terminal(hard):
    "Objective and bound are shown while it searches; Ctrl-C by the keyboard."
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "110"}
        os.execv(sys.executable, [sys.executable, "-m", "dtwb.cli", "schedule", str(hard), "--time-limit", "3000"])
    seen, began, pressed = b"", time.monotonic(), False
    while time.monotonic() - began < 600:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # it has ended
                break
            if not piece:
                break
            seen += piece
        if not pressed and re.search(rb"objective.{1,30}bound|no bound yet", seen):
            os.write(terminal, b"\x03")
            pressed = True
    _, status = os.waitpid(pid, 0)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode(errors="replace"))
    assert pressed and os.waitstatus_to_exitcode(status) == 130, text[-2000:]
    assert "verified" in text and "interrupted: this is the best plan so far" in text and "Traceback" not in text
