"""Pages made ahead: given to whoever would get the same, made anew for everybody else."""

import asyncio
import logging
import re
from concurrent.futures import ThreadPoolExecutor

import panel as pn
import pytest
from bokeh.server.urls import per_app_patterns
from bokeh.util.token import get_session_id
from tornado.httpclient import AsyncHTTPClient, HTTPRequest

from dtwb.core.settings import settings
from dtwb.ui import spares
from dtwb.ui.early import EarlyHandler
from dtwb.ui.users import COOKIE


class Plant:
    "A server with a dashboard, and one that logs an error; `made` says of what themes pages have been made."

    def __init__(self, monkeypatch):
        self.made: list[str] = []
        self.ill = 0
        self.of: tuple | None = (1,)  # what the pages show
        monkeypatch.setattr(spares, "WAIT", 0.01)
        monkeypatch.setattr(spares, "seen", lambda: self.of)
        monkeypatch.setattr(EarlyHandler, "spares", spares.Spares())

    def fine_page(self):
        self.made.append(pn.state.cookies.get("dtwb_theme", "light"))
        return pn.pane.HTML(f"page {len(self.made)}")

    def ill_page(self):
        self.ill += 1
        logging.getLogger("dtwb.tests").error("it cannot be drawn")
        return pn.pane.HTML("ill")

    async def get(self, path: str = "fine", **headers: str) -> str:  # the session's id
        page = await AsyncHTTPClient().fetch(HTTPRequest(f"http://127.0.0.1:{self.port}/{path}", headers=headers))
        return get_session_id(re.search(r'"token":"([^"]+)"', page.body.decode())[1])

    async def one_is_ready(self, **cookies: str) -> str:  # the session's id
        kept = EarlyHandler.spares.kept
        kind = "/fine", tuple(cookies.items())
        while kind not in kept or not self.ill:
            await asyncio.sleep(0.01)
        return kept[kind].session.id

    def serve(self, visit) -> None:
        async def served() -> None:
            apps = {"fine": self.fine_page, "ill": self.ill_page}
            server = pn.serve(apps, port=0, address="127.0.0.1", show=False, start=False, threaded=False, verbose=False)
            server.start()
            self.port = server.port
            try:
                await asyncio.wait_for(visit(), 300)
            finally:
                server.stop()

        with ThreadPoolExecutor(1) as thread:  # the browser's driver has a loop in this one
            thread.submit(asyncio.run, served()).result()


@pytest.fixture
def plant(tmp_path, monkeypatch):
    from panel.io.server import DocHandler

    kept = list(per_app_patterns)
    per_app_patterns[:] = [(path, EarlyHandler if issubclass(h, DocHandler) else h) for path, h in kept]
    monkeypatch.setenv("DTWB_PATHS__DATA", str(tmp_path))
    settings.cache_clear()
    yield Plant(monkeypatch)
    per_app_patterns[:] = kept
    settings.cache_clear()


def test_who_would_get_the_same_gets_what_was_made_ahead(plant):
    async def visit():
        first = await plant.get()
        ready = await plant.one_is_ready()
        assert ready != first and plant.made == ["light", "light"]
        assert await plant.get() == ready  # given, not made
        another = await plant.one_is_ready()
        assert another not in (first, ready) and not any(kind[0] == "/ill" for kind in EarlyHandler.spares.kept)
        while EarlyHandler.spares.due is not None:
            await asyncio.sleep(0.01)
        assert plant.ill <= 2  # what cannot be made is tried once after each visit

    plant.serve(visit)


def test_another_theme_view_or_visitor_gets_a_page_of_their_own(plant):
    async def visit():
        await plant.get()
        ready = await plant.one_is_ready()
        assert await plant.get("fine?run=1") != ready
        assert await plant.get(Cookie="dtwb_theme=dark") != ready and plant.made[-1] == "dark"
        dark = await plant.one_is_ready(dtwb_theme="dark")
        assert plant.made[-1] == "dark" and await plant.get(Cookie="dtwb_theme=dark") == dark
        assert await plant.get() == ready  # it was kept
        hers, his = f"{COOKIE}=hers", f"{COOKIE}=his"
        assert await plant.get(Cookie=hers) != await plant.one_is_ready()
        ready = await plant.one_is_ready(**{COOKIE: "hers"})
        assert await plant.get(Cookie=his) != ready and await plant.get(Cookie=hers) == ready

    plant.serve(visit)


@pytest.mark.parametrize("what", ["news", "age", "unknown"])
def test_what_is_out_of_date_is_given_to_nobody(plant, monkeypatch, what):
    async def visit():
        await plant.get()
        ready = await plant.one_is_ready()
        session = EarlyHandler.spares.kept["/fine", ()].session
        if what == "news":
            plant.of = (2,)
        elif what == "age":
            monkeypatch.setattr(spares, "AGE", 0.0)
        else:
            plant.of = None
        assert await plant.get() != ready
        assert session.expiration_requested and not session.expiration_blocked

    plant.serve(visit)
