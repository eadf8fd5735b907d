"""OpenAI's routes: chats, completions, models, embeddings. Knows no engine: everything goes through HeadPort."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from together.api.answers import AnswerFormatter, ChatFormatter, CompletionFormatter, UsageTotal, collect
from together.api.document import FAILURES, STREAMED, body_of, failures
from together.api.errors import NotImplementedHere, UnknownModel
from together.api.fields import AnswerFields, parse
from together.api.metrics import Metrics
from together.api.port import HeadPort
from together.api.requests import ChatCompletionRequest, TextCompletionRequest
from together.api.responses import ChatCompletion, ErrorAnswer, ModelEntry, ModelList, TextCompletion
from together.api.stream import (
    ClientGone,
    EventStream,
    RequestLog,
    abandon,
    next_piece,
    paced,
    read_body,
    refusals,
    stream,
    while_connected,
)
from together.requests import AnswerChunk
from together.types import Sampling

ANSWER_WITHIN = 2.0  # seconds an error has to become a status before the stream begins without a token
GONE = 499  # nobody reads it; the log of a proxy may

AskedT = TypeVar("AskedT", bound=AnswerFields)


def openai_routes(head: HeadPort, metrics: Metrics) -> APIRouter:
    """All of them under `/v1`, and also without it."""
    router = APIRouter()
    api = _Api(head, metrics)
    for prefix in ("/v1", ""):
        shown = bool(prefix)
        router.post(
            f"{prefix}/chat/completions",
            include_in_schema=shown,
            openapi_extra=body_of(ChatCompletionRequest),
            responses={200: {"model": ChatCompletion, **STREAMED}, **FAILURES},
        )(api.chat)
        router.post(
            f"{prefix}/completions",
            include_in_schema=shown,
            openapi_extra=body_of(TextCompletionRequest),
            responses={200: {"model": TextCompletion, **STREAMED}, **FAILURES},
        )(api.complete)
        router.post(
            f"{prefix}/embeddings", include_in_schema=shown, status_code=501, responses={501: {"model": ErrorAnswer}}
        )(api.embed)
        router.get(f"{prefix}/models", include_in_schema=shown, response_model=ModelList)(api.models)
        router.get(
            prefix + "/models/{name:path}",
            include_in_schema=shown,
            response_model=ModelEntry,
            responses=failures(404),
        )(api.model)
    return router


class _Api:
    """The handlers, bound to one head."""

    def __init__(self, head: HeadPort, metrics: Metrics) -> None:
        self._head = head
        self._metrics = metrics
        self._started = int(time.time())

    async def chat(self, request: Request) -> Response:
        """Answer a conversation, whole or as a stream."""
        with refusals(self._metrics, "chat"):
            asked = await self._asked(ChatCompletionRequest, request)
            pieces = self._head.chat(asked.to_chat(self._defaults))
        shape = ChatFormatter(self._served, logprobs=bool(asked.logprobs))
        return await self._answer(request, asked, shape, pieces, "chat", asked.choices)

    async def complete(self, request: Request) -> Response:
        """Go on with prompts as they are."""
        with refusals(self._metrics, "completions"):
            asked = await self._asked(TextCompletionRequest, request)
            wanted = asked.to_completion(self._defaults)
            pieces = self._head.complete(wanted)
        shape = CompletionFormatter(self._served, logprobs=asked.logprobs is not None)
        return await self._answer(request, asked, shape, pieces, "completions", asked.choices * len(wanted.prompts))

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

    async def _asked(self, kind: type[AskedT], request: Request) -> AskedT:
        """The body, for the model that is served; without any the head will say so."""
        asked = parse(kind, await read_body(request))
        served = self._served
        if served and asked.model is not None and asked.model != served:
            raise UnknownModel(asked.model, served)
        return asked

    async def _answer(
        self,
        request: Request,
        asked: AnswerFields,
        shape: AnswerFormatter,
        pieces: AsyncIterator[AnswerChunk],
        route: str,
        count: int,
    ) -> Response:
        tally = UsageTotal(asked.choices)
        followed = RequestLog(self._metrics, route, shape.id, tally).follow(pieces)
        if asked.stream:
            return await _streamed(request, shape, followed, count, tally, asked.include_usage)
        return await _whole(request, shape, followed, count, tally)


async def _streamed(
    request: Request,
    shape: AnswerFormatter,
    pieces: AsyncGenerator[AnswerChunk, None],
    count: int,
    tally: UsageTotal,
    include_usage: bool,
) -> Response:
    first = next_piece(pieces)
    try:
        await while_connected(request, _settled(first))
    except ClientGone:
        await abandon(pieces, first)
        return Response(status_code=GONE)
    except BaseException:
        await abandon(pieces, first)
        raise
    return EventStream(stream(shape, paced(pieces, first), count, tally, include_usage))


async def _settled(first: asyncio.Task[AnswerChunk]) -> None:
    """Wait for the first piece, but not for a long prefill; raise what it raised."""
    done, _ = await asyncio.wait({first}, timeout=ANSWER_WITHIN)
    if done and not isinstance(first.exception(), StopAsyncIteration):
        first.result()


async def _whole(
    request: Request, shape: AnswerFormatter, pieces: AsyncGenerator[AnswerChunk, None], count: int, tally: UsageTotal
) -> Response:
    try:
        choices = await while_connected(request, collect(pieces, count, tally))
    except ClientGone:
        return Response(status_code=GONE)
    finally:
        await abandon(pieces)
    return JSONResponse(shape.whole(choices, tally.usage))
