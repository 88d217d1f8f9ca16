"""Dashboards in a real browser: one server, one Chromium and one store of runs for all tests that want them."""

import contextlib
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from conftest import ROOT

from dtwb.core import events as ev
from dtwb.core.factory import Factory
from dtwb.store.database import Store
from dtwb.store.runs import run_folder
from dtwb.twin.simulation import Run, simulate

PLANT = Factory.load(ROOT / "data" / "factories" / "tile_plant.yaml")
SERVE = (
    "import sys; from pathlib import Path; from dtwb.ui.serve import serve; "
    "serve('127.0.0.1', 0, warm=False, started=lambda url: print('at', url, flush=True), "
    "folder=Path(sys.argv[1]) if sys.argv[1:] else None)"
)
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
GL = ["--use-gl=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]  # without a graphics card


@dataclass
class Site:
    url: str  # of the overview
    data: Path
    runs: dict[str, Run]  # id -> what was simulated, from the oldest to the newest
    alarmed: str = ""  # an older one, of `make_overview`

    @property
    def root(self) -> str:
        return self.url.rpartition("/")[0]

    def app(self, name: str, query: str = "") -> str:
        "The address of an app, e.g. app('twin', 'run=latest')."
        return f"{self.root}/{name}" + (f"?{query}" if query else "")

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        with Store.open(f"sqlite:///{self.data}/dtwb.sqlite") as store:
            yield store


def make_run(data: Path, store: Store, seed: int) -> tuple[str, Run]:
    "A run as `dtwb run` leaves it: a plan, carried out by the stochastic twin, with pictures of what the camera saw."
    plan = simulate(PLANT, rule="edd", disturbances=False).schedule
    result = simulate(PLANT, schedule=plan, seed=seed)
    with run_folder("loop", seed=seed, name=PLANT.name, store=store, root=data / "runs") as run:
        PLANT.save(run.folder / "factory.yaml")
        detections = []
        for event in result.events:
            run.writer(event)
            if event.kind == "PartInspected":
                picture = np.full((64, 128, 3), (0, 90, 220), np.uint8)
                image = run.save_picture(f"detection_{len(detections)}", picture)
                row = {"time": event.time, "job": event.subject, "machine": event.machine, "truth": event.truth}
                found = {"defect_type": event.verdict, "confidence": event.confidence, "inference_ms": 9.0}
                detections.append(row | found | {"image": str(image), "bbox": [1, 2, 3, 4]})
        store.add_detections(run.id, detections)
    return run.id, result


def make_overview(data: Path, store: Store) -> str:  # the run's id
    "A small run, over, with two alarms that nobody has seen yet, and a forecast."
    plant = PLANT.model_copy(update={"orders": PLANT.orders[:3]})
    news = [
        ev.FailurePredicted(3600.0, "kiln_1", at=30000.0, probability=0.8),
        ev.AlarmRaised(4000.0, "press_1", "a1", "warning", "3 defects in 2 h, the last one <b>crack</b>"),
        ev.AlarmRaised(5000.0, "kiln_1", "a2", "critical", "no temperature for 10 minutes"),
    ]
    with run_folder("simulation", seed=4, name="with alarms", store=store, root=data / "runs") as run:
        plant.save(run.folder / "factory.yaml")
        for event in ev.in_order([*simulate(plant, rule="edd", seed=4).events, *news]):
            run.writer(event)
        logging.getLogger("dtwb.loop").warning("the plan of %s is locked up", plant.name)
    return run.id


@contextlib.contextmanager
def served(data: Path, apps: Path | None = None, **variables: str) -> Iterator[str]:
    "The real server in a process of its own; gives the address of its first app."
    env = os.environ | {"DTWB_PATHS__DATA": str(data), "DTWB_PATHS__RUNS": str(data / "runs")} | variables
    command = [sys.executable, "-c", SERVE, *([str(apps)] if apps else [])]
    with open(data.parent / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in server.stdout], daemon=True).start()
    try:
        while not (line := lines.get(timeout=600)).startswith("at "):
            pass
        yield line.split()[1]
    finally:
        server.terminate()
        server.wait(300)


