"""Measures the dashboards as `dtwb serve` gives them: first pictures, many visitors, memory, a soak.

    python nbs/benchmarks/run_ui.py all             # some seven minutes; writes nbs/benchmarks/ui.json
    python nbs/benchmarks/run_ui.py first --apps overview,twin --out /tmp/ui.json

`first` looks with Chromium and a profile on disk, as people have. `load` and `soak` do not: twenty Chromiums on two
cores would measure Chromium. Their visitor fetches the page, opens its websocket, pulls the document, says that it is
ready, takes whatever comes, and leaves: all that the server has to do for a browser. One Chromium comes beside them, to
see what is left for it. How fluent the twin is, `run_ui_frames.py` measures.
"""

import argparse
import asyncio
import contextlib
import json
import os
import queue
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
GL = ["--use-gl=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
FIRST = {  # what is a picture of its own in each app: any of these; `>>`: within
    "overview": [".dtwb-kpi"],
    "attention": [".dtwb-picture >> img, canvas, svg"],
    "twin": ["canvas"],
    "schedule": [".bk-Figure >> canvas"],
    "sweeps": [".tabulator-row", ".bk-Figure >> canvas"],
}
LIMIT = 30  # s that a picture is waited for


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# data and server


def make_data(folder: Path, runs: int = 2) -> None:
    "What `make demo` leaves: runs of the closed loop, with pictures."
    for seed in range(1, runs + 1):
        command = [sys.executable, "-m", "dtwb.cli", "run", "--replications", "0", "--seed", str(seed), "--json"]
        subprocess.run(command, cwd=ROOT, env=places(folder), check=True, capture_output=True)


def places(folder: Path) -> dict[str, str]:
    return os.environ | {
        "DTWB_PATHS__DATA": str(folder),
        "DTWB_PATHS__RUNS": str(folder / "runs"),
        "PYTHONPATH": str(ROOT),
    }


@dataclass
class Server:
    url: str
    process: subprocess.Popen
    ready: float  # s from its start until it had drawn all apps itself

    @property
    def apps(self) -> list[str]:
        with urllib.request.urlopen(f"{self.url}/health", timeout=120) as answer:
            return [name for name in json.load(answer)["apps"] if name != "users"]

    def use(self) -> tuple[float, float]:  # MB that it alone holds, s of CPU so far
        import psutil

        process = psutil.Process(self.process.pid)
        family = [process, *process.children(recursive=True)]
        memory = sum(one.memory_full_info().uss for one in family) / 2**20
        return memory, sum(sum(one.cpu_times()[:2]) for one in family)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    "`dtwb serve` in a process of its own, which has looked at all its apps itself."
    code = "from dtwb.ui.serve import serve; serve('127.0.0.1', 0, started=lambda url: print('at', url, flush=True))"
    begun = time.perf_counter()
    with open(folder / "server.log", "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=places(folder), stdout=subprocess.PIPE, stderr=log, text=True
        )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stdout or ()], daemon=True).start()
    try:
        while not (line := lines.get(timeout=120)).startswith("at "):
            pass
        url = line.split()[1].rpartition("/")[0]
        urllib.request.urlopen(f"{url}/health", timeout=120).read()
        yield Server(url, process, time.perf_counter() - begun)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            say("the server does not end")
            process.kill()


# with a browser


def chromium_path() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=[*QUIET, *GL])
        yield browser
        browser.close()


@contextlib.contextmanager
def fresh_page() -> Iterator[Any]:
    "A page of a Chromium that has never been anywhere, and keeps what it loads as one at home does."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium_path(), args=[*QUIET, *GL], viewport={"width": 1440, "height": 1000}
        )
        page = context.pages[0]
        page.add_init_script(COUNT)
        yield page
        context.close()


def look(page: Any, url: str, app: str) -> dict[str, float]:  # s from the click
    "Go to an app: when anything was painted, and when the picture that it is for."
    page.goto(url, wait_until="commit")
    try:
        seen = page.wait_for_function(
            SEEN, arg=[FIRST.get(app, ["canvas, svg, img"]), app == "twin"], timeout=LIMIT * 1000
        )
        picture = seen.json_value() / 1000
    except Exception as e:
        if type(e).__name__ != "TimeoutError":
            raise
        say(f"{app}: no picture in {LIMIT} s")
        picture = float(LIMIT)
    page.wait_for_timeout(300)  # until the browser has noted it
    paint = page.evaluate("() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0") / 1000
    return {"picture": picture, "paint": paint}


