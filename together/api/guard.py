"""Who may talk to this server, and how bodies are read: limited in size, checked strictly."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from secrets import token_hex
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_before_validator_function
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from together.api.access import Access, Revoked
from together.api.failures import error_response, is_anthropic
from together.api.login import AUTHORITY, LOGIN, enter, is_foreign, key_in_link, refusal_page
from together.api.requests import WORDS
from together.api.responses import BodyTooLarge, Forbidden, NoKey, TooManyWrongKeys, wrong
from together.api.visitors import STRANGER, Visitor, note_visitor, visitor_of
from together.errors import BadRequest
from together.processes import trim_memory
from together.wording import MOST, cut, quoted

MAX_BODY = 4 * 2**20  # bytes: a million tokens of text; reading a larger one would delay all other requests
MAX_PICTURES = 32 * 2**20  # bytes of a body with pictures
LARGE = 2**18  # bytes of a body, whose memory is given back; parsed it takes ten times as much

PICTURES = {  # how one begins in bodies of the routes that take them, by the end of the path
    "/chat/completions": re.compile(rb'"data:image/'),
    "/responses": re.compile(rb'"data:image/'),
    "/messages": re.compile(rb'"data"\s*:\s*"'),
}
_BRANCHES = {"str", "list", "int"}  # what pydantic adds to the path of a field for a type that it tried
WITHOUT_KEY = frozenset(
    {("GET", "/health"), ("GET", LOGIN), ("POST", LOGIN), ("GET", AUTHORITY)}
)  # all else asks for one

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
    """ASGI middleware around everything: hosts, origins, keys. What it does not name asks for a key."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        size, begun = 0, False

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return message

        async def send_with_policy(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun, own = True, {name for name, _ in message["headers"]}
                more = (*_HEADERS, *_request_id(scope["path"]))
                message["headers"] = [*message["headers"], *(each for each in more if each[0] not in own)]
            await send(message)

        answer = self._answered_here(scope)
        if answer is not None:
            await answer(scope, receive, send_with_policy)
            return
        try:
            with suppress(ClientDisconnect):  # it left before its body was complete: there is nobody to answer
                async with self._access.requests.held(visitor_of(scope)):
                    await self.app(scope, counted, send_with_policy)
        except Revoked:
            if begun:  # a stream, whose end the client sees
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await error_response(NoKey("the key was revoked"), scope["path"])(scope, receive, send_with_policy)
        finally:
            if size > LARGE:
                await asyncio.to_thread(trim_memory)

    def _answered_here(self, scope: Scope) -> Response | None:
        """The refusal of a request, or the way in; None for one that may go on, whose visitor is noted then."""
        refusal = self._refusal(scope)
        if refusal is not None:
            return error_response(refusal, scope["path"])
        link = key_in_link(scope)
        if link is not None:
            return enter(self._access, scope, link, by_link=True)
        if (scope.get("method"), scope["path"]) in WITHOUT_KEY:
            note_visitor(scope, self._known_or_stranger(scope))
            return None
        try:
            note_visitor(scope, self._access.visitor(scope))
        except (NoKey, TooManyWrongKeys) as error:
            return refusal_page(scope, error) or error_response(error, scope["path"])
        return None

    def _known_or_stranger(self, scope: Scope) -> Visitor:
        try:
            return self._access.visitor(scope)
        except (NoKey, TooManyWrongKeys):
            return STRANGER

    def _refusal(self, scope: Scope) -> Forbidden | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._access.is_ours(host):
            return Forbidden("the Host {host} is not this app's; open it by its address", host=quoted(host))
        for origin in headers.getlist("origin"):
            if not _is_of(origin, host):
                return Forbidden("requests from the page {origin} are refused", origin=quoted(origin))
        # Pictures and scripts of other pages come without an Origin; a clicked link is a navigation and may come.
        if is_foreign(headers) and (scope.get("method") != "GET" or headers.get("sec-fetch-mode") != "navigate"):
            return Forbidden("requests from pages of another site are refused")
        return None


def _is_of(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:  # as of half a bracket: no browser says so
        return False


def _request_id(path: str) -> tuple[tuple[bytes, bytes], ...]:
    """What programs show in reports of faults, by the name that the API gives it."""
    if not path.startswith("/v1/"):
        return ()
    return ((b"request-id" if is_anthropic(path) else b"x-request-id", f"req_{token_hex(12)}".encode()),)


# --- bodies -----------------------------------------------------------------------------------------------------------


async def read_body(request: Request, pictures: re.Pattern[bytes] | None = None) -> bytes:
    """The whole body. Raises BodyTooLarge as soon as it is over MAX_BODY, without the `pictures` that it may have."""
    chunks, size, most = [], 0, MAX_BODY
    async for chunk in request.stream():
        size += len(chunk)
        chunks.append(chunk)
        if pictures and size > most == MAX_BODY and pictures.search(b"".join(chunks)):
            most = MAX_PICTURES
        if size > most == MAX_PICTURES:
            text = "a request with pictures may have at most {most} MB, and files grow by a third in it; send fewer"
            raise BodyTooLarge(text, most=most // 2**20)
        if size > most:
            raise BodyTooLarge("a request body may have at most {most} bytes", most=most)
    body = b"".join(chunks)
    if pictures and size > MAX_BODY and size - sum(_sizes(pictures, body)) > MAX_BODY:
        raise BodyTooLarge("a request body may have at most {most} bytes beside pictures", most=MAX_BODY)
    return body


async def body_within(request: Request, most: int, refusal: BodyTooLarge) -> bytes:
    """The whole body, a file for example. Raises `refusal` as soon as it has more than `most` bytes."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise refusal
        chunks.append(chunk)
    return b"".join(chunks)


def _sizes(pictures: re.Pattern[bytes], body: bytes) -> Iterator[int]:
    """Of the pictures in a JSON body: texts that are parsed at the speed of memory."""
    end = 0
    while (begun := pictures.search(body, end)) is not None:
        end = body.find(b'"', begun.end())
        end = len(body) if end < 0 else end
        yield end - begun.end()


class _BytesRequest(Request):
    """A request that leaves its JSON unparsed, whatever its content type says; an empty body is an empty object."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._body = await read_body(self, self._pictures()) or b"{}"
        return self._body

    def _pictures(self) -> re.Pattern[bytes] | None:
        return next((found for end, found in PICTURES.items() if self.url.path.endswith(end)), None)

    async def json(self) -> bytes:
        return await self.body()


ModelT = TypeVar("ModelT", bound=BaseModel)
RouteHandler = Callable[[Request], Coroutine[Any, Any, Response]]


class BodyRoute(APIRoute):
    """A route that reads its body within MAX_BODY, and leaves it to a `FromJson` parameter to parse."""

    def get_route_handler(self) -> RouteHandler:
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            request = _BytesRequest(request.scope, request.receive)
            if self.body_field is not None:
                await request.body()  # the framework would turn what this raises into a plain 400
            return await handle(request)

        return read


class LocalRoute(BodyRoute):
    """A route that answers this machine only, and reads nothing from others."""

    def get_route_handler(self) -> RouteHandler:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            if not visitor_of(request.scope).here:
                raise Forbidden("this is for the machine that the app runs on; open the page there")
            return await handle(request)

        return answer


def parse(model: type[ModelT], body: bytes) -> ModelT:
    """A JSON body as its model. Raises BadRequest with the path of the first wrong field."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _first_wrong(first["loc"], first["msg"]) from None


def _first_wrong(location: tuple[int | str, ...], message: str) -> BadRequest:
    names = [str(part) for place, part in enumerate(location) if place == 0 or not _is_branch(part)]
    if len(names) < len(location) and (several := next((name for name in names if name in WORDS), None)) is not None:
        names, message = names[: names.index(several) + 1], f"must be {WORDS[several]}"
    path = ".".join(cut(name, MOST) for name in names)
    return wrong(path, "{reason}", reason=message) if path else BadRequest(cut(message))


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and (part in _BRANCHES or not part.isidentifier())


class FromJson:
    """Marks a body parameter whose model parses the bytes: stricter than `json.loads`. Raises BadRequest."""

    def __get_pydantic_core_schema__(self, model: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_before_validator_function(partial(parse, model), handler(model))


FROM_JSON = FromJson()
