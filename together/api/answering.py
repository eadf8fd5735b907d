"""Which model a request is for, and how its answer goes out: what the routes of all APIs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from together.api.answers import AnswerFormatter
from together.api.failures import error_response
from together.api.metrics import Metrics
from together.api.responses import UnknownModel
from together.api.stream import (
    COUNTED,
    GONE,
    Chunks,
    ClientGone,
    EventStream,
    RequestLog,
    stream,
    while_connected,
    whole,
)
from together.api.visitors import visitor_of
from together.errors import TogetherError
from together.head.head import Head
from together.head.service import Service
from together.requests import ChatRequest, Owner
from together.types import Sampling

FormatterT = TypeVar("FormatterT", bound=AnswerFormatter)

LOADS_WITHIN = 60.0  # seconds: many clients wait no longer for an answer without a byte


class AnswerAsked(Protocol):
    """What the bodies of all requests for an answer have."""

    @property
    def model(self) -> str | None: ...

    @property
    def stream(self) -> bool | None: ...

    @property
    def choices(self) -> int: ...


class ChatAsked(AnswerAsked, Protocol):
    def to_chat(self, defaults: Sampling, owner: Owner) -> ChatRequest:
        """Our request; `defaults` hold where it is silent. Raises BadRequest naming a field that cannot be honoured."""


class ModelAnswers:
    """Answers of one head's models."""

    def __init__(self, head: Head, metrics: Metrics) -> None:
        self.head = head
        self._metrics = metrics

    async def chat(self, request: Request, asked: ChatAsked, formatter: Callable[[str], AnswerFormatter]) -> Response:
        """Answer a conversation, whole or as a stream; `formatter` is made for the name of the model that answers."""
        name, chunks = await self._chunks(request, asked)
        return await self.send(request, asked, formatter(name), chunks, asked.choices)

    async def begin(
        self, request: Request, asked: ChatAsked, formatter: Callable[[str], FormatterT]
    ) -> tuple[FormatterT, Chunks, RequestLog]:
        """An answer that nobody waits for: its formatter, its chunks, and where they are recorded."""
        name, chunks = await self._chunks(request, asked)
        made = formatter(name)
        return made, chunks, self._log(request, asked, made)

    async def _chunks(self, request: Request, asked: ChatAsked) -> tuple[str, Chunks]:
        name, comes = await self.routed(asked.model)
        owner = visitor_of(request.scope).owner
        if not comes:
            return name, self.head.chat(asked.to_chat(self.defaults(name), owner), name)
        asked.to_chat(Sampling(), owner)  # what is wrong is refused before anything is loaded for it
        return name, self.on_demand(
            name, asked, lambda it: self.head.chat(asked.to_chat(it.opened.defaults.sampling, owner), it.name)
        )

    async def service(self, model: str | None) -> Service:
        """The one that answers by that name. Raises as an answer does; loads no model."""
        name, _ = await self.routed(model)
        return self.head.ready(self.head.demands.meant(name))

    def on_demand(self, name: str, asked: AnswerAsked, answer: Callable[[Service], Chunks]) -> Chunks:
        """A stream, which is kept alive meanwhile, waits until the model is there; another request LOADS_WITHIN."""
        return self.head.on_demand(name, answer, None if asked.stream else LOADS_WITHIN)

    def served(self) -> list[str]:
        """All names, also of models that are being loaded."""
        return list(dict.fromkeys(shown.serving.model for shown in self.head.view().services))

    def defaults(self, name: str) -> Sampling:
        return self.head.sampling_defaults(name).sampling

    async def routed(self, asked: str | None) -> tuple[str, bool]:
        """The model that a request is for, and whether it may be loaded for it.

        Raises UnknownModel for none of those that are here; without any the head says so. Raises BadRequest for a
        request that names none where several serve.
        """
        served, demands = self.served(), self.head.demands
        if asked is None:
            only = self.head.services.only()
            return (only.name if only is not None else ""), False
        name = demands.meant(asked)
        if demands.on and await demands.target(asked) is not None:
            return asked, True
        if name in served or not (served or demands.on):
            return name, False
        if served and self.head.settings.any_model:
            return served[0], False
        raise UnknownModel(asked, served)

    async def send(
        self, request: Request, asked: AnswerAsked, formatter: AnswerFormatter, chunks: Chunks, count: int
    ) -> Response:
        """The answer of `count` choices, whole or as a stream; what ends it before it begins is its status."""
        log = self._log(request, asked, formatter)
        try:
            if asked.stream:
                events = stream(chunks, log, formatter, count)
                return EventStream(events, await while_connected(request, anext(events)))
            choices = await while_connected(request, whole(chunks, log, count))
        except ClientGone:
            return Response(status_code=GONE)
        except TogetherError as error:  # recorded by the log: no refusal
            return error_response(error, request.url.path)
        return JSONResponse(formatter.whole(choices, log.usage))

    def _log(self, request: Request, asked: AnswerAsked, formatter: AnswerFormatter) -> RequestLog:
        route = COUNTED[request.scope["route"].name]
        return RequestLog(self._metrics, route, formatter.id, asked.choices, formatter.model)
