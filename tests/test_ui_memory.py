"""A visitor who has left leaves nothing in the server's memory."""

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor

import panel as pn
import pytest
from conftest import ROOT

from dtwb.core.settings import settings
from dtwb.ui.health import dashboard, failure
from dtwb.ui.runs import RunApp


@pytest.fixture
def here(site, monkeypatch):
    "The store of the site, in this process."
    monkeypatch.setenv("DTWB_PATHS__DATA", str(site.data))
    monkeypatch.setenv("DTWB_PATHS__RUNS", str(site.data / "runs"))
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.browser
@pytest.mark.parametrize("app", ["overview", "twin", "schedule"])
def test_what_was_shown_is_given_back(here, app):
    from ipywidgets.widgets.widget import _instances

    before, views = set(_instances), set(pn.state._views)
    drawn = dashboard(ROOT / f"nbs/apps/{app}.ipynb")
    with ThreadPoolExecutor(1) as thread:  # the browser's driver has a loop in this one
        assert thread.submit(lambda: asyncio.run(failure(drawn))).result() == ""
    gc.collect()
    assert set(_instances) == before and set(pn.state._views) == views
    assert not [o for o in gc.get_objects() if isinstance(o, RunApp)]
