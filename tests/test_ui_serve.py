"""`dtwb serve` from outside: health, headers, prefix, several processes, and the wheel in an empty folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests
from browser import served, watched
from conftest import ROOT

FINE = (
    "import panel as pn; from dtwb.ui.shell import page; "
    "page('fine', lambda: ([], [pn.pane.HTML('<b class=there>there</b>')])).servable();"
)
ILL = "from dtwb.ui.shell import page; page('ill', lambda: 1 / 0).servable();"


def notebook(path: Path, code: str) -> None:
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None, "source": code}
    path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "Two small dashboards, one of which is ill, and one whose notebook raises, from two processes under a prefix."
    home = tmp_path_factory.mktemp("small")
    (home / "apps").mkdir()
    for name, code in {"fine": FINE, "ill": ILL, "raises": "1 / 0"}.items():
        notebook(home / "apps" / f"{name}.ipynb", code)
    with served(home / "data", home / "apps", DTWB_SERVE__PREFIX="plant", DTWB_SERVE__PROCESSES="2") as url:
        yield url.rpartition("/")[0]


def get(url: str, **options) -> requests.Response:
    return requests.get(url, allow_redirects=False, timeout=600, **options)


def test_health_names_what_fails(small):
    answer = get(f"{small}/health")
    assert answer.status_code == 503 and answer.json()["failing"] == ["ill", "raises"]
    assert answer.json()["apps"]["fine"] == "ok" and "division" not in answer.text
    assert requests.head(f"{small}/health", timeout=600).status_code == 503


def test_what_every_answer_says(small):
    for path in ("fine", "health", "widgets/three@latest/dist/index", "static/js/bokeh.min.js", "nowhere", "login"):
        said = get(f"{small}/{path}").headers
        assert said["X-Content-Type-Options"] == "nosniff" and "Server" not in said, path
        assert "frame-ancestors" in said["Content-Security-Policy"], path
    policy = get(f"{small}/fine").headers["Content-Security-Policy"]
    assert "http:" not in policy and "https:" not in policy and "*" not in policy
    evil = get(f"{small}/fine", headers={"Host": "x; script-src evil"})
    assert "evil" not in evil.headers.get("Content-Security-Policy", "")


def test_the_prefix_is_everywhere(small):
    root = small.rpartition("/")[0]
    assert get(f"{small}/").headers["Location"] == "./fine" and get(small).headers["Location"] == "./plant/fine"
    assert get(f"{small}/?run=1").headers["Location"] == "./fine?run=1"
    assert get(f"{root}/fine").status_code == 404
    script = get(f"{small}/widgets/jupyter-threejs@^2.4.1/dist/index")
    assert script.headers["Content-Type"].startswith("text/javascript") and len(script.content) > 100_000
    assert get(f"{small}/widgets/../../etc/passwd").status_code == 404


@pytest.mark.browser
def test_every_process_draws_without_another_host(small, browser):
    for app, sign in ("fine", ".there"), ("raises", ".dtwb-alert"), ("fine", ".there"):
        with watched(browser) as visit:
            visit(f"{small}/{app}").wait_for_selector(sign)


def test_processes_end_with_their_parent(small):
    "The last test with `small`, which is killed."
    port = int(small.split(":")[2].split("/")[0])
    ours = [p for p in psutil.Process().children() if any(c.laddr.port == port for c in p.net_connections("tcp"))]
    (server,) = ours
    processes = server.children()
    assert len(processes) == 2
    server.send_signal(signal.SIGKILL)
    assert psutil.wait_procs(processes, timeout=600)[1] == []


def test_what_cannot_be_served_is_said_in_one_line(workbench):
    done = workbench("serve", "--port", "0", "--certificate", "nowhere.pem", "--key", "nowhere.pem")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere.pem: cannot be used" in done.stderr


def test_the_wheel_serves_from_an_empty_folder(tmp_path):
    source, target, place = tmp_path / "source", tmp_path / "target", tmp_path / "place"
    shutil.copytree(ROOT / "dtwb", source / "dtwb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "nbs" / "apps", source / "nbs" / "apps")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    place.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path)]
    subprocess.run([*pip, *build], check=True, timeout=600)
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--no-compile", "--target", str(target),
                    str(next(tmp_path.glob("*.whl")))], check=True, timeout=600)  # fmt: skip
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DTWB_")}
    told = "started=lambda url: print(url, *find_apps(), flush=True), warm=False"
    script = (
        f"import dtwb; from dtwb.ui.serve import find_apps, serve; print(dtwb.__file__); serve('127.0.0.1', 0, {told})"
    )
    command, env = [sys.executable, "-c", script], clean | {"PYTHONPATH": str(target)}
    server = subprocess.Popen(command, cwd=place, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline().startswith(str(target))
        url, *found = server.stdout.readline().split()
        page = requests.get(url, timeout=600)
    finally:
        server.terminate()
        server.wait(300)
    assert page.status_code == 200 and "dtwb overview" in page.text
    apps = {path.stem for path in (ROOT / "nbs" / "apps").glob("*.ipynb")}
    assert set(found) == apps and apps >= {"overview", "users"}
    assert [path.name for path in place.iterdir()] == ["data"]
