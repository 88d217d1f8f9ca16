"""What all dashboards share, in a real browser, on a page that was made to fail: tests/apps/probe.ipynb."""

from pathlib import Path

import numpy as np
import pytest
from browser import colors, pixels, ready, until, watched

pytestmark = pytest.mark.browser


def button(page, name: str, nth: int = 0):
    return page.get_by_role("button", name=name, exact=True).nth(nth)


def says(page, text: str) -> None:
    page.locator(".said", has_text=text).wait_for()


def ticks(page) -> None:
    page.locator(".ticked", has_text="a third tick").wait_for()


def saved(page, name: str, nth: int = 0) -> bytes:
    "What a press of a button puts on the disk."
    with page.expect_download() as download:
        button(page, name, nth).click()
    return Path(download.value.path()).read_bytes()


def test_what_fails_says_so_and_the_page_goes_on(site, visit):
    page = visit(site.app("probe"))
    toast = page.locator("#notistack-container .MuiAlert-root")
    toast.filter(has_text="the second tick failed").wait_for()  # a callback that is called again and again
    page.get_by_text("The broken view of run 20260501-a1 cannot be shown").wait_for()
    ticks(page)  # and goes on being called
    button(page, "Mistake").click()
    toast.filter(has_text="probe.txt: there is no such thing (make one)").wait_for()
    button(page, "Bug").click()
    toast.filter(has_text="That did not work. KeyError: '<b>bold</b>'").wait_for()
    page.get_by_role("combobox", name="Choice").click()
    page.get_by_role("menuitem", name="fails").click()
    toast.filter(has_text="not fine").wait_for()
    button(page, "Work that fails").click()
    toast.filter(has_text="Counting: probe.txt").wait_for()
    button(page, "Say").click()
    toast.filter(has_text="all is well").wait_for()
    page.wait_for_selector("canvas")


def test_a_job_is_cancelled_and_gives_what_it_has(site, visit):
    page = visit(site.app("probe"))
    button(page, "Count").click()
    page.get_by_text(" left").wait_for()
    page.locator("main").get_by_role("progressbar").wait_for()
    button(page, "Count").click()
    page.get_by_text("Counting is still running").wait_for()
    button(page, "Cancel").click()
    says(page, "got")
    page.get_by_text(" left").wait_for(state="hidden")
    button(page, "Count a little").click()
    says(page, "got 12")


def test_what_is_shown_can_be_saved(site, visit):
    page = visit(site.app("probe"))
    page.wait_for_selector("canvas")
    assert saved(page, "CSV").decode().splitlines() == ["machine,oee", "press_1,0.5"]
    assert saved(page, "SVG").startswith(b"<svg")
    until(page, lambda: len(colors(saved(page, "PNG"))), lambda n: n > 1)  # drawn
    curve, svg, image = (saved(page, "PNG", nth) for nth in range(3))
    assert {"#D55E00", "#FFFFFF"} <= colors(curve) and pixels(curve).shape[1] > 800
    assert colors(svg) == {"#009E73"} and pixels(svg).shape == (60, 80, 3)
    assert colors(image) == {"#005ADC"} and pixels(image).shape == (20, 30, 3)
    button(page, "PNG", 3).click()
    page.get_by_text("gone.png: it is not on the page").wait_for()


def test_a_page_without_its_server_says_so(site, browser):
    with watched(browser, quiet=False, color_scheme="dark") as visit:
        page, sockets = visit("about:blank"), []
        page.route_web_socket("**/ws*", lambda socket: sockets.append((socket, socket.connect_to_server())))
        page = visit(site.app("probe"))
        ticks(page)
        page.wait_for_function("() => document.cookie.includes('dtwb_theme=dark')")  # as this browser wishes
        sockets[-1][0].close(code=3000)
        page.get_by_role("alert").filter(has_text="no longer updated").wait_for()
        page.get_by_role("button", name="Reload").click()
        ticks(page)


def test_keys_belong_to_the_page_except_where_one_types(site, visit):
    page = visit(site.app("probe"))
    page.wait_for_selector("canvas")
    ready(page)
    page.keyboard.press("ArrowLeft")
    says(page, "key [ArrowLeft] 1")
    button(page, "Say").click()
    page.get_by_text("all is well").wait_for()
    page.keyboard.press(" ")  # the focus is on the button that was clicked
    says(page, "key [ ] 2")
    page.get_by_label("Text", exact=True).fill("a")
    page.keyboard.press(" ")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("b")
    until(page, page.get_by_label("Text", exact=True).input_value, "ab ".__eq__)
    button(page, "Say").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    says(page, "key [ArrowLeft] 3")
    page.keyboard.press(" ")  # it was reached by Tab: it is pressed
    page.get_by_text(" left").wait_for()
    button(page, "Cancel").click()


def test_from_one_dashboard_to_another(site, browser):
    run = next(iter(site.runs))
    with watched(browser) as visit:
        page = visit(site.app("probe", "level=7"))
        page.get_by_text("Level: 7").wait_for()
        ready(page)
        page.get_by_role("slider").press("ArrowRight")
        page.wait_for_function("() => location.search.includes('level=8')")
        page = visit(site.app("probe", f"run={run}"))
        ready(page)
        page.get_by_label("Toggle theme").click()
        page.wait_for_function("() => document.cookie.includes('dtwb_theme=dark')")
        page.get_by_role("navigation").get_by_role("link", name="Overview").click()
        page.get_by_text(f"Run {run}").first.wait_for()
        assert page.get_by_role("link", name="Overview").get_attribute("aria-current") == "page"
        page.wait_for_selector("canvas")
        # as dark as the page that one came from
        until(page, lambda: np.median(pixels(page.screenshot())), lambda shade: shade < 60)
        ready(page)
        page.set_viewport_size({"width": 400, "height": 800})
        page.get_by_label("Open drawer").click()
        page.get_by_role("navigation", name="Dashboards, menu").get_by_role("link", name="Overview").wait_for()
        page.keyboard.press("Escape")
        page = visit(site.app("probe"))
        page.wait_for_selector("canvas")
        until(page, lambda: page.locator(".main-content").evaluate("e => e.scrollWidth"), lambda wide: wide <= 400)
