"""Where a text without quotes ends in Gemma's notation, `{city:Paris, France,days:3}`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from together.text.tool_formats import QUOTE, is_json

_PAIRS = {"{": "}", "[": "]", "(": ")"}
_SPACES = re.compile(r"\s*")
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# A name that no schema knows, and what may become one. An address has two slashes after its colon.
_NAME = re.compile(r'"?[^\W\d][\w-]*"?\s*:(?!//)')
_MAYBE_NAME = re.compile(r'"?(?:[^\W\d][\w-]*"?)?\s*(?::/?)?')


class BareText:
    """Follows one such text as it arrives.

    It ends at a bracket that it did not open itself, or at a comma. In an object, a comma may belong to the text, so it
    divides only where a property follows. Brackets within the text come in pairs: one that nothing closes counts for
    nothing, and so does one that only the last bracket of the call would close.
    """

    def __init__(self, end: str, names: Sequence[str] | None, is_open: bool, closing: str) -> None:
        """`names`: of the object around it, None in a list; `is_open`: it may have others; `closing`: a call's tag."""
        self._end, self._names, self._open, self._closing = end, names, is_open, closing
        self._signs = re.compile(rf"[,{{}}\[\]()]|{re.escape(closing)}")
        self._begun = False  # it is known whether a JSON string begins it
        self._start = self._at = 0
        self._opened: dict[str, list[int]] = {each: [] for each in _PAIRS.values()}  # places, by what closes them
        self._last = (0, 0)  # the pair that was closed last: its first bracket, and the place after its second
        self._unpaired: set[int] = set()  # places of brackets that nothing closes

    def stop(self, text: str, ended: bool) -> int | None:
        """The place of its end, None if it is not there yet; `text` is all since it began."""
        if not self._begun and not self._begin(text, ended):
            return None
        while (found := self._signs.search(text, self._at)) is not None:
            at, sign = found.start(), found[0]
            self._at = found.end()
            is_within = any(self._opened.values())
            if sign == ",":
                divides = not is_within and self._divides(text, self._at, ended)
                if divides:
                    return at
                if divides is None:
                    self._at = at
                    return None
            elif sign in _PAIRS:
                if at not in self._unpaired:
                    self._opened[_PAIRS[sign]].append(at)
            elif self._opened.get(sign):
                self._last = self._opened[sign].pop(), self._at
            elif sign == self._end and not is_within:
                return at
            elif sign in (self._end, self._closing):
                self._again(text, at)
        self._at = max(self._at, len(text) - len(self._closing) + 1)
        return None

    def _begin(self, text: str, ended: bool) -> bool:
        """Pass over a JSON string that is all of the value; False while more text may make one."""
        if text.startswith('"'):
            string = _STRING.match(text)
            after = _past_spaces(text, string.end()) if string else len(text)
            if after == len(text) and not ended:
                return False
            if string and text[after : after + 1] in (",", self._end) and is_json(string[0]):
                self._start = self._at = string.end()
        self._begun = True
        return True

    def _again(self, text: str, at: int) -> None:
        """At the end of it or of the call: look at the text again without brackets that are no pairs."""
        places = [place for each in self._opened.values() for place in each]
        first, after = self._last
        if not places and after and text[after - 1] == self._end and _past_spaces(text, after) == at:
            places = [first]
        for each in self._opened.values():
            each.clear()
        self._last = 0, 0
        self._unpaired.update(places)
        if not places:
            self._start = self._at
        self._at = self._start

    def _divides(self, text: str, at: int, ended: bool) -> bool | None:
        """Whether a comma before `at` is no part of the text, None while more text has to tell."""
        if self._names is None:
            return True
        at = _past_spaces(text, at)
        if QUOTE.startswith(text[at : at + len(QUOTE)]):
            return True if ended or text.startswith(QUOTE, at) else None
        if text[at] == self._end or any(_has_name(text, at, name) for name in self._names):
            return True
        if not ended and any(_may_have_name(text, at, name) for name in self._names):
            return None
        if not self._open:
            return False
        maybe = _MAYBE_NAME.match(text, at)
        if not ended and maybe and maybe.end() == len(text):
            return None
        return _NAME.match(text, at) is not None


def _has_name(text: str, at: int, name: str) -> bool:
    return text.startswith(name, at) and text.startswith(":", _past_spaces(text, at + len(name)))


def _may_have_name(text: str, at: int, name: str) -> bool:
    """Whether more text may make this name and a colon of what is at `at`."""
    if text.startswith(name, at):
        return _past_spaces(text, at + len(name)) == len(text)
    return len(text) - at < len(name) and name.startswith(text[at:])


def _past_spaces(text: str, at: int) -> int:
    found = _SPACES.match(text, at)
    return found.end() if found else at
