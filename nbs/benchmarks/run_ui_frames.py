"""Measures the twin as it plays in Chromium: pictures a second, and what the server sends and works for them.

    python nbs/benchmarks/run_ui_frames.py          # some four minutes; writes nbs/benchmarks/ui_frames.json

A plant of 50, 200 and 500 machines with five parts a machine is simulated and stored, the app `twin` is served and
opened, and played at 60 and at 600 times the plant's speed. A picture is counted where WebGL clears its canvas for one.
Without a graphics card WebGL is SwiftShader: software, on the cores that the server and the browser share.
"""

import argparse
import json
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from run_twin import commit  # noqa: E402
from run_ui import COUNT, big_plant, chromium, say, served, store_run  # noqa: E402
from scheduling_report import machine  # noqa: E402

SIZES, SPEEDS, BEGIN = (50, 200, 500), (60, 600), 60  # s of the run


def plant_of(machines: int) -> Any:  # a Factory
    "Five parts a machine, all there from the start."
    plant = big_plant(machines)
    return plant.model_copy(update={"orders": tuple(o.model_copy(update={"quantity": 50}) for o in plant.orders)})


def played(page: Any, url: str, server: Any, speed: float, seconds: float) -> dict:
    "Open the twin, play it, and count."
    received = [0, 0]

    def count(payload: Any) -> None:
        received[0] += len(payload)
        received[1] += 1

    page.on("websocket", lambda socket: socket.on("framereceived", count))
    begun = time.perf_counter()
    page.goto(url)
    page.locator(".dtwb-clock[data-ready=true]").wait_for(timeout=60_000)
    canvas = time.perf_counter() - begun
    page.wait_for_timeout(2000)
    before, parts = received[0], page.get_by_text(" parts").first.inner_text()
    end = float(page.locator(".dtwb-clock input").get_attribute("max"))
    page.keyboard.press("Space")
    page.locator(".dtwb-clock[data-playing=true]").wait_for()
    drawn, sent, messages, cpu, start = page.evaluate("() => drawn"), *received, server.use()[1], time.perf_counter()
    page.wait_for_timeout(min(seconds, 0.9 * (end - BEGIN) / speed) * 1000)  # as long as it plays
    drawn = page.evaluate("() => drawn") - drawn
    spent = time.perf_counter() - start
    return {
        "canvas": canvas,
        "opened_bytes": before,
        "parts": int(parts.split(" part")[0].split()[-1].replace(",", "")),
        "frames_per_second": drawn / spent,
        "bytes_per_minute": (received[0] - sent) / spent * 60,
        "messages_per_second": (received[1] - messages) / spent,
        "server_cpu": (server.use()[1] - cpu) / spent,
    }


def measure(folder: Path, sizes: tuple[int, ...], seconds: float) -> list[dict]:
    rows = []
    runs = {size: store_run(folder, plant_of(size)) for size in sizes}
    with served(folder) as server, chromium() as browser:
        for size, run in runs.items():
            for speed in SPEEDS:
                page = browser.new_page(viewport={"width": 1440, "height": 1000})
                page.add_init_script(COUNT)
                url = f"{server.url}/twin?run={run}&t={BEGIN}&speed={speed}"
                rows.append({"machines": size, "speed": speed} | played(page, url, server, speed, seconds))
                say(f"twin of {size} machines at {speed}: {rows[-1]}")
                page.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--seconds", type=float, default=30.0, help="of playing, at most")
    parser.add_argument("--out", type=Path, default=ROOT / "nbs/benchmarks/ui_frames.json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "data"
        folder.mkdir()
        rows = measure(folder, tuple(map(int, asked.sizes.split(","))), asked.seconds)
    names = ("panel", "bokeh", "pythreejs", "playwright")
    head = {"what": "the twin, played", "webgl": "software (SwiftShader)", "machine": machine()}
    versions = {name: version(name) for name in names} | {"commit": commit()}
    head |= {"date": date.today().isoformat(), "versions": versions}
    shown = ({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    lines = ",\n".join(json.dumps(row) for row in shown)
    aside = asked.out.with_suffix(".json.tmp")
    aside.write_text(json.dumps(head, indent=1).removesuffix("\n}") + f',\n "runs": [\n{lines}\n]}}\n')
    aside.replace(asked.out)


if __name__ == "__main__":
    main()
