"""A process that talks with one server of tools: `python -m together.tools.session_process`. It alone imports `mcp`.

In: two lines that say which server (`sessions.ToolSession`), then orders, each one JSON object per line:
    {"id": 1, "list": true}                            → {"id": 1, "tools": [{"name", "description", "parameters"}]}
    {"id": 2, "call": name, "arguments": {…}}          → {"id": 2, "text": …, "failed": whether the tool says so}
    {"cancel": 2}
Any may fail: {"id": …, "fault": a key of `sessions.WHY`, "reason": …}. The process leaves when its input ends, and with
it a program that is the server.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from together.processes import ExitGuard, claim_stdout

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult

MOST_RESULT = 60_000  # letters: more would fill most contexts
MOST_LISTED = 256  # tools
MOST_PAGES = 16  # of a list
LONGEST_LINE = 2**23  # bytes of an order or a reply
LEAVES_WITHIN = 5.0  # seconds

Reply = dict[str, Any]


class ServerTalk:
    """Orders and replies of one server."""

    def __init__(self, client: Client, output: TextIO) -> None:
        self._client = client
        self._output = output
        self._running: dict[int, asyncio.Task[None]] = {}

    async def follow(self, orders: asyncio.Queue[Reply | None]) -> None:
        while (order := await orders.get()) is not None:
            if (task := self._running.get(order.get("cancel", 0))) is not None:
                task.cancel()
            elif "id" in order:
                self._running[order["id"]] = asyncio.create_task(self._carry_out(order))

    async def _carry_out(self, order: Reply) -> None:
        try:
            reply = await self._listed() if "list" in order else await self._called(order["call"], order["arguments"])
        except Exception as error:  # of the server, of its library, of the network
            reply = fault_of(error)
        finally:
            del self._running[order["id"]]
        say(self._output, {"id": order["id"], **reply})

    async def _listed(self) -> Reply:
        found: list[Reply] = []
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            page = await self._client.list_tools(cursor=cursor)
            for tool in page.tools:
                said = {"description": (tool.description or tool.title or "")[:MOST_RESULT]}
                found.append({"name": tool.name, **said, "parameters": dict(tool.input_schema)})
            cursor = page.next_cursor
            if not cursor or len(found) >= MOST_LISTED:
                break
        return {"tools": found[:MOST_LISTED]}

    async def _called(self, tool: str, arguments: Reply) -> Reply:
        result = await self._client.call_tool(tool, arguments)
        return {"text": shortened(text_of(result)), "failed": bool(result.is_error)}


# --- results ----------------------------------------------------------------------------------------------------------


def text_of(result: CallToolResult) -> str:
    """What a model is told of a result: its texts; of all else that it was there."""
    parts = [_part(item.model_dump(mode="json", by_alias=True)) for item in result.content]
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)


def _part(item: Reply) -> str:
    match item.get("type"):
        case "text":
            return str(item["text"])
        case "resource" if "text" in item["resource"]:
            return str(item["resource"]["text"])
        case "resource_link":
            return f"({item.get('title') or item.get('name')}: {item.get('uri')})"
        case kind:
            return f"(of kind {kind}, {item.get('mimeType') or 'unknown'}: left out)"


def shortened(text: str) -> str:
    text = text.encode("utf-8", "replace").decode().replace("\0", "")
    return text if len(text) <= MOST_RESULT else f"{text[:MOST_RESULT]}\n(cut: the result has {len(text)} letters)"


# --- what goes wrong --------------------------------------------------------------------------------------------------


def fault_of(error: BaseException) -> Reply:
    """By the innermost of the errors that came together."""
    import httpx2
    from mcp import MCPError
    from mcp_types import CONNECTION_CLOSED

    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    reason = " ".join(str(error).split()) or type(error).__name__
    if _refused:
        return {"fault": "private"}
    if _statuses[-1:] in ([401], [403]):
        return {"fault": "key"}
    if isinstance(error, MCPError):
        kind = "gone" if error.code == CONNECTION_CLOSED else "refused"
        return {"fault": kind, "reason": reason if kind == "refused" else "it ended the connection"}
    if isinstance(error, (OSError, httpx2.TransportError)):
        return {"fault": "gone", "reason": reason}
    return {"fault": "rubbish", "reason": f"{type(error).__name__}: {reason}"}


_refused: list[str] = []  # addresses that this process may not connect to, and was told to
_statuses: list[int] = []  # of the last response by HTTP, which the library does not pass on


def keep_public() -> None:
    """Refuse every connection to an address that is not public, at the moment it is made: names may change."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and not _is_public(arguments[1]):
            _refused.append(str(arguments[1]))
            raise PermissionError("this address is not public")

    sys.addaudithook(look)


