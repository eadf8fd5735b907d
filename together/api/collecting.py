"""Pieces gathered into whole choices and one count of tokens. Knows no shape of an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from together.requests import CallDelta, FinishReason, Piece, TokenLogprob, ToolCall, Usage


@dataclass(slots=True)
class Gathered:
    """One choice so far."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    call_parts: list[CallDelta] = field(default_factory=list)
    finish: FinishReason | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        return "".join(self.thoughts)

    @property
    def calls(self) -> list[ToolCall]:
        """The tool calls, each put together from its parts."""
        arguments: dict[int, list[str]] = {}
        for part in self.call_parts:
            arguments.setdefault(part.index, []).append(part.arguments)
        heads = [part for part in self.call_parts if part.id]
        return [ToolCall(head.id, head.name, "".join(arguments[head.index])) for head in heads]

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.thoughts.append(piece.reasoning)
        self.logprobs += piece.logprobs
        self.call_parts += piece.calls
        self.finish = piece.finish


@dataclass(slots=True)
class Tally:
    """The usage of a whole request: a prompt counts once, however many `choices` it has."""

    choices: int
    usage: Usage = field(default_factory=Usage)

    def add(self, piece: Piece) -> None:
        if (more := piece.usage) is None:
            return
        is_first = piece.index % self.choices == 0
        self.usage = Usage(
            self.usage.prompt_tokens + (more.prompt_tokens if is_first else 0),
            self.usage.completion_tokens + more.completion_tokens,
            self.usage.cached_tokens + (more.cached_tokens if is_first else 0),
            self.usage.reasoning_tokens + more.reasoning_tokens,
        )


async def collect(pieces: AsyncIterator[Piece], count: int, tally: Tally) -> Sequence[Gathered]:
    """All `count` choices by index; `tally` is filled on the way."""
    choices = [Gathered() for _ in range(count)]
    async for piece in pieces:
        choices[piece.index].add(piece)
        tally.add(piece)
    return choices
