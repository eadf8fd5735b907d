"""Answers that programs may ask for again, or go on from: held in memory for a day, each for its owner.

Where they are many the oldest of who holds most goes first: nobody can push out another's.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from together.requests import Message, Owner

MOST = 4096
MOST_BYTES = 64 * 2**20  # of texts and pictures
KEPT = 24 * 3600.0  # seconds


@dataclass(slots=True)
class KeptAnswer:
    """`shown` is what its API says of it, `given` are the items of its request, `messages` the whole conversation."""

    owner: Owner
    messages: tuple[Message, ...]
    given: tuple[Mapping[str, object], ...]
    shown: Mapping[str, object]
    work: asyncio.Task[None] | None = None  # that writes it, in the background
    size: int = 0
    since: float = 0.0  # on the clock


@dataclass(slots=True)
class KeptAnswers:
    clock: Callable[[], float] = time.monotonic
    _held: dict[str, KeptAnswer] = field(default_factory=dict)  # the oldest first

    def keep(self, name: str, answer: KeptAnswer) -> None:
        """Hold it, in place of what is held by that name."""
        answer.size = sum(map(_size, answer.messages)) + len(str(answer.shown)) + sum(map(_letters, answer.given))
        answer.since = self.clock()
        self._held.pop(name, None)
        self._held[name] = answer
        self._let_go()

    def find(self, owner: Owner, name: str) -> KeptAnswer | None:
        """None also for what is somebody else's."""
        self._expire()
        found = self._held.get(name)
        return found if found is not None and found.owner == owner else None

    def drop(self, owner: Owner, name: str) -> bool:
        """Whether it was held for that owner; what writes it ends."""
        if self.find(owner, name) is None:
            return False
        self._end(name)
        return True

    def forget(self, owner: Owner | None) -> int:
        """Give up all of an owner's, or everybody's; how many these were."""
        own = [name for name, each in self._held.items() if owner in (None, each.owner)]
        for name in own:
            self._end(name)
        return len(own)

    def _end(self, name: str) -> None:
        answer = self._held.pop(name)
        if answer.work is not None:
            answer.work.cancel()

    def _expire(self) -> None:
        for name, each in list(self._held.items()):
            if each.since > self.clock() - KEPT:
                break
            self._end(name)

    def _let_go(self) -> None:
        self._expire()
        while len(self._held) > MOST or sum(each.size for each in self._held.values()) > MOST_BYTES:
            parts: Counter[Owner] = Counter()
            for each in self._held.values():
                parts[each.owner] += MOST_BYTES + MOST * each.size  # the bounds are equal shares of one
            most, _ = parts.most_common(1)[0]
            self._end(next(name for name, each in self._held.items() if each.owner == most))


def _size(message: Message) -> int:
    calls = sum(len(call.arguments) for call in message.tool_calls)
    return len(message.content) + len(message.reasoning) + calls + sum(len(each.data) for each in message.pictures)


def _letters(value: object) -> int:
    """Of all texts in a JSON value: an item holds its pictures once more."""
    if isinstance(value, Mapping):
        return sum(map(_letters, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_letters, value))
    return len(value) if isinstance(value, str) else 1
