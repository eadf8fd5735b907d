"""An answer as server-sent events or one body: paced, logged, cancelled when the client leaves."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from together.api.answers import AnswerFormatter, UsageTotal
from together.api.errors import BodyTooLarge, answer_for, error_body
from together.api.metrics import Metrics
from together.errors import TogetherError
from together.requests import AnswerChunk

T = TypeVar("T")

MAX_BODY = 4 * 2**20  # bytes: a million tokens of text; reading a larger one would hold everybody else up


async def read_body(request: Request) -> bytes:
    """The whole body. Raises BodyTooLarge."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY:
            raise BodyTooLarge(f"a request body may have at most {MAX_BODY} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


class ClientGone(Exception):
    """Nobody is there to answer any more."""


class EventStream(StreamingResponse):
    """Server-sent events from a generator, which is closed however the answer ends."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            sending = asyncio.create_task(self.stream_response(send))
            leaving = asyncio.create_task(self.listen_for_disconnect(receive))
            try:
                await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _cancel(sending, leaving)
            if sending.done() and not sending.cancelled():
                sending.result()


async def while_connected(request: Request, work: Coroutine[object, object, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves first (ClientGone). Read the body before."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        await _cancel(working, leaving)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


logger = logging.getLogger(__name__)

PAUSE = 10.0  # seconds without anything sent before a comment keeps the connection alive
DONE = b"data: [DONE]\n\n"
COMMENT = b": still working\n\n"


def event(body: object) -> bytes:
    """One server-sent event; ASCII JSON, so a character can never be split."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


async def stream(
    shape: AnswerFormatter,
    pieces: AsyncGenerator[AnswerChunk | None, None],
    count: int,
    tally: UsageTotal,
    include_usage: bool,
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
    pieces: AsyncIterator[AnswerChunk], first: asyncio.Task[AnswerChunk], pause: float = PAUSE
) -> AsyncGenerator[AnswerChunk | None, None]:
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


def next_piece(pieces: AsyncIterator[AnswerChunk]) -> asyncio.Task[AnswerChunk]:
    """The next piece as a task, so that waiting for it can have a limit without cancelling it."""

    async def step() -> AnswerChunk:
        return await anext(pieces)

    return asyncio.create_task(step())


async def abandon(pieces: AsyncIterator[AnswerChunk], task: asyncio.Task[AnswerChunk] | None = None) -> None:
    """End an answer nobody waits for any more; the engine drops its sequence."""
    if task is not None:
        task.cancel()
        await asyncio.wait({task})
    if isinstance(pieces, AsyncGenerator):
        await pieces.aclose()


CANCELLED, FAILED = "cancelled", "failed"


def result_of(error: BaseException) -> str:
    """A word for what became of a request: the error's code, or its status."""
    if isinstance(error, (GeneratorExit, asyncio.CancelledError)):
        return CANCELLED
    if isinstance(error, TogetherError):
        answer = answer_for(error)
        return answer.code or ("invalid" if answer.status == 400 else FAILED)
    return FAILED


@dataclass(slots=True)
class RequestLog:
    """One request: how long it took, and how it ended. `tally` holds its tokens."""

    metrics: Metrics
    route: str
    id: str
    tally: UsageTotal
    _began: float = field(default_factory=time.perf_counter)
    _first: float | None = None
    _result: str = ""

    async def follow(self, pieces: AsyncIterator[AnswerChunk]) -> AsyncGenerator[AnswerChunk, None]:
        """The pieces as they are; however they end, that is recorded. Closing it closes them."""
        try:
            async for piece in pieces:
                self._see(piece)
                yield piece
        except BaseException as error:
            self._result = result_of(error)
            raise
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()
            self._end()

    def _see(self, piece: AnswerChunk) -> None:
        if self._first is None and (piece.text or piece.reasoning or piece.tool_calls or piece.finish):
            self._first = time.perf_counter() - self._began
            self.metrics.first_token.observe(self._first)
        if piece.finish is None:
            return
        self._result = piece.finish  # of several choices the last one's
        timings = piece.timings
        if timings is not None and timings.tokens > 1:
            self.metrics.each_token.observe((timings.total - timings.first_token) / (timings.tokens - 1))

    def _end(self) -> None:
        total, usage = time.perf_counter() - self._began, self.tally.usage
        self.metrics.requests.labels(self.route, self._result).inc()
        self.metrics.whole.observe(total)
        logger.info(
            "%s %s: %s, prompt %d (%d cached), answer %d tokens, first %.3f s, total %.3f s",
            self.route,
            self.id,
            self._result,
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            total if self._first is None else self._first,
            total,
        )


@contextmanager
def refusals(metrics: Metrics, route: str) -> Iterator[None]:
    """Records what is refused before it has an answer to follow."""
    try:
        yield
    except TogetherError as error:
        metrics.requests.labels(route, result_of(error)).inc()
        logger.info("%s refused: %s", route, result_of(error))
        raise
