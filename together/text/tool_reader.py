"""Reads tool calls from text that arrives in any pieces, and passes their arguments on as they arrive.

The readers are generators that yield until the text so far decides how to read it, so the outcome does not depend on
how the text was cut. They take nothing until a call is certain; then it stays one, however it ends.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence

from together.requests import Tool
from together.text.call_parts import Brackets, Calls, Unread
from together.text.tool_formats import CODER, NUMBER, ToolFormat, as_json, call_of, properties_of, text_of, typed
from together.text.tool_notation import read_notation

Reading = Generator[None, None, bool]  # returns whether it was a call

_SPACES = re.compile(r"\s*")
_STRAY = re.compile(r"[\s}\]]*")  # small models close more brackets than they opened
_HEAD = re.compile(
    r'\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_FIRST_KEY = re.compile(r'\{\s*(?:(?P<odd>[^\s"])|"(?P<key>(?:[^"\\]|\\.)*)")')
_KEYS = ("name", "arguments", "parameters", "function", "type", "id")
_NAMED = re.compile(r"(?P<name>[\w.-]{1,64})\s{0,4}(?:\[CALL_ID\]\w{0,64})?(?:\[ARGS\])?\s{0,4}(?=\{)")
_MAYBE_NAMED = re.compile(r"[\w.\-\[\]\s]{0,160}")
MOST_LETTERS = 256  # of the name of a function, which has at most 64, or of a parameter
_WORD = re.compile(rf'[^<>{{\n"]{{0,{MOST_LETTERS}}}')
_PLAIN_NAME = re.compile(r"[\w.-]+")


class ToolCallReader:
    """Reads the calls of one answer from `unread` into `calls`."""

    def __init__(self, tool_format: ToolFormat, tools: Sequence[Tool]) -> None:
        self.unread = Unread()
        self.calls = Calls()
        self._format = tool_format
        self._schemas = {tool.name: tool.parameters for tool in tools}

    def read(self, opening: str) -> Reading:
        """Read the call at the beginning of the text, after `opening`; if there is none, take nothing."""
        at = yield from self._past(_SPACES, len(opening))
        readers = {"{": self._object, "[": self._list}
        is_headed = self._sign(at) == "<" or not (self._format.is_json or self._format.named)
        other = self._headed if is_headed else self._named
        found = yield from readers[self._sign(at)](at) if self._sign(at) in readers else other(at, opening)
        if found:
            for closing in self._format.closings:
                yield from self._close(closing)
        return found

    def _begun(self, name: str, end: int) -> Reading:
        """A call whose arguments, an object, begin at `end`."""
        if not self._accepts(name):
            return False
        self.unread.take(end)
        self.calls.begin(name)
        brackets = Brackets()
        while (closed := brackets.feed(self.unread.text)) is None:
            self.calls.write(self.unread.take())
            if self.unread.ended:
                return True
            yield
        self.calls.write(self.unread.take(closed))
        self.calls.finish()
        return True

    def _accepts(self, name: str) -> bool:
        """Without a tag, only the name distinguishes a call from an answer in JSON."""
        return bool(name) and (not self._format.bare or name in self._schemas)

    # --- JSON ---------------------------------------------------------------------------------------------------------

    def _object(self, at: int) -> Reading:
        brackets, seen = Brackets(), at
        while (head := _HEAD.match(text := self.unread.text, at)) is None:
            if _is_hopeless(text, at):
                return False
            if (end := brackets.feed(text, seen)) is not None:
                return self._whole(at, end)
            if self.unread.ended:
                return False
            seen = len(text)
            yield
        if not (yield from self._begun(text_of(head["name"]), head.end())):
            return False
        yield from self._rest_of_object()
        return True

    def _rest_of_object(self) -> Generator[None, None, None]:
        """Ignore keys after the arguments; the closing bracket may be missing."""
        at = yield from self._past(_SPACES, 0)
        if self._sign(at) not in ("}", ","):
            return
        brackets = Brackets(depth=1)
        while (end := brackets.feed(self.unread.text, at)) is None:
            if self.unread.ended:
                return
            at = len(self.unread.text)
            yield
        self.unread.take(end)

    def _whole(self, at: int, end: int) -> bool:
        """A complete object that does not begin as usual."""
        name, arguments = call_of(self.unread.text[at:end]) or ("", "")
        if not self._accepts(name):
            return False
        self.unread.take(end)
        self.calls.begin(name)
        self.calls.write(arguments)
        self.calls.finish()
        return True

    def _list(self, at: int) -> Reading:
        at = yield from self._past(_SPACES, at + 1)
        found = False
        while self._sign(at) == "{" and (yield from self._object(at)):
            found = True
            at = yield from self._past(_SPACES, 0)
            if (sign := self._sign(at)) == "]":
                self.unread.take(at + 1)
            if sign != ",":
                break
            at = yield from self._past(_SPACES, at + 1)
        return found

    # --- a name, then its arguments -----------------------------------------------------------------------------------

    def _named(self, at: int, _: str) -> Reading:
        if not self._format.named:
            return False
        while (head := _NAMED.match(self.unread.text, at)) is None:
            if self.unread.ended or _MAYBE_NAMED.fullmatch(self.unread.text, at) is None:
                return False
            yield
        return (yield from self._begun(head["name"], head.end()))

    # --- a name, then parameters between tags -------------------------------------------------------------------------

    def _headed(self, at: int, opening: str) -> Reading:
        style = CODER if self._format.is_json or self._format.named else self._format
        known = style.openings.index(opening) + 1 if opening in style.openings else 0
        for each in style.openings[known:]:
            end = yield from self._expect(each, at)
            if end is None and each == style.openings[-1]:
                return False
            at = at if end is None else end
        _, middle, after = style.parts()
        name, at = yield from self._word(at, middle.rpartition(NUMBER)[2])
        name = style.plain_name(name)
        if at and not style.parameter:
            at = yield from self._past(_SPACES, at)
            read = self._noted if style.noted else self._begun
            return self._sign(at) == "{" and (yield from read(name, at))
        if not at or not (middle.strip() or (yield from self._goes_on(style, name, at))):
            return False
        self.unread.take(at)
        self.calls.begin(name)
        self.calls.write("{")
        if (yield from self._parameters(style, first_word(after), properties_of(self._schemas.get(name, {})))):
            self.calls.write("}")
            self.calls.finish()
        return True

    def _noted(self, name: str, at: int) -> Reading:
        self.unread.take(at)
        self.calls.begin(name)
        if (yield from read_notation(self.unread, self.calls, self._schemas.get(name))):
            self.calls.finish()
        return True

    def _goes_on(self, style: ToolFormat, name: str, at: int) -> Generator[None, None, bool]:
        """Whether a name that no tag closes is one: then a parameter follows, or the end of the call."""
        if not _PLAIN_NAME.fullmatch(name):
            return False
        for each in (style.parameter_parts()[0], first_word(style.parts()[2])):
            if (yield from self._expect(each, at)) is not None:
                return True
        return False

    def _parameters(self, style: ToolFormat, end: str, properties: Mapping[str, object]) -> Reading:
        """Return whether they end, by their tag or because something else follows."""
        before, middle, after = style.parameter_parts()
        comma = ""
        while True:
            if (at := (yield from self._expect(end, 0))) is not None:
                self.unread.take(at)
                return True
            at = yield from self._expect(before, 0)
            name, at = (yield from self._word(at, middle)) if at is not None else ("", 0)
            if not at:
                return not self.unread.ended
            self.unread.take(at)
            self.calls.write(f"{comma}{as_json(name)}: ")
            if not (yield from self._value(middle, after, properties.get(name))):
                return False
            comma = ", "

    def _value(self, middle: str, after: str, schema: object) -> Reading:
        """Return whether it ends; a value without an end becomes a string without an end."""
        end, searched = after.strip(), 0
        before = middle[len(middle.rstrip()) :]
        while (at := self.unread.text.find(end, searched)) < 0:
            if self.unread.ended:
                self.calls.write(as_json(self.unread.take().removeprefix(before))[:-1])
                return False
            searched = max(0, len(self.unread.text) - len(end))
            yield
        text = self.unread.take(at).removeprefix(before).removesuffix(after[: -len(after.lstrip())])
        self.unread.take(len(end))
        self.calls.write(typed(text, schema))
        return True

    def _word(self, at: int, middle: str) -> Generator[None, None, tuple[str, int]]:
        """A name up to `middle`, and the place after that; 0: there is none. White space in `middle` may be missing."""
        while (found := _WORD.match(self.unread.text, at)) is not None and found.end() == len(self.unread.text):
            if self.unread.ended or len(found[0]) == MOST_LETTERS:
                return "", 0
            yield
        assert found is not None, "the pattern matches no letters, too"
        name, end = found[0].strip(), found.end()
        for tag in middle.split():
            place = yield from self._expect(tag, end)
            if place is None:
                return "", 0
            end = place
        return name, end if name else 0

    def _expect(self, tag: str, at: int) -> Generator[None, None, int | None]:
        """The place after white space and `tag`, None if something else is there."""
        at = yield from self._past(_SPACES, at)
        while not self.unread.text.startswith(tag, at):
            if not self.unread.may_become(tag, at):
                return None
            yield
        return at + len(tag)

    # --- around calls -------------------------------------------------------------------------------------------------

    def _sign(self, at: int) -> str:
        return self.unread.text[at : at + 1]

    def _past(self, letters: re.Pattern[str], at: int) -> Generator[None, None, int]:
        """The place after all `letters` from `at` on."""
        while True:
            found = letters.match(self.unread.text, at)
            assert found is not None, "the pattern matches no letters, too"
            if found.end() < len(self.unread.text) or self.unread.ended:
                return found.end()
            yield

    def _close(self, closing: str) -> Generator[None, None, None]:
        """Take a closing tag, if the model wrote it."""
        at = yield from self._past(_STRAY, 0)
        while self.unread.may_become(closing, at) and not self.unread.text.startswith(closing, at):
            yield
        rest = self.unread.text[at:]
        if rest.startswith(closing) or (self.unread.ended and closing.startswith(rest)):
            self.unread.take(at + len(closing))


def first_word(text: str) -> str:
    return (text.split() or [""])[0]


def _is_hopeless(text: str, at: int) -> bool:
    """Whether the object at `at` can be no call, whatever follows."""
    found = _FIRST_KEY.match(text, at)
    return found is not None and (found["odd"] is not None or found["key"] not in _KEYS)
