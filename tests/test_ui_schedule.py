"The dashboard of the schedule: what-ifs in a real browser, and what a viewer may not do."

import json
from pathlib import Path

import numpy as np
import pytest
from browser import colors, fits, picture, pixels, until

from dtwb.core.errors import AccessError, ScheduleError
from dtwb.scheduling.pictures import CHANGES
from dtwb.store.database import Store
from dtwb.store.runs import run_folder
from dtwb.twin.simulation import simulate
from dtwb.ui.schedule_app import Schedules
from dtwb.ui.users import serving
from dtwb.ui.what_if import Freeze, MachineOut, WhatIf, answer, case_of


def tiles(page) -> dict[str, str]:
    "The numbers of the strip, by their labels."
    cells = page.locator(".dtwb-kpi").all()
    return {cell.get_attribute("data-kpi"): cell.locator(".dtwb-value").inner_text() for cell in cells}


def choose(page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label, exact=True).last.click()
    page.get_by_role("menuitem", name=option, exact=True).last.click()


def wait_for_colors(page, wanted: set[str]) -> None:
    "Until the Gantt chart has these colours."
    chart = page.locator(".bk-Figure").first
    until(page, lambda: colors(picture(chart)), wanted.issubset)


def open_schedule(site, visit, run: str):
    page = visit(site.app("schedule", f"run={run}"))
    page.wait_for_selector(".dtwb-kpi")
    wait_for_colors(page, {"#0072B2", "#E69F00", "#009E73"})  # of orders
    return page


@pytest.mark.browser
def test_a_what_if_is_solved_and_accepted(site, visit):
    run, _ = list(site.runs)[:2]
    page = open_schedule(site, visit, run)
    before = tiles(page)
    page.get_by_label("Until", exact=True).fill("2:00")
    page.keyboard.press("Tab")  # the keyboard is enough
    page.keyboard.press("Enter")
    page.locator(".dtwb-asked", has_text="press_1 is out until 2:00").wait_for()
    choose(page, "Time to solve", "5 s")
    page.get_by_role("button", name="Solve").click()
    page.locator(".dtwb-moved").wait_for()
    page.locator(".dtwb-moved", has_text="operations move").wait_for()
    wait_for_colors(page, {CHANGES["later"], CHANGES["other machine"]})
    after = until(page, lambda: tiles(page), lambda now: now != before)
    assert set(after) == set(before)
    cells = page.locator("[data-figure='All done after'] td").all_inner_texts()
    assert [cells[1] + " h", cells[3] + " h"] == [before["All done after"], after["All done after"]]
    page.get_by_role("button", name="Accept the new plan").click()
    page.locator(".dtwb-moved").wait_for(state="detached")
    until(page, lambda: tiles(page), lambda now: now != before)
    with site.store() as store:
        kept = store.schedules(run).iloc[-1]
    assert "press_1 is out until 2:00" in kept.reason
    written = json.loads((site.data / "runs" / run / "plans" / "plan_1.json").read_text())
    assert written["rows"] == kept.rows
    page.get_by_role("combobox", name="Plan", exact=True).first.click()
    page.get_by_role("menuitem", name="accepted, version 1, from 0:00").wait_for()
    page.keyboard.press("Escape")


@pytest.mark.browser
def test_cancel_keeps_the_best_and_what_cannot_be_is_explained(site, visit):
    _, run = list(site.runs)[:2]
    page = open_schedule(site, visit, run)
    before = tiles(page)
    choose(page, "Time to solve", "5 min")
    page.get_by_label("Until", exact=True).fill("1:00")
    page.get_by_role("button", name="Add").click()
    page.get_by_role("button", name="Solve").click()
    page.get_by_text("Solving: objective").wait_for()  # there is a plan, and a curve
    page.locator(".bk-Figure").nth(2).wait_for()  # of objective and bound
    page.get_by_role("button", name="Cancel").click()
    page.locator(".dtwb-moved").wait_for()
    until(page, lambda: tiles(page), lambda now: now != before)
    page.get_by_role("button", name="Discard").click()
    page.locator(".dtwb-moved").wait_for(state="detached")
    page.locator(".dtwb-asked").wait_for(state="detached")
    until(page, lambda: tiles(page), before.__eq__)
    choose(page, "Machine", "kiln_1")
    page.get_by_role("button", name="Add").click()
    page.get_by_role("button", name="Solve").click()
    page.locator(".dtwb-why").wait_for()
    page.locator(".dtwb-why", has_text="nobody else can do what only kiln_1 can: sinter of").wait_for()
    until(page, lambda: tiles(page), before.__eq__)
    page.get_by_label("Toggle theme").click()

    def dark(shown: np.ndarray) -> bool:
        return np.median(shown) < 60 and (shown[:, :90].min(axis=2) > 150).sum() > 100  # the names of the machines

    until(page, lambda: pixels(picture(page.locator(".bk-Figure").first)), dark)
    fits(page)


