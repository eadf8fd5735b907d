"""Reads one tool call out of text that comes in any pieces, and gives its arguments on as they come. Knows no token.

The readers are generators: they yield while what is there does not decide how it goes on, so that the outcome never
depends on how the text was cut. Until a call is certain they take nothing; then it stays one, however it ends.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

from together.requests import CallDelta
from together.text.tool_formats import FUNCTION, ToolFormat, as_json, call_of, text_of, typed

Reading = Generator[None, None, bool]  # at the end: whether it was a call

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
    """Text that came and was not taken yet."""

    text: str = ""
    ended: bool = False

    def take(self, count: int) -> str:
        taken, self.text = self.text[:count], self.text[count:]
        return taken

    def may_become(self, word: str, at: int) -> bool:
        """Whether more text could make `word` of what stands at `at`."""
        return not self.ended and word.startswith(self.text[at:])


@dataclass(slots=True)
class Calls:
    """The calls of one answer; `take` gives what is new."""

    begun: int = 0
    finished: int = 0
    _new: list[CallDelta] = field(default_factory=list)

    def begin(self, name: str) -> None:
        self._new.append(CallDelta(self.begun, f"call_{secrets.token_hex(12)}", name))
        self.begun += 1

    def write(self, arguments: str) -> None:
        """More of the newest call's arguments."""
        last = self._new[-1] if self._new else None
        if last is not None and last.index == self.begun - 1 and not last.id:
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
    """Follows JSON to the bracket that closes it, over any pieces."""

    _QUOTED, _PLAIN = re.compile(r'["\\]'), re.compile(r'["{}\[\]]')

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._quoted = self._escaped = False

    def feed(self, text: str, start: int = 0) -> int | None:
        """Go on with `text` from `start`; the place behind the closing bracket, None if it is not there yet."""
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

    def _closes(self, letter: str) -> bool:
        if letter == "\\":
            self._escaped = True
        elif letter == '"':
            self._quoted = not self._quoted
        else:
            self._depth += 1 if letter in "{[" else -1
            return self._depth <= 0
        return False


