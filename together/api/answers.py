"""Answers as OpenAI's objects: chats and completions, whole and in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Protocol

from together.api.events import DONE, event
from together.api.responses import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    ChatToolCall,
    ChunkChoice,
    Delta,
    FunctionDelta,
    TextChoice,
    TextCompletion,
    TextLogprobs,
    ToolCallDelta,
    TopLogprob,
    UsageCount,
    error_body,
)
from together.requests import AnswerChunk, CallDelta, FinishReason, Scored, TokenLogprob, Usage

LEAST_LOGPROB = -9999.0  # JSON has no infinity; OpenAI's servers say this as well


class AnswerFormatter(Protocol):
    """How one request's answer looks, whole or as a stream of server-sent events."""

    @property
    def id(self) -> str: ...

    @property
    def model(self) -> str: ...

    def opening(self, count: int) -> Iterable[bytes]:
        """What a stream of `count` choices says before its first chunk."""

    def chunks(self, piece: AnswerChunk) -> Iterable[bytes]:
        """What a stream says of a chunk; of the last one of a choice also why it ended."""

    def closing(self, usage: Usage) -> Iterable[bytes]:
        """What a stream says after the last chunk."""

    def failure(self, error: Exception) -> bytes:
        """The last event of a stream that fails."""

    def whole(self, choices: Sequence[Sequence[AnswerChunk]], usage: Usage) -> Mapping[str, object]: ...


@dataclass(frozen=True, slots=True)
class ChatFormatter:
    """`chat.completion` and its chunks. `logprobs` and `include_usage`: they were asked for."""

    model: str
    logprobs: bool = False
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, count: int) -> Iterable[bytes]:
        for index in range(count):
            yield event(self._chunk(index, {"role": "assistant", "content": ""}))

    def chunks(self, piece: AnswerChunk) -> Iterable[bytes]:
        return map(event, self._chunks(piece))

    def _chunks(self, piece: AnswerChunk) -> Iterable[ChatChunk]:
        delta: Delta = {}
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        if piece.text:
            delta["content"] = piece.text
        deltas: list[Delta] = [delta] if delta else []
        deltas += [{"tool_calls": [call_delta(part)]} for part in piece.tool_calls]
        if not deltas and piece.logprobs:
            deltas.append({"content": ""})
        for place, each in enumerate(deltas):
            yield self._chunk(piece.index, each, self._logprobs(() if place else piece.logprobs))
        if piece.finish is not None:
            yield self._chunk(piece.index, {}, finish=finish_reason(piece.finish))

    def closing(self, usage: Usage) -> Iterable[bytes]:
        if self.include_usage:
            yield event({**self._chunk(0, {}), "choices": [], "usage": usage_count(usage)})
        yield DONE

    def failure(self, error: Exception) -> bytes:
        return event(error_body(error))

    def whole(self, choices: Sequence[Sequence[AnswerChunk]], usage: Usage) -> ChatCompletion:
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage_count(usage),
        }

    def _choice(self, index: int, pieces: Sequence[AnswerChunk]) -> ChatChoice:
        calls = called([part for piece in pieces for part in piece.tool_calls])
        text, reasoning = _text(pieces), "".join(piece.reasoning for piece in pieces)
        found: ChatChoice = {
            "index": index,
            "message": {"role": "assistant", "content": text if text or not calls else None, "refusal": None},
            "logprobs": self._logprobs(_logprobs(pieces)),
            "finish_reason": finish_reason(pieces[-1].finish),
        }
        if reasoning:
            found["message"]["reasoning_content"] = reasoning
        if calls:
            found["message"]["tool_calls"] = calls
        return found

    def _chunk(
        self, index: int, delta: Delta, logprobs: ChatLogprobs | None = None, finish: str | None = None
    ) -> ChatChunk:
        choice: ChunkChoice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
        }

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        if not self.logprobs:
            return None
        return {"content": chat_logprobs(tokens), "refusal": None}


