"""Accounts, sign-in and roles from outside: a real server, plain HTTP and raw websockets, no browser that behaves."""

import asyncio
import base64
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import pytest
import requests
from browser import served
from conftest import ROOT
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import websocket_connect

from dtwb.ui.users import add_user, read_users, set_password, set_role

PASSWORD = "tiles and kilns"
ACT = """
import panel as pn
from pathlib import Path
from dtwb.ui.users import require, user

def act(event):
    require('engineer', 'write into the book')
    with Path({book!r}).open('a') as book:
        print(user(), event.new, file=book)

field = pn.widgets.TextInput(name='field')
field.param.watch(act, 'value')
field.servable();
"""


def notebook(path: Path, code: str) -> None:
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None, "source": code}
    path.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


@dataclass
class Plant:
    root: str  # with the prefix
    accounts: Path
    book: Path

    def get(self, path: str, cookie: str = "", **headers: str) -> requests.Response:
        given = ({"Cookie": cookie} if cookie else {}) | headers
        return requests.get(f"{self.root}/{path}", headers=given, allow_redirects=False, timeout=600)

    def sign_in(self, name: str, password: str = PASSWORD, going: str = "", address: str = "", **headers: str):
        "The answer to the form, as a browser sends it."
        form = self.get(f"login?next={going}")
        token = re.search(r'name="_xsrf" value="([^"]+)"', form.text).group(1)
        data = {"_xsrf": token, "name": name, "password": password, "next": going}
        headers |= {"Cookie": f"_xsrf={form.cookies['_xsrf']}"} | ({"X-Forwarded-For": address} if address else {})
        return requests.post(f"{self.root}/login", data=data, headers=headers, allow_redirects=False, timeout=600)

    def cookie(self, name: str) -> str:
        answer = self.sign_in(name)
        assert answer.status_code == 302, answer.text
        return f"dtwb={answer.cookies['dtwb']}"

    def token(self, app: str, cookie: str) -> str:
        "What the page of an app tells the browser to open its websocket with."
        return re.search(r'"token":"([^"]+)"', self.get(app, cookie).text).group(1)


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    "A server of two processes under a prefix, behind a proxy that says who asks, with an account of each role."
    home = tmp_path_factory.mktemp("plant")
    accounts, book, apps = home / "data" / "users.json", home / "book.txt", home / "apps"
    apps.mkdir()
    notebook(apps / "act.ipynb", ACT.format(book=str(book)))
    shutil.copy(ROOT / "nbs" / "apps" / "users.ipynb", apps)
    for name, role in {"vera": "viewer", "egon": "engineer", "ada": "admin"}.items():
        add_user(name, PASSWORD, role, accounts)
    how = {"PREFIX": "plant/one", "PROCESSES": "2", "USE_XHEADERS": "true"}
    with served(home / "data", apps, **{f"DTWB_SERVE__{name}": value for name, value in how.items()}) as url:
        yield Plant(url.rpartition("/")[0], accounts, book)


async def act(plant: Plant, app: str, token: str, cookie: str, text: str) -> str:  # what was said to the visitor
    "Type into the field without a browser: the websocket, and nothing else."
    url = f"{plant.root.replace('http', 'ws', 1)}/{app}/ws"
    headers = {"Cookie": cookie, "Origin": "http://" + plant.root.split("/")[2]}
    socket = await websocket_connect(HTTPRequest(url, headers=headers), subprotocols=["bokeh", token])

    async def receive(kind: str) -> dict:
        while True:
            header = json.loads(await asyncio.wait_for(socket.read_message(), 600))
            await socket.read_message()
            content = json.loads(await socket.read_message())
            for _ in range(2 * header.get("num_buffers", 0)):
                await socket.read_message()
            if header["msgtype"] == kind:
                return content

    async def send(kind: str, content: dict) -> None:
        for part in ({"msgid": kind, "msgtype": kind}, {}, content):
            await socket.write_message(json.dumps(part))

    try:
        await receive("ACK")
        await send("PULL-DOC-REQ", {})
        doc = (await receive("PULL-DOC-REPLY"))["doc"]
        field = next(root["id"] for root in doc["roots"] if "TextInput" in root["name"])
        change = {"kind": "ModelChanged", "model": {"id": field}, "attr": "value", "new": text}
        await send("PATCH-DOC", {"events": [change]})
        await receive("OK")
        await send("PULL-DOC-REQ", {})  # answered after the callback
        await receive("PULL-DOC-REPLY")
        return ""
    finally:
        socket.close()


def press(*arguments) -> str:
    "`act`, in a thread: the browser's loop may run in this one."
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(act(*arguments))).result(1200)


def written(plant: Plant) -> list[str]:
    return plant.book.read_text().split("\n")[:-1] if plant.book.exists() else []


