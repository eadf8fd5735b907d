"""The head's HTTP app and its routes: OpenAI's, health, metrics, status; `control` has those for this machine alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from together import __version__
from together.api import failures
from together.api.access import Access
from together.api.answering import ModelAnswers
from together.api.anthropic.routes import message_routes
from together.api.control import control_routes
from together.api.conversations import conversation_routes
from together.api.events import event
from together.api.guard import Guard
from together.api.keys import KeyFile
from together.api.library import library_orders, library_routes
from together.api.login import login_routes
from together.api.metrics import Metrics
from together.api.openai import openai_routes
from together.api.openai_responses.routes import response_routes
from together.api.pages import page_routes
from together.api.plain import plain_fields
from together.api.reach import invitation_routes, reach_routes
from together.api.responses import Health, Version
from together.api.stream import EventStream, note_refusal
from together.api.tokens import token_routes
from together.api.tools import tool_routes
from together.api.visitors import visitor_of
from together.head.head import Head
from together.view import ClusterView, ServingState

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def build_app(head: Head, shutdown: Callable[[], None], own_key: str = "") -> FastAPI:
    """The app with all routes but the page's, which is mounted on the rest. `shutdown` asks the app to end.

    `own_key` is what this user's own programs show.
    """
    settings = head.settings
    open_ = settings.open_to_network
    keys = KeyFile.of(settings)
    proxied = open_ and settings.plain_http
    access = Access(keys, own_key, names=settings.host_names, asks=open_, proxied=proxied)
    head.chats.known = access.knows
    app = FastAPI(title="together", version=__version__, docs_url=None, redoc_url=None)
    metrics = Metrics(head)
    failures.install(app, partial(note_refusal, metrics))
    answers = ModelAnswers(head, metrics)
    openai = openai_routes(answers)
    answered = response_routes(answers, access.requests)
    mounted = (  # where, what, and whether it is documented
        ("/v1", openai, True),
        ("", page_routes(), False),  # first: a browser gets the page of an address that the next has, too
        ("", openai, False),
        ("/v1", answered, True),
        ("", answered, False),
        ("", message_routes(answers), True),
        ("", token_routes(answers), True),
        ("", status_routes(head, metrics), True),
        ("", control_routes(head, shutdown), False),  # for this machine's own programs
        ("", login_routes(access, settings.config_path), False),
        ("", reach_routes(head), False),  # for the page, as the next
        ("", invitation_routes(head, keys), False),
        ("", conversation_routes(head), False),  # for the page and the terminal chat
        ("", library_routes(head), False),  # for the page
        ("", library_orders(head), False),
        ("", tool_routes(head), False),
    )
    for prefix, router, documented in mounted:
        app.include_router(router, prefix=prefix, include_in_schema=documented)
    app.include_router(_refuse_the_rest(mounted))
    # No origin is allowed. It also stops the page's framework from adding CORS headers of its own.
    app.add_middleware(CORSMiddleware, allow_origins=())
    app.add_middleware(Guard, access=access)
    return app


# --- what a person or a monitor asks ----------------------------------------------------------------------------------


def status_routes(head: Head, metrics: Metrics) -> APIRouter:
    """`/health`, `/metrics`, `/status`, `/events`, `/version`."""
    router = APIRouter()

    @router.get("/health", responses={200: {"model": Health}, 503: {"model": Health}})
    async def health(request: Request) -> Response:
        """Whether a request would be served now; a stranger hears no more than that."""
        view = head.view()
        known = (shown.serving for shown in view.services if shown.serving.state is ServingState.READY)
        serving = next(known, view.serving)
        ready = serving.state is ServingState.READY
        body = {"status": "ok" if ready else "unavailable"}
        if visitor_of(request.scope).known:
            body |= {"state": serving.state, "model": serving.model}
            body |= {} if ready else {"reason": str(serving.sentence)}
        return JSONResponse(body) if ready else JSONResponse(body, 503, {"Retry-After": "5"})

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
        return EventStream(event(view_json(view)) async for view in head.changes())

    @router.get("/version")
    async def version() -> Version:
        return {"name": "together", "version": __version__, "pid": os.getpid()}

    return router


def view_json(view: ClusterView) -> dict[str, object]:
    """The view as plain JSON, field for field, with the text of its sentences, and why it serves nothing."""
    serving = view.serving
    reason = "" if serving.state is ServingState.READY else str(serving.sentence)
    return {**plain_fields(view), "reason": reason}


# --- everything else --------------------------------------------------------------------------------------------------


def _refuse_the_rest(mounted: Iterable[tuple[str, APIRouter, bool]]) -> APIRouter:
    """404 and 405 in our shape for our paths; without this they would reach the page, which is mounted at the root."""
    methods: dict[str, set[str]] = {}
    for prefix, router, _ in mounted:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            methods.setdefault(prefix + route.path, set()).update(route.methods or ())

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
