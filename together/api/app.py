"""The head's HTTP app and its routes: OpenAI's, health, metrics, status; `control` has those for this machine alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from together import __version__
from together.api import responses
from together.api.access import Access
from together.api.answers import AnswerFormatter, ChatFormatter, CompletionFormatter
from together.api.attachments import attachment_routes
from together.api.control import control_routes
from together.api.conversations import conversation_routes
from together.api.guard import FROM_JSON, BodyRoute, Guard
from together.api.keys import KeyFile
from together.api.login import login_routes
from together.api.metrics import Metrics
from together.api.pages import page_routes
from together.api.requests import AnswerFields, ChatCompletionRequest, TextCompletionRequest
from together.api.responses import (
    ChatCompletion,
    ErrorAnswer,
    Health,
    ModelEntry,
    ModelList,
    NotImplementedHere,
    TextCompletion,
    UnknownModel,
    Version,
    error_response,
)
from together.api.stream import (
    COUNTED,
    GONE,
    Chunks,
    ClientGone,
    EventStream,
    RequestLog,
    event,
    note_refusal,
    stream,
    while_connected,
    whole,
)
from together.api.visitors import visitor_of
from together.errors import TogetherError
from together.head.head import Head
from together.head.service import Service
from together.requests import CompletionRequest
from together.sentences import Sentence
from together.types import Sampling
from together.view import ClusterView, ServingState

LOADS_WITHIN = 60.0  # seconds: many clients wait no longer for an answer without a byte
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def build_app(head: Head, shutdown: Callable[[], None], own_key: str = "") -> FastAPI:
    """The app with all routes but the page's, which is mounted on the rest. `shutdown` asks the app to end.

    `own_key` is what this user's own programs show.
    """
    settings = head.settings
    open_ = settings.open_to_network
    keys = KeyFile(settings.config_path)
    proxied = open_ and settings.plain_http
    access = Access(keys, own_key, names=settings.host_names, asks=open_, proxied=proxied)
    head.chats.known = access.knows
    app = FastAPI(title="together", version=__version__, docs_url=None, redoc_url=None)
    metrics = Metrics(head)
    responses.install(app, partial(note_refusal, metrics))
    openai = openai_routes(head, metrics)
    mounted = (  # where, what, and whether it is documented
        ("/v1", openai, True),
        ("", openai, False),
        ("", status_routes(head, metrics), True),
        ("", control_routes(head, shutdown), False),  # for this machine's own programs
        ("", attachment_routes(head), False),  # for the page
        ("", login_routes(access, settings.config_path), False),
        ("", page_routes(), False),
        ("", conversation_routes(head), False),  # for the page and the terminal chat
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
    return {**_plain_fields(view), "reason": reason}


def _plain_fields(value: Any) -> dict[str, object]:
    """And what it is in words, where it has a sentence of its own."""
    found = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return {**found, "sentence": str(value.sentence)} if hasattr(value, "sentence") else found


def _plain(value: Any) -> object:
    if isinstance(value, Sentence):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return _plain_fields(value) if is_dataclass(value) else value


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


_WORDS: dict[int | str, str] = {
    401: "The request comes from another machine and shows no key, or a wrong one.",
    400: "A field is wrong or cannot be honoured: `param` names it. Or the prompt is longer than the context.",
    403: "The request comes from a page of another site.",
    404: "No such model.",
    413: "The body is too large.",
    429: "Too many requests wait already: come back after `Retry-After` seconds.",
    "4XX": "Any other refusal.",
    500: "A bug of this server.",
    503: "No model serves now: come back after `Retry-After` seconds.",
}
_STREAMED: dict[str, Any] = {
    "description": "The answer; with `stream: true` as server-sent events, the last one is `data: [DONE]`.",
    "content": {"text/event-stream": {}},
}

Responses = dict[int | str, dict[str, Any]]


def _failures(*codes: int | str) -> Responses:
    """Answers in the error shape, for the OpenAPI document."""
    return {code: {"model": ErrorAnswer, "description": _WORDS[code]} for code in codes}


def _answers(model: object) -> Responses:
    return {200: {"model": model, **_STREAMED}, **_failures(*_WORDS)}


def openai_routes(head: Head, metrics: Metrics) -> APIRouter:
    """All of them, without the `/v1` before them."""
    routes = APIRouter(route_class=BodyRoute)
    api = _Api(head, metrics)
    routes.post("/chat/completions", responses=_answers(ChatCompletion))(api.chat)
    routes.post("/completions", responses=_answers(TextCompletion))(api.complete)
    routes.post("/embeddings", status_code=501, responses={501: {"model": ErrorAnswer}})(api.embed)
    routes.get("/models", response_model=ModelList)(api.models)
    routes.get("/models/{name:path}", response_model=ModelEntry, responses=_failures(404, "4XX"))(api.model)
    return routes


def _within(asked: AnswerFields) -> float | None:
    """Seconds that a request waits for its model; a stream, which is kept alive meanwhile, waits until it is there."""
    return None if asked.stream else LOADS_WITHIN


class _Api:
    """The handlers, bound to one head."""

    def __init__(self, head: Head, metrics: Metrics) -> None:
        self._head = head
        self._metrics = metrics
        self._started = int(time.time())

    async def chat(self, request: Request, asked: Annotated[ChatCompletionRequest, FROM_JSON]) -> Response:
        """Answer a conversation, whole or as a stream."""
        name, comes = await self._routed(asked)
        owner = visitor_of(request.scope).owner
        if not comes:
            chunks = self._head.chat(asked.to_chat(self._defaults(name), owner), name)
        else:
            asked.to_chat(Sampling(), owner)  # what is wrong is refused before anything is loaded for it
            chunks = self._head.on_demand(
                name,
                lambda it: self._head.chat(asked.to_chat(it.opened.defaults.sampling, owner), it.name),
                _within(asked),
            )
        formatter = ChatFormatter(name, logprobs=bool(asked.logprobs))
        return await self._answer(request, asked, formatter, chunks, asked.choices)

    async def complete(self, request: Request, asked: Annotated[TextCompletionRequest, FROM_JSON]) -> Response:
        """Go on with prompts as they are."""
        name, comes = await self._routed(asked)
        owner = visitor_of(request.scope).owner
        wanted = asked.to_completion(self._defaults(name), owner)
        if not comes:
            chunks = self._completed(wanted, self._head.ready(name))
        else:
            chunks = self._head.on_demand(
                name,
                lambda it: self._completed(asked.to_completion(it.opened.defaults.sampling, owner), it),
                _within(asked),
            )
        formatter = CompletionFormatter(name, logprobs=asked.logprobs is not None)
        return await self._answer(request, asked, formatter, chunks, asked.choices * len(wanted.prompts))

    def _completed(self, wanted: CompletionRequest, service: Service) -> Chunks:
        scored = wanted.max_tokens == 0
        return service.score_prompts(wanted) if scored else self._head.complete(wanted, service.name)

    async def embed(self) -> Response:
        """Not offered: the models that are served generate text."""
        raise NotImplementedHere("embeddings are not offered: this server's models generate text")

    async def models(self) -> ModelList:
        """The models that are served; with `--on-demand` also those that a request would load."""
        return {"object": "list", "data": await self._models()}

    async def model(self, name: str) -> ModelEntry:
        for model in await self._models():
            if model["id"] == name:
                return model
        raise UnknownModel(name, self._served())

    def _served(self) -> list[str]:
        """All names, also of models that are being loaded."""
        return list(dict.fromkeys(shown.serving.model for shown in self._head.view().services))

    def _defaults(self, name: str) -> Sampling:
        return self._head.sampling_defaults(name).sampling

    async def _models(self) -> list[ModelEntry]:
        more = await self._head.demands.names() if self._head.demands.on else {}
        return [self._entry(name) for name in dict.fromkeys([*self._served(), *more])]

    def _entry(self, name: str) -> ModelEntry:
        defaults = self._head.sampling_defaults(name)
        return ModelEntry(
            id=name,
            object="model",
            created=self._started,
            owned_by="together",
            sampling_defaults=defaults.json(),
            sampling_by_author=list(defaults.by_author),
        )

    async def _routed(self, asked: AnswerFields) -> tuple[str, bool]:
        """The model that a request is for, and whether it may be loaded for it.

        Raises UnknownModel for none of those that are here; without any the head says so. Raises BadRequest for a
        request that names none where several serve.
        """
        served, demands = self._served(), self._head.demands
        if asked.model is None:
            only = self._head.services.only()
            return (only.name if only is not None else ""), False
        name = demands.meant(asked.model)
        if demands.on:
            if await demands.target(asked.model) is None:
                raise UnknownModel(asked.model, served)
            return asked.model, True
        if served and name not in served:
            raise UnknownModel(asked.model, served)
        return name, False

    async def _answer(
        self, request: Request, asked: AnswerFields, formatter: AnswerFormatter, chunks: Chunks, count: int
    ) -> Response:
        log = RequestLog(
            self._metrics, COUNTED[request.scope["route"].name], formatter.id, asked.choices, formatter.model
        )
        try:
            if asked.stream:
                events = stream(chunks, log, formatter, count, asked.include_usage)
                return EventStream(events, await while_connected(request, anext(events)))
            choices = await while_connected(request, whole(chunks, log, count))
        except ClientGone:
            return Response(status_code=GONE)
        except TogetherError as error:  # recorded by the log: no refusal
            return error_response(error)
        return JSONResponse(formatter.whole(choices, log.usage))
