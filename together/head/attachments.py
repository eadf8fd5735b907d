"""Pictures that the page's chats show and ask about: held for a while under names that nobody guesses.

A chat on the page carries these names only. What is not asked for any more goes after an hour, the oldest first where
they are many.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from together.errors import BadRequest

MOST = 64
MOST_BYTES = 128 * 2**20
KEPT = 3600.0  # seconds since somebody asked for it


@dataclass(frozen=True, slots=True)
class Attachment:
    """A picture's file; `kind` is its media type."""

    data: bytes
    kind: str
    used: float  # on the clock


@dataclass(slots=True)
class Attachments:
    clock: Callable[[], float] = time.monotonic
    _held: dict[str, Attachment] = field(default_factory=dict)  # the least recently used first

    def add(self, data: bytes, kind: str) -> str:
        """Hold a file of at most MOST_BYTES; returns its name."""
        name = secrets.token_urlsafe(16)
        self._held[name] = Attachment(data, kind, self.clock())
        self._let_go()
        return name

    def find(self, name: str) -> Attachment | None:
        self._let_go()
        found = self._held.pop(name, None)
        if found is not None:
            self._held[name] = replace(found, used=self.clock())
        return found

    def data(self, name: str) -> bytes:
        """Raises BadRequest for one that is not held."""
        found = self.find(name)
        if found is None:
            raise BadRequest("a picture of this chat is not held any more; attach it again, in a new chat", "messages")
        return found.data

    def _let_go(self) -> None:
        size = sum(len(each.data) for each in self._held.values())
        for name, each in list(self._held.items()):
            if len(self._held) <= MOST and size <= MOST_BYTES and each.used > self.clock() - KEPT:
                break
            size -= len(self._held.pop(name).data)
