"""What several tests need: the real data, a browser, a place of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# two workers on two cores: with a second thread each, torch's threads wait for each other, and spin meanwhile
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# the same examples each time, so that what passed here passes elsewhere; HYPOTHESIS_PROFILE=explore draws new ones
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
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


@pytest.fixture
def workbench(tmp_path):
    "Runs `dtwb ...` as a user does, with data and runs in a folder of its own; returns the finished process."
    data = tmp_path / "data"

    def run(*args: str, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"DTWB_PATHS__DATA": str(data), "DTWB_PATHS__RUNS": str(data / "runs")} | variables
        command = [sys.executable, "-m", "dtwb.cli", *map(str, args)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)

    run.data = data
    return run


def pytest_xdist_make_scheduler(config, log):
    "One worker has all that drives a browser, with one server and one Chromium, and has it first: it takes longest."
    from xdist.scheduler import LoadScopeScheduling  # xdist's own loadgroup does nothing with pytest 9.2

    class OneBrowser(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "browser" if any(name in nodeid for name in BROWSER) else nodeid

    return OneBrowser(config, log)