def a_run(folder: Path, store: Store, plant, planned: bool = True) -> str:
    "A short run, with a plan or by a rule."
    how = {"schedule": simulate(plant, rule="edd", disturbances=False).schedule} if planned else {"rule": "edd"}
    with run_folder("simulation", name=plant.name, store=store, root=folder) as run:
        plant.save(run.folder / "factory.yaml")
        for event in simulate(plant, seed=1, until=3600, **how).events:
            run.writer(event)
    return run.id


def test_a_viewer_is_refused_also_when_the_button_is_pressed_for_him(tmp_path, monkeypatch):
    from browser import PLANT

    with Store.open(f"sqlite:///{tmp_path}/dtwb.sqlite") as store:
        run = a_run(tmp_path, store, PLANT)
        app = Schedules(store)
        monkeypatch.setattr(serving, "on", True)  # a visitor of whom nothing is known
        app._set_may()
        assert app.run_button.disabled and app.accept_button.disabled and "viewer" in app.role_note.object
        app.panel.limit.value = 5.0
        for button in (app.run_button, app.accept_button, app.judge_button, app.front_button):
            with pytest.raises(AccessError, match="a viewer cannot"):
                button.clicks += 1  # as a forged message would do
        assert app.answer is None and not app.job.running and store.schedules(run).empty


def test_what_somebody_else_has_accepted_is_not_lost(tmp_path):
    from browser import PLANT

    with Store.open(f"sqlite:///{tmp_path}/dtwb.sqlite") as store:
        run = a_run(tmp_path, store, PLANT)
        tabs = [Schedules(store) for _ in range(2)]
        for tab in tabs:
            case = case_of(tab.situation, WhatIf((MachineOut("press_1", 7200.0), Freeze(1800.0))))
            tab.answer = answer(case, 0.2)  # waiting is a plan
        tabs[0].accept()
        with pytest.raises(ScheduleError, match="no new plan to accept"):
            tabs[0].accept()
        with pytest.raises(ScheduleError, match="accepted version 1 in the meantime"):
            tabs[1].accept()
        assert len(store.schedules(run)) == 1
        tabs[1].discard()
        tabs[1].answer = answer(case_of(tabs[1].situation, WhatIf()), 0.2)
        tabs[1].accept()
        assert len(store.schedules(run)) == 2


def test_a_run_without_a_readable_factory_says_so(tmp_path):
    from browser import PLANT

    with Store.open(f"sqlite:///{tmp_path}/dtwb.sqlite") as store:
        run = a_run(tmp_path, store, PLANT)
        (tmp_path / run / "factory.yaml").write_text("name: tile_plant\nmachines: [{id: press_1, bufer: x}]\n")
        app = Schedules(store)
        assert "bufer: there is no such field" in app.picture.view[0][0].object
        assert app.run_button.disabled


def test_a_run_without_a_plan_shows_what_was_done(tmp_path):
    from browser import PLANT

    with Store.open(f"sqlite:///{tmp_path}/dtwb.sqlite") as store:
        a_run(tmp_path, store, PLANT, planned=False)
        app = Schedules(store)
        assert "There is no plan: solve to make one." in app.bodies["kpis"][0].object
        assert [type(view).__name__ for view in app.picture.view] == ["Bokeh"]  # no row of what a plan would use
        assert app._table().kind.unique().tolist() == ["done"] and "<rect" in app._svg()
        with run_folder("simulation", store=store, root=tmp_path) as run:
            PLANT.save(run.folder / "factory.yaml")
        app.run = run.id
        assert "Nothing is planned yet" in app.picture.view[0].object
