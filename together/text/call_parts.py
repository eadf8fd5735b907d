"""What readers of calls share: the text that is not read yet, the calls so far, and brackets that close."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

from together.requests import CallDelta


@dataclass(slots=True)
class Unread:
    """Text that arrived and was not taken yet."""

    text: str = ""
    ended: bool = False

    def take(self, count: int | None = None) -> str:
        """The first `count` letters, or all."""
        count = len(self.text) if count is None else count
        taken, self.text = self.text[:count], self.text[count:]
        return taken

    def may_become(self, word: str, at: int) -> bool:
        """Whether more text may turn what is at `at` into `word`."""
        return not self.ended and word.startswith(self.text[at:])


@dataclass(slots=True)
class Calls:
    """The calls of one answer; `take` returns their new parts."""

    begun: int = 0
    finished: int = 0
    _new: list[CallDelta] = field(default_factory=list)

    def begin(self, name: str) -> None:
        self._new.append(CallDelta(self.begun, f"call_{secrets.token_hex(12)}", name))
        self.begun += 1

    def write(self, arguments: str) -> None:
        """Add to the arguments of the newest call."""
        if self._new and not self._new[-1].id:
            arguments = self._new.pop().arguments + arguments
        if arguments:
            self._new.append(CallDelta(self.begun - 1, arguments=arguments))

    def finish(self) -> None:
        self.finished += 1

    def take(self) -> tuple[CallDelta, ...]:
        taken = tuple(self._new)
        self._new.clear()
        return taken


class Brackets:
    """Follows JSON, in any pieces, to the bracket that closes it."""

    _QUOTED, _PLAIN = re.compile(r'["\\]'), re.compile(r'["{}\[\]]')

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._quoted = self._escaped = False

    def feed(self, text: str, start: int = 0) -> int | None:
        """Continue with `text` from `start`; return the place after the closing bracket, None if it is not there."""
        at = start
        while at < len(text):
            if self._escaped:
                self._escaped, at = False, at + 1
                continue
            found = (self._QUOTED if self._quoted else self._PLAIN).search(text, at)
            if found is None:
                return None
            at = found.end()
            if self._closes(found[0]):
                return at
        return None

    def _closes(self, sign: str) -> bool:
        if sign == "\\":
            self._escaped = True
        elif sign == '"':
            self._quoted = not self._quoted
        else:
            self._depth += 1 if sign in "{[" else -1
            return self._depth <= 0
        return False
