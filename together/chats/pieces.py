"""JSON of large records in pieces. A library holds Python's lock for a whole value; between two pieces others go on.

So the event loop answers other requests while a thread writes or reads many megabytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from json import JSONDecoder
from typing import Any

from pydantic_core import to_json

Write = Callable[[object], bytes]
_SPACE = re.compile(r"[ \t\n\r]*")
# Each object is given to a function of ours: there the lock is let go.
_DECODER = JSONDecoder(object_hook=lambda found: found)


def plain(value: object) -> bytes:
    """UTF-8; what is no finite number is null."""
    return to_json(value, inf_nan_mode="null")


def json_of_parts(value: object, large: tuple[type[Any], ...], write: Write = plain) -> bytes:
    """As `write` has it, where the members of dataclasses of the types `large`, and all tuples in these, are parts."""
    if isinstance(value, tuple):
        return b"[" + b",".join(json_of_parts(each, large, write) for each in value) + b"]"
    if not isinstance(value, large):
        return write(value)
    members = ((item.name, getattr(value, item.name)) for item in fields(value))
    return b"{" + b",".join(f'"{name}":'.encode() + json_of_parts(part, large, write) for name, part in members) + b"}"


def without(data: bytes, member: str) -> tuple[bytes, list[bytes]]:
    """A JSON object without its member `member`, and the elements of that, if it is a list. Raises ValueError."""
    scanner = _Scanner(data.decode("latin-1"))  # a byte is a letter: what is no ASCII stands within texts alone
    rest: list[str] = []
    parts: list[str] = []
    try:
        for _ in scanner.each("{", "}"):
            key, written = scanner.value()
            scanner.expect(":")
            if key == member and scanner.next() == "[":
                parts = [scanner.value()[1] for _ in scanner.each("[", "]")]
            else:
                rest.append(f"{written}:{scanner.value()[1]}")
    except RecursionError:
        raise ValueError("too many lists lie in one another") from None
    if scanner.next():
        raise ValueError("more follows where it ends")
    return f"{{{','.join(rest)}}}".encode("latin-1"), [part.encode("latin-1") for part in parts]


class _Scanner:
    """Goes through the outer values of a JSON text; what is wrong within them, whoever reads them finds."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def next(self) -> str:
        """The letter that comes next, after any space; empty at the end."""
        found = _SPACE.match(self._text, self._at)
        assert found is not None, "no space is a match, too"
        self._at = found.end()
        return self._text[self._at : self._at + 1]

    def expect(self, letters: str) -> str:
        """Go past one of `letters`. Raises ValueError."""
        found = self.next()
        if not found or found not in letters:
            raise ValueError(f"{' or '.join(letters)} is missing at letter {self._at + 1}")
        self._at += 1
        return found

    def value(self) -> tuple[object, str]:
        """A value, and how it is written. Raises ValueError."""
        self.next()
        start = self._at
        value, self._at = _DECODER.raw_decode(self._text, start)
        return value, self._text[start : self._at]

    def each(self, opens: str, closes: str) -> Iterator[None]:
        """One step before each of what stands between the two, with commas between. Raises ValueError."""
        self.expect(opens)
        if self.next() == closes:
            self.expect(closes)
            return
        more = True
        while more:
            yield
            more = self.expect("," + closes) == ","
