"""Requests to an app without sockets, from whatever address a test says. Knows no test."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from tests.support.patience import PATIENCE

ELSEWHERE = ("203.0.113.9", 4711)
OWN_HOST = "192.0.2.7:8765"


@dataclass(frozen=True, slots=True)
class Begun:
    """How an answer begins; of a stream nobody waits for the rest."""

    status: int
    headers: dict[str, str]


async def ask(
    app: Any,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    client: tuple[str, int] = ELSEWHERE,
    query: bytes = b"",
) -> Begun:
    """The beginning of an app's answer; then the client leaves."""
    begun: asyncio.Future[Begun] = asyncio.get_running_loop().create_future()
    given = {"host": OWN_HOST} | (headers or {})
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
        "client": client,
        "server": ("192.0.2.7", 8765),
    }
    bodies = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if bodies:
            return bodies.pop()
        await asyncio.wait({begun})
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start" and not begun.done():
            found = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            begun.set_result(Begun(message["status"], found))

    answering = asyncio.create_task(app(scope, receive, send))
    try:
        await asyncio.wait({answering, begun}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if not begun.done():
            answering.result()
        return begun.result()
    finally:
        answering.cancel()
        await asyncio.wait({answering})
