"""Answers as Anthropic's messages, whole or as a stream of named events."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NotRequired

from typing_extensions import TypedDict  # pydantic does not read typing's own before Python 3.12

from together.api.answers import called, of_open_call
from together.api.anthropic.errors import anthropic_error
from together.api.events import event
from together.requests import AnswerChunk, CallDelta, Usage


class OutputDetails(TypedDict):
    thinking_tokens: int


class MessageUsage(TypedDict):
    """`input_tokens` are those that had to be read; those of an equal beginning are `cache_read_input_tokens`."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens_details: OutputDetails


class AnswerBlock(TypedDict):
    """Which fields there are depends on `type`: text, thinking or tool_use."""

    type: Literal["text", "thinking", "tool_use"]
    text: NotRequired[str]
    thinking: NotRequired[str]
    signature: NotRequired[str]
    id: NotRequired[str]
    name: NotRequired[str]
    input: NotRequired[object]


class AnthropicAnswer(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


class _Stopped(TypedDict):
    stop_reason: str
    stop_sequence: str | None


class MessageFormatter:
    """One message of at most `limit` tokens.

    `thinks`: thoughts were asked for; else they are left out, and count as output all the same.
    """

    def __init__(self, model: str, *, thinks: bool, limit: int) -> None:
        self.model = model
        self.id = f"msg_{secrets.token_hex(12)}"
        self._thinks = thinks
        self._limit = limit
        self._begun = False  # message_start was sent
        self._open = ""  # the type of the block that is being written
        self._index = -1
        self._last = AnswerChunk("")

    # --- as a stream --------------------------------------------------------------------------------------------------

    def opening(self, count: int) -> Iterable[bytes]:
        """Nothing yet: a message begins with the tokens of its prompt, which its first chunk has."""
        return ()

    def chunks(self, piece: AnswerChunk) -> Iterator[bytes]:
        yield from self._start(piece.begun or Usage())
        more, calls = of_open_call(piece.tool_calls)
        for part in more:
            yield from self._call(part)
        if piece.reasoning and self._thinks:
            yield from self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": piece.reasoning})
        if piece.text:
            yield from self._block("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": piece.text})
        for part in calls:
            yield from self._call(part)
        if piece.finish is not None:
            self._last = piece
            yield from self._stop()

    def _start(self, usage: Usage) -> Iterator[bytes]:
        if not self._begun:
            self._begun = True
            message = {**self._message([], usage), "stop_reason": None, "stop_sequence": None}
            yield self._event("message_start", message=message)
            yield self._event("ping")

    def _block(self, kind: str, block: AnswerBlock) -> Iterator[bytes]:
        """Begin a block, unless one of its kind is open: each call is a block of its own."""
        if kind == self._open and kind != "tool_use":
            return
        yield from self._stop()
        self._open, self._index = kind, self._index + 1
        yield self._event("content_block_start", index=self._index, content_block=block)

    def _call(self, part: CallDelta) -> Iterator[bytes]:
        if part.id:
            yield from self._block("tool_use", {"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
        if part.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": part.arguments})

    def _delta(self, delta: dict[str, str]) -> bytes:
        return self._event("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> Iterator[bytes]:
        if self._open == "thinking":  # nothing is signed here, and every signature is taken
            yield self._delta({"type": "signature_delta", "signature": ""})
        if self._open:
            yield self._event("content_block_stop", index=self._index)
        self._open = ""

    def closing(self, usage: Usage) -> Iterator[bytes]:
        yield self._event("message_delta", delta=self._stopped(self._last, usage), usage=usage_of(usage))
        yield self._event("message_stop")

    def failure(self, error: Exception) -> bytes:
        return event(anthropic_error(error), "error")

    def _event(self, name: str, **values: object) -> bytes:
        return event({"type": name, **values}, name)

    # --- whole --------------------------------------------------------------------------------------------------------

    def whole(self, choices: Sequence[Sequence[AnswerChunk]], usage: Usage) -> AnthropicAnswer:
        (pieces,) = choices
        reasoning = "".join(piece.reasoning for piece in pieces) if self._thinks else ""
        text = "".join(piece.text for piece in pieces)
        blocks: list[AnswerBlock] = []
        if reasoning:
            blocks.append({"type": "thinking", "thinking": reasoning, "signature": ""})
        if text:
            blocks.append({"type": "text", "text": text})
        blocks += _calls([part for piece in pieces for part in piece.tool_calls])
        return {**self._message(blocks, usage), **self._stopped(pieces[-1], usage)}

    def _stopped(self, last: AnswerChunk, usage: Usage) -> _Stopped:
        cut = "max_tokens" if usage.completion_tokens >= self._limit else "model_context_window_exceeded"
        reasons = {"length": cut, "tool_calls": "tool_use", "stop": "stop_sequence" if last.stop else "end_turn"}
        return {"stop_reason": reasons.get(last.finish or "", "end_turn"), "stop_sequence": last.stop or None}

    def _message(self, blocks: list[AnswerBlock], usage: Usage) -> AnthropicAnswer:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": blocks,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_of(usage),
        }


def _calls(parts: Iterable[CallDelta]) -> Iterator[AnswerBlock]:
    """The calls as blocks; one that was cut off has no input that can be read, and is left out."""
    for call in called(list(parts)):
        function = call["function"]
        try:
            given = json.loads(function["arguments"] or "{}")
        except ValueError:
            continue
        yield {"type": "tool_use", "id": call["id"], "name": function["name"], "input": given}


def usage_of(usage: Usage) -> MessageUsage:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }
