"""Follows every request to its end: one line in the log, and the metrics. Knows no text, neither asked nor answered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from together.api.collecting import Tally
from together.api.errors import answer_for
from together.api.metrics import Metrics
from together.errors import TogetherError
from together.requests import Piece

logger = logging.getLogger(__name__)

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
class Record:
    """One request: how long it took, and how it ended. `tally` holds its tokens."""

    metrics: Metrics
    route: str
    id: str
    tally: Tally
    _began: float = field(default_factory=time.perf_counter)
    _first: float | None = None
    _result: str = ""

    async def follow(self, pieces: AsyncIterator[Piece]) -> AsyncGenerator[Piece, None]:
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

    def _see(self, piece: Piece) -> None:
        if self._first is None and (piece.text or piece.reasoning or piece.calls or piece.finish):
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