def test_nobody_comes_in_without_signing_in(plant):
    answer = plant.get("act?x=1")
    assert (answer.status_code, answer.headers["Location"]) == (302, "./login?next=%2Fplant%2Fone%2Fact%3Fx%3D1")
    for wrong in ("dtwb=ada", "dtwb=ada 0123", "user=ada", "is_guest=1", 'dtwb="2|1:0|10:1|4:dtwb|4:YWRh|0"'):
        assert plant.get("act", wrong).status_code == 302, wrong
    for path in ("act/autoload.js?bokeh-autoload-element=1", "act/metadata"):
        assert plant.get(path, "is_guest=1").status_code == 302
    assert "default-src 'none'" in plant.get("login").headers["Content-Security-Policy"]
    assert "<script" not in plant.get("login?next=%22%3E%3Cscript%3E").text


def test_signing_in(plant):
    answer = plant.sign_in("Ada", going="/plant/one/act?x=1", **{"X-Forwarded-Proto": "https"})
    assert (answer.status_code, answer.headers["Location"]) == (302, "./act?x=1")
    kept = next(c for c in answer.raw.headers.getlist("Set-Cookie") if c.startswith("dtwb="))
    flags = {flag.strip().lower() for flag in kept.split(";")[1:]}
    assert {"httponly", "secure", "samesite=lax", "path=/plant/one"} <= flags
    assert "ada" not in kept.split(";")[0].replace("YWRh", "")
    plain = plant.sign_in("ada").raw.headers.getlist("Set-Cookie")
    assert not any("secure" in cookie.lower() for cookie in plain)  # else a plant without HTTPS could not sign in
    for elsewhere in ("https://evil.example", "//evil.example/act", "/\\evil.example", "/plant/one/nowhere"):
        assert plant.sign_in("ada", going=elsewhere).headers["Location"] == "./act"
    assert plant.get("act", plant.cookie("ada")).status_code == 200


def test_what_a_sign_in_is_refused_for(plant):
    wrong, nobody = plant.sign_in("ada", "kilns and tiles"), plant.sign_in("nobody", "kilns and tiles")
    assert (wrong.status_code, nobody.status_code) == (401, 401)
    assert "Name or password is wrong" in wrong.text and "Set-Cookie" not in wrong.headers
    assert wrong.text.count("ada") == nobody.text.count("nobody") == 1
    data = {"name": "ada", "password": PASSWORD}
    forged = requests.post(f"{plant.root}/login", data=data, allow_redirects=False, timeout=600)
    assert forged.status_code == 403 and "dtwb" not in forged.cookies


def test_guessing_is_slowed_down_by_name_and_address_in_all_processes(plant):
    answers: list[int] = []
    while 429 not in answers and len(answers) < 20:  # each wait is twice the one before: one is longer than an answer
        answers.append(plant.sign_in("vera", f"guess {len(answers)}", address="10.1.1.1").status_code)
    assert answers[:5] == [401] * 5 and answers[-1] == 429
    late = plant.sign_in("vera", PASSWORD, address="10.1.1.1")
    assert late.status_code in (429, 302)
    assert plant.sign_in("vera", PASSWORD, address="10.1.1.2").status_code == 302  # she herself, from elsewhere


def test_signing_out_and_another_password_end_a_session(plant):
    cookie = plant.cookie("egon")
    out = plant.get("logout", cookie)
    assert 'dtwb=""' in out.headers["Set-Cookie"] and "signed out" in out.text
    asked = plant.get("logout", cookie, **{"Sec-Fetch-Site": "cross-site"})
    assert "dtwb=" not in asked.headers.get("Set-Cookie", "") and "<form" in asked.text
    assert plant.get("act", cookie).status_code == 200
    set_password("egon", "another " + PASSWORD, plant.accounts)
    assert plant.get("act", cookie).status_code == 302
    set_password("egon", PASSWORD, plant.accounts)


def test_the_accounts_are_closed_to_all_but_admins_however_they_come(plant):
    admin, viewer, engineer = (plant.cookie(name) for name in ("ada", "vera", "egon"))
    for cookie in (viewer, engineer):
        answer = plant.get("users", cookie)
        assert answer.status_code == 403 and "No entry" in answer.text and "token" not in answer.text
        assert plant.get("users/autoload.js?bokeh-autoload-element=1", cookie).status_code == 403
        assert plant.get("users/metadata", cookie).status_code == 403
        with pytest.raises(HTTPClientError, match="403"):
            press(plant, "users", plant.token("act", cookie), cookie, "x")
    assert plant.get("users", admin).status_code == 200


def test_a_websocket_is_only_for_whom_the_page_was_made(plant):
    viewer, engineer = plant.cookie("vera"), plant.cookie("egon")
    stolen = plant.token("act", engineer)
    for token, cookie in ((stolen, viewer), (stolen, ""), ("rubbish", engineer)):
        with pytest.raises(HTTPClientError, match="403"):
            press(plant, "act", token, cookie, "stolen")
    with pytest.raises((TypeError, AssertionError)):  # closed: its signature is wrong
        press(plant, "act", stolen[:-4] + "AAAA", engineer, "forged")
    assert not any("stolen" in line or "forged" in line for line in written(plant))


