"""The scene: in a real browser, where it asks nobody else for anything, and the film that it shows."""

import nbformat
import numpy as np
import pytest
from browser import PLANT, QUIET, picture, pixels, served, until, watched

from dtwb.core import events as ev
from dtwb.core.events import MachineStatus
from dtwb.core.factory import Factory
from dtwb.core.trace import Trace
from dtwb.twin.film import Film, moment
from dtwb.twin.scene import Scene
from dtwb.twin.simulation import simulate

NOTEBOOK = """
from dtwb.core.factory import Factory
from dtwb.twin.scene import Scene
from dtwb.twin.simulation import simulate
from dtwb.ui.scene import scene_view
from dtwb.ui.shell import page

run = simulate(Factory.load("data/factories/tile_plant.yaml"), rule="edd", seed=3)
page("scene", lambda: ([], [scene_view(Scene(run).show(at=7200))])).servable();
"""


def green(png: bytes) -> int:
    "How many pixels have the hue of machines at work."
    r, g, b = np.moveaxis(pixels(png), 2, 0)
    return int(((g > 90) & (r < g / 4) & (abs(b - 0.73 * g) < 25)).sum())


@pytest.mark.browser
def test_it_is_drawn_moves_and_asks_nobody_else(tmp_path, playwright, browser, chromium):
    apps = tmp_path / "apps"
    apps.mkdir()
    cell = nbformat.v4.new_code_cell(NOTEBOOK)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), apps / "scene.ipynb")
    with served(tmp_path / "data", apps) as url:
        with watched(browser, 1100, 800) as visit:
            page = visit(url)
            canvas = page.locator("canvas").first
            canvas.wait_for()
            page.get_by_text("running 6").wait_for()
            at_work = until(page, lambda: green(picture(canvas)), lambda n: n > 2000)  # in three dimensions
            page.locator("input[type=range]").press("End")
            page.get_by_text("running").wait_for(state="detached")
            until(page, lambda: green(picture(canvas)), lambda n: n < at_work / 20)
            page.get_by_label("From above").click()
            page.locator("svg", has_text="press_1").wait_for()
        flat = playwright.chromium.launch(executable_path=chromium, args=[*QUIET, "--disable-3d-apis"])
        with watched(flat, 1100, 800, quiet=False) as visit:
            page = visit(url)
            page.locator("svg", has_text="press_1").wait_for()
            page.get_by_text("running 6").wait_for()
        flat.close()


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


def test_a_frame_is_one_number():
    scene = Scene(simulate(PLANT, rule="edd", seed=3)).show(at=3600)
    sent: list[str] = []
    stage = scene.stage
    for widget in stage.widgets:
        widget.observe(lambda change: sent.append(change.name))
    scene.show(at=3600)
    assert sent == []
    scene.show(at=3660)
    assert sent == ["near"]
    scene.show(at=scene.film.end)
    assert sent.count("array") <= 2
