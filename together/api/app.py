"""The head's HTTP app: OpenAI's routes, health, metrics, status, control, and the OpenAPI document."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from together import __version__
from together.api import errors
from together.api.control import control_routes
from together.api.guard import Guard
from together.api.metrics import Metrics
from together.api.openai_routes import openai_routes
from together.api.responses import Health, Version
from together.api.stream import EventStream, event, note_refusal
from together.head.head import Head
from together.sentences import Sentence
from together.view import ClusterView, ServingState

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Mounted:
    """Routes and where they stand in the app."""

    router: APIRouter
    prefix: str = ""
    documented: bool = True


def build_app(head: Head, shutdown: Callable[[], None]) -> FastAPI:
    """The app with every route of ours; the page is mounted after, on all others. `shutdown` asks the app to end."""
    app = FastAPI(title="together", version=__version__, docs_url=None, redoc_url=None)
    metrics = Metrics(head)
    errors.install(app, partial(note_refusal, metrics))
    openai = openai_routes(head, metrics)
    mounted = (
        Mounted(openai, "/v1"),
        Mounted(openai, documented=False),
        Mounted(status_routes(head, metrics)),
        Mounted(control_routes(head, shutdown), documented=False),  # for this machine's own programs
    )
    for each in mounted:
        app.include_router(each.router, prefix=each.prefix, include_in_schema=each.documented)
    app.include_router(_refuse_the_rest(mounted))
    # No origin is allowed. It also stops the page's framework from adding CORS headers of its own.
    app.add_middleware(CORSMiddleware, allow_origins=())
    app.add_middleware(Guard, open_to_network=head.settings.open_to_network)
    return app


# --- what a person or a monitor asks ----------------------------------------------------------------------------------


def status_routes(head: Head, metrics: Metrics) -> APIRouter:
    """`/health`, `/metrics`, `/status`, `/events`, `/version`."""
    router = APIRouter()

    @router.get("/health", responses={200: {"model": Health}, 503: {"model": Health}})
    async def health() -> Response:
        """Whether a request would be served now."""
        serving = head.view().serving
        ready = serving.state is ServingState.READY
        body = {"status": "ok" if ready else "unavailable", "state": serving.state, "model": serving.model}
        if ready:
            return JSONResponse(body)
        return JSONResponse({**body, "reason": str(serving.sentence)}, 503, {"Retry-After": "5"})

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics_text() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/status")
    async def status() -> Response:
        """Nodes, stages and the plan."""
        return JSONResponse(view_json(head.view()))

    @router.get("/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
    async def events() -> Response:
        """The status again and again, as server-sent events."""
        return EventStream(_events(head))

    @router.get("/version")
    async def version() -> Version:
        return {"name": "together", "version": __version__, "pid": os.getpid()}

    return router


def view_json(view: ClusterView) -> dict[str, object]:
    """The view as plain JSON, field for field, with the text of its sentences, and why it serves nothing."""
    serving = view.serving
    sentence = str(serving.sentence)
    shown = {**_plain_fields(serving), "sentence": sentence}
    reason = "" if serving.state is ServingState.READY else sentence
    return {**_plain_fields(view), "serving": shown, "reason": reason}


def _plain_fields(value: Any) -> dict[str, object]:
    return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}


def _plain(value: Any) -> object:
    if isinstance(value, Sentence):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return _plain_fields(value) if is_dataclass(value) else value


async def _events(head: Head) -> AsyncGenerator[bytes, None]:
    async for view in head.changes():
        yield event(view_json(view))


# --- everything else --------------------------------------------------------------------------------------------------


def _refuse_the_rest(mounted: Iterable[Mounted]) -> APIRouter:
    """404 and 405 in our shape for our paths; without this they would reach the page, which is mounted at the root."""
    methods: dict[str, set[str]] = {}
    for each in mounted:
        for route in each.router.routes:
            assert isinstance(route, APIRoute)
            methods.setdefault(each.prefix + route.path, set()).update(route.methods or ())

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
