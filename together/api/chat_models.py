"""What the chat's page knows of models: those that serve or are being loaded, and why none answers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from together.chats.context import has_switch
from together.head.head import Head
from together.head.pictured import MachinesPicture, known_links, picture_of
from together.view import ClusterView, Serving, ServingState

T = TypeVar("T")
FIGURES_EVERY = 1.5  # seconds


@dataclass(frozen=True, slots=True)
class ChatModel:
    """`defaults` are those for sampling, `by_author` the ones of them that the model's author set."""

    name: str
    ready: bool
    sentence: str
    context: int  # tokens; 0: not known yet
    sees: bool
    thinks: bool  # whether its template has a switch for it
    waiting: int  # requests in the queue
    defaults: dict[str, float]
    by_author: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChatModels:
    """`reason` says why none answers."""

    models: tuple[ChatModel, ...]
    reason: str


def chat_models(head: Head, view: ClusterView) -> ChatModels:
    shown = [each.serving for each in view.services] or ([view.serving] if view.serving.model else [])
    ready = any(each.state is ServingState.READY for each in shown)
    reason = "" if ready else str(view.serving.sentence)
    return ChatModels(tuple(_model(head, each) for each in shown), reason)


def _model(head: Head, serving: Serving) -> ChatModel:
    service = head.services.by_name.get(serving.model)
    defaults = head.sampling_defaults(serving.model)
    return ChatModel(
        serving.model,
        serving.state is ServingState.READY,
        str(serving.sentence),
        serving.plan.context if serving.plan else 0,
        serving.sees,
        service is not None and has_switch(service.opened.text.template.sources),
        serving.waiting,
        defaults.json(),
        defaults.by_author,
    )


async def changes_of(head: Head, seen: Callable[[ClusterView], T]) -> AsyncGenerator[T, None]:
    """What is seen of the cluster at once, and whenever that changed."""
    told = None
    async for view in head.changes():
        now = seen(view)
        if now != told:
            told = now
            yield now


def machines_picture(head: Head, view: ClusterView) -> MachinesPicture:
    """The view with what layers and links take."""
    return picture_of(view, head.services.by_name, known_links(head.machines.surveyor))


async def pictures_of(head: Head) -> AsyncGenerator[MachinesPicture, None]:
    """The machines at once, and whenever they changed; figures alone no more often than FIGURES_EVERY says."""
    told, at = MachinesPicture(), -math.inf
    async for now in changes_of(head, partial(machines_picture, head)):
        if now.calm != told.calm or time.monotonic() - at >= FIGURES_EVERY:
            told, at = now, time.monotonic()
            yield now


async def merged(*streams: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """What any of the streams gives, until one ends. Closing it closes them."""
    steps = {asyncio.ensure_future(anext(stream)): stream for stream in streams}
    try:
        while True:
            await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
            for step in [each for each in steps if each.done()]:
                stream = steps.pop(step)
                try:
                    given = step.result()
                except StopAsyncIteration:
                    return
                steps[asyncio.ensure_future(anext(stream))] = stream
                yield given
    finally:
        for step in steps:
            step.cancel()
        await asyncio.gather(*steps, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
