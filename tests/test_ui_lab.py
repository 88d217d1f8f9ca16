"""JupyterLab, the researcher's place, in a real browser: notebooks run, widgets and the 3D scene are drawn, offline.

One JupyterLab and one page for all. `04_what_if` and `05_explorers` are run in full, the other tutorials are opened;
that all of them run is checked by `test_gates.py`.
"""

import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request

import numpy as np
import pytest
from browser import pixels, until, watched
from conftest import ROOT

pytestmark = pytest.mark.browser
TUTORIALS = [f"nbs/tutorials/{path.name}" for path in sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))]
OPEN = """async path => {
  while (!window.jupyterapp) await new Promise(done => setTimeout(done, 50))
  await window.jupyterapp.restored
  window.panel = await window.jupyterapp.commands.execute('docmanager:open', { path })
  await panel.context.ready
  await panel.sessionContext.ready
  await panel.sessionContext.session.kernel.info
  return panel.content.widgets.length
}"""
RUN = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"
RAN = """() => panel.content.widgets.filter(cell => cell.model.type == 'code').map(cell => ({
  count: cell.model.executionCount,
  errors: cell.model.outputs.toJSON().filter(output => output.output_type == 'error').map(output => output.evalue)
}))"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "`make lab`, with no settings of whoever runs the tests and nothing saved by itself; gives its address."
    make = shutil.which("make") or pytest.skip("no make here")
    home = tmp_path_factory.mktemp("jupyter")
    (home / "labconfig").mkdir()
    quiet = {"@jupyterlab/docmanager-extension:plugin": {"autosave": False}}
    (home / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(quiet))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = f"--no-browser --allow-root --port={port} --IdentityProvider.token= --LabApp.expose_app_in_browser=True"
    told = subprocess.run(
        [make, "-n", "--no-print-directory", "lab", f"ARGS={arguments}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
    )
    command = told.stdout.splitlines()[-1].replace("PANEL_INLINE", "exec env PANEL_INLINE")
    places = {"CONFIG_DIR": home, "DATA_DIR": home / "data", "RUNTIME_DIR": home / "runtime"}
    env = os.environ | {f"JUPYTER_{name}": str(place) for name, place in places.items()}
    env |= {f"JUPYTERLAB_{name}_DIR": str(home / name) for name in ("WORKSPACES", "SETTINGS")} | {
        "IPYTHONDIR": str(home)
    }
    with open(home / "lab.log", "w") as log:
        server = subprocess.Popen(["sh", "-c", command], cwd=ROOT, env=env, stdout=log, stderr=log)
    url = f"http://localhost:{port}"
    try:
        while True:
            assert server.poll() is None, (home / "lab.log").read_text()
            try:
                urllib.request.urlopen(f"{url}/api/status", timeout=600).read()
                break
            except urllib.error.URLError:
                pass
        yield url
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:  # kernels that do not answer
            server.kill()


@pytest.fixture(scope="module")
def page(lab, browser):
    "JupyterLab's page; at the end nobody else may have been asked for anything, and nothing may have gone wrong."
    with watched(browser) as visit:
        yield visit(lab)


def run(page, path: str) -> None:
    "Open a notebook and run all its cells, none of which may fail."
    assert page.evaluate(OPEN, path) > 0
    page.evaluate(RUN)
    check(page)


def check(page) -> None:
    cells = page.evaluate(RAN)
    assert [cell for cell in cells if cell["errors"]] == []
    assert all(cell["count"] for cell in cells)


def test_it_opens_on_the_index(lab, page):
    page.get_by_role("heading", name="dtwb", exact=False).first.wait_for()


@pytest.mark.parametrize("path", TUTORIALS)
def test_tutorials_open(page, path):
    assert page.evaluate(OPEN, path) > 3
    page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) h1").first.wait_for()


def test_a_tutorial_runs(page):
    run(page, "nbs/tutorials/04_what_if.ipynb")


SHOW = """at => {
  const holds = cell => cell.model.type == 'code' && cell.model.sharedModel.source.includes(at)
  panel.content.activeCellIndex = panel.content.widgets.findIndex(holds)
  const cell = panel.content.activeCell
  cell.node.scrollIntoView()
  cell.node.dataset.tested = at
}"""


EXPLORERS = {"explore_twin(": "canvas", "explore_what_if(": "", "explore_schedule(": "", "explore_attention(": "img"}


def explorer(page, call: str):
    "The output of the cell that holds `call`, on the screen."
    page.evaluate(SHOW, call)
    output = page.locator(f".jp-Cell[data-tested='{call}'] .jp-OutputArea").first
    output.locator(".jupyter-widgets").first.wait_for()
    return output


def turns(page, output, look: str, key: str) -> None:
    "The first slider of `output` is moved: what `look` finds is another picture then, or without it, another text."
    before = seen(page, output, look)
    output.get_by_role("slider").first.focus()
    page.keyboard.press(key)

    def other(now) -> bool:
        return now != before and (not look or (np.abs(pixels(now) - pixels(before)).max(2) > 30).sum() > 100)

    until(page, lambda: seen(page, output, look), other)


def seen(page, output, look: str) -> bytes | str:
    "What is there, once it is the same twice."
    picture = output.locator(look).first if look else output
    picture.wait_for()
    before = None
    for _ in range(40):
        now = picture.screenshot() if look else picture.inner_text()
        if now == before:
            break
        before = now
        page.wait_for_timeout(250)
    return now


def test_explorers(page):
    run(page, "nbs/tutorials/05_explorers.ipynb")
    for call, look in EXPLORERS.items():
        turns(page, explorer(page, call), look, "End")
    page.evaluate(
        "() => { window.jupyterapp.commands.execute('notebook:restart-run-all').then(() => window.again = true) }"
    )
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.wait_for_function("() => window.again")
    check(page)
    first = explorer(page, "explore_twin(")
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:create-output-view')")
    second = page.locator(".jp-LinkedOutputView")
    second.locator("canvas").first.wait_for()
    turns(page, second, "canvas", "End")
    turns(page, first, "canvas", "Home")