def _is_public(address: object) -> bool:
    if not isinstance(address, tuple):
        return False
    found = ipaddress.ip_address(str(address[0]).partition("%")[0])
    inner = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (inner or found).is_global and not (inner or found).is_multicast


# --- the process ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def connected(server: Reply) -> AsyncIterator[Client]:
    """Raises whatever goes wrong while it begins."""
    import httpx2
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import streamable_http_client

    if server["command"]:
        program, *arguments = server["command"]
        parameters = StdioServerParameters(
            command=program, args=arguments, env=server["environment"], cwd=server["folder"] or None
        )
        async with Client(stdio_client(parameters, sys.stderr)) as client:  # which the head throws away
            yield client
        return

    async def note(response: httpx2.Response) -> None:
        _statuses[:] = [response.status_code]

    hooks: dict[str, list[Any]] = {"response": [note]}
    headers = {"Authorization": f"Bearer {server['key']}"} if server["key"] else {}
    limits = {"timeout": httpx2.Timeout(30, read=300), "trust_env": server["anywhere"]}
    async with (
        httpx2.AsyncClient(headers=headers, event_hooks=hooks, **limits) as http,
        Client(streamable_http_client(server["url"], http_client=http)) as client,
    ):
        yield client


async def serve(server: Reply, orders: asyncio.Queue[Reply | None], output: TextIO) -> None:
    began = False
    try:
        async with connected(server) as client:
            began = True
            await ServerTalk(client, output).follow(orders)
    except Exception as error:
        if began:  # while it ends
            return
        reply = fault_of(error)
        if reply["fault"] == "gone" and server["command"]:
            reply["fault"] = "program"
        if reply["fault"] == "refused":  # no call: it does not speak the protocol
            reply["fault"] = "rubbish"
        while (order := await orders.get()) is not None:
            if "id" in order:
                say(output, {"id": order["id"], **reply})


def say(output: TextIO, reply: Reply) -> None:
    line = json.dumps(reply)
    if len(line) >= LONGEST_LINE:
        line = json.dumps({"id": reply["id"], "fault": "large"})
    with suppress(OSError):  # nobody listens any more
        output.write(line + "\n")


def _listen(loop: asyncio.AbstractEventLoop, orders: asyncio.Queue[Reply | None]) -> None:
    for line in sys.stdin:
        loop.call_soon_threadsafe(orders.put_nowait, json.loads(line))
    ExitGuard(LEAVES_WITHIN).begin()
    loop.call_soon_threadsafe(orders.put_nowait, None)


async def run(output: TextIO) -> None:
    orders: asyncio.Queue[Reply | None] = asyncio.Queue()
    threading.Thread(target=_listen, args=(asyncio.get_running_loop(), orders), daemon=True).start()
    first, second = await orders.get(), await orders.get()
    if first is None or second is None:
        return
    if not first["anywhere"]:
        keep_public()
    await serve({**first, **second}, orders, output)


def main() -> None:
    asyncio.run(run(claim_stdout()))
    os._exit(0)  # whatever a library still waits for


if __name__ == "__main__":
    main()
