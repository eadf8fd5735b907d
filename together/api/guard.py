"""Who may talk to this server, and the memory that large bodies give back."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from contextlib import suppress
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from together.api.errors import Forbidden, error_body
from together.processes import trim_memory
from together.wording import quoted

LARGE = 2**18  # bytes of a body; read as lists and tables it takes ten times as much


class Tidy:
    """ASGI middleware around everything."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message

        try:
            await self.app(scope, counted, send)
        finally:
            if size > LARGE:
                await asyncio.to_thread(trim_memory)


LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

# Answers of a model may contain pictures and links: nothing is ever fetched from elsewhere.
CONTENT_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; form-action 'self'; base-uri 'self'"
)
_HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """ASGI middleware around everything. `open_to_network`: this machine's addresses and names are our Host as well."""

    def __init__(self, app: ASGIApp, open_to_network: bool) -> None:
        self.app = app
        self._open = open_to_network
        self._names = LOOPBACK_NAMES | (_own_names() if open_to_network else frozenset())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal:
            await JSONResponse(error_body(Forbidden(refusal)), 403)(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        with suppress(ClientDisconnect):  # it left within its body: nobody is there to be answered
            await self.app(scope, receive, send_with_policy)

    def _refusal(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_ours(host):
            return f"the Host {quoted(host)} is not this app's; open it by its address"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return f"requests from the page {quoted(origin)} are refused"
        # Pictures and scripts of other pages come without an Origin; a clicked link is a navigation and may come.
        foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign and (scope.get("method") != "GET" or headers.get("sec-fetch-mode") != "navigate"):
            return "requests from pages of another site are refused"
        return ""

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        return name in self._names or (self._open and _is_address(name))  # rebinding needs a name, never an address


def is_local(scope: Scope) -> bool:
    """Whether the client sits on this machine: control routes answer nobody else."""
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    return _is_loopback(client[0]) or bool(server and client[0] == server[0])


def _is_loopback(address: str) -> bool:
    return _is_address(address) and ipaddress.ip_address(address).is_loopback


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _own_names() -> frozenset[str]:
    name = socket.gethostname().lower()
    return frozenset({name, name.partition(".")[0], f"{name.partition('.')[0]}.local"})
