"""Sends an answer as server-sent events or one body: logged, kept alive, cancelled when the client leaves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from together.api.answers import AnswerFormatter
from together.api.metrics import Metrics
from together.api.responses import answer_for
from together.errors import TogetherError
from together.requests import AnswerChunk, Usage

logger = logging.getLogger(__name__)

T = TypeVar("T")
Chunks = AsyncGenerator[AnswerChunk, None]

ANSWER_WITHIN = 2.0  # seconds an error has to become a status before the stream begins without a token
PAUSE = 10.0  # seconds without anything sent before a comment keeps the connection alive
COMMENT = b": still working\n\n"
COUNTED = {  # in metrics and log, by the name of the route's handler
    "chat": "chat",
    "complete": "completions",
    "message": "messages",
    "respond": "responses",
}
CANCELLED, FAILED = "cancelled", "failed"
GONE = 499  # nobody reads it; the log of a proxy may


class ClientGone(Exception):
    """The client left before its answer was there."""


# --- one request ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class RequestLog:
    """Follows one request to its end, for metrics and log: its usage, how long it took, and how it ended.

    A prompt counts once, however many `choices` it has.
    """

    metrics: Metrics
    route: str
    id: str
    choices: int
    model: str = ""
    usage: Usage = field(default_factory=Usage)
    _began: float = field(default_factory=time.perf_counter)
    _first: float | None = None
    _result: str = ""
    _ended: bool = False

    def __enter__(self) -> RequestLog:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self.end(error)

    def add(self, chunk: AnswerChunk) -> None:
        if self._first is None and (chunk.text or chunk.reasoning or chunk.tool_calls or chunk.finish):
            self._first = time.perf_counter() - self._began
            self.metrics.first_token.labels(self.model).observe(self._first)
        if chunk.usage is not None:
            self._count(chunk.usage, is_first=chunk.index % self.choices == 0)
        if chunk.finish is None:
            return
        self._result = chunk.finish  # of several choices the last one's
        timings = chunk.timings
        if timings is not None and timings.tokens > 1:
            self.metrics.each_token.labels(self.model).observe(
                (timings.total - timings.first_token) / (timings.tokens - 1)
            )

    def _count(self, more: Usage, is_first: bool) -> None:
        self.usage = Usage(
            self.usage.prompt_tokens + (more.prompt_tokens if is_first else 0),
            self.usage.completion_tokens + more.completion_tokens,
            self.usage.cached_tokens + (more.cached_tokens if is_first else 0),
            self.usage.reasoning_tokens + more.reasoning_tokens,
        )

    def end(self, error: BaseException | None = None) -> None:
        """Record how the request ended; only the first call counts."""
        if self._ended:
            return
        self._ended = True
        result = self._result if error is None else result_of(error)
        total, usage = time.perf_counter() - self._began, self.usage
        self.metrics.requests.labels(self.route, result, self.model).inc()
        self.metrics.whole.labels(self.model).observe(total)
        logger.info(
            "%s %s by %s: %s, prompt %d (%d cached), answer %d tokens, first %.3f s, total %.3f s",
            self.route,
            self.id,
            self.model,
            result,
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            total if self._first is None else self._first,
            total,
        )


def note_refusal(metrics: Metrics, request: Request, error: TogetherError) -> None:
    """Record a request that was refused before it had a RequestLog."""
    route = COUNTED.get(getattr(request.scope.get("route"), "name", ""))
    if route is not None:
        metrics.requests.labels(route, result_of(error), "").inc()
        logger.info("%s refused: %s", route, result_of(error))


def result_of(error: BaseException) -> str:
    """How a request ended, for metrics and log: the error's code, or a word for its status."""
    if isinstance(error, (GeneratorExit, asyncio.CancelledError, ClientGone)):
        return CANCELLED
    if isinstance(error, TogetherError):
        answer = answer_for(error)
        return answer.code or ("invalid" if answer.status == 400 else FAILED)
    return FAILED


# --- its answer -------------------------------------------------------------------------------------------------------


async def whole(chunks: Chunks, log: RequestLog, count: int) -> list[list[AnswerChunk]]:
    """The chunks of each of `count` choices. Cancelling it cancels the answer."""
    choices: list[list[AnswerChunk]] = [[] for _ in range(count)]
    with log:
        async with aclosing(chunks):
            async for chunk in chunks:
                choices[chunk.index].append(chunk)
                log.add(chunk)
    return choices


async def stream(
    chunks: Chunks, log: RequestLog, formatter: AnswerFormatter, count: int
) -> AsyncGenerator[bytes, None]:
    """The events of `count` choices. Closing it cancels the answer.

    Its first step raises what the answer raises within ANSWER_WITHIN; a later error is the last event.
    """
    with log:
        async with aclosing(chunks), _begun(chunks) as first:
            yield b"".join(formatter.opening(count))
            try:
                chunk = await first
                while chunk is not None:
                    log.add(chunk)
                    for part in formatter.chunks(chunk):
                        yield part
                    chunk = await anext(chunks, None)
            except Exception as error:  # the edge: the status is sent, only the stream can still say what happened
                if not isinstance(error, TogetherError):
                    logger.exception("a streamed answer failed")
                log.end(error)
                yield formatter.failure(error)
                return
            log.end()
    for part in formatter.closing(log.usage):
        yield part


@asynccontextmanager
async def _begun(chunks: Chunks) -> AsyncIterator[asyncio.Future[AnswerChunk | None]]:
    """The first chunk, which a long prefill may delay beyond ANSWER_WITHIN; raises what it raises before."""
    first = asyncio.ensure_future(anext(chunks, None))
    try:
        await asyncio.wait({first}, timeout=ANSWER_WITHIN)
        if first.done():
            first.result()
        yield first
    finally:
        await _cancel(first)
        del first  # as in `while_connected`


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client leaves first (ClientGone). Read the body before."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        await _cancel(working, leaving)
        del working  # its error holds this frame: both, and the request, would stay until the next full collection


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(*futures: asyncio.Future[Any]) -> None:
    for future in futures:
        future.cancel()
    await asyncio.wait(futures)


class EventStream(StreamingResponse):
    """Server-sent events: `first`, then those of a generator, which is closed however the answer ends."""

    def __init__(self, events: AsyncGenerator[bytes, None], first: bytes = b"", pause: float = PAUSE) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events
        self._first = first
        self._pause = pause  # seconds
        self._last = 0.0  # when something was sent last, on the loop's clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            works = (self.stream_response(send), self.listen_for_disconnect(receive), self._keep_alive(send))
            tasks = [asyncio.create_task(work) for work in works]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _cancel(*tasks)
            sending = tasks[0]
            if not sending.cancelled():
                sending.result()

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._send(send, self._first)
        async for part in self._events:
            await self._send(send, part)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, part: bytes) -> None:
        message: Message = {"type": "http.response.body", "body": part, "more_body": True}
        await send(message)
        self._last = asyncio.get_running_loop().time()

    async def _keep_alive(self, send: Send) -> None:
        """Send a comment whenever nothing was sent for a pause."""
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        while True:
            left = self._last + self._pause - loop.time()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._send(send, COMMENT)