def test_an_act_is_refused_on_the_server(plant):
    viewer, engineer = plant.cookie("vera"), plant.cookie("egon")
    press(plant, "act", plant.token("act", viewer), viewer, "by a viewer")
    press(plant, "act", plant.token("act", engineer), engineer, "by an engineer")
    assert [line for line in written(plant) if " by a" in line] == ["egon by an engineer"]


def test_a_role_counts_from_the_moment_it_is_given(plant):
    cookie = plant.cookie("vera")
    token = plant.token("act", cookie)
    set_role("vera", "engineer", plant.accounts)
    press(plant, "act", token, cookie, "as engineer")
    set_role("vera", "viewer", plant.accounts)
    press(plant, "act", plant.token("act", cookie), cookie, "as viewer")
    assert [line for line in written(plant) if " as " in line] == ["vera as engineer"]


def test_the_command_line(workbench):
    def users(*arguments: str, says: str = ""):
        command = [sys.executable, "-m", "dtwb.cli", "users", *arguments]
        environment = os.environ | {"DTWB_PATHS__DATA": str(workbench.data)}
        return subprocess.run(
            command, env=environment, cwd=ROOT, input=says, capture_output=True, text=True, timeout=600
        )

    assert "everybody signs in" in users("add", "Ada", "--role", "admin", says=PASSWORD + "\n").stdout
    short = users("add", "eve", says="short\n")
    assert (short.returncode, short.stderr.count("\n")) == (2, 1) and "password" in short.stderr
    users("add", "eve@plant.example", "--oauth")
    users("role", "eve@plant.example", "engineer")
    listed = json.loads(users("list", "--json").stdout)
    assert [(user["name"], user["role"], user["signs in"]) for user in listed] == [
        ("ada", "admin", "by password"),
        ("eve@plant.example", "engineer", "by OAuth"),
    ]
    accounts = workbench.data / "users.json"
    assert oct(accounts.stat().st_mode)[-3:] == "600" and PASSWORD not in accounts.read_text()
    users("remove", "eve@plant.example")
    assert list(read_users(accounts)) == ["ada"]


@pytest.fixture
def provider():
    "An OAuth provider of our own, in a thread; who is there is in the list that it gives."
    there, ready, ends = ["Grace@Plant.example"], queue.Queue(), {}

    def word(**claims) -> str:  # a JSON web token, unsigned
        return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode() for part in ({}, claims, {}))

    class Authorize(RequestHandler):
        def get(self):
            asked = {"code": "1", "state": self.get_argument("state")}
            self.redirect(f"{self.get_argument('redirect_uri')}?{urlencode(asked)}")

    class Token(RequestHandler):
        def post(self):
            claims = {"email": there[0], "exp": time.time() + 3600}
            self.finish({"access_token": word(**claims), "id_token": word(**claims), "expires_in": 3600})

    async def run() -> None:
        (listening,) = bind_sockets(0, "127.0.0.1")
        HTTPServer(Application([("/a", Authorize), ("/t", Token)])).add_sockets([listening])
        ends["loop"], ends["event"] = asyncio.get_running_loop(), asyncio.Event()
        ready.put(listening.getsockname()[1])
        await ends["event"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    yield there, f"http://127.0.0.1:{ready.get(timeout=600)}"
    ends["loop"].call_soon_threadsafe(ends["event"].set)
    thread.join(30)


def test_oauth_says_who_and_the_accounts_say_what(provider, tmp_path):
    (there, at), apps = provider, tmp_path / "apps"
    apps.mkdir()
    shutil.copy(ROOT / "nbs" / "apps" / "users.ipynb", apps)
    add_user("grace@plant.example", None, "admin", tmp_path / "data" / "users.json")
    how = {"PROVIDER": "generic", "KEY": "key", "SECRET": "secret", "JWT_USER": "email"}
    where = {"AUTHORIZE_URL": f"{at}/a", "TOKEN_URL": f"{at}/t", "USER_URL": f"{at}/u", "USER_KEY": "email"}
    environment = {f"PANEL_OAUTH_{name}": value for name, value in how.items()}
    with served(tmp_path / "data", apps, PANEL_OAUTH_EXTRA_PARAMS=str(where), **environment) as url:
        admin = requests.Session()
        answer = admin.get(f"{url}?x=1", timeout=600)
        assert (answer.status_code, answer.url) == (200, f"{url}?x=1") and '"token"' in answer.text
        kept = [cookie for step in answer.history for cookie in step.raw.headers.getlist("Set-Cookie")]
        assert kept and all("HttpOnly" in cookie and "SameSite=Lax" in cookie for cookie in kept)
        there[0] = "eve@elsewhere.example"
        refused = requests.Session().get(url, timeout=600)
        assert refused.status_code == 403 and "eve@elsewhere.example is viewer" in refused.text
        admin.get(f"{url.rpartition('/')[0]}/logout", timeout=600)
        assert not admin.cookies
        assert (
            requests.get(url, headers={"Cookie": "is_guest=1"}, allow_redirects=False, timeout=600).status_code == 302
        )
