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


def pytest_collection_modifyitems(items):
    "The browser's tests are one group, the longest, so they start first; and they find logging as it was."
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
