"""Servers of tools through their real process: a real server of ours over pipes and HTTP, and ones that are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, until
from tests.support.mcp_server import EVIL
from tests.support.patience import PATIENCE
from tests.support.tool_servers import PROGRAM, serving_tools
from together.tools import sessions
from together.tools.servers import ToolServer
from together.tools.session_process import MOST_RESULT
from together.tools.sessions import ToolFault, ToolSession


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "CONNECT", PATIENCE)


@asynccontextmanager
async def session(**where: object) -> AsyncIterator[ToolSession]:
    made = ToolSession(ToolServer("ours", "local", anywhere=True, **where))  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.close()


async def test_a_program_is_a_server_of_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with session(command=PROGRAM, folder=str(ROOT), environment={"TOLD": "yes"}) as ours:
        tools, left = await ours.tools()
        assert [tool.name for tool in tools][:2] == ["add", "evil <b>name</b>"]
        assert (tools[1].description, left) == (EVIL, ())
        assert (await ours.call("add", {"a": 1, "b": 2})).text == "1 and 2 are 3"
        assert (await ours.call("evil <b>name</b>", {"n": 1})).text == EVIL
        failed = await ours.call("wrong", {"n": 1})
        assert (failed.failed, "wrong" in failed.text) == (True, True)
        assert (await ours.call("around", {"n": 1})).text == f"yes, nothing of ours, {ROOT}"
        assert (await ours.call("picture", {"n": 1})).text.startswith("a cat\n(of kind image, image/png")
        huge = (await ours.call("huge", {"letters": 10 * MOST_RESULT})).text
        assert huge.endswith(f"(cut: the result has {10 * MOST_RESULT} letters)")
        waiting = asyncio.create_task(ours.call("slow", {"n": 1}))
        await asyncio.sleep(0.1)
        waiting.cancel()
        assert (await ours.call("add", {"a": 3, "b": 3})).text == "3 and 3 are 6"
        with pytest.raises(ToolFault, match="does not answer"):
            await ours.call("leave", {"n": 1})
        monkeypatch.setattr(sessions, "LONGEST_CALL", 0.5)
        with pytest.raises(ToolFault, match="has not answered within 0 s"):
            await ours.call("slow", {"n": 1})
        monkeypatch.setattr(sessions, "LONGEST_CALL", PATIENCE)
        monkeypatch.setattr(sessions, "MEMORY", 2**20)
        with pytest.raises(ToolFault, match="sent more than"):
            await ours.call("slow", {"n": 1})
    until(lambda: not _left(), PATIENCE, "nothing is left")


def _left() -> list[str]:
    own = psutil.Process().children(recursive=True)
    return [" ".join(each.cmdline()) for each in own if "mcp_server" in " ".join(each.cmdline())]


async def test_an_address_is_a_server_of_tools() -> None:
    with serving_tools() as url:
        await _ask_and_end(url)


async def _ask_and_end(url: str) -> None:
    async with session(url=url) as ours:
        assert (await ours.call("add", {"a": 1, "b": 2})).text == "1 and 2 are 3"
        with pytest.raises(ToolFault, match="does not answer"):
            await ours.call("leave", {"n": 1})
        with pytest.raises(ToolFault, match="does not answer"):
            await ours.tools()


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (ToolServer("x", "key", url="http://localhost:9/mcp"), "added it: "),
        (ToolServer("x", "key", url="http://[::ffff:127.0.0.1]:9/mcp"), "added it: "),
        (ToolServer("x", "local", command=("/nowhere",)), "cannot be started"),
        pytest.param(ToolServer("x", "local", command=("/bin/cat",)), "no MCP", marks=pytest.mark.full),
        pytest.param(ToolServer("x", "local", command=("/bin/false",)), "cannot be started", marks=pytest.mark.full),
    ],
    ids=["private", "mapped", "no program", "echo", "ends"],
)
async def test_what_is_no_server_of_tools(server: ToolServer, said: str) -> None:
    made = ToolSession(server)
    with pytest.raises(ToolFault, match=said):
        await made.tools()
    await made.close()


@pytest.mark.parametrize(("status", "said"), [(401, "asks for a key"), (404, "no MCP|does not answer")])
async def test_what_an_address_may_say_instead(status: int, said: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, session(url=f"http://127.0.0.1:{port}/") as odd:
        with pytest.raises(ToolFault, match=said):
            await odd.tools()
