"""What of the page's framework is reachable over HTTP: an allow-list in front of it. All else is 404, by any method.

The framework has routes that upload, fetch and serve files, call functions and build components; the page needs the
few below. It sees of a request only what these need, and an event only as `events` has read it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from together.api.guard import read_body
from together.api.visitors import visitor_of
from together.errors import BadRequest
from together.requests import LOCAL, Owner
from webui import gr
from webui.events import Accepted

API = "/gradio_api"
PLACE = "/split"  # of the page itself, which the framework has at its root; all else that it needs has its own names
JOIN, DATA = ("POST", f"{API}/queue/join"), ("GET", f"{API}/queue/data")
PLAIN = frozenset(("GET", path) for path in ("/config", "/theme.css", "/favicon.ico", f"{API}/app_id"))
# No name begins with a dot: neither "..", nor a hidden file.
ASSET = re.compile(r"/(?:assets|static)(?:/[\w@$+-][\w@$+.-]*)+", re.ASCII)
SESSION = re.compile(r"[A-Za-z0-9]{1,64}")
HEARTBEAT = f"{API}/heartbeat/"
# The framework would also take its own address, a user and more from headers.
HEADERS = frozenset(
    {b"host", b"accept", b"accept-encoding", b"content-type", b"if-none-match", b"if-modified-since", b"user-agent"}
)


class Surface:
    """ASGI middleware around the page's framework. `events` are those that a browser may cause, by number."""

    def __init__(self, app: ASGIApp, page: gr.Blocks, events: Mapping[int, Accepted]) -> None:
        self.app = app
        self._page = page
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked, owner = (scope.get("method", ""), scope["path"]), visitor_of(scope).owner
        try:
            if asked == JOIN:
                body = self._event(_json(await read_body(Request(scope, receive))), owner)
                await self.app(_reduced(scope, body=body), _with_body(body, receive), send)
            elif asked == DATA:
                await self._data(scope, owner, receive, send)
            elif asked in (("GET", PLACE), ("HEAD", PLACE)):
                await self.app({**_reduced(scope), "path": "/", "raw_path": b"/"}, receive, send)
            elif asked in PLAIN or (asked[0] == "GET" and ASSET.fullmatch(asked[1])):
                await self.app(_reduced(scope), receive, send)
            elif (tab := _beating(*asked)) is not None:
                path = HEARTBEAT + _tab_of(owner, tab)
                await self.app({**_reduced(scope), "path": path, "raw_path": path.encode()}, receive, send)
            else:
                raise HTTPException(404, f"there is no {scope['path'][:200]}")
        except _Refused as refusal:
            await JSONResponse({"detail": str(refusal)}, refusal.status)(scope, receive, send)

    # --- events -------------------------------------------------------------------------------------------------------

    def _event(self, sent: dict[str, Any], owner: Owner) -> bytes:
        """An event for the framework, from what a browser sent."""
        number, source, session = sent.get("fn_index"), sent.get("trigger_id"), _session(sent, owner)
        event = self._events.get(number) if type(number) is int else None
        if event is None:
            raise _Refused("there is no event of this number; load the page again", 404)
        if source is not None and (type(source) is not int or source not in event.sources):
            raise _Refused("there is no such source of this event; load the page again", 404)
        values = sent.get("data")
        if not isinstance(values, list) or len(values) != len(event.values):
            raise _Refused(f"this event takes a list of {len(event.values)} values")
        try:
            read = [reader(value) for reader, value in zip(event.values, values, strict=True)]
            data = event.data(sent.get("event_data"))
        except BadRequest as error:
            raise _Refused(str(error)) from None
        kept = {"fn_index": number, "trigger_id": source, "session_hash": session, "data": read, "event_data": data}
        return json.dumps(kept).encode()

    async def _data(self, scope: Scope, owner: Owner, receive: Receive, send: Send) -> None:
        """What the events of a tab have to say, as a stream."""
        query = parse_qs(scope["query_string"].decode("latin-1"))
        session = _session({name: values[-1] for name, values in query.items()}, owner)
        if session not in self._page._queue.pending_messages_per_session:
            raise _Refused("this tab has caused no event; load the page again", 404)
        try:
            await self.app(_reduced(scope, query=f"session_hash={session}".encode()), receive, send)
        except RuntimeError as error:
            if not isinstance(error.__cause__, HTTPException):
                raise
            # A second stream of the same tab took the tab with it; the framework has said so in the last message.
            await send({"type": "http.response.body", "body": b""})


class _Refused(Exception):
    """In the framework's own shape, so that its page shows the sentence."""

    def __init__(self, sentence: str, status: int = 400) -> None:
        super().__init__(sentence)
        self.status = status


def _beating(method: str, path: str) -> str | None:
    """The number of the tab that says it is still there."""
    tab = path.removeprefix(HEARTBEAT)
    return tab if method == "GET" and path.startswith(HEARTBEAT) and SESSION.fullmatch(tab) else None


def _session(sent: Mapping[str, object], owner: Owner) -> str:
    value = sent.get("session_hash")
    if not isinstance(value, str) or not SESSION.fullmatch(value):
        raise _Refused("the number of the browser's tab is missing or is none; load the page again")
    return _tab_of(owner, value)


def _tab_of(owner: Owner, tab: str) -> str:
    """What the framework knows a browser's tab by: who guesses another owner's has a tab of their own."""
    return tab if owner == LOCAL else hashlib.sha256(f"{owner} {tab}".encode()).hexdigest()


def _json(body: bytes) -> dict[str, Any]:
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        sent = None
    if not isinstance(sent, dict):
        raise _Refused("the body is no JSON object")
    return sent


def _reduced(scope: Scope, query: bytes = b"", body: bytes | None = None) -> Scope:
    """The request without a query and headers that its route does not need."""
    headers = [(name, value) for name, value in scope["headers"] if name in HEADERS]
    if body is not None:
        headers = [(name, value) for name, value in headers if name != b"content-type"]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    return {**scope, "query_string": query, "headers": headers}


def _with_body(body: bytes, receive: Receive) -> Receive:
    """`body` instead of the one that was read already, then whatever comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return first.pop() if first else await receive()

    return received
