"""Splits an answer, while it streams, into reasoning, text up to a stop string, and tool calls."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from together.requests import CallDelta, Tool
from together.text.thinking import ReasoningParser, possible_beginning
from together.text.tool_formats import ToolFormat
from together.text.tool_reader import ToolCallReader


class ToolCallParser:
    """Splits text in any pieces into (text to show, new parts of calls)."""

    def __init__(self, tool_format: ToolFormat, tools: Sequence[Tool]) -> None:
        self._format = tool_format
        self._opening = re.compile("|".join(map(re.escape, tool_format.openings)))
        self._reader = ToolCallReader(tool_format, tools)
        self._unread = self._reader.unread
        self.calls = self._reader.calls
        self._text = ""  # to show, not given out yet
        self._spaces = ""  # after it, held back
        self._has_text = False  # the text has a letter
        self._run = self._split()

    def push(self, text: str) -> tuple[str, tuple[CallDelta, ...]]:
        """What is certain now."""
        self._unread.text += text
        next(self._run, None)
        shown, self._text = self._text, ""
        return shown, self.calls.take()

    def flush(self) -> tuple[str, tuple[CallDelta, ...]]:
        """What was held back, at the end of the answer."""
        self._unread.ended = True
        shown, calls = self.push("")
        return shown if self.calls.begun else shown + self._spaces, calls

    def _split(self) -> Generator[None, None, None]:
        while (opening := (yield from self._up_to_opening())) is not None:
            if not (yield from self._reader.read(opening)):
                self._show(self._unread.take(len(opening) or 1))

    def _up_to_opening(self) -> Generator[None, None, str | None]:
        """Show the text before the next call and return how it begins: "" if without a tag, None at the end."""
        unread = self._unread
        while True:
            if (at := self._bare_object()) is not None:
                if at < len(unread.text) or unread.ended:
                    before = unread.take(at)  # after a call it is a separator
                    self._show("" if self.calls.begun else before)
                    return "" if unread.text else None
            elif (found := self._opening.search(unread.text)) is not None:
                self._show(unread.take(found.start()))
                return found[0]
            elif unread.ended:
                self._show(unread.take())
                return None
            else:
                self._show(unread.take(len(unread.text) - possible_beginning(unread.text, self._format.openings)))
            yield

    def _bare_object(self) -> int | None:
        """Where an object without a tag begins, or may begin with the next letter; None if none can begin here."""
        if not self._format.bare or self._has_text:
            return None
        separators = ";" if self.calls.begun else ""
        at = len(self._unread.text) - len(self._unread.text.lstrip(separators + " \t\r\n"))
        return at if self._unread.text[at : at + 1] in ("", "{") else None

    def _show(self, text: str) -> None:
        text = self._spaces + text
        letters = text.rstrip()
        self._spaces = text[len(letters) :]
        if letters:
            self._text += letters.lstrip() if self.calls.begun and not self._has_text else letters
            self._has_text = True


class StopFilter:
    """Ends a text before the first stop string, and holds back whatever may become one.

    The match that ends first counts, of several the longest, so the result does not depend on how the text arrives.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.match = ""  # the stop string that ended the text
        self.withheld = 0  # letters pushed but not given out: held back, or cut off by a match

    def push(self, text: str) -> str:
        """The text that is safe to show now; empty after a match."""
        self.withheld += len(text)
        if self.match:
            return ""
        self._held += text
        if (found := self._found()) is not None:
            start, self.match = found
            return self._show(start, rest="")
        shown = len(self._held) - possible_beginning(self._held, self._stops)
        return self._show(shown, rest=self._held[shown:])

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        return self._show(len(self._held), rest="")

    def _show(self, length: int, rest: str) -> str:
        shown, self._held = self._held[:length], rest
        self.withheld -= length
        return shown

    def _found(self) -> tuple[int, str] | None:
        """Where the match that ends first begins, and what it is."""
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        return min(found)[1:] if found else None


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """What one push made certain."""

    reasoning: str = ""
    text: str = ""
    tool_calls: tuple[CallDelta, ...] = ()


class Parser(Protocol):
    """Splits one answer while it streams."""

    @property
    def tags(self) -> Mapping[int, str]:
        """The special tokens that it wants to see, by id; no decoder shows them."""

    @property
    def thinking(self) -> bool:
        """Whether the next letter belongs to the reasoning, as far as known."""

    @property
    def stopped(self) -> str:
        """The stop string that ended the answer."""

    @property
    def withheld(self) -> int:
        """Letters pushed and not given out: they may belong to a stop string, or follow one."""

    @property
    def called(self) -> bool: ...

    @property
    def done(self) -> bool:
        """Whether the only call is finished."""

    def push(self, text: str) -> ParsedAnswer: ...

    def flush(self) -> ParsedAnswer:
        """What was held back, at the end of the answer."""


@dataclass(slots=True)
class AnswerParser:
    """Splits an answer: first its reasoning, then text and calls. Without parsers, all of it is text."""

    reasoning: ReasoningParser | None = None
    stops: StopFilter = field(default_factory=lambda: StopFilter(()))  # ends the text, never the reasoning
    tools: ToolCallParser | None = None
    one_call: bool = False  # the answer ends with the first call
    tags: Mapping[int, str] = field(default_factory=dict)

    @property
    def thinking(self) -> bool:
        return self.reasoning is not None and self.reasoning.thinking

    @property
    def stopped(self) -> str:
        return self.stops.match

    @property
    def withheld(self) -> int:
        return self.stops.withheld + (self.reasoning.held if self.reasoning is not None else 0)

    @property
    def called(self) -> bool:
        return self.tools is not None and self.tools.calls.begun > 0

    @property
    def done(self) -> bool:
        return self.one_call and self.tools is not None and self.tools.calls.finished > 0

    def push(self, text: str) -> ParsedAnswer:
        reasoning, text = self.reasoning.push(text) if self.reasoning is not None else ("", text)
        return self._parsed(reasoning, self.stops.push(text))

    def flush(self) -> ParsedAnswer:
        reasoning, text = self.reasoning.flush() if self.reasoning is not None else ("", "")
        parsed = self._parsed(reasoning, self.stops.push(text) + self.stops.flush())
        rest, more = self.tools.flush() if self.tools is not None else ("", ())
        return ParsedAnswer(reasoning, parsed.text + rest, (*parsed.tool_calls, *self._wanted(more)))

    def _parsed(self, reasoning: str, text: str) -> ParsedAnswer:
        text, calls = self.tools.push(text) if self.tools is not None else (text, ())
        return ParsedAnswer(reasoning, text, self._wanted(calls))

    def _wanted(self, calls: tuple[CallDelta, ...]) -> tuple[CallDelta, ...]:
        return tuple(call for call in calls if call.index == 0) if self.one_call else calls
