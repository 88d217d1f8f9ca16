"""The twin in a real browser: it shows the run's state, moves, answers clicks and keys, and follows a live run."""

import re

import numpy as np
import pytest
from browser import PLANT, picture, pixels, run_folder, simulate, still, until, watched

from dtwb.core.schedule import STATUS_COLORS

pytestmark = pytest.mark.browser
STAGE = """() => {
  const find = v => v.ipy_view?.scene ? v.ipy_view : (v.child_views || []).map(find).find(Boolean)
  return [...Bokeh.index].map(find).find(Boolean)
}"""


def ready(page) -> None:
    page.locator(".dtwb-clock[data-ready=true]").wait_for()


def seek(page, at: float) -> None:
    "As with the mouse on the slider."
    page.locator(".dtwb-clock input").evaluate(
        "(slider, at) => { slider.value = at; slider.dispatchEvent(new Event('input')) }", at
    )


def shows(page, state) -> None:
    "Wait until the list has what a state has, machine by machine."
    wanted = {id: machine.status.value for id, machine in state.machines.items()}
    page.locator(".dtwb-rows").evaluate(
        """(list, wanted) => new Promise((done, fail) => { const begun = Date.now(), look = () => {
          const other = Object.entries(wanted).filter(([id, status]) =>
            list.querySelector(`[data-machine=${id}]`)?.dataset.status !== status)
          if (!other.length) done()
          else if (Date.now() - begun > 300000) fail(new Error(`not shown: ${other}`))
          else setTimeout(look, 50)
        }; look() })""",
        wanted,
    )


def drawn(page, state) -> None:
    "Wait until machines have the colours of a state: looked up in what the browser has, as its shader does."
    found = lambda: page.evaluate(
        f"""n => {{
          const view = ({STAGE})(), now = view.scene.fog.near
          const rows = view.scene.children[0].children.find(c => c.material?.uniforms?.told).material.uniforms.told
          const told = rows.value.image.data
          return [...Array(n).keys()].map(i => {{
            let row = told[4 * i + 2]
            for (let k = row; k < told[4 * i + 2] + told[4 * i + 3]; k++) if (told[4 * k] <= now) row = k
            return told[4 * row + 1]
          }})
        }}""",
        len(state.machines),
    )
    until(page, found, [int(STATUS_COLORS[machine.status][1:], 16) for machine in state.machines.values()].__eq__)


def moved(before: bytes, after: bytes) -> int:  # pixels
    return int((np.abs(pixels(before) - pixels(after)).max(2) > 30).sum())


def test_it_shows_the_state_moves_and_is_asked(site, visit):
    id, run = list(site.runs.items())[-1]
    page = visit(site.app("twin", f"run={id}&t=3600&speed=600"))
    ready(page)
    for at in (3600.0, 0.31 * run.events[-1].time, 12345.6):
        if at != 3600:
            seek(page, at)
        shows(page, run.state(at))
        drawn(page, run.state(at))
    canvas = page.locator("canvas").first
    before = still(page, canvas)
    page.keyboard.press("Space")
    page.locator(".dtwb-clock[data-playing=true]").wait_for()
    page.wait_for_function("() => Number(new URLSearchParams(location.search).get('t')) === 12345.6")
    time = page.locator(".dtwb-clock")
    until(page, lambda: float(time.get_attribute("data-time") or 0), lambda now: now >= 12345.6 + 1500)
    page.keyboard.press("Space")
    page.locator(".dtwb-clock[data-playing=false]").wait_for()
    at = float(time.get_attribute("data-time") or 0)
    shows(page, run.state(at))
    until(page, lambda: moved(before, picture(canvas)), lambda n: n > 40)  # parts are elsewhere
    page.keyboard.press("ArrowRight")
    page.wait_for_function("at => Math.abs(new URLSearchParams(location.search).get('t') - at) < 0.06", arg=at + 600)

    x, y = PLANT.machine("kiln_1").position  # a click on the roof of the kiln
    spot = page.evaluate(
        f"""([x, y, z]) => {{
          const view = ({STAGE})(), plant = view.scene.children[0]
          const box = view.renderer.domElement.getBoundingClientRect()
          const at = view.camera.position.clone().set(x, y, z).add(plant.position).project(view.camera)
          return [box.x + (at.x + 1) / 2 * box.width, box.y + (1 - at.y) / 2 * box.height]
        }}""",
        [x, y, 0.3],
    )
    page.mouse.click(*spot)
    card = page.locator(".dtwb-card")
    page.locator(".dtwb-card[data-machine=kiln_1]").wait_for()
    page.locator(".dtwb-rows [data-machine=kiln_1][aria-selected=true]").wait_for()
    until(page, lambda: card.get_attribute("data-status"), run.state(at + 600).machines["kiln_1"].status.value.__eq__)
    until(page, card.locator("[data-kpi=OEE] b").inner_text, lambda text: text.endswith("%"))
    page.locator(".dtwb-rows").press("ArrowUp")
    page.locator(".dtwb-card[data-machine=press_2]").wait_for()

    before = still(page, canvas)
    part = page.locator("[data-follow]").first
    name = part.inner_text()
    part.click()
    page.wait_for_function("name => location.search.includes('part=' + name)", arg=name)
    until(page, lambda: moved(before, picture(canvas)), lambda n: n > 2000)  # the camera is beside it
    page.get_by_label("Whole plant").click()
    page.wait_for_function("() => !location.search.includes('part=o')")
    address = page.url
    page.get_by_label("From above").click()
    page.locator("svg text", has_text="press_1").wait_for()
    page.get_by_label("Toggle theme").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    assert "press_1,press," in download.value.path().read_text()

    page = visit(address)  # the address opens the same again
    ready(page)
    page.locator(".dtwb-card[data-machine=press_2]").wait_for()
    shows(page, run.state(at + 600))
    assert abs(float(page.locator(".dtwb-clock").get_attribute("data-time") or 0) - (at + 600)) < 0.06


def test_a_run_is_followed_while_it_is_written(site, browser):
    run = simulate(PLANT, rule="edd", seed=5)
    half = len(run.events) // 2
    with site.store() as store, watched(browser, 420, 900) as visit:
        with run_folder("live", seed=5, name=PLANT.name, store=store, root=site.data / "runs") as written:
            PLANT.save(written.folder / "factory.yaml")
            for event in run.events[:half]:
                written.writer(event)
            written.writer.flush()
            page = visit(site.app("twin", f"run={written.id}"))
            ready(page)
            page.locator(".dtwb-clock[data-live=true]").wait_for()
            until(page, page.locator(".dtwb-badge").inner_text, re.compile("live\\s+running").search)
            shows(page, run.state(run.events[half - 1].time))
            for event in run.events[half:]:
                written.writer(event)
        page.locator(".dtwb-badge", has_text="finished").wait_for()
        page.locator(".dtwb-clock[data-live=false]").wait_for()
        seek(page, run.events[-1].time)
        shows(page, run.state())
        page.wait_for_function("() => document.documentElement.scrollWidth <= innerWidth")