def leave(page: Any) -> None:
    "Once the whole page is there: nobody clicks again in the moment in which the first picture comes."
    page.wait_for_timeout(2000)
    page.goto("about:blank")


# looked for at each frame of the browser (a locator of playwright looks every 500 ms); what is there is painted one
# frame later
SEEN = """([ways, webgl]) => {
  const within = (root, selector) => [root, root.shadowRoot].filter(Boolean).flatMap((place) => [
    ...place.querySelectorAll(selector),
    ...[...place.querySelectorAll("*")].flatMap((one) => one.shadowRoot ? within(one.shadowRoot, selector) : []),
  ])
  const there = (way) => way.split(" >> ").reduce((roots, s) => roots.flatMap((r) => within(r, s)), [document])
    .some((found) => found.getBoundingClientRect().height > 0)
  if (!window.seen && document.body && (!webgl || window.drawn > 0) && ways.some(there)) {
    window.seen = -1
    requestAnimationFrame(() => { window.seen = performance.now() })
  }
  return window.seen > 0 && window.seen
}"""
COUNT = """
window.drawn = 0
for (const kind of [window.WebGLRenderingContext, window.WebGL2RenderingContext]) {
  if (!kind) continue
  const clear = kind.prototype.clear
  kind.prototype.clear = function (...bits) { window.drawn += 1; return clear.apply(this, bits) }
}
"""


ANEW = "?made=anew"  # an address that asks for something gets a page that is made at the click


def first(folder: Path, apps: list[str], fresh: int = 2, again: int = 4) -> list[dict]:
    "First pictures: a browser without anything in its cache, `fresh` times; then the same page `again`, both ways."
    rows = []
    with served(folder) as server:
        for app in apps:
            url = f"{server.url}/{app}"
            for n in range(fresh):
                with fresh_page() as page:
                    rows.append(
                        {"suite": "first", "app": app, "when": "cold", "ready": server.ready} | look(page, url, app)
                    )
                    for when, where in [("warm", url), ("warm, anew", url + ANEW)] * (n == fresh - 1):
                        for _ in range(again):
                            leave(page)
                            rows.append({"suite": "first", "app": app, "when": when} | look(page, where, app))
            mine = [row for row in rows if row["app"] == app]
            told = [
                f"{when} {[round(r['picture'], 2) for r in mine if r['when'] == when]}"
                for when in ("cold", "warm", "warm, anew")
            ]
            say(f"first picture of {app}: {', '.join(told)} s")
    return rows


def big_plant(machines: int) -> Any:  # a Factory
    "Lines of ten machines beside each other, enough orders for a thousand parts at 200 machines."
    from dtwb.core.factory import Factory

    lines = machines // 10
    plan: dict[str, Any] = {"name": f"plant_{machines}", "machines": [], "products": [], "orders": [], "buffers": []}
    for line in range(lines):
        steps = []
        for place in range(10):
            id, room = f"m{line}_{place}", f"b{line}_{place}"
            plan["buffers"].append({"id": room, "capacity": 12, "position": [4 * place - 1.5, 4 * line]})
            plan["machines"].append({"id": id, "kind": "press", "position": [4 * place, 4 * line], "buffer": room})
            steps.append({"id": f"step{place}", "modes": [{"machine": id, "duration": 60}]})
        plan["products"].append({"id": f"p{line}", "operations": steps})
        plan["orders"].append({"id": f"o{line}", "product": f"p{line}", "quantity": 100})
    return Factory.model_validate(plan)


def store_run(folder: Path, plant: Any) -> str:  # the run's id
    "A simulated run in the store."
    from dtwb.store.database import Store
    from dtwb.store.runs import run_folder
    from dtwb.twin.simulation import simulate

    result = simulate(plant, rule="fifo", seed=1)
    with Store.open(f"sqlite:///{folder}/dtwb.sqlite") as store:
        with run_folder("simulate", seed=1, name=plant.name, store=store, root=folder / "runs") as run:
            plant.save(run.folder / "factory.yaml")
            for event in result.events:
                run.writer(event)
    return run.id