class ToolCallReader:
    """Reads calls of one answer from `unread` into `calls`. `known`: the offered tools' properties, by tool name."""

    def __init__(
        self, unread: Unread, calls: Calls, tool_format: ToolFormat, known: Mapping[str, Mapping[str, object]]
    ) -> None:
        self._unread = unread
        self._calls = calls
        self._format = tool_format
        self._known = known

    def read(self, opening: str) -> Reading:
        """The call that begins with `opening`, where the text begins; False, and nothing taken, if there is none."""
        at = 0 if opening == FUNCTION else (yield from self._past_spaces(len(opening)))
        first = self._unread.text[at : at + 1]
        if first == "{":
            found = yield from self._object(at)
        elif first == "[":
            found = yield from self._list(at)
        elif first == "<":
            found = yield from self._function(at)
        else:
            found = yield from self._named(at)
        if found and self._format.closing:
            yield from self._close()
        return found

    # --- JSON -----------------------------------------------------------------------------------------------------

    def _object(self, at: int) -> Reading:
        brackets, seen = Brackets(), at
        while True:
            text = self._unread.text
            if (head := _HEAD.match(text, at)) is not None:
                return (yield from self._begun(text_of(head["name"]), head.end(), in_object=True))
            if _is_hopeless(text, at):
                return False
            if (end := brackets.feed(text, seen)) is not None:
                return self._whole(at, end)
            if self._unread.ended:
                return False
            seen = len(text)
            yield

    def _begun(self, name: str, end: int, in_object: bool) -> Reading:
        """A call whose arguments, an object, begin at `end`."""
        if not self._accepts(name):
            return False
        self._unread.take(end)
        self._calls.begin(name)
        if (yield from self._arguments()):
            self._calls.finish()
            if in_object:
                yield from self._rest_of_object()
        return True

    def _arguments(self) -> Reading:
        """Whether they end."""
        brackets = Brackets()
        while True:
            end = brackets.feed(self._unread.text)
            self._calls.write(self._unread.take(len(self._unread.text) if end is None else end))
            if end is not None or self._unread.ended:
                return end is not None
            yield

    def _rest_of_object(self) -> Generator[None, None, None]:
        """Keys after the arguments say nothing; a closing bracket may be missing."""
        at = yield from self._past_spaces(0)
        brackets, seen = Brackets(depth=1), at
        while self._unread.text[at : at + 1] in ("}", ","):
            end = brackets.feed(self._unread.text, seen)
            if end is not None:
                self._unread.take(end)
                return
            if self._unread.ended:
                return
            seen = len(self._unread.text)
            yield

    def _whole(self, at: int, end: int) -> bool:
        """An object that does not begin as usual."""
        call = call_of(self._unread.text[at:end])
        if call is None or not self._accepts(call[0]):
            return False
        self._unread.take(end)
        self._calls.begin(call[0])
        self._calls.write(call[1])
        self._calls.finish()
        return True

    def _list(self, at: int) -> Reading:
        first = yield from self._past_spaces(at + 1)
        if self._unread.text[first : first + 1] != "{" or not (yield from self._object(first)):
            return False
        while True:
            at = yield from self._past_spaces(0)
            if self._unread.text[at : at + 1] == "]":
                self._unread.take(at + 1)
                return True
            if self._unread.text[at : at + 1] != ",":
                return True
            following = yield from self._past_spaces(at + 1)
            if self._unread.text[following : following + 1] != "{" or not (yield from self._object(following)):
                return True

    # --- a name, then its arguments -------------------------------------------------------------------------------

    def _named(self, at: int) -> Reading:
        while self._format.body in ("list", "named"):
            if (head := _NAMED.match(self._unread.text, at)) is not None:
                return (yield from self._begun(head["name"], head.end(), in_object=False))
            if self._unread.ended or _MAYBE_NAMED.fullmatch(self._unread.text, at) is None:
                return False
            yield
        return False

    # --- <function=name> ------------------------------------------------------------------------------------------

    def _function(self, at: int) -> Reading:
        while (head := _FUNCTION.match(self._unread.text, at)) is None:
            if not self._may_be_tag(FUNCTION, at):
                return False
            yield
        name = head["name"].strip()
        self._unread.take(head.end())
        self._calls.begin(name)
        self._calls.write("{")
        if (yield from self._parameters(self._known.get(name, {}))):
            self._calls.write("}")
            self._calls.finish()
        return True

    def _parameters(self, properties: Mapping[str, object]) -> Reading:
        """Whether they end, by their tag or by something else that follows."""
        comma = ""
        while True:
            at = yield from self._past_spaces(0)
            text = self._unread.text
            if text.startswith(_FUNCTION_END, at):
                self._unread.take(at + len(_FUNCTION_END))
                return True
            if (head := _PARAMETER.match(text, at)) is not None:
                name = head["name"].strip()
                self._unread.take(head.end())
                self._calls.write(f"{comma}{as_json(name)}: ")
                if not (yield from self._value(properties.get(name))):
                    return False
                comma = ", "
            elif self._may_be_tag("<parameter=", at) or self._unread.may_become(_FUNCTION_END, at):
                yield
            else:
                return not self._unread.ended

    def _value(self, schema: object) -> Reading:
        """Whether it ends; of a value that does not, what is there is given as an open string."""
        searched = 0
        while (end := self._unread.text.find(_PARAMETER_END, searched)) < 0:
            if self._unread.ended:
                rest = self._unread.take(len(self._unread.text))
                self._calls.write(as_json(rest.removeprefix("\n"))[:-1])
                return False
            searched = max(0, len(self._unread.text) - len(_PARAMETER_END))
            yield
        text = self._unread.take(end).removeprefix("\n").removesuffix("\n")
        self._unread.take(len(_PARAMETER_END))
        self._calls.write(typed(text, schema))
        return True

    def _may_be_tag(self, tag: str, at: int) -> bool:
        """Whether more text could make an opening tag with a name of what stands at `at`."""
        rest = self._unread.text[at:]
        begun = rest.startswith(tag) and _MAYBE_TAG.fullmatch(rest) is not None
        return not self._unread.ended and (begun or tag.startswith(rest))

    # --- around it ------------------------------------------------------------------------------------------------

    def _accepts(self, name: str) -> bool:
        """Without a tag only the name tells a call from an answer in JSON."""
        return bool(name) and (not self._format.bare or name in self._known)

    def _past_spaces(self, at: int) -> Generator[None, None, int]:
        return (yield from self._past(_SPACES, at))

    def _past(self, letters: re.Pattern[str], at: int) -> Generator[None, None, int]:
        while True:
            found = letters.match(self._unread.text, at)
            end = found.end() if found is not None else len(self._unread.text)
            if end < len(self._unread.text) or self._unread.ended:
                return end
            yield

    def _close(self) -> Generator[None, None, None]:
        """Take the closing tag; a model that forgot it goes on as it does."""
        closing = self._format.closing
        at = yield from self._past(_STRAY, 0)
        while self._unread.may_become(closing, at) and not self._unread.text.startswith(closing, at):
            yield
        rest = self._unread.text[at:]
        if rest.startswith(closing) or (self._unread.ended and closing.startswith(rest)):
            self._unread.take(at + len(closing))


def _is_hopeless(text: str, at: int) -> bool:
    """Whether the object at `at` can be no call, whatever follows."""
    found = _FIRST_KEY.match(text, at)
    return found is not None and (found["odd"] is not None or found["key"] not in _KEYS)
