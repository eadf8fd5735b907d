"""The routes of OpenAI's older APIs: chat completions, completions, models."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from together.api.answering import ModelAnswers
from together.api.answers import ChatFormatter, CompletionFormatter
from together.api.guard import FROM_JSON, BodyRoute
from together.api.requests import ChatCompletionRequest, TextCompletionRequest
from together.api.responses import (
    ChatCompletion,
    ErrorAnswer,
    ModelEntry,
    ModelList,
    NotImplementedHere,
    TextCompletion,
    UnknownModel,
)
from together.api.stream import Chunks
from together.api.visitors import visitor_of
from together.head.service import Service
from together.requests import CompletionRequest

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


def openai_routes(answers: ModelAnswers) -> APIRouter:
    """All of them, without the `/v1` before them."""
    routes = APIRouter(route_class=BodyRoute)
    api = _OpenAi(answers)
    routes.post("/chat/completions", responses=_answers(ChatCompletion))(api.chat)
    routes.post("/completions", responses=_answers(TextCompletion))(api.complete)
    routes.post("/embeddings", status_code=404, responses=_failures(404))(api.embed)
    routes.get("/models", response_model=ModelList)(api.models)
    routes.get("/models/{name:path}", response_model=ModelEntry, responses=_failures(404, "4XX"))(api.model)
    return routes


class _OpenAi:
    """The handlers, bound to one head."""

    def __init__(self, answers: ModelAnswers) -> None:
        self._answers = answers
        self._head = answers.head
        self._started = int(time.time())

    async def chat(self, request: Request, asked: Annotated[ChatCompletionRequest, FROM_JSON]) -> Response:
        """Answer a conversation, whole or as a stream."""
        logprobs, usage = bool(asked.logprobs), asked.include_usage
        return await self._answers.chat(request, asked, lambda name: ChatFormatter(name, logprobs, usage))

    async def complete(self, request: Request, asked: Annotated[TextCompletionRequest, FROM_JSON]) -> Response:
        """Go on with prompts as they are."""
        name, comes = await self._answers.routed(asked.model)
        owner = visitor_of(request.scope).owner
        wanted = asked.to_completion(self._answers.defaults(name), owner)
        if not comes:
            chunks = self._completed(wanted, self._head.ready(name))
        else:
            chunks = self._answers.on_demand(
                name,
                asked,
                lambda it: self._completed(asked.to_completion(it.opened.defaults.sampling, owner), it),
            )
        formatter = CompletionFormatter(name, asked.logprobs is not None, asked.include_usage)
        return await self._answers.send(request, asked, formatter, chunks, asked.choices * len(wanted.prompts))

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
        raise UnknownModel(name, self._answers.served())

    async def _models(self) -> list[ModelEntry]:
        more = await self._head.demands.names() if self._head.demands.on else {}
        return [self._entry(name) for name in dict.fromkeys([*self._answers.served(), *more])]

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
