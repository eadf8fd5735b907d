"""An answer as a stream of server-sent events, with comments while nothing else comes. Knows no head and no route."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from together.api.answers import Shape
from together.api.collecting import Tally
from together.api.errors import error_body
from together.errors import TogetherError
from together.requests import Piece

logger = logging.getLogger(__name__)

PAUSE = 10.0  # seconds without anything sent before a comment keeps the connection alive
DONE = b"data: [DONE]\n\n"
COMMENT = b": still working\n\n"


def event(body: object) -> bytes:
    """One server-sent event; ASCII JSON, so a character can never be split."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


async def stream(
    shape: Shape, pieces: AsyncGenerator[Piece | None, None], count: int, tally: Tally, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The events of `count` choices; None among the pieces is a pause, an error is the last event.

    Closing it cancels.
    """
    async with aclosing(pieces) as source:
        for index in range(count):
            for chunk in shape.opening(index):
                yield event(chunk)
        try:
            async for piece in source:
                if piece is None:
                    yield COMMENT
                    continue
                tally.add(piece)
                for chunk in shape.chunks(piece):
                    yield event(chunk)
        except Exception as error:  # the edge: the status is sent, only the stream can still say what happened
            if not isinstance(error, TogetherError):
                logger.exception("a streamed answer failed")
            yield event(error_body(error))
            return
        if include_usage:
            yield event(shape.usage_chunk(tally.usage))
        yield DONE


async def paced(
    pieces: AsyncIterator[Piece], first: asyncio.Task[Piece], pause: float = PAUSE
) -> AsyncGenerator[Piece | None, None]:
    """`pieces`, of which `first` was already asked for, with None whenever `pause` seconds pass. Closing it cancels."""
    task = first
    try:
        while True:
            while not (await asyncio.wait({task}, timeout=pause))[0]:
                yield None
            try:
                piece = task.result()
            except StopAsyncIteration:
                return
            yield piece
            task = next_piece(pieces)
    finally:
        await abandon(pieces, task)


def next_piece(pieces: AsyncIterator[Piece]) -> asyncio.Task[Piece]:
    """The next piece as a task, so that waiting for it can have a limit without cancelling it."""

    async def step() -> Piece:
        return await anext(pieces)

    return asyncio.create_task(step())


async def abandon(pieces: AsyncIterator[Piece], task: asyncio.Task[Piece] | None = None) -> None:
    """End an answer nobody waits for any more; the engine drops its sequence."""
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
    if isinstance(pieces, AsyncGenerator):
        await pieces.aclose()
