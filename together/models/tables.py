"""Reads a large JSON table key by key, so that no other thread waits for it and nothing but the values takes memory.

`json.loads` of 40 MB holds every other thread up for a second and takes a gigabyte for the worst 40 MB.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from together.quoting import quoted

T = TypeVar("T")

MOST_KEY = 4096  # bytes
_SORTED_AT_ONCE = 20_000  # items: a few milliseconds
_SPACE = re.compile(rb"[ \t\n\r]*")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook`: readers differ on which of two equal keys counts. Raises ValueError if it matters."""
    table = dict(pairs)
    if len(table) != len(pairs):
        first: dict[str, Any] = {}
        for name, value in pairs:
            if first.setdefault(name, value) != value:
                raise ValueError(f"it names {quoted(name)} twice")
    return table


def as_utf8(data: bytes) -> bytes:
    """JSON in any of its encodings as `TableReader` reads it. Raises ValueError."""
    encoding = json.detect_encoding(data)
    return data if encoding == "utf-8" else data.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")


_decode = json.JSONDecoder(object_pairs_hook=unique).raw_decode


class TableReader:
    """A cursor over JSON bytes in UTF-8. Every method raises ValueError with a reason for what is not as asked."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def names(self) -> Iterator[str]:
        """The keys of the object that begins here; read each one's value before asking for the next."""
        self._take(b"{")
        seen: set[str] = set()
        more = not self._found(b"}")
        while more:
            yield self._key(seen)
            more = self._found(b",")
            if not more:
                self._take(b"}")

    def value(self, most: int) -> Any:
        """The value that begins here, of at most `most` bytes."""
        at = self._skip()
        text = self._data[at : at + most].decode("utf-8", "surrogateescape")
        try:
            value, end = _decode(text)
        except json.JSONDecodeError as error:
            is_long = at + most < len(self._data) and (error.pos > most // 2 or "Unterminated" in error.msg)
            reason = f"it has more than {most} bytes" if is_long else f"{error.msg} after {error.pos} letters"
            raise ValueError(f"what begins at byte {at}: {reason}") from None
        except RecursionError:
            raise ValueError(f"what begins at byte {at}: it is nested too deep") from None
        self._at = at + (end if text.isascii() else len(text[:end].encode("utf-8", "surrogateescape")))
        return value

    def text(self, most: int) -> str:
        """The text that begins here, of at most `most` bytes; nothing else is even looked at."""
        at = self._skip()
        if self._data[at : at + 1] != b'"':
            raise ValueError(f"what begins at byte {at} is no text")
        return str(self.value(most))

    def end(self) -> None:
        """Nothing but white space may follow."""
        if self._skip() != len(self._data):
            raise ValueError(f"more follows at byte {self._at}")

    def _key(self, seen: set[str]) -> str:
        key = self.text(MOST_KEY)
        if not _is_text(key):
            raise ValueError(f"{quoted(key)} is no key")
        if key in seen:
            raise ValueError(f"it names {quoted(key)} twice")
        seen.add(key)
        self._take(b":")
        return key

    def _skip(self) -> int:
        """Where the next thing begins."""
        if self._data[self._at : self._at + 1] > b" ":  # nearly always, and quicker
            return self._at
        match = _SPACE.match(self._data, self._at)
        assert match is not None, "it matches anything"
        self._at = match.end()
        return self._at

    def _found(self, sign: bytes) -> bool:
        at = self._skip()
        found = self._data[at : at + 1] == sign
        self._at += found
        return found

    def _take(self, sign: bytes) -> None:
        if not self._found(sign):
            raise ValueError(f"{sign.decode()} is missing at byte {self._at}")


def sorted_in_turns(items: Iterable[T], key: Callable[[T], Any]) -> list[T]:
    """As `sorted`, but other threads get their turns: one sort of 300,000 names holds them up for half a second."""
    listed = list(items)
    parts = [sorted(listed[at : at + _SORTED_AT_ONCE], key=key) for at in range(0, len(listed), _SORTED_AT_ONCE)]
    return parts[0] if len(parts) == 1 else list(heapq.merge(*parts, key=key))


def _is_text(key: str) -> bool:
    """Whether it can be written as UTF-8; half a pair of surrogates cannot."""
    return key.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in key)
