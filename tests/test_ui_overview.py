"""The overview: its numbers against the twin's, alarms acknowledged by those who may, and seen by everybody else."""

import threading
from itertools import pairwise

import pytest
from browser import until, watched
from conftest import ROOT

from dtwb.core import events as ev
from dtwb.core.errors import AccessError, StoreError
from dtwb.core.factory import Factory
from dtwb.core.settings import settings
from dtwb.core.state import fold, initial_state
from dtwb.store.database import Store
from dtwb.twin.kpis import kpis, over_time
from dtwb.twin.simulation import simulate
from dtwb.ui.flow import flows
from dtwb.ui.key_figures import course, targets
from dtwb.ui.overview import Overview
from dtwb.ui.runs import view_of


@pytest.mark.browser
def test_numbers_machines_and_alarms(site, browser):
    with site.store() as store:
        before = view_of(store, site.alarmed)
    figures, state = kpis(before.events, before.factory), fold(before.events, initial_state(before.factory))
    with watched(browser, height=2600) as visit, watched(browser) as visit_too:
        page = visit(site.app("overview", f"run={site.alarmed}"))
        page.wait_for_selector(".dtwb-machine")
        shown = {t.get_attribute("data-kpi"): t for t in page.locator(".dtwb-kpi").all()}
        available = f"{figures.availability_overall.item() * 100:.1f}"
        until(page, lambda: shown["Availability"].locator(".dtwb-value").inner_text().split()[0], available.__eq__)
        for label, name in {"OEE": "oee_overall", "Throughput": "throughput_rate", "Scrap": "scrap_ratio"}.items():
            met = targets(before.factory)[name].met(figures[name].item())
            assert shown[label].get_attribute("data-met") == str(met)
            assert ("met" if met else "missed") in shown[label].inner_text()
        for machine, now in state.machines.items():
            card = page.locator(f".dtwb-machine[data-machine='{machine}']")
            assert card.get_attribute("data-status") == now.status
            oee = figures.oee.sel(machine=machine).item()
            assert (f"{oee * 100:.1f} %" if oee == oee else "–") in card.inner_text()
        assert "80%" in page.locator(".dtwb-machine[data-machine='kiln_1']").inner_text()
        said = page.get_by_text("the plan of tile_plant is locked up")
        said.first.wait_for()
        assert said.count() == 1  # in the log of this run
        widths = "() => [...Bokeh.documents[0]._all_models.values()].filter((m) => m.type === 'Figure')"
        until(page, lambda: page.evaluate(f"{widths}.map((m) => m.inner_width)"), lambda w: len(w) > 3 and min(w) > 100)
        other = visit_too(site.app("overview", f"run={site.alarmed}"))
        other.get_by_text("2 to acknowledge, 0 acknowledged").wait_for()
        until(page, page.locator(".dtwb-alarm b").count, (2).__eq__)  # what an event says is not taken for HTML
        page.get_by_role("button", name="Acknowledge").first.press("Enter")
        for one in (page, other):
            one.get_by_text("1 to acknowledge, 1 acknowledged").wait_for()
    with site.store() as store:
        events = list(store.events(site.alarmed))
    assert [(e.kind, e.alarm) for e in events[len(before.events) :]] == [("AlarmAcknowledged", "a2")]
    again = fold(events, initial_state(before.factory))
    assert again.alarms["a2"].acknowledged_by and not again.alarms["a1"].acknowledged_by
    assert kpis(events, before.factory).equals(figures)


def test_who_may_acknowledge(tmp_path, monkeypatch):
    with Store.open(tmp_path / "plant.sqlite") as store:
        run = store.start_run("simulation", "plant")
        store.append(run, [ev.RunStarted(0.0, run), ev.AlarmRaised(5.0, "saw", "a1"), ev.RunEnded(9.0, run)])
        store.finish_run(run)
        app = Overview(store)
        button = app.bodies["alarms"][0][1][1]  # drawn for an engineer, who is degraded while the page is open
        for role, written in {"viewer": 3, "engineer": 4}.items():
            monkeypatch.setenv("DTWB_SERVE__ROLE", role)
            settings.cache_clear()
            if role == "viewer":
                with pytest.raises(AccessError, match="a viewer cannot acknowledge alarms"):
                    app.acknowledge("a1")
                assert Overview(store).bodies["alarms"][0][1][1].disabled
            button.clicks += 1
            assert store.event_count(run) == written
        monkeypatch.undo()
        settings.cache_clear()


def test_two_acknowledge_while_the_run_goes_on(tmp_path):
    with Store.open(tmp_path / "plant.sqlite") as store:
        run = store.start_run("simulation", "plant")
        store.append(run, [ev.AlarmRaised(0.0, "saw", f"a{i}") for i in range(20)])
        done: list[str] = []

        def acknowledge(who: str) -> None:
            for i in range(20):
                try:
                    done.append(store.acknowledge(run, f"a{i}", who).alarm)
                except StoreError as e:
                    assert "has acknowledged it already" in str(e)

        people = [threading.Thread(target=acknowledge, args=(who,)) for who in ("Ada", "Grace")]
        for person in people:
            person.start()
        for step in range(60):
            store.append(run, [ev.SensorRead(step + 0.5, "saw", "current", 1.0, "A"), ev.SensorRead(step + 1.0, "saw")])
        for person in people:
            person.join()
        events = list(store.events(run))
        assert sorted(done) == sorted(f"a{i}" for i in range(20))
        assert all(a.time <= b.time for a, b in pairwise(events))
        assert all(alarm.acknowledged_by in ("Ada", "Grace") for alarm in fold(events).alarms.values())


@pytest.mark.parametrize(("name", "until"), [("flow_line", 20000.0), ("assembly_cell", None), ("tile_plant", None)])
def test_no_part_is_lost_on_its_way(name, until):
    factory = Factory.load(ROOT / "data" / "factories" / f"{name}.yaml")
    events = simulate(factory, rule="edd", seed=3, until=until).events
    flow = flows(events)
    into, out = flow.groupby("target").parts.sum(), flow.groupby("source").parts.sum()
    quantity = {e.subject: e.quantity for e in events if isinstance(e, ev.JobReleased)}
    moved = {e.subject for e in events if isinstance(e, ev.PartMoved)}
    assert out["entry"] == sum(quantity[job] for job in moved)
    inside = {job: n for job, n in quantity.items() if job in moved}
    for e in events:
        if isinstance(e, ev.PartScrapped) or (isinstance(e, ev.PartMoved) and e.destination == "exit"):
            inside.pop(e.subject, None)
    gone = into.get("exit", 0) + into.get("scrap", 0)
    assert gone + sum(inside.values()) == out["entry"]
    kept = into.subtract(out, fill_value=0).drop(["exit", "scrap", "entry"], errors="ignore")
    assert (kept >= 0).all() and kept.sum() == sum(inside.values())
    pieces, whole = course(events, factory), kpis(events, factory)
    assert pieces.scrapped.sum() == whole.scrapped and pieces.sizes["time"] <= 24
    assert over_time(events, factory, 1e9).oee_overall.item() == pytest.approx(whole.oee_overall.item(), nan_ok=True)
