"""The routes of a head: chat, models, health, status, control. Knows no engine: everything goes through HeadPort."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import asdict

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from together import __version__
from together.api import errors
from together.api.chat import Completion, abandon, collect, event, next_piece, paced, stream
from together.api.control import control_routes
from together.api.errors import UnknownModel
from together.api.guard import Guard
from together.api.port import HeadPort
from together.api.schemas import ChatCompletionRequest, parse_chat
from together.api.streaming import ClientGone, EventStream, read_body, while_connected
from together.requests import Piece
from together.types import ClusterView, Serving, ServingState

ANSWER_WITHIN = 2.0  # seconds an error has to become a status before the stream begins without a token
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def build_app(head: HeadPort, shutdown: Callable[[], None]) -> FastAPI:
    """The app with every route of ours; the page is mounted after, on all others. `shutdown` asks the app to end."""
    app = FastAPI(title="together", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    errors.install(app)
    routers = (chat_routes(head), status_routes(head), control_routes(head, shutdown))
    for router in routers:
        app.include_router(router)
    app.include_router(_refuse_the_rest(routers))
    # No origin is allowed. It also stops the page's framework from adding CORS headers of its own.
    app.add_middleware(CORSMiddleware, allow_origins=())
    app.add_middleware(Guard, open_to_network=head.settings.open_to_network)
    return app


# --- OpenAI's routes --------------------------------------------------------------------------------------------------


def chat_routes(head: HeadPort) -> APIRouter:
    """`/v1/chat/completions` and `/v1/models`, also without `/v1`."""
    router = APIRouter()
    started = int(time.time())

    async def chat_completions(request: Request) -> Response:
        asked = parse_chat(await read_body(request))
        serving = head.view().serving
        if asked.model is not None and asked.model != serving.model:
            raise UnknownModel(asked.model, serving.model)
        pieces = head.chat(asked.to_chat())
        completion = Completion(serving.model)
        if asked.stream:
            return await _streamed(request, completion, pieces, asked)
        return await _whole(request, completion, pieces)

    def models() -> list[dict[str, object]]:
        name = head.view().serving.model
        return [{"id": name, "object": "model", "created": started, "owned_by": "together"}] if name else []

    async def list_models() -> dict[str, object]:
        return {"object": "list", "data": models()}

    async def get_model(name: str) -> dict[str, object]:
        for model in models():
            if model["id"] == name:
                return model
        raise UnknownModel(name, head.view().serving.model)

    for prefix in ("/v1", ""):
        router.post(f"{prefix}/chat/completions")(chat_completions)
        router.get(f"{prefix}/models")(list_models)
        router.get(prefix + "/models/{name:path}")(get_model)
    return router


async def _streamed(
    request: Request, completion: Completion, pieces: AsyncIterator[Piece], asked: ChatCompletionRequest
) -> Response:
    first = next_piece(pieces)
    try:
        await while_connected(request, _settled(first))
    except ClientGone:
        await abandon(pieces, first)
        return Response(status_code=499)
    except BaseException:
        await abandon(pieces, first)
        raise
    return EventStream(stream(completion, paced(pieces, first), asked.include_usage))


async def _settled(first: asyncio.Task[Piece]) -> None:
    """Wait for the first piece, but not for a long prefill; raise what it raised."""
    done, _ = await asyncio.wait({first}, timeout=ANSWER_WITHIN)
    if done and not isinstance(first.exception(), StopAsyncIteration):
        first.result()


async def _whole(request: Request, completion: Completion, pieces: AsyncIterator[Piece]) -> Response:
    try:
        text, last = await while_connected(request, collect(pieces))
    except ClientGone:
        return Response(status_code=499)
    finally:
        await abandon(pieces)
    return JSONResponse(completion.whole(text, last))


# --- what a person or a monitor asks ----------------------------------------------------------------------------------


def status_routes(head: HeadPort) -> APIRouter:
    """`/health`, `/status`, `/events`, `/version`."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:
        serving = head.view().serving
        ready = serving.state is ServingState.READY
        body = {"status": "ok" if ready else "unavailable", "state": serving.state, "model": serving.model}
        if ready:
            return JSONResponse(body)
        return JSONResponse({**body, "reason": reason(serving)}, 503, {"Retry-After": "5"})

    @router.get("/status")
    async def status() -> Response:
        return JSONResponse(view_json(head.view()))

    @router.get("/events")
    async def events() -> Response:
        return EventStream(_events(head))

    @router.get("/version")
    async def version() -> dict[str, object]:
        return {"name": "together", "version": __version__, "pid": os.getpid()}

    return router


def reason(serving: Serving) -> str:
    """Why no request would be served now, as a sentence."""
    match serving.state:
        case ServingState.EMPTY:
            return "no model is loaded"
        case ServingState.WAITING:
            return f"{serving.model} waits for nodes that can run it" + (f": {serving.cause}" if serving.cause else "")
        case ServingState.LOADING:
            return f"{serving.model} is being loaded ({serving.step or 'loading'}), {serving.progress:.0%} done"
        case ServingState.RECOVERING:
            return f"{serving.model} is being mended: {serving.cause}"
        case ServingState.FAILED:
            return serving.cause or f"{serving.model} could not be loaded"
        case ServingState.READY:
            return ""


def view_json(view: ClusterView) -> dict[str, object]:
    """The view as plain JSON, field for field as in `together.types`, and why it serves nothing."""
    return {**asdict(view), "reason": reason(view.serving)}


async def _events(head: HeadPort) -> AsyncGenerator[bytes, None]:
    async for view in head.changes():
        yield event(view_json(view))


# --- everything else --------------------------------------------------------------------------------------------------


def _refuse_the_rest(routers: tuple[APIRouter, ...]) -> APIRouter:
    """404 and 405 in our shape for our paths; without this they would reach the page, which is mounted at the root."""
    methods: dict[str, set[str]] = {}
    for route in (route for router in routers for route in router.routes if isinstance(route, APIRoute)):
        methods.setdefault(route.path, set()).update(route.methods or ())

    async def not_allowed(request: Request) -> Response:
        raise HTTPException(405, f"{request.method} is not allowed for {request.url.path}")

    async def not_found(request: Request) -> Response:
        raise HTTPException(404, f"there is no {request.url.path}")

    rest = APIRouter()
    for path, allowed in methods.items():
        rest.add_route(path, not_allowed, methods=[method for method in METHODS if method not in allowed])
    for prefix in ("/v1", "/control"):
        rest.add_route(prefix + "/{rest:path}", not_found, methods=list(METHODS))
    return rest
