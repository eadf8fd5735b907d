"""OpenAI's routes: chats, completions, models, embeddings."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from together.api.answers import AnswerFormatter, ChatFormatter, CompletionFormatter
from together.api.errors import NotImplementedHere, UnknownModel, error_response
from together.api.fields import AnswerFields
from together.api.guard import FROM_JSON, BodyRoute
from together.api.metrics import Metrics
from together.api.requests import ChatCompletionRequest, TextCompletionRequest
from together.api.responses import ChatCompletion, ErrorAnswer, ModelEntry, ModelList, TextCompletion
from together.api.stream import COUNTED, Chunks, ClientGone, EventStream, RequestLog, stream, while_connected, whole
from together.errors import TogetherError
from together.head.head import Head
from together.types import Sampling

GONE = 499  # nobody reads it; the log of a proxy may

_WORDS: dict[int | str, str] = {
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
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
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


class _Api:
    """The handlers, bound to one head."""

    def __init__(self, head: Head, metrics: Metrics) -> None:
        self._head = head
        self._metrics = metrics
        self._started = int(time.time())

    async def chat(self, request: Request, asked: Annotated[ChatCompletionRequest, FROM_JSON]) -> Response:
        """Answer a conversation, whole or as a stream."""
        self._check_model(asked)
        chunks = self._head.chat(asked.to_chat(self._defaults))
        formatter = ChatFormatter(self._served, logprobs=bool(asked.logprobs))
        return await self._answer(request, asked, formatter, chunks, asked.choices)

    async def complete(self, request: Request, asked: Annotated[TextCompletionRequest, FROM_JSON]) -> Response:
        """Go on with prompts as they are."""
        self._check_model(asked)
        wanted = asked.to_completion(self._defaults)
        chunks = self._head.complete(wanted)
        formatter = CompletionFormatter(self._served, logprobs=asked.logprobs is not None)
        return await self._answer(request, asked, formatter, chunks, asked.choices * len(wanted.prompts))

    async def embed(self) -> Response:
        """Not offered: the models that are served generate text."""
        raise NotImplementedHere("embeddings are not offered: this server's models generate text")

    async def models(self) -> ModelList:
        """The model that is served, if there is one."""
        return {"object": "list", "data": self._models()}

    async def model(self, name: str) -> ModelEntry:
        for model in self._models():
            if model["id"] == name:
                return model
        raise UnknownModel(name, self._served)

    @property
    def _served(self) -> str:
        return self._head.view().serving.model

    @property
    def _defaults(self) -> Sampling:
        return self._head.sampling_defaults().sampling

    def _models(self) -> list[ModelEntry]:
        name = self._served
        if not name:
            return []
        defaults = self._head.sampling_defaults()
        entry = ModelEntry(
            id=name,
            object="model",
            created=self._started,
            owned_by="together",
            sampling_defaults=defaults.json(),
            sampling_by_author=list(defaults.by_author),
        )
        return [entry]

    def _check_model(self, asked: AnswerFields) -> None:
        """Raises UnknownModel for another model than the one served; without any the head says so."""
        served = self._served
        if served and asked.model is not None and asked.model != served:
            raise UnknownModel(asked.model, served)

    async def _answer(
        self, request: Request, asked: AnswerFields, formatter: AnswerFormatter, chunks: Chunks, count: int
    ) -> Response:
        log = RequestLog(self._metrics, COUNTED[request.scope["route"].name], formatter.id, asked.choices)
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
