"""The page's HTTP surface: every route of its framework, files of this machine, and values that no browser sends."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.cluster import cluster_settings, running_head
from tests.support.namespaces import permitted, run_scenario
from tests.surface.client import API, JSON, messages
from tests.surface.served import Served, routes_of, served_page
from webui import gr
from webui.events import Events
from webui.surface import ASSET, PLACE

OPEN = {
    ("GET", "/config"),
    ("GET", "/theme.css"),
    ("GET", "/favicon.ico"),
    ("GET", "/assets/{path:path}"),
    ("GET", "/static/{path:path}"),
    ("GET", f"{API}/app_id"),
    ("GET", f"{API}/heartbeat/{{session_hash}}"),
    ("GET", f"{API}/queue/data"),
    ("POST", f"{API}/queue/join"),
}
# Of both; the app's own is asked first. What the framework has at its root is at `/split`.
OWN = {"/openapi.json", "/login", "/logout", "/"}


@dataclass(frozen=True, slots=True)
class Files:
    """Files of this machine that nobody else may read."""

    outside: Path
    inside: Path  # in the folder that the framework serves uploads from
    word: str

    @property
    def paths(self) -> list[str]:
        climbing = [f"{'../' * 12}{path.as_posix().lstrip('/')}" for path in (self.outside, self.inside)]
        return [str(self.outside), str(self.inside), *climbing]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    word = f"secret-{secrets.token_hex(8)}"
    outside, inside = tmp_path / "home" / "outside.txt", tmp_path / "uploads" / "0" / "inside.txt"
    for path in (outside, inside):
        path.parent.mkdir(parents=True)
        path.write_text(word)
    return Files(outside, inside, word)


@pytest.fixture
async def served(files: Files, tmp_path: Path) -> AsyncIterator[Served]:
    async with running_head(cluster_settings(tmp_path)) as head, served_page(head) as served:
        yield served


# --- routes -----------------------------------------------------------------------------------------------------------


def filled(path: str, value: str) -> str:
    return re.sub(r"\{[^}]*\}", quote(value), path)


async def test_every_route_of_the_framework_but_a_few_is_not_there(served: Served, files: Files) -> None:
    known = set(routes_of(served.mount))
    assert known >= OPEN | {("POST", f"{API}/upload"), ("POST", f"{API}/run/{{api_name}}")}
    assert len(known) > 80
    for path in {path for _, path in known} - OWN:
        for method in ("GET", "POST"):
            if (method, path) not in OPEN or "{path" in path:
                await check_closed(served, files, method, path)
        for method in ("HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"):
            beginning = path.partition("{")[0]
            if (method, path) not in OPEN and beginning not in OWN:
                await check_closed(served, files, method, beginning)


async def check_closed(served: Served, files: Files, method: str, path: str) -> None:
    """404 whatever stands in the path, also where the route itself is open."""
    for value in files.paths if "{" in path else files.paths[:1]:
        reply = await served.client.request(method, filled(path, value), content=b"{}")
        assert reply.status_code == 404, f"{method} {filled(path, value)}: {reply.status_code}"
        assert files.word not in reply.text


async def test_open_routes_are_there_and_show_no_file(served: Served, files: Files) -> None:
    page = (await served.client.get(PLACE)).text
    assets = re.findall(r'"\.?(/(?:assets|static)/[^"]+)"', page)
    assert len(assets) >= 2
    for path in (PLACE, "/config", "/theme.css", "/favicon.ico", f"{API}/app_id", *assets):
        assert (await served.client.get(path)).status_code == 200, path
    assert (await served.client.head(PLACE)).status_code == 200
    for path in (PLACE, "/config"):
        for name in ("deep_link", "page", "path"):
            reply = await served.client.get(path, params={name: files.paths[2]})
            assert reply.status_code == 200
            assert files.word not in reply.text


def test_every_asset_of_the_framework_has_a_name_that_is_served() -> None:
    frontend = Path(gr.__file__).parent / "templates" / "frontend"
    names = [path.relative_to(frontend) for path in (frontend / "assets").rglob("*") if path.is_file()]
    assert len(names) > 100
    assert [name for name in names if not ASSET.fullmatch(f"/{name.as_posix()}")] == []


async def test_what_a_client_calls_itself_is_not_believed(served: Served) -> None:
    for name in ("X-Forwarded-Host", "X-Gradio-Server", "X-Forwarded-Proto"):
        reply = await served.client.get("/config", headers={name: "http://[evil.example"})
        assert reply.status_code in (200, 401)  # whoever comes through a proxy is asked for a key
        assert "evil" not in reply.text


# --- files ------------------------------------------------------------------------------------------------------------


def hostile(path: Path) -> list[Any]:
    """Values that name a file, in every form that the framework reads one, or a class to be made."""
    file = {"path": str(path), "meta": {"_type": "gradio.FileData"}, "orig_name": "x.txt"}
    component = {"component": "file", "value": file, "constructor_args": {"value": str(path)}, "props": {}}
    parts = [{"type": "file", "file": file}, {"type": "component", **component}, file]
    turns: list[Any] = [{"role": "user", "content": [part]} for part in parts]
    turns += [{"role": "user", "content": "Hello", "metadata": {"title": file}, "options": [file]}]
    turns += [{"role": "user", "content": [{"type": "text", "text": "Hello", "file": file}], "files": [file]}]
    question = {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
    return [file, [file], {"value": {"text": file}}, {"__type__": "update", "value": file}] + [
        [turn, question] for turn in turns
    ]


async def attack(served: Served, files: Files, order: dict[str, Any]) -> None:
    """An event with a hostile value in it; whatever address is answered is fetched."""
    said = await served.said(order)
    assert files.word not in said
    for address in set(re.findall(rf"{API}/[^\"\\ ]+", said)):
        assert files.word not in (await served.client.get(address)).text, f"{address} is served after {order}"


async def test_a_file_named_in_an_event_is_neither_copied_nor_served(served: Served, files: Files) -> None:
    for number in served.events:
        path = files.inside if number % 2 else files.outside
        await asyncio.gather(*(attack(served, files, order) for order in served.variants(number, hostile(path))))
    assert [path.name for path in files.inside.parents[1].rglob("*") if path.is_file()] == ["inside.txt"]


async def test_the_framework_itself_refuses_files_too(served: Served, files: Files) -> None:
    """The second door, with the first taken away."""
    inner: Any = served.mount.app
    served.mount.app = inner.app
    usual = next(number for number in served.events if served.blocks.fns[number].name == "usual")
    for path in (files.outside, files.inside):
        for value in hostile(path):
            await attack(served, files, served.with_value(usual, 0, value))
        reply = await served.client.get(f"{API}/file={quote(str(path))}")
        assert reply.status_code == 403, reply.text
    assert [path.name for path in files.inside.parents[1].rglob("*") if path.is_file()] == ["inside.txt"]


# --- who may order ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not permitted(), reason="needs Linux's network namespaces")
def test_only_this_machine_orders_and_every_machine_looks(tmp_path: Path) -> None:
    run_scenario("tests.surface.remote:orders_from_elsewhere", tmp_path)


async def test_an_event_that_is_connected_past_its_rules_keeps_the_page_from_starting() -> None:
    events = Events()
    with gr.Blocks() as page:
        button, said = gr.Button(), gr.Textbox()
        events.anyone(button.click, str.upper, said, said)
        button.click(str.lower, said, said)
    with pytest.raises(AssertionError, match="connect lower with Events"):
        events.accepted(page)


async def test_a_control_that_nobody_reads_keeps_the_page_from_starting() -> None:
    events = Events()
    with gr.Blocks() as page:
        events.anyone(gr.Button().click, str, gr.File(), None)
    with pytest.raises(TypeError, match="File has no reader"):
        events.accepted(page)


# --- numbers and values -----------------------------------------------------------------------------------------------

JUNK: list[Any] = [
    None,
    True,
    -1,
    1e300,
    10**400,
    float("nan"),
    "x",
    "\ud800",
    [],
    [None],
    {},
    {"role": "user"},
    "recommend",
]
JUNK += [[{"role": role, "content": content}] for role in ("user", "root") for content in ("x", [7], None)]
JUNK += [[{"role": "user", "content": [{"type": "text", "text": "x"}], "metadata": 7}]]


async def test_values_that_no_browser_sends_are_refused_without_a_traceback(
    served: Served, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for number in served.events:
        for said in await asyncio.gather(*map(served.said, served.variants(number, JUNK))):
            assert "close_stream" in said or set(json.loads(said)) == {"detail"}, said
    check_quiet(capfd, caplog)


async def test_numbers_of_nothing_are_404_without_a_traceback(
    served: Served, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    asking = next(number for number in served.events if served.blocks.fns[number].inputs)
    usual, past = served.usual(asking), max(served.blocks.fns) + 1
    numbers: list[Any] = [-1, past, 10**30, True, "5", 1.5, None, []]
    for number in numbers:
        assert (await served.join(usual | {"fn_index": number})).status_code == 404, number
    for source in numbers[:5]:
        assert (await served.join(usual | {"trigger_id": source})).status_code == 404, source
    for tab in (None, "", 7, "a/../b", "x" * 65, "é"):
        assert (await served.join(usual | {"session_hash": tab})).status_code == 400, tab
    for path in (f"{API}/queue/data", f"{API}/queue/data?session_hash=", f"{API}/queue/data?session_hash=%ff"):
        assert (await served.client.get(path)).status_code == 400
    assert (await served.client.get(f"{API}/queue/data?session_hash=nobody")).status_code == 404
    for path in (f"{API}/heartbeat/a.b", f"{API}/heartbeat/", f"{API}/call/predict/{'0' * 32}"):
        assert (await served.client.get(path)).status_code == 404
    check_quiet(capfd, caplog)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 10**6, 400),
        (b'{"data":"%s"}' % (b"x" * 2**22), 413),
    ],
)
async def test_bodies_that_are_no_event_are_refused(served: Served, body: bytes, status: int) -> None:
    reply = await served.client.post(f"{API}/queue/join", content=body, headers=JSON)
    assert reply.status_code == status


async def test_two_streams_of_one_tab_end_without_a_traceback(
    served: Served, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The one that is left takes the framework's ten seconds to notice."""
    number = next(number for number in served.events if served.blocks.fns[number].name == "load_again")
    assert (await served.join(served.usual(number) | {"session_hash": "twice"})).status_code == 200
    first = asyncio.create_task(drained(served, "twice"))
    await asyncio.sleep(0.2)
    second = asyncio.create_task(drained(served, "twice"))
    await asyncio.sleep(0.2)
    first.cancel()
    await asyncio.wait({first})
    assert any("session_not_found" in message for message in await second)
    check_quiet(capfd, caplog)


async def drained(served: Served, tab: str) -> list[str]:
    return [message async for message in messages(served.client, tab)]


def check_quiet(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    said = "".join(capfd.readouterr()) + caplog.text
    assert "Traceback" not in said, said[-3000:]