# without one


class Visitor:
    "One session with an app."

    def __init__(self, url: str):
        self.kinds: list[str]
        self.socket: Any
        self.url, self.bytes, self.kinds, self.socket, self.last = url, 0, [], None, 0.0

    async def come(self, settled: float = 1.0, limit: float = 60.0) -> float:  # s until nothing more came
        "Open the page, wait until no message came for `settled` seconds."
        from bokeh.protocol import Protocol
        from tornado.httpclient import AsyncHTTPClient, HTTPRequest
        from tornado.websocket import websocket_connect

        begun = time.perf_counter()
        answer = await AsyncHTTPClient().fetch(self.url, request_timeout=limit)
        self.bytes += len(answer.body)
        token = re.search(rb'"token":\s*"([^"]+)"', answer.body)
        if token is None:
            raise RuntimeError(f"no session in the page of {self.url}")
        address = self.url.replace("http", "ws", 1).partition("?")[0] + "/ws"
        request = HTTPRequest(address, request_timeout=limit)
        self.socket = await websocket_connect(
            request, subprotocols=["bokeh", token[1].decode()], on_message_callback=self.hear, max_message_size=2**28
        )
        await self.heard("ACK", limit)
        await self.send(Protocol().create("PULL-DOC-REQ"))
        await self.heard("PULL-DOC-REPLY", limit)
        await self.send(ready())
        await self.heard("OK", limit)  # to that: what comes once the page is there is on its way
        while time.perf_counter() - self.last < settled and time.perf_counter() - begun < limit:
            await asyncio.sleep(0.05)
        return self.last - begun

    async def heard(self, kind: str, limit: float) -> None:
        begun = time.perf_counter()
        while kind not in self.kinds:
            if time.perf_counter() - begun > limit:
                raise TimeoutError(f"{self.url}: no {kind} in {limit:g} s, only {self.kinds}")
            await asyncio.sleep(0.01)

    async def send(self, message: Any) -> None:
        for part in (message.header_json, message.metadata_json, message.content_json):
            await self.socket.write_message(part)

    def hear(self, message: Any) -> None:
        if message is not None:
            self.bytes, self.last = self.bytes + len(message), time.perf_counter()
            if isinstance(message, str) and (kind := re.search(r'"msgtype":\s*"([\w-]+)"', message[:300])):
                self.kinds.append(kind[1])

    def leave(self) -> None:
        if self.socket is not None:
            self.socket.close()


def ready() -> Any:
    "What a browser says once the page is there."
    from bokeh.document import Document
    from bokeh.document.events import MessageSentEvent
    from bokeh.events import DocumentReady
    from bokeh.protocol import Protocol

    return Protocol().create("PATCH-DOC", [MessageSentEvent(Document(), "bokeh_event", DocumentReady())])


async def wave(urls: list[str]) -> tuple[list[Visitor], list[float]]:
    "Visitors who come at once, and the seconds that each waited."
    visitors = [Visitor(url) for url in urls]
    return visitors, await asyncio.gather(*(visitor.come() for visitor in visitors))


async def forgotten() -> None:
    "Bokeh forgets a session 15 s after its browser has left, and looks every 17 s; 12 s later memory is given back."
    await asyncio.sleep(48)


async def visitors(server: Server, app: str, n: int = 20, stay: float = 3.0) -> dict:
    "What `n` visitors at once cost in one app, and what a browser sees beside them; all leave."
    url = f"{server.url}/{app}"
    memory, cpu = server.use()
    those, waits = await wave([url] * n)
    memory_in, cpu_in = server.use()
    begun = time.perf_counter()
    await asyncio.sleep(stay)
    watching = (server.use()[1] - cpu_in) / (time.perf_counter() - begun) / n
    beside = await asyncio.to_thread(look_beside, url, app)
    for visitor in those:
        visitor.leave()
    row = {
        "suite": "visitors",
        "app": app,
        "visitors": n,
        "memory_before": memory,
        "memory_a_visitor": (memory_in - memory) / n,
        "cpu_a_visit": (cpu_in - cpu) / n,
        "cpu_watching": watching,  # of one core, by one who only looks
        "wait_median": statistics.median(waits),
        "wait_longest": max(waits),
        "bytes_a_visit": statistics.mean(visitor.bytes for visitor in those),
        "picture_beside": beside,
    }
    say(f"visitors, {app}: {json.dumps({k: round(v, 3) for k, v in row.items() if isinstance(v, float)})}")
    return row


