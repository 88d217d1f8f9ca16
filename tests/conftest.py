"""What several tests need: the real data, a browser, a place of their own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# two workers on two cores: with a second thread each, torch's threads wait for each other, and spin meanwhile
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# the same examples each time, so that what passed here passes elsewhere; HYPOTHESIS_PROFILE=explore draws new ones.
# Nothing is too slow: a machine may be.
PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same", derandomize=True, **PATIENT)
settings.register_profile("explore", derandomize=False, **PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

pytest_plugins = ["browser"]
ROOT = Path(__file__).parents[1]
BROWSER = ("test_ui_", "test_overview", "test_it_is_drawn_moves", "test_in_a_browser")  # names of tests
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def root() -> Path:
    "The project's root."
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    "The real data sets, which are never copied into the project."
    if not SHARED.is_dir():
        pytest.skip(f"the real data are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def chromium() -> str:
    "The path of a Chromium."
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    return path


@pytest.fixture(scope="session")
def forked():
    "Asks `forked.py`, a process that has imported torch and all: forked(notebook=path) -> {code, out, err}."
    command = [sys.executable, str(ROOT / "tests/forked.py")]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin and server.stdout

    def run(**task) -> dict:
        print(json.dumps(task), file=server.stdin, flush=True)
        return json.loads(server.stdout.readline())

    yield run
    server.stdin.close()
    server.wait(60)


def placed(data: Path) -> dict[str, str]:
    "Settings: where data and runs are, and that plans are made quickly."
    return {
        "DTWB_PATHS__DATA": str(data),
        "DTWB_PATHS__RUNS": str(data / "runs"),
        "DTWB_LOOP__PLAN_TIME_LIMIT": "1",
        "DTWB_LOOP__RESCHEDULE_TIME_LIMIT": "0.1",
    }


class Workbench:
    "Runs `dtwb ...` with data and runs in a folder of its own; gives the finished process."

    def __init__(self, data: Path, forked: Callable[..., dict]):
        self.data, self.forked = data, forked

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        return os.environ | placed(self.data) | variables

    def __call__(self, *args, timeout: int = 600, **variables: str) -> subprocess.CompletedProcess:
        "In a process that has imported all already."
        words, env = list(map(str, args)), self.environment(variables)
        said = self.forked(dtwb=words, env=env, timeout=timeout)
        return subprocess.CompletedProcess(words, said["code"], said["out"], said["err"])

    def fresh(self, *args, timeout: int = 600, **variables: str) -> subprocess.CompletedProcess:
        "As a user does: in a Python of its own."
        command, env = [sys.executable, "-m", "dtwb.cli", *map(str, args)], self.environment(variables)
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def workbench(tmp_path, forked) -> Workbench:
    return Workbench(tmp_path / "data", forked)


def pytest_xdist_make_scheduler(config, log):
    "One worker has all that drives a browser, with one server and one Chromium, and has it first: it takes longest."
    from xdist.scheduler import LoadScopeScheduling  # xdist's own loadgroup does nothing with pytest 9.2

    class OneBrowser(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "browser" if any(name in nodeid for name in BROWSER) else nodeid

    return OneBrowser(config, log)
