"""Pictures that the page's chats show and ask about: held for a while, each for its owner, under names nobody guesses.

A chat on the page carries these names only. What is not asked for any more goes after an hour, and where they are many
the oldest of who holds most: nobody can push out another's.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from together.errors import BadRequest
from together.requests import Owner

MOST = 64
MOST_BYTES = 128 * 2**20
KEPT = 3600.0  # seconds since somebody asked for it


@dataclass(frozen=True, slots=True)
class Attachment:
    """A picture's file; `kind` is its media type."""

    owner: Owner
    data: bytes
    kind: str
    used: float  # on the clock


@dataclass(slots=True)
class Attachments:
    clock: Callable[[], float] = time.monotonic
    _held: dict[str, Attachment] = field(default_factory=dict)  # the least recently used first

    def add(self, owner: Owner, data: bytes, kind: str) -> str:
        """Hold a file of at most MOST_BYTES; returns its name."""
        name = secrets.token_urlsafe(16)
        self._held[name] = Attachment(owner, data, kind, self.clock())
        self._let_go()
        return name

    def find(self, owner: Owner, name: str) -> Attachment | None:
        """None also for what is somebody else's."""
        self._let_go()
        found = self._held.get(name)
        if found is None or found.owner != owner:
            return None
        del self._held[name]
        self._held[name] = replace(found, used=self.clock())
        return found

    def data(self, owner: Owner, name: str) -> bytes:
        """Raises BadRequest for one that is not held, or not for that owner."""
        found = self.find(owner, name)
        if found is None:
            raise BadRequest("a picture of this chat is not held any more; attach it again, in a new chat", "messages")
        return found.data

    def forget(self, owner: Owner | None) -> int:
        """Give up all of an owner's, or everybody's; how many these were."""
        own = [name for name, each in self._held.items() if owner in (None, each.owner)]
        for name in own:
            del self._held[name]
        return len(own)

    def _let_go(self) -> None:
        for name, each in list(self._held.items()):
            if each.used > self.clock() - KEPT:
                break
            del self._held[name]
        while len(self._held) > MOST or sum(len(each.data) for each in self._held.values()) > MOST_BYTES:
            del self._held[self._oldest_of_who_holds_most()]

    def _oldest_of_who_holds_most(self) -> str:
        """By the larger part of both bounds."""
        parts: Counter[Owner] = Counter()
        for each in self._held.values():
            parts[each.owner] += MOST_BYTES + MOST * len(each.data)  # the bounds are equal shares of one
        most, _ = parts.most_common(1)[0]
        return next(name for name, each in self._held.items() if each.owner == most)
