"""The overview in a real browser: what it shows, what it survives, and that it asks nobody else for anything."""

import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import PLANT, colors, make_run, picture, pixels, served, until
from conftest import ROOT

from dtwb.store.database import Store
from dtwb.store.runs import run_folder
from dtwb.twin.kpis import kpis
from dtwb.twin.simulation import Run, simulate

pytestmark = pytest.mark.browser


def tile(page, label: str) -> str:
    "The number on a tile of the KPI strip."
    return page.locator(f".dtwb-kpi[data-kpi='{label}'] .dtwb-value").inner_text().split()[0]


def expected(run: Run) -> dict[str, str]:
    figures = kpis(run.events, run.factory)
    return {
        "OEE": f"{figures.oee_overall.item() * 100:.1f}",
        "Throughput": f"{figures.throughput_rate.item():.1f}",
        "On time": f"{figures.on_time_delivery.item() * 100:.1f}",
        "Scrap": f"{figures.scrapped.item():.0f}",
        "Tardiness, total": f"{figures.tardiness.item() / 3600:.1f}",
    }


def test_the_latest_run_is_shown(site, visit):
    newest = list(site.runs)[-1]
    page = visit(site.url)
    page.wait_for_selector(".dtwb-kpi")
    want = expected(site.runs[newest])
    until(page, lambda: {label: tile(page, label) for label in want}, want.__eq__)
    assert newest in page.get_by_text("Run 2").first.inner_text()
    assert page.locator(".dtwb-badge").inner_text().split()[0] == "simulated"
    page.wait_for_selector("canvas")
    gantt, states = page.locator(".bk-Figure").nth(0), page.locator(".bk-Figure").nth(1)
    photo = page.locator(".dtwb-detection img").first
    until(page, lambda: colors(picture(gantt)), {"#0072B2", "#E69F00", "#009E73"}.issubset)
    until(page, lambda: colors(picture(states)), {"#009E73", "#B4B4B4", "#F0E442"}.issubset)
    until(page, lambda: colors(picture(photo)), {"#005ADC"}.issubset)


def test_events_are_filtered(site, visit):
    run = list(site.runs.values())[-1]
    page = visit(site.url)
    rows = page.locator(".tabulator").last.locator(".tabulator-row")
    rows.first.wait_for()
    rows.filter(has_text="RunEnded").first.wait_for()
    page.get_by_label("Subject or text").fill("press_2")
    page.locator(".tabulator-row", has_text="RunEnded").wait_for(state="detached")
    until(page, rows.all_inner_texts, lambda texts: texts and all("press_2" in text for text in texts))
    page.get_by_label("Subject or text").fill("nothing is called that")
    rows.first.wait_for(state="detached")
    with page.expect_download() as download:
        page.get_by_label("Subject or text").fill("")
        rows.first.wait_for()
        page.get_by_role("button", name="CSV").last.click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0] == "number,time,seconds,kind,subject,what" and len(lines) == len(run.events) + 1


def test_another_run_by_picker_and_by_address(site, visit):
    old, new = site.runs
    page = visit(site.url)
    page.wait_for_selector(".dtwb-kpi")
    page.get_by_role("combobox", name="Run").click()
    page.get_by_role("menuitem", name=old).last.click()
    page.get_by_text(f"Run {old}").wait_for()
    want = expected(site.runs[old])
    assert want != expected(site.runs[new])
    until(page, lambda: {label: tile(page, label) for label in want}, want.__eq__)
    page.wait_for_function(f"() => location.search.includes('{old}')")
    page = visit(f"{site.url}?run={old}")
    page.get_by_text(f"Run {old}").wait_for()
    until(page, lambda: tile(page, "OEE"), want["OEE"].__eq__)


def test_a_run_that_is_not_there(site, visit):
    page = visit(f"{site.url}?run=20000101-000000-0000")
    page.get_by_text("there is no such run").wait_for()
    page.get_by_role("combobox", name="Run").click()
    page.get_by_role("menuitem", name=next(iter(site.runs))).last.click()
    page.wait_for_selector(".dtwb-kpi")


def test_a_view_that_fails_leaves_the_others(site, visit):
    with Store.open(f"sqlite:///{site.data}/dtwb.sqlite") as store:
        run, _ = make_run(site.data, store, 3)
    (site.data / "runs" / run / "factory.yaml").write_text("name: tile_plant\nmachines: [{id: press_1, bufer: x}]\n")
    page = visit(f"{site.url}?run={run}")
    page.get_by_text("bufer: there is no such field").first.wait_for()
    page.get_by_text(f"of run {run} cannot be shown").first.wait_for()
    page.wait_for_selector("canvas")
    page.wait_for_selector(".dtwb-detection")
    page.locator(".tabulator-row").nth(5).wait_for()


def test_nothing_there_yet_then_something(tmp_path, visit):
    data = tmp_path / "data"
    data.mkdir()
    with served(data) as url:
        page = visit(url)
        page.locator(".dtwb-empty").get_by_text("make demo").wait_for()
        with Store.open(f"sqlite:///{data}/dtwb.sqlite") as store:
            make_run(data, store, 4)
        page.wait_for_selector(".dtwb-kpi")
        page.close()


def test_a_store_that_cannot_be_opened(tmp_path, visit):
    data = tmp_path / "data"
    data.mkdir()
    (data / "dtwb.sqlite").write_text("Dear plant manager, " * 100)
    with served(data) as url:
        page = visit(url)
        page.get_by_text("it is not a database").wait_for()
        page.close()


def test_a_run_is_followed_while_it_is_written(site, visit):
    events = simulate(PLANT, rule="edd", seed=5).events
    half = len(events) // 2
    with Store.open(f"sqlite:///{site.data}/dtwb.sqlite") as store:
        with run_folder("loop", seed=5, name=PLANT.name, store=store, root=site.data / "runs") as run:
            PLANT.save(run.folder / "factory.yaml")
            for event in events[:half]:
                run.writer(event)
            run.writer.flush()
            page = visit(f"{site.url}?run={run.id}")
            page.get_by_text(f"{half:,} events").wait_for()
            page.locator(".dtwb-badge", has_text="running").wait_for()
            page.wait_for_selector("canvas")
            for event in events[half:]:
                run.writer(event)
        page.get_by_text(f"{len(events):,} events").wait_for()
        page.locator(".dtwb-badge", has_text="finished").wait_for()
        until(page, lambda: colors(picture(page.locator(".bk-Figure").first)), {"#0072B2"}.issubset)


def test_dark(site, visit):
    page = visit(site.url)
    page.wait_for_selector("canvas")
    page.get_by_label("Toggle theme").click()
    until(page, lambda: pixels(page.screenshot()), lambda shown: np.median(shown) < 60)
    figure = page.locator(".bk-Figure").first

    def dark(shown: np.ndarray) -> bool:
        return np.median(shown) < 60 and (shown[:, :90].mean(axis=2) > 150).sum() > 200  # the names of the machines

    until(page, lambda: pixels(picture(figure)), dark)


def test_a_port_in_use_is_one_line(site):
    port = urlsplit(site.url).port
    command = [sys.executable, "-c", f"from dtwb.ui.serve import serve; serve('127.0.0.1', {port})"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert f"SettingsError: 127.0.0.1:{port}: the port is in use" in done.stderr.splitlines()[-1]
