"""A request's tokens on their way from the engine to its one reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from together.engine.sequence import Sequence, TokenEvent
from together.engine.stats import RequestClock
from together.errors import TogetherError
from together.requests import FinishReason, GenerateRequest, PromptProgress
from together.types import Sampled


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a request's reader gets at once; `ids` has no end-of-text ids."""

    ids: tuple[int, ...]
    sampled: tuple[Sampled, ...] = ()  # one for each id if log-probabilities were requested, else empty
    finish: FinishReason | None = None  # why the answer ended
    scores: tuple[float, ...] = ()  # of the next tokens of the prompt, from the request's `score_from` on


class TokenStream(AsyncIterator[Tokens]):
    """One request's tokens as they come; `ready` is set when there are more, and at the end.

    A reader that is slower than the ring gets several tokens at once and never holds the ring up. A reader that stops
    before the end calls `cancel`.
    """

    def __init__(self, cancel: Callable[[TokenStream], None], sequence: Sequence, ready: asyncio.Event) -> None:
        """`cancel` is the engine's: it forgets this stream's sequence."""
        self.sequence = sequence
        self._ready = ready
        self.clock = RequestClock()
        self.progress = PromptProgress()
        self._cancel = cancel
        self._tokens: list[int] = []
        self._sampled: list[Sampled] = []
        self._scores: list[float] = []
        self._finish: FinishReason | None = None
        self._error: TogetherError | None = None
        self._over = False  # the reader has seen the end

    @property
    def request(self) -> GenerateRequest:
        return self.sequence.request

    @property
    def reused(self) -> int:
        """Tokens of the prompt that were in the caches already."""
        return self.sequence.reused or 0

    def poll(self) -> Tokens | None:
        """The tokens since the last call; None for nothing new. After all tokens, raises the error that ended them."""
        if self._over or not (self._tokens or self._scores or self._finish or self._error):
            return None
        if self._error is not None and not self._tokens and not self._scores:
            self._over = True
            raise self._error.with_traceback(None)
        self._over = self._finish is not None
        tokens = Tokens(tuple(self._tokens), tuple(self._sampled), self._finish, tuple(self._scores))
        for taken in (self._tokens, self._sampled, self._scores):
            taken.clear()
        if self._error is not None:
            self._ready.set()  # it comes next, and nobody else will say so
        return tokens

    async def __anext__(self) -> Tokens:
        """Raises as `poll` does."""
        while (tokens := self.poll()) is None:
            if self._over:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        return tokens

    def cancel(self) -> None:
        """End the request here and on every stage; a waiting reader sees "cancelled". Harmless after the end."""
        self._cancel(self)
        if self._finish is None and self._error is None:
            self.take(TokenEvent(self.sequence, finish="cancelled"))

    def take(self, event: TokenEvent) -> None:
        """Add tokens, the end or an error; the engine calls this."""
        self.clock.grown(len(event.token_ids))
        self._tokens.extend(event.token_ids)
        self._sampled.extend(event.sampled)
        self._scores.extend(event.scores)
        self._finish, self._error = event.finish, event.error
        if event.finish is not None or event.error is not None:
            self.clock.end()
        self._ready.set()

    def tell(self, progress: PromptProgress) -> None:
        """Where it is by now; its reader wakes where that is another place."""
        if progress != self.progress:
            self.progress = progress
            self._ready.set()
