"""Who comes in, over every route of the app's own router and of its page, so that no new route is forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import cluster_settings, running_head
from tests.surface.asgi import ELSEWHERE, OWN_HOST, Begun, ask
from tests.surface.client import API
from tests.surface.served import routes_of, served_page
from together.api.app import METHODS, build_app
from together.api.guard import WITHOUT_KEY
from together.api.keys import KeyFile, cookie_of
from together.head.head import Head
from webui import page

ASSETS = "/assets/x.js"
FOR_HERE = {("GET", "/reach/machines"), ("POST", "/reach/phones")}  # beside orders
PAGE = ("/split", "/config", "/theme.css", ASSETS, f"{API}/queue/join", f"{API}/queue/data")
HOSTS = {
    OWN_HOST: True,
    "127.0.0.1:8765": True,
    "evil.example": False,
    "192.0.2.7.evil.example": False,
    "": False,
    "[": False,
}
HERE = ("127.0.0.1", 1)
PROXIES = ("X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Forwarded", "Via", "CF-Connecting-IP", "CF-Ray")
ORIGINS = {None: True, f"http://{OWN_HOST}": True, "http://evil.example": False, "null": False, "http://[": False}


@dataclass(frozen=True, slots=True)
class Open:
    """An app that listens on the network, all of its paths, and a key."""

    head: Head
    app: Any
    paths: tuple[str, ...]
    keys: KeyFile
    key: str

    async def ask(self, method: str, path: str, **headers: str) -> Begun:
        return await ask(self.app, method, path, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    async with running_head(cluster_settings(tmp_path)) as head:
        # As `--host 0.0.0.0` has it; the head itself stays on loopback.
        head.settings = cluster_settings(tmp_path, host="0.0.0.0")
        app = build_app(head, lambda: None)
        own = {path.replace("{name:path}", "toy").replace("{name}", "toy") for _, path in routes_of(app)}
        keys = KeyFile(tmp_path)
        yield Open(head, app, (*sorted(own), *PAGE), keys, keys.make("phone")[1])


def test_of_whom_nothing_is_asked() -> None:
    assert {("GET", "/health"), ("GET", "/login"), ("POST", "/login"), ("GET", "/ca.crt")} == WITHOUT_KEY


async def test_every_route_of_app_and_page_by_every_method(opened: Open) -> None:
    page.mount(opened.app, opened.head)
    assert {"/status", "/metrics", "/events", "/v1/chat/completions", "/control/load"} < set(opened.paths)
    assert len(opened.paths) > 35
    await check_without_a_key(opened)
    await check_foreign_pages(opened)
    await check_with_a_key(opened)


async def check_without_a_key(opened: Open) -> None:
    for path in (*opened.paths, "/nothing", "/v1/nothing"):
        for method in METHODS:
            reply = await opened.ask(method, path)
            if (method, path) in WITHOUT_KEY:
                assert reply.status in (200, 303, 401, 404, 503), (method, path, reply)
                continue
            assert reply.status == 401, (method, path, reply)
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.headers["content-type"] == "application/json"


async def check_foreign_pages(opened: Open) -> None:
    """Refused with a right key, too: it is the browser that has it, and a page of somebody else that asks."""
    for path in opened.paths:
        for method in METHODS:
            reply = await opened.ask(method, path, x_api_key=opened.key, sec_fetch_site="same-site")
            assert reply.status == 403, (method, path)
            for host, ours in HOSTS.items():
                for origin, own in ORIGINS.items():
                    if ours and (own or origin is None):
                        continue
                    headers = {"host": host, "x-api-key": opened.key} | ({"origin": origin} if origin else {})
                    reply = await opened.ask(method, path, **headers)
                    assert reply.status == 403, (method, path, headers)
                    assert not [name for name in reply.headers if name.startswith("access-control")]


LIBRARY = {  # orders about models, the list of which is for all
    *(("POST", f"/library/{name}") for name in ("fits", "inspect", "search", "files", "learn", "jobs", "jobs/{job}")),
    ("PUT", "/library/token"),
    ("DELETE", "/library/models/{model}"),
}


async def check_with_a_key(opened: Open) -> None:
    """It opens all but what is for this machine."""
    cookie = {"cookie": f"together-8765={cookie_of(opened.key)}"}
    for shown in ({"x-api-key": opened.key}, {"authorization": f"Bearer {opened.key}"}, cookie):
        for path in opened.paths:
            for method in set(METHODS) - ({"POST"} if path == "/login" else set()):  # which has its key in its body
                reply = await opened.ask(method, path, **shown)
                assert reply.status != 401, (method, path)
                order = path.startswith("/control/") and "{" not in path and method == "POST"
                order = order or (method, path) in LIBRARY | FOR_HERE
                assert (reply.status == 403) == order, (method, path, reply)
                assert not [name for name in reply.headers if name.startswith("access-control")]


async def test_what_is_no_key_is_refused(opened: Open) -> None:
    wrong = (
        {"x-api-key": opened.key[:-1]},
        {"x-api-key": opened.key + "x" * 10**5},
        {"x-api-key": cookie_of(opened.key)},  # a cookie is no key,
        {"cookie": f"together-8765={opened.key}"},  # nor is a key a cookie,
        {"cookie": f"together-1={cookie_of(opened.key)}"},  # nor another app's
        {"authorization": f"Basic {opened.key}"},
        {"authorization": "Bearer "},
        {"x-api-key": "tg-é"},
        *({"x-api-key": getattr(key, name)} for key in opened.keys.kept() for name in ("digest", "cookie", "id")),
    )
    for headers in wrong:
        assert (await opened.ask("GET", "/status", **headers)).status in (401, 429), headers
    assert (await opened.ask("GET", "/status", x_api_key=opened.key)).status == 200


async def test_from_this_machine_nobody_is_asked_but_through_a_proxy(opened: Open) -> None:
    assert (await ask(opened.app, "GET", "/status", client=HERE)).status == 200
    assert (await ask(opened.app, "GET", "/status", client=("192.0.2.7", 1))).status == 200  # its own address
    for name in PROXIES:
        assert (await ask(opened.app, "GET", "/status", {name: "x"}, client=HERE)).status == 401
        order = await ask(opened.app, "POST", "/control/load", {name: "x", "x-api-key": opened.key}, client=HERE)
        assert order.status == 403


async def test_alone_on_loopback_nobody_is_asked(tmp_path: Path) -> None:
    async with running_head(cluster_settings(tmp_path)) as head:
        app = build_app(head, lambda: None)
        KeyFile(tmp_path).make("unused")
        for headers in ({}, {"authorization": "Bearer none"}):
            for host in ("127.0.0.1:8765", "localhost:8765", "[::1]:8765"):
                assert (await ask(app, "GET", "/status", {"host": host} | headers, client=HERE)).status == 200
        assert (await ask(app, "GET", "/status", {"host": OWN_HOST}, client=HERE)).status == 403


async def test_who_comes_to_loopback_through_a_proxy_is_a_stranger(tmp_path: Path) -> None:
    """By what it adds, and by the name that the app has for others where it adds nothing."""
    async with running_head(cluster_settings(tmp_path)) as head:
        head.settings = cluster_settings(tmp_path, hosts="chat.example.org, Localhost")
        app = build_app(head, lambda: None)
        key = {"x-api-key": KeyFile(tmp_path).make("phone")[1]}
        strangers = [{"host": "chat.example.org"}, {"host": "CHAT.example.org:443"}, {"host": "localhost:8765"}]
        strangers += [{"host": "127.0.0.1:8765", name: "x"} for name in PROXIES]
        for headers in strangers:
            assert (await ask(app, "GET", "/status", headers, client=HERE)).status == 401, headers
            assert (await ask(app, "POST", "/control/unload", headers, client=HERE)).status == 401, headers
            assert (await ask(app, "GET", "/status", headers | key, client=HERE)).status == 200
            assert (await ask(app, "POST", "/control/unload", headers | key, client=HERE)).status == 403
        assert (await ask(app, "GET", "/status", {"host": "127.0.0.1:8765"}, client=HERE)).status == 200
        assert (await ask(app, "GET", "/status", {"host": OWN_HOST}, client=HERE)).status == 403


async def test_an_address_that_is_not_this_machine_s_is_asked_for_by_a_stranger(opened: Open) -> None:
    """A proxy that adds nothing hands on what the browser wrote: a router's address, say."""
    assert (await ask(opened.app, "GET", "/status", {"host": "198.51.100.4"}, client=HERE)).status == 401


