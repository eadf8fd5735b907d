"""An answer that is being written: what it has so far, and how it is ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from together.chats.records import Figures, Grown, Said, State, Turn
from together.requests import AnswerChunk, PromptProgress, ToolCall, cut_short
from together.ring.rpc import Broadcast
from together.sentences import say
from together.tools.toolbox import ToolOffer


class Begun(NamedTuple):
    """An answer that is not written yet: which model gives it, in which chunks, and what it may call."""

    model: str
    chunks: AsyncGenerator[AnswerChunk, None]
    offer: ToolOffer


@dataclass(slots=True)
class LiveAnswer:
    """An answer, or a call of a tool. It lives until it is kept: also while its last write is tried again."""

    turn: Turn
    offer: ToolOffer = field(default_factory=ToolOffer)
    reading: asyncio.Task[None] | None = None  # takes its chunks, and alone is cancelled: no write ever is
    told: State | None = None  # what it was told to end as
    tried: asyncio.Event = field(default_factory=asyncio.Event)  # its last write was, with whatever outcome
    calls: dict[int, ToolCall] = field(default_factory=dict)
    began: float = 0.0  # thinking, on the monotonic clock
    progress: PromptProgress = field(default_factory=PromptProgress)  # until its first text

    def end(self, state: State) -> None:
        """Take no more chunks. A second time does nothing: it would disturb the first one."""
        if self.told is None and self.reading is not None and not self.reading.done():
            self.told = state
            self.reading.cancel()

    def add(self, chunk: AnswerChunk) -> None:
        if chunk.progress is not None:
            self.progress = chunk.progress
            return
        self.progress = PromptProgress()
        now, said = time.monotonic(), self.turn.said
        if chunk.reasoning and not said.reasoning:
            self.began = now
        thought = now - self.began if said.reasoning and not said.text else said.thought
        for delta in chunk.tool_calls:
            old = self.calls.get(delta.index, ToolCall("", "", ""))
            new = ToolCall(old.id + delta.id, old.name + delta.name, old.arguments + delta.arguments)
            self.calls[delta.index] = new
        self.turn = replace(
            self.turn,
            said=replace(
                said,
                text=said.text + chunk.text,
                reasoning=said.reasoning + chunk.reasoning,
                thought=thought,
                calls=tuple(self.calls.values()),
            ),
        )

    def count(self, last: AnswerChunk, limit: int | None, machines: tuple[str, ...]) -> None:
        """What it took, and why it ends where it does: the figures come with the last chunk."""
        usage, timings = last.usage, last.timings
        if usage is None or timings is None:
            return
        figures = Figures(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            usage.reasoning_tokens,
            timings.tokens_per_s,
            timings.first_token,
            timings.queued,
            timings.total,
            machines,
        )
        notes = (self.turn.said.note, str(cut_short(last.finish, usage, limit, say("longer_on_page"))))
        note = "; ".join(filter(None, notes))
        self.turn = replace(self.turn, said=replace(self.turn.said, figures=figures, finish=last.finish, note=note))


@dataclass(slots=True)
class Channel:
    """What watchers of one conversation wait for, and what changes it waits for: its lock."""

    changed: Broadcast = field(default_factory=Broadcast)
    live: dict[str, LiveAnswer] = field(default_factory=dict)
    version: int = 0  # counts changes of the conversation itself
    users: int = 0  # watchers, and those that have the lock or wait for it
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


def growth_of(told: Said, turn: Turn) -> Grown | None:
    """What a turn has more than a watcher was told; None for nothing."""
    said = turn.said
    text, reasoning = said.text[len(told.text) :], said.reasoning[len(told.reasoning) :]
    calls = said.calls if said.calls != told.calls else ()
    return Grown(turn.id, text, reasoning, calls) if text or reasoning or calls else None