def look_beside(url: str, app: str) -> float:  # s, of the second visit
    with fresh_page() as page:
        look(page, url, app)
        leave(page)
        return look(page, url, app)["picture"]


async def come_and_go(server: Server, apps: list[str], n: int) -> None:
    those, _ = await wave([f"{server.url}/{apps[i % len(apps)]}" for i in range(n)])
    for visitor in those:
        visitor.leave()


async def soak_of(server: Server, apps: list[str], sessions: int, wide: int) -> list[dict]:
    "Memory after each `wide` sessions that came and went, and at last when all are forgotten."
    rows = []
    for done in range(0, sessions + wide, wide):
        if done:
            await come_and_go(server, apps, wide)
        if done in (0, sessions):
            await forgotten()
        memory, cpu = server.use()
        rows.append({"suite": "soak", "sessions": done, "memory": memory, "cpu": cpu})
    say(f"soak: {[round(row['memory']) for row in rows]} MB")
    return rows


def load(folder: Path, apps: list[str]) -> list[dict]:
    "An app's first visitors load what all share; then many at once in one app after the other."

    async def measure(server: Server) -> list[dict]:
        await come_and_go(server, apps, 2 * len(apps))
        rows = [await visitors(server, app) for app in apps]
        await forgotten()
        rows[-1]["memory_after"] = server.use()[0]
        return rows

    with served(folder) as server:
        return asyncio.run(measure(server))


def soak(folder: Path, apps: list[str], sessions: int = 200, wide: int = 20) -> list[dict]:
    "One server, after as many visitors as are there at once later."

    async def measure(server: Server) -> list[dict]:
        await come_and_go(server, apps, wide)
        return await soak_of(server, apps, sessions, wide)

    with served(folder) as server:
        return asyncio.run(measure(server))


SUITES = {"first": first, "load": load, "soak": soak}


def write(path: Path, rows: list[dict]) -> None:
    "Where, when, with what, and a measurement to a line; suites that were not measured stay as they are."
    from importlib.metadata import version

    from run_twin import commit
    from scheduling_report import machine

    fresh = {row["suite"] for row in rows}
    kept = [row for row in json.loads(path.read_text())["runs"] if row["suite"] not in fresh] if path.exists() else []
    versions = {name: version(name) for name in ("panel", "bokeh", "panel-material-ui", "pythreejs", "playwright")}
    head = {"what": "the dashboards", "machine": machine(), "date": date.today().isoformat()}
    head |= {"versions": versions | {"commit": commit()}}
    shown = ({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in [*kept, *rows])
    lines = ",\n".join(json.dumps(row) for row in shown)
    aside = path.with_suffix(".json.tmp")
    aside.write_text(json.dumps(head, indent=1).removesuffix("\n}") + f',\n "runs": [\n{lines}\n]}}\n')
    aside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="+", choices=[*SUITES, "all"])
    parser.add_argument("--apps", default="", help="names with commas; all by default")
    parser.add_argument("--data", type=Path, help="a folder of data; runs are made in a new one by default")
    parser.add_argument("--out", type=Path, default=ROOT / "nbs/benchmarks/ui.json")
    asked = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as made:
        folder = asked.data or Path(made) / "data"
        if not asked.data:
            folder.mkdir()
            say("making runs")
            make_data(folder)
        with served(folder) as server:
            apps = [app for app in server.apps if not asked.apps or app in asked.apps.split(",")]
            say(f"apps: {', '.join(apps)}; ready after {server.ready:.1f} s")
        for suite in SUITES if "all" in asked.suites else asked.suites:
            begun = time.perf_counter()
            write(asked.out, SUITES[suite](folder, apps))
            say(f"{suite}: {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