@dataclass(frozen=True, slots=True)
class CompletionFormatter:
    """`text_completion`, also for chunks. `logprobs` and `include_usage`: they were asked for."""

    model: str
    logprobs: bool = False
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, count: int) -> Iterable[bytes]:
        return ()

    def chunks(self, piece: AnswerChunk) -> Iterable[bytes]:
        if piece.text or piece.logprobs:
            yield event(self._answer([self._choice(piece.index, piece.text, piece.logprobs, None)]))
        if piece.finish is not None:
            yield event(self._answer([self._choice(piece.index, "", (), finish_reason(piece.finish))]))

    def closing(self, usage: Usage) -> Iterable[bytes]:
        if self.include_usage:
            yield event({**self._answer([]), "usage": usage_count(usage)})
        yield DONE

    def failure(self, error: Exception) -> bytes:
        return event(error_body(error))

    def whole(self, choices: Sequence[Sequence[AnswerChunk]], usage: Usage) -> TextCompletion:
        found = [
            self._choice(index, _text(pieces), _logprobs(pieces), finish_reason(pieces[-1].finish))
            for index, pieces in enumerate(choices)
        ]
        return {**self._answer(found), "usage": usage_count(usage)}

    def _choice(self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish: str | None) -> TextChoice:
        scores = text_logprobs(logprobs) if self.logprobs else None
        return {"index": index, "text": text, "logprobs": scores, "finish_reason": finish}

    def _answer(self, choices: list[TextChoice]) -> TextCompletion:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def _text(pieces: Iterable[AnswerChunk]) -> str:
    return "".join(piece.text for piece in pieces)


def _logprobs(pieces: Iterable[AnswerChunk]) -> list[TokenLogprob]:
    return [token for piece in pieces for token in piece.logprobs]


def finish_reason(finish: FinishReason | None) -> str:
    return finish if finish in ("length", "tool_calls") else "stop"


def called(parts: Sequence[CallDelta]) -> list[ChatToolCall]:
    """The tool calls of a choice, each put together from its parts."""
    arguments: dict[int, list[str]] = {}
    for part in parts:
        arguments.setdefault(part.index, []).append(part.arguments)
    calls: list[ChatToolCall] = []
    for head in parts:
        if head.id:
            written = "".join(arguments[head.index])
            calls.append({"id": head.id, "type": "function", "function": {"name": head.name, "arguments": written}})
    return calls


def of_open_call(parts: Sequence[CallDelta]) -> tuple[Sequence[CallDelta], Sequence[CallDelta]]:
    """Those of the call that an earlier chunk began, which come before the chunk's text; and those of new calls."""
    first = next((place for place, part in enumerate(parts) if part.id), len(parts))
    return parts[:first], parts[first:]


def call_delta(part: CallDelta) -> ToolCallDelta:
    function: FunctionDelta = {"arguments": part.arguments}
    if not part.id:
        return {"index": part.index, "function": function}
    return {"index": part.index, "id": part.id, "type": "function", "function": {"name": part.name, **function}}


def usage_count(usage: Usage) -> UsageCount:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def text_logprobs(tokens: Sequence[TokenLogprob]) -> TextLogprobs:
    """OpenAI's older shape: parallel lists."""
    return {
        "tokens": [word(token.drawn.data) for token in tokens],
        "token_logprobs": [_known(token.drawn.logprob) for token in tokens],
        "top_logprobs": [{word(each.data): finite(each.logprob) for each in token.top} for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def chat_logprobs(tokens: Iterable[TokenLogprob]) -> list[ChatLogprob]:
    return [{**_top(token.drawn), "top_logprobs": [_top(each) for each in token.top]} for token in tokens]


def _top(scored: Scored) -> TopLogprob:
    return {"token": word(scored.data), "logprob": finite(scored.logprob), "bytes": list(scored.data)}


def word(data: bytes) -> str:
    """A token as text; a part of a character as its bytes, in OpenAI's notation."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _known(logprob: float) -> float | None:
    return None if isnan(logprob) else finite(logprob)


def finite(logprob: float) -> float:
    """As JSON can hold it."""
    return max(logprob, LEAST_LOGPROB)
