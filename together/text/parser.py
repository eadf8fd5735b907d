"""Splits an answer into reasoning, text and tool calls while it streams."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from together.requests import CallDelta, Tool
from together.text.detokenizer import StopFilter
from together.text.tool_formats import ToolFormat
from together.text.tool_reader import Calls, ToolCallReader, Unread

OPEN, CLOSE = "<think>", "</think>"


class _Place(Enum):
    START = auto()  # nothing but spaces, perhaps the beginning of the tag
    REASONING = auto()
    BETWEEN = auto()  # after the end of the reasoning, before the answer's first letter
    ANSWER = auto()


class ReasoningParser:
    """Takes text in any pieces; gives (reasoning, text) without the tags and the spaces around them.

    Only thoughts at the very beginning count: later on the tag may be what the answer talks about. What might be a part
    of a tag, and spaces that might be the last of the thoughts, are held back until they are known not to be.
    """

    def __init__(self, opened: bool = False) -> None:
        """`opened`: the prompt has the opening tag already; should the model say it again, that is no thought."""
        self._opened = opened
        self._place = _Place.START
        self._begun = False  # a letter of the thoughts was given
        self._held = ""

    @property
    def thinking(self) -> bool:
        """Whether what comes next belongs to the thoughts, as far as is known."""
        return self._place is _Place.REASONING or (self._opened and self._place is _Place.START)

    @property
    def held(self) -> int:
        """Letters held back."""
        return len(self._held)

    def push(self, text: str) -> tuple[str, str]:
        """What is certain now."""
        self._held += text
        if self._place is _Place.START:
            self._leave_start()
        reasoning = self._take_reasoning() if self._place is _Place.REASONING else ""
        return reasoning, self._take_text()

    def flush(self) -> tuple[str, str]:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        if self.thinking:
            return held.rstrip() if self._begun else held.strip(), ""
        return "", "" if self._place is _Place.BETWEEN else held

    def _leave_start(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(OPEN):
            self._held = begun.removeprefix(OPEN)
            self._place = _Place.REASONING
        elif not OPEN.startswith(begun):
            self._place = _Place.REASONING if self._opened else _Place.ANSWER

    def _take_reasoning(self) -> str:
        end = self._held.find(CLOSE)
        if end >= 0:
            reasoning, self._held = self._held[:end].rstrip(), self._held[end + len(CLOSE) :]
            self._place = _Place.BETWEEN
        else:
            certain = len(self._held) - _possible_beginning(self._held)
            certain = len(self._held[:certain].rstrip())
            reasoning, self._held = self._held[:certain], self._held[certain:]
        if not self._begun:
            reasoning = reasoning.lstrip()
            self._begun = bool(reasoning)
        return reasoning

    def _take_text(self) -> str:
        if self._place is _Place.BETWEEN:
            self._held = self._held.lstrip()
            if self._held:
                self._place = _Place.ANSWER
        if self._place is not _Place.ANSWER:
            return ""
        answer, self._held = self._held, ""
        return answer


def _possible_beginning(text: str) -> int:
    """Length of the end of `text` that may be the beginning of the closing tag."""
    for length in range(min(len(CLOSE) - 1, len(text)), 0, -1):
        if text.endswith(CLOSE[:length]):
            return length
    return 0


class ToolCallParser:
    """Takes text in any pieces; gives (text to show, new parts of calls)."""

    def __init__(self, tool_format: ToolFormat, tools: Sequence[Tool]) -> None:
        self._format = tool_format
        self._opening = re.compile("|".join(map(re.escape, tool_format.openings)))
        self._unread = Unread()
        self._calls = Calls()
        known = {tool.name: _properties(tool) for tool in tools}
        self._reader = ToolCallReader(self._unread, self._calls, tool_format, known)
        self._said = ""  # since it was last given out
        self._spaces = ""  # the last of what was said, held back
        self._speaking = False  # something but spaces was said
        self._run = self._parted()

    @property
    def begun(self) -> int:
        """Calls so far."""
        return self._calls.begun

    @property
    def finished(self) -> int:
        """Calls whose arguments are all there."""
        return self._calls.finished

    def push(self, text: str) -> tuple[str, tuple[CallDelta, ...]]:
        """What is certain now."""
        self._unread.text += text
        next(self._run, None)
        return self._take()

    def flush(self) -> tuple[str, tuple[CallDelta, ...]]:
        """What was held back, at the end of the text."""
        self._unread.ended = True
        next(self._run, None)
        if not self.begun:
            self._said += self._spaces
        return self._take()

    def _take(self) -> tuple[str, tuple[CallDelta, ...]]:
        said, self._said = self._said, ""
        return said, self._calls.take()

    def _parted(self) -> Generator[None, None, None]:
        while (opening := (yield from self._up_to_opening())) is not None:
            if not (yield from self._reader.read(opening)):
                self._say(self._unread.take(len(opening) or 1))

    def _up_to_opening(self) -> Generator[None, None, str | None]:
        """Say what stands before the next call and return how it begins, "" for a bare one; None at the end."""
        while True:
            if (at := self._bare()) is not None:
                if at < len(self._unread.text):
                    self._skip(at)
                    return ""
                if self._unread.ended:
                    self._skip(at)
                    return None
            elif (found := self._opening.search(self._unread.text)) is not None:
                self._say(self._unread.take(found.start()))
                return found[0]
            elif self._unread.ended:
                self._say(self._unread.take(len(self._unread.text)))
                return None
            else:
                self._say(self._unread.take(len(self._unread.text) - self._possible_beginning()))
            yield

    def _bare(self) -> int | None:
        """Where a bare object begins, or might begin with the next letter; None if that is not the place for one."""
        if not self._format.bare or self._speaking:
            return None
        separators = ";" if self.begun else ""
        at = len(self._unread.text) - len(self._unread.text.lstrip(separators + " \t\r\n"))
        return at if self._unread.text[at : at + 1] in ("", "{") else None

    def _skip(self, count: int) -> None:
        """Take what stands before a bare object; behind another call it is a separator."""
        skipped = self._unread.take(count)
        self._say("" if self.begun else skipped)

    def _possible_beginning(self) -> int:
        """Length of the longest end of the text that begins some opening."""
        text, openings = self._unread.text, self._format.openings
        longest = min(max(map(len, openings)) - 1, len(text))
        for length in range(longest, 0, -1):
            if any(opening.startswith(text[-length:]) for opening in openings):
                return length
        return 0

    def _say(self, text: str) -> None:
        text = self._spaces + text
        letters = text.rstrip()
        self._spaces = text[len(letters) :]
        if letters:
            self._said += letters.lstrip() if self.begun and not self._speaking else letters
            self._speaking = True


def _properties(tool: Tool) -> Mapping[str, object]:
    found = tool.parameters.get("properties")
    return found if isinstance(found, Mapping) else {}


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """What became certain at once."""

    reasoning: str = ""
    text: str = ""
    tool_calls: tuple[CallDelta, ...] = ()


@dataclass(slots=True)
class AnswerParser:
    """Thoughts come first, then text and calls; calls inside thoughts are thoughts. Without splitters all is said."""

    reasoning: ReasoningParser | None = None
    stops: StopFilter = field(default_factory=lambda: StopFilter(()))  # ends the answer, never the thoughts
    tools: ToolCallParser | None = None
    one_call: bool = False  # nothing is wanted after the first one

    @property
    def thinking(self) -> bool:
        return self.reasoning is not None and self.reasoning.thinking

    @property
    def stopped(self) -> bool:
        """Whether a stop text ended the answer."""
        return self.stops.matched

    @property
    def withheld(self) -> int:
        """Letters taken that are not given yet, or never will be: they may be a stop text, or follow one."""
        return self.stops.withheld + (self.reasoning.held if self.reasoning is not None else 0)

    @property
    def called(self) -> bool:
        return self.tools is not None and self.tools.begun > 0

    @property
    def done(self) -> bool:
        """Whether the answer may end here."""
        return self.one_call and self.tools is not None and self.tools.finished > 0

    def push(self, text: str) -> ParsedAnswer:
        reasoning, said = self.reasoning.push(text) if self.reasoning is not None else ("", text)
        said = self.stops.push(said)
        if self.tools is None:
            return ParsedAnswer(reasoning, said)
        return self._parts(reasoning, *self.tools.push(said))

    def flush(self) -> ParsedAnswer:
        """What was held back, at the end of the answer."""
        reasoning, said = self.reasoning.flush() if self.reasoning is not None else ("", "")
        said = self.stops.push(said) + self.stops.flush()
        if self.tools is None:
            return ParsedAnswer(reasoning, said)
        before, calls = self.tools.push(said)
        after, more = self.tools.flush()
        return self._parts(reasoning, before + after, (*calls, *more))

    def _parts(self, reasoning: str, said: str, calls: tuple[CallDelta, ...]) -> ParsedAnswer:
        return ParsedAnswer(
            reasoning, said, tuple(call for call in calls if call.index == 0) if self.one_call else calls
        )
