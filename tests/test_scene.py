"""The scene: in a real browser, where it asks nobody else for anything, and the film that it shows."""

import contextlib
import os
import queue
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import cv2
import nbformat
import numpy as np
import pytest
from conftest import ROOT

from dtwb.core import events as ev
from dtwb.core.events import MachineStatus
from dtwb.core.factory import Factory
from dtwb.core.trace import Trace
from dtwb.twin.film import Film, moment
from dtwb.twin.scene import Scene
from dtwb.twin.simulation import simulate

PLANT = Factory.load(ROOT / "data" / "factories" / "tile_plant.yaml")
SERVE = (
    "import sys; from pathlib import Path; from dtwb.ui.serve import serve; "
    "serve('127.0.0.1', 0, started=lambda url: print('at', url, flush=True), folder=Path(sys.argv[1]))"
)
NOTEBOOK = """
from dtwb.core.factory import Factory
from dtwb.twin.scene import Scene
from dtwb.twin.simulation import simulate
from dtwb.ui.scene import scene_view
from dtwb.ui.shell import page

run = simulate(Factory.load("data/factories/tile_plant.yaml"), rule="edd", seed=3)
page("scene", lambda: ([], [scene_view(Scene(run).show(at=7200))])).servable();
"""
GL = ["--use-gl=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]  # without a graphics card
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]


@contextlib.contextmanager
def served(folder):
    "The real server in a process of its own; gives its address."
    command = [sys.executable, "-c", SERVE, str(folder)]
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=log, text=True)
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in server.stdout], daemon=True).start()
    try:
        while not (line := lines.get(timeout=120)).startswith("at "):
            pass
        yield line.split()[1]
    finally:
        server.terminate()
        server.wait(30)


def pixels(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), 1)[..., ::-1].astype(int)


def green(png: bytes) -> int:
    "How many pixels have the hue of machines at work."
    r, g, b = np.moveaxis(pixels(png), 2, 0)
    return int(((g > 90) & (r < g / 4) & (abs(b - 0.73 * g) < 25)).sum())


@pytest.mark.browser
def test_it_is_drawn_moves_and_asks_nobody_else(tmp_path, chromium):
    from playwright.sync_api import sync_playwright

    cell = nbformat.v4.new_code_cell(NOTEBOOK)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "scene.ipynb")
    with served(tmp_path) as url, sync_playwright() as playwright:
        with opened(playwright, chromium, url, *GL) as page:
            canvas = page.locator("canvas").first
            canvas.wait_for()
            page.get_by_text("running 6").wait_for()
            page.wait_for_timeout(1500)
            at_work = canvas.screenshot()
            assert green(at_work) > 2000  # machines at work, in three dimensions
            page.locator("input[type=range]").press("End")
            page.get_by_text("running").wait_for(state="detached")
            page.wait_for_timeout(1500)
            assert green(canvas.screenshot()) < green(at_work) / 20
            page.get_by_label("From above").click()
            page.locator("svg", has_text="press_1").wait_for()
        with opened(playwright, chromium, url, "--disable-3d-apis", quiet=False) as page:
            page.locator("svg", has_text="press_1").wait_for()
            page.get_by_text("running 6").wait_for()


@contextlib.contextmanager
def opened(playwright, chromium, url, *arguments, quiet=True):
    "A page at an address; nobody else may be asked for anything, and if `quiet`, nothing may be complained of."
    asked, wrong = set(), []
    browser = playwright.chromium.launch(executable_path=chromium, args=[*QUIET, *arguments])
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    page.on("request", lambda request: asked.add(urlsplit(request.url)))
    page.on("websocket", lambda socket: asked.add(urlsplit(socket.url)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.set_default_timeout(60_000)
    page.goto(url)
    yield page
    browser.close()
    assert {part.netloc for part in asked if part.scheme in ("http", "https", "ws", "wss")} == {urlsplit(url).netloc}
    assert wrong == [] or not quiet


@pytest.mark.parametrize("rule, seed", [("fifo", 5), ("setup", 6)])
def test_the_film_shows_what_the_state_is(rule, seed):
    run = simulate(PLANT, rule=rule, seed=seed, until=30_000)
    film = Film(PLANT, run.events)
    for at in [0.0, *np.random.default_rng(seed).uniform(0, film.end, 25), film.end]:
        now, state = moment(film, at), run.state(at)
        assert [list(MachineStatus)[i] for i in now.status] == [m.status for m in state.machines.values()]
        assert now.levels.tolist() == list(state.buffers.values())
        shown = {film.trace.names[i]: point for i, point in zip(now.jobs, now.parts)}
        assert len(shown) <= film.most
        for id, job in state.jobs.items():
            inside = job.ended is None or (job.place == "exit" and job.arrival > at)
            assert (id in shown) == inside
            if job.machine:  # on it, in the middle of its roof
                x, y = PLANT.machine(job.machine).position
                assert np.abs(shown[id][:2] - (x, y)).max() < film.layout.size / 2
            elif inside and job.buffer and job.arrival <= at:
                x, y = PLANT.buffer(job.buffer).position
                assert np.abs(shown[id][:2] - (x, y)).max() < film.layout.size / 2


def test_vehicles_and_nothing_at_all():
    fleet = {"size": 2, "speed": 1.0, "home": (0, 0)}
    factory = Factory.model_validate(PLANT.model_dump(by_alias=True) | {"transport": {"vehicles": fleet}, "orders": []})
    runs = [
        ev.VehicleMoved(10.0, "v1", origin="home", destination="press_1", duration=10.0),
        ev.VehicleMoved(20.0, "v1", origin="press_1", destination="kiln_1", duration=8.0, job="j"),
        ev.VehicleMoved(25.0, "v2", origin="home", destination="press_2", duration=10.0),
    ]
    film = Film(factory, Trace.of(runs))
    before = film.layout.points[3 + len(factory.machines) :]
    assert np.allclose(moment(film, 5.0).vehicles, 0)
    assert np.allclose(moment(film, 15.0).vehicles[0, :2], before[0] / 2)
    assert np.allclose(moment(film, 24.0).vehicles[0, :2], (before[0] + before[2]) / 2)
    assert np.allclose(moment(film, 99.0).vehicles[:, :2], before[[2, 1]])
    assert Scene(factory).show().moment.parts.shape == (0, 3)


def test_a_frame_is_a_few_messages():
    scene = Scene(simulate(PLANT, rule="edd", seed=3)).show(at=3600)
    sent: list[str] = []
    stage = scene.stage
    attributes = [*stage.parts.values(), *stage.vehicles.values()]
    for widget in [*stage.machines, *stage.bars, *attributes]:
        widget.observe(lambda change: sent.append(change.name))
    scene.show(at=3600)
    assert sent == []
    scene.show(at=3660)
    assert 0 < len(sent) <= len(PLANT.machines) + len(PLANT.buffers) + 2
    assert sent.count("array") <= 2