async def test_a_browser_without_a_key_is_asked_for_one(opened: Open) -> None:
    html = {"accept": "text/html,*/*;q=0.8"}
    asked = await opened.ask("GET", "/", **html)
    assert (asked.status, asked.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert asked.headers["content-security-policy"].startswith("default-src 'self'")
    assert asked.headers["referrer-policy"] == "same-origin"
    linked = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}  # a clicked link, to where it has a cookie
    assert (await opened.ask("GET", "/", **html, **linked)).status == 401
    assert (await opened.ask("GET", "/login", **html, **linked)).status == 200


async def test_a_link_with_a_key_becomes_a_cookie_and_an_address_without_it(opened: Open) -> None:
    reply = await ask(opened.app, "GET", "/", query=b"key=" + opened.key.encode())
    assert (reply.status, reply.headers["location"]) == (303, "/")
    cookie = reply.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} < set(cookie.split("; "))
    assert "Secure" not in cookie
    assert opened.key not in cookie
    assert (await opened.ask("GET", "/status", cookie=cookie.partition(";")[0])).status == 200
    left = await opened.ask("POST", "/logout", cookie=cookie.partition(";")[0])
    assert (left.status, left.headers["location"]) == (303, "/")
    assert left.headers["set-cookie"].startswith('together-8765="";')
    assert "Max-Age=0" in left.headers["set-cookie"]
    proxied = await ask(opened.app, "GET", "/", {"x-forwarded-proto": "https"}, query=b"key=" + opened.key.encode())
    assert "Secure" in proxied.headers["set-cookie"]
    assert (await ask(opened.app, "GET", "/", query=b"key=tg-wrong")).status == 401
    assert (
        await ask(opened.app, "GET", "/", {"host": "evil.example"}, query=b"key=" + opened.key.encode())
    ).status == 403