def until(page, look: Callable[[], Any], right: Callable[[Any], bool] = bool, seconds: float = 300) -> Any:
    "What `look` gives once it is `right`: whoever looks at once may be too early."
    end = time.monotonic() + seconds
    while not right(found := look()):
        assert time.monotonic() < end, found if len(repr(found)) < 1000 else "it stayed as it was"
        page.wait_for_timeout(100)
    return found


def ready(page) -> None:
    "The page is there, and the server knows: before that a key is already heard, but not always answered."
    page.wait_for_function("() => window.Bokeh?.documents?.[0]?.is_idle")


def picture(locator) -> bytes:
    "A picture of what is at a place, though it may be drawn anew just now."
    for _ in range(20):
        try:
            return locator.screenshot(timeout=60_000)
        except Exception as e:
            if "not attached" not in str(e):
                raise
    return locator.screenshot()


def still(page, locator) -> bytes:
    "A picture of what is at a place, once it is the same twice and of several colours: drawn."
    shown = [picture(locator)]

    def again() -> bool:
        shown.append(picture(locator))
        return shown[-1] == shown[-2] and np.ptp(pixels(shown[-1])) > 0

    until(page, again)
    return shown[-1]


def pixels(png: bytes) -> np.ndarray:  # (H, W, 3) int, RGB
    return cv2.imdecode(np.frombuffer(png, np.uint8), 1)[..., ::-1].astype(int)


def colors(png: bytes) -> set[str]:
    "The colours of a picture that fill more than 200 of its pixels."
    values, counts = np.unique(pixels(png).reshape(-1, 3), axis=0, return_counts=True)
    return {"#{:02X}{:02X}{:02X}".format(*value) for value in values[counts > 200]}


WIDE = """() => {
  const found = []
  const look = (node) => { for (const e of node.children) {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e)
    const wide = box.height && box.right > innerWidth + 1 && !e.matches(".bk-GlyphRenderer")
    if (wide) found.push(`${e.className} ${box.right}`)
    const moves = style.overflowX !== "visible" && box.width < innerWidth - 20  // its own content is moved sideways
    if (!moves) { look(e); if (e.shadowRoot) look(e.shadowRoot) }
  } }
  look(document.body)
  return found.slice(0, 5)
}"""


def fits(page) -> None:
    "Nothing sticks out of a phone."
    page.set_viewport_size({"width": 420, "height": 1200})
    until(page, lambda: page.evaluate(WIDE), lambda wide: not wide)


@contextlib.contextmanager
def watched(browser, width: int = 1440, height: int = 1200, quiet: bool = True, **context):
    "A new page; at its end nobody else may have been asked for anything, and (if `quiet`) nothing may have gone wrong."
    asked, wrong, own = set(), [], set()
    room = browser.new_context(viewport={"width": width, "height": height}, **context)
    page = room.new_page()
    page.on("request", lambda request: asked.add(urlsplit(request.url)))
    page.on("websocket", lambda socket: asked.add(urlsplit(socket.url)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.set_default_timeout(300_000)

    def visit(url: str):
        own.add(urlsplit(url).netloc)
        page.goto(url)
        return page

    yield visit
    room.close()
    assert {part.netloc for part in asked if part.scheme in ("http", "https", "ws", "wss")} <= own
    assert not wrong or not quiet, wrong


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "A server over a store with two runs of the tile plant."
    data = tmp_path_factory.mktemp("plant") / "data"
    data.mkdir()
    with Store.open(f"sqlite:///{data}/dtwb.sqlite") as store:
        alarmed = make_overview(data, store)
        runs = dict(make_run(data, store, seed) for seed in (1, 2))
    apps = data.parent / "apps"  # those that ship, and the probe
    apps.mkdir()
    for notebook in [*ROOT.glob("nbs/apps/*.ipynb"), *ROOT.glob("tests/apps/*.ipynb")]:
        (apps / notebook.name).symlink_to(notebook)
    with served(data, apps) as url:
        yield Site(url, data, runs, alarmed)


@pytest.fixture(scope="session")
def playwright(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="session")
def browser(playwright, chromium):
    "A Chromium that draws in three dimensions."
    browser = playwright.chromium.launch(executable_path=chromium, args=[*QUIET, *GL])
    yield browser
    browser.close()


@pytest.fixture
def visit(browser):
    "Opens an address: `page = visit(url)`."
    with watched(browser, height=2600) as visit:
        yield visit
