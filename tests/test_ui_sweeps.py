"""The sweeps app in a browser: what it shows and does, and that what others wrote stays text."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import fits, picture, pixels, still, until

from dtwb.sweeps.recorded import find_sweep
from dtwb.sweeps.results import Sweep

pytestmark = pytest.mark.browser


def tile(page, label: str) -> str:
    return page.locator(f".dtwb-kpi[data-kpi='{label}'] .dtwb-value").inner_text().split()[0]


def choose(page, label: str, value: str):
    page.get_by_role("combobox", name=label, exact=True).click()
    page.get_by_role("menuitem", name=value, exact=True).last.click()


def test_a_sweep_is_explored(site, visit):
    sweep = Sweep.load(find_sweep("line_buffers"))
    best = sweep.best("throughput")
    page = visit(site.app("sweeps", "sweep=line_buffers"))
    page.wait_for_selector(".dtwb-run")
    page.wait_for_selector("canvas")
    wanted = [str(len(sweep.runs)), "2", "0"]
    until(page, lambda: [tile(page, label) for label in ("Runs", "Failed", "Missing")], wanted.__eq__)
    assert float(tile(page, "Best throughput")) == pytest.approx(best.result["throughput"], rel=1e-3)
    page.locator(f".dtwb-run[data-run='{best.id}']").wait_for()
    first = page.locator(".bk-Figure").first
    before = pixels(still(page, first))
    choose(page, "Result", "held_up")
    page.locator(".dtwb-kpi[data-kpi='Best held_up']").wait_for()
    until(
        page,
        lambda: pixels(picture(page.locator(".bk-Figure").first)),
        lambda after: before.shape != after.shape or np.abs(before - after).max() > 100,
    )
    page.wait_for_function(
        "() => location.search.includes('result=%22held_up%22') || location.search.includes('held_up')"
    )

    page.get_by_label("Filter").fill("places>=8 repair=30 finished")
    wanted = {r.id for r in sweep.runs if r.parameters["places"] >= 8 and r.parameters["repair"] == 30}
    page.locator(".tabulator-row", has_text="failed").first.wait_for(state="detached")
    page.locator(".tabulator-row").get_by_text(min(wanted)).click()
    page.locator(f".dtwb-run[data-run='{min(wanted)}']").first.wait_for()
    page.get_by_label("Filter").fill("nonsense>3")
    page.get_by_text("there is no column 'nonsense'").wait_for()
    page.get_by_label("Filter").fill("")

    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").last.click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert len(lines) == len(sweep.runs) + 1 and lines[0].startswith("run,how,places,repair,seed,throughput")

    page.locator(".dtwb-failed summary").first.click()
    page.locator(".dtwb-failed .dtwb-traceback", has_text="FactoryError").first.wait_for()
    with page.context.expect_page() as opened:
        page.locator(".dtwb-failed").first.get_by_text("executed notebook").click()
    notebook = opened.value
    notebook.get_by_text("Buffers against failures").first.wait_for()
    notebook.get_by_text("FactoryError").first.wait_for()
    answer = page.request.get(notebook.url)
    assert "sandbox; default-src 'none'" in answer.headers["content-security-policy"]


EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def test_what_others_wrote_is_text(site, visit):
    folder = site.data / "runs" / "evil"
    cell = {"cell_type": "code", "execution_count": 1, "id": "a", "metadata": {}, "source": EVIL}
    outputs = [
        {"output_type": "display_data", "data": {"text/html": EVIL}, "metadata": {}},
        {"output_type": "error", "ename": EVIL, "evalue": EVIL, "traceback": [EVIL]},
    ]
    notebook = {"cells": [cell | {"outputs": outputs}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    for i in range(4):
        run = folder / f"r{i}"
        run.mkdir(parents=True)
        record = {"parameters": {"text": f"{EVIL}{i}", "b": i % 2, EVIL: 1}, "how": "failed" if i == 3 else "finished"}
        (run / "run.json").write_text(json.dumps(record | {"error": EVIL, "started": "2026-01-01T00:00:00"}))
        (run / "result.json").write_text(json.dumps({"y": i, EVIL: 3, "x": EVIL}))
        (run / "out.ipynb").write_text(json.dumps(notebook))
    (folder / "torn").mkdir()
    (folder / "sweep.json").write_text(json.dumps({"template": EVIL, "axes": {EVIL: [EVIL]}}))
    try:
        page = visit(site.app("sweeps", "sweep=evil"))
        page.wait_for_selector(".dtwb-run")
        page.wait_for_selector("canvas")
        page.locator(".dtwb-failed summary").first.click()
        page.locator(".dtwb-traceback", has_text="onerror").first.wait_for()
        assert "is no name for a parameter" in page.locator("details", has_text="could not be read").last.inner_html()
        page.locator(".tabulator-row").get_by_text("r2", exact=True).click()
        page.locator(".dtwb-run[data-run='r2']").first.wait_for()
        assert page.title() != "owned" and page.locator("img[src='x']").count() == 0
        page.goto(f"{site.root}/run-notebook/evil/r3")
        page.get_by_text("onerror").first.wait_for()
        assert page.title() != "owned" and page.locator("img, script").count() == 0
    finally:
        shutil.rmtree(folder)
    for path in ("evil/r3", "evil/..%2f..%2fdtwb.sqlite", "../overview/evil"):
        assert page.request.get(f"{site.root}/run-notebook/{path}").status == 404


def test_sweeps_that_are_not_there_and_dark(site, visit):
    page = visit(site.app("sweeps", "sweep=nowhere"))
    page.get_by_text("there is no such sweep").wait_for()
    choose(page, "Sweep", "line_buffers")
    page.wait_for_selector(".dtwb-run")
    page.wait_for_selector("canvas")
    page.get_by_label("Toggle theme").click()
    until(page, lambda: np.median(pixels(page.screenshot())), lambda shade: shade < 60)
    fits(page)