async def test_a_link_logs_nobody_in_who_did_not_choose_it(opened: Open) -> None:
    query = b"key=" + opened.key.encode()
    linked = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    for headers, client in ((linked, ELSEWHERE), (linked, HERE), ({}, HERE), ({"sec-fetch-site": "none"}, HERE)):
        reply = await ask(opened.app, "GET", "/", headers, client, query)
        assert (reply.status, "set-cookie" in reply.headers) == (200, False), (headers, client)
        assert reply.headers["cache-control"] == "no-store"
    typed = await ask(opened.app, "GET", "/", {"sec-fetch-site": "none"}, ELSEWHERE, query)
    assert (typed.status, "set-cookie" in typed.headers) == (303, True)
    assert (await ask(opened.app, "GET", "/", linked, ELSEWHERE, b"key=tg-wrong")).status == 401


async def test_a_tab_is_its_owner_s(tmp_path: Path) -> None:
    """Who guesses the number of another's tab hears nothing of it, and takes it from nobody."""
    async with running_head(cluster_settings(tmp_path)) as head:
        keys = KeyFile(tmp_path)
        anna, berta = ({"x-api-key": keys.make(name)[1], "via": "x"} for name in ("anna", "berta"))
        head.settings = replace(head.settings, host="0.0.0.0")
        async with served_page(head) as served:
            number = next(number for number in served.events if served.blocks.fns[number].name == "demanded")
            tab = {"session_hash": "guessed"}
            sent = {**served.usual(number), **tab}
            joined = await served.client.post(f"{API}/queue/join", json=sent, headers=anna)
            assert joined.status_code == 200
            assert (await served.client.get(f"{API}/queue/data", params=tab, headers=berta)).status_code == 404
            async with served.client.stream("GET", f"{API}/queue/data", params=tab, headers=anna) as stream:
                assert "process_completed" in (await stream.aread()).decode()
