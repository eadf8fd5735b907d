"""An answer's pieces as OpenAI's objects, whole or as a stream of server-sent events. Knows no head and no route."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

from together.api.errors import error_body
from together.errors import TogetherError
from together.requests import Piece, Usage

logger = logging.getLogger(__name__)

PAUSE = 10.0  # seconds without anything sent before a comment keeps the connection alive
DONE = b"data: [DONE]\n\n"
COMMENT = b": still working\n\n"


def event(body: object) -> bytes:
    """One server-sent event; ASCII JSON, so a character can never be split."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


@dataclass(frozen=True, slots=True)
class Completion:
    """What all objects of one answer share."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, last: Piece) -> dict[str, object]:
        """The answer to a request without `stream`."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": _finish(last),
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": _usage(last.usage)}

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> dict[str, object]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, usage: Usage | None) -> dict[str, object]:
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(usage)}

    def _head(self, kind: str) -> dict[str, object]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


async def collect(pieces: AsyncIterator[Piece]) -> tuple[str, Piece]:
    """All text, and the last piece with reason and usage."""
    texts: list[str] = []
    last = Piece("")
    async for last in pieces:
        texts.append(last.text)
    return "".join(texts), last


async def stream(
    completion: Completion, pieces: AsyncGenerator[Piece | None, None], include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The events of one answer; None among the pieces is a pause, an error is the last event. Closing it cancels."""
    async with aclosing(pieces) as source:
        yield event(completion.chunk({"role": "assistant", "content": ""}))
        last = Piece("")
        try:
            async for piece in source:
                if piece is None:
                    yield COMMENT
                    continue
                last = piece
                if piece.text:
                    yield event(completion.chunk({"content": piece.text}))
        except Exception as error:  # the edge: the status is sent, only the stream can still say what happened
            if not isinstance(error, TogetherError):
                logger.exception("a streamed answer failed")
            yield event(error_body(error))
            return
        yield event(completion.chunk({}, _finish(last)))
        if include_usage:
            yield event(completion.usage_chunk(last.usage))
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


def _finish(last: Piece) -> str:
    return "length" if last.finish == "length" else "stop"


def _usage(usage: Usage | None) -> dict[str, object]:
    known = usage or Usage()
    return {
        "prompt_tokens": known.prompt_tokens,
        "completion_tokens": known.completion_tokens,
        "total_tokens": known.prompt_tokens + known.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": known.cached_tokens},
    }
