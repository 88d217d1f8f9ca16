"""The attention app in a real browser: pictures of a run and of one's own, looked at in every way; a broken bundle."""

import base64
import os
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from browser import PLANT, fits, picture, pixels, still, until, watched
from conftest import ROOT

from dtwb.core.events import EventBus
from dtwb.loop.session import Recording
from dtwb.store.runs import run_folder
from dtwb.vision.inspector import Inspector
from dtwb.vision.synthetic import generate_tile

pytestmark = pytest.mark.browser
KINDS = ("crack", "good", "break", "good", "crack")


@pytest.fixture(scope="module")
def demo():
    return Inspector.load(ROOT / "models" / "tile_demo")


@pytest.fixture(scope="module")
def seen(site, demo):
    "A run's id and what its inspector said; it has no events, so that it is nobody's latest."
    rng, said = np.random.default_rng(5), []
    with site.store() as store, run_folder("loop", store=store, root=site.data / "runs", name=PLANT.name) as run:
        PLANT.save(run.folder / "factory.yaml")
        recording = Recording(run, store, EventBus())
        for k, kind in enumerate(KINDS):
            image = generate_tile(rng, kind, (128, 96), 0.9)[0]
            request = SimpleNamespace(time=60.0 * k, job=f"job_{k}", machine="camera_1", truth=kind)
            said.append(demo.predict(image))
            recording.see(SimpleNamespace(request=request, image=image, detection=said[-1]))
    return run.id, said


def at(page, text: str) -> None:
    page.locator(".dtwb-where", has_text=text).wait_for()


def judged(page, text: str) -> str:
    "The word of the verdict, once it says this."
    page.locator(".dtwb-said", has_text=text).first.wait_for()
    return page.locator(".dtwb-verdict").first.inner_text()


def changed(page, before: np.ndarray) -> np.ndarray:
    "The picture, once it differs from another."

    def differs(now: np.ndarray) -> bool:
        return now.shape == before.shape and np.abs(now - before).mean() > 0.3

    return until(page, lambda: pixels(picture(page.locator(".dtwb-picture").first)), differs)


def choose(page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=label).first.click()
    page.get_by_role("option", name=option, exact=True).or_(
        page.get_by_role("menuitem", name=option, exact=True)
    ).last.click()


def test_a_run_by_keyboard_and_in_every_way(site, seen, visit):
    run, said = seen
    page = visit(site.app("attention", f"run={run}"))
    at(page, "5 of 5")
    assert judged(page, "above the threshold" if said[4].is_defect else "below") == said[4].defect_type
    page.keyboard.press("ArrowLeft")
    at(page, "4 of 5")
    at(page, "job_3 at camera_1, 0:03:00")
    page.keyboard.press("ArrowRight")
    at(page, "5 of 5")
    page.keyboard.press("ArrowRight")  # after the last comes the first
    at(page, "1 of 5")
    assert said[0].is_defect and judged(page, "above the threshold") == said[0].defect_type
    page.wait_for_function("() => location.search.includes('item=0')")

    first = pixels(still(page, page.locator(".dtwb-picture")))
    assert np.ptp(first, axis=2).max() > 60  # the map is in colours, the photo is grey
    opacity, threshold = page.locator("input[type=range]").nth(0), page.locator("input[type=range]").nth(1)
    opacity.press("Home")
    bare = changed(page, first)
    opacity.press("End")
    opaque = changed(page, bare)
    threshold.press("End")
    assert judged(page, "below the threshold of 1.000") == "good"
    without_box = changed(page, opaque)
    figures = page.locator(".dtwb-effect").inner_text()
    threshold.press("Home")
    judged(page, "above the threshold of 0.000")
    assert "5 of 5" not in figures
    until(page, page.locator(".dtwb-effect").inner_text, figures.__ne__)

    choose(page, "Where it looked", "Grad-CAM")
    cam = changed(page, without_box)
    choose(page, "Where it looked", "Attention of a layer")
    layer = changed(page, cam)
    choose(page, "Head", "3")
    changed(page, layer)
    page.get_by_role("switch", name="Compare").or_(page.get_by_label("Compare")).first.click()
    page.locator(".dtwb-difference").wait_for()
    until(page, page.locator(".dtwb-picture").count, (2).__eq__)
    with page.expect_download() as download:
        page.get_by_role("button", name="PNG").click()
    picture = cv2.imread(str(download.value.path()))
    assert picture is not None and picture.shape[1] > picture.shape[0]


def test_an_image_of_ones_own_is_dropped(site, demo, visit):
    image = generate_tile(np.random.default_rng(8), "break", (128, 96), 0.9)[0]
    page = visit(site.app("attention", "source=own"))
    target = page.get_by_role("button", name="Drop an image here")
    target.wait_for()
    zone = page.locator("button:has(input[type=file]), label:has(input[type=file])").first
    zone.wait_for()
    drop = """([target, name, data]) => {
      const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), dropped = new DataTransfer()
      dropped.items.add(new File([bytes], name, { type: "image/png" }))
      const how = { dataTransfer: dropped, bubbles: true, cancelable: true, composed: true }
      target.dispatchEvent(new DragEvent("drop", how))
    }"""

    def give(name: str, data: bytes) -> None:
        page.evaluate(drop, [zone.element_handle(), name, base64.b64encode(data).decode()])

    give("mine.png", cv2.imencode(".png", image)[1].tobytes())
    at(page, "mine.png, 96 x 128 px")
    verdict = demo.predict(image)
    assert judged(page, "threshold") == verdict.defect_type
    give("<b>bad</b>.png", b"MZ this is a program")
    page.get_by_text("this is not an image").wait_for()
    assert page.locator(".dtwb-verdict").first.is_visible()  # the other one is still there


def test_a_broken_bundle_is_said_in_place(site, browser):
    name = f"broken_{os.getpid()}"
    folder = ROOT / "models" / name
    shutil.copytree(ROOT / "models" / "tile_demo", folder)
    try:
        (folder / "model.onnx").write_bytes(b"not the one")
        with watched(browser, width=420, height=1000, color_scheme="dark") as visit:
            page = visit(site.app("attention", f"source=tiles&model={name}"))
            page.get_by_text("the file was changed").wait_for()
            choose(page, "Model", "tile_demo")
            page.locator(".dtwb-verdict").wait_for()
            page.get_by_text("the file was changed").wait_for(state="detached")
            fits(page)
    finally:
        shutil.rmtree(folder)
