"""Reads tool calls from text that arrives in any pieces, and passes their arguments on as they arrive.

The readers are generators that yield until the text so far decides how to read it, so the outcome does not depend on
how the text was cut. They take nothing until a call is certain; then it stays one, however it ends.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

from together.requests import CallDelta, Tool
from together.text.tool_formats import FUNCTION, ToolFormat, as_json, call_of, properties_of, text_of, typed

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
_FUNCTION = re.compile(r"<function=(?P<name>[^<>\n]{1,64})>")
_PARAMETER = re.compile(r"<parameter=(?P<name>[^<>\n]{1,64})>")
_MAYBE_TAG = re.compile(r"<(?:function|parameter)=[^<>\n]{0,64}")
_PARAMETER_END, _FUNCTION_END = "</parameter>", "</function>"


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


class ToolCallReader:
    """Reads the calls of one answer from `unread` into `calls`."""

    def __init__(self, tool_format: ToolFormat, tools: Sequence[Tool]) -> None:
        self.unread = Unread()
        self.calls = Calls()
        self._format = tool_format
        self._properties = {tool.name: properties_of(tool.parameters) for tool in tools}

    def read(self, opening: str) -> Reading:
        """Read the call at the beginning of the text, after `opening`; if there is none, take nothing."""
        at = 0 if opening == FUNCTION else (yield from self._past(_SPACES, len(opening)))
        readers = {"{": self._object, "[": self._list, "<": self._function}
        found = yield from readers.get(self._sign(at), self._named)(at)
        if found and self._format.closing:
            yield from self._close()
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
        return bool(name) and (not self._format.bare or name in self._properties)

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

    def _named(self, at: int) -> Reading:
        if self._format.body not in ("list", "named"):
            return False
        while (head := _NAMED.match(self.unread.text, at)) is None:
            if self.unread.ended or _MAYBE_NAMED.fullmatch(self.unread.text, at) is None:
                return False
            yield
        return (yield from self._begun(head["name"], head.end()))

    # --- <function=name> ----------------------------------------------------------------------------------------------

    def _function(self, at: int) -> Reading:
        while (head := _FUNCTION.match(self.unread.text, at)) is None:
            if not self._may_be_tag(FUNCTION, at):
                return False
            yield
        name = head["name"].strip()
        self.unread.take(head.end())
        self.calls.begin(name)
        self.calls.write("{")
        if (yield from self._parameters(self._properties.get(name, {}))):
            self.calls.write("}")
            self.calls.finish()
        return True

    def _parameters(self, properties: Mapping[str, object]) -> Reading:
        """Return whether they end, by their tag or because something else follows."""
        comma = ""
        while True:
            at = yield from self._past(_SPACES, 0)
            text = self.unread.text
            if text.startswith(_FUNCTION_END, at):
                self.unread.take(at + len(_FUNCTION_END))
                return True
            if (head := _PARAMETER.match(text, at)) is not None:
                name = head["name"].strip()
                self.unread.take(head.end())
                self.calls.write(f"{comma}{as_json(name)}: ")
                if not (yield from self._value(properties.get(name))):
                    return False
                comma = ", "
            elif self._may_be_tag("<parameter=", at) or self.unread.may_become(_FUNCTION_END, at):
                yield
            else:
                return not self.unread.ended

    def _value(self, schema: object) -> Reading:
        """Return whether it ends; a value without an end becomes a string without an end."""
        searched = 0
        while (end := self.unread.text.find(_PARAMETER_END, searched)) < 0:
            if self.unread.ended:
                self.calls.write(as_json(self.unread.take().removeprefix("\n"))[:-1])
                return False
            searched = max(0, len(self.unread.text) - len(_PARAMETER_END))
            yield
        text = self.unread.take(end).removeprefix("\n").removesuffix("\n")
        self.unread.take(len(_PARAMETER_END))
        self.calls.write(typed(text, schema))
        return True

    def _may_be_tag(self, tag: str, at: int) -> bool:
        """Whether more text may turn what is at `at` into the opening `tag` with a name."""
        rest = self.unread.text[at:]
        begun = rest.startswith(tag) and _MAYBE_TAG.fullmatch(rest) is not None
        return not self.unread.ended and (begun or tag.startswith(rest))

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

    def _close(self) -> Generator[None, None, None]:
        """Take the closing tag, if the model wrote one."""
        closing = self._format.closing
        at = yield from self._past(_STRAY, 0)
        while self.unread.may_become(closing, at) and not self.unread.text.startswith(closing, at):
            yield
        rest = self.unread.text[at:]
        if rest.startswith(closing) or (self.unread.ended and closing.startswith(rest)):
            self.unread.take(at + len(closing))


def _is_hopeless(text: str, at: int) -> bool:
    """Whether the object at `at` can be no call, whatever follows."""
    found = _FIRST_KEY.match(text, at)
    return found is not None and (found["odd"] is not None or found["key"] not in _KEYS)
