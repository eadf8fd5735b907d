"""Parts the tool calls of an answer from what it says. Knows text only, and no call's inside (`call_reading` does).

What the caller of an answer may rely on, however the text was cut into pieces:
- No part of an opening tag is ever shown. Text that begins as a call and turns out to be none is shown as it is.
- A call is given as soon as its name is known and its arguments begin; from then on it stays a call. When the answer
  ends inside its arguments, or they are no JSON, they are given as they are: the caller sees why the answer ended.
- Spaces next to calls are shown only between other text.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence

from together.requests import CallDelta, Tool
from together.text.tool_formats import ToolStyle
from together.text.tool_reader import CallReader, Calls, Unread


class ToolSplitter:
    """Takes text in any pieces; gives (text to show, new parts of calls)."""

    def __init__(self, style: ToolStyle, tools: Sequence[Tool]) -> None:
        self._style = style
        self._opening = re.compile("|".join(map(re.escape, style.openings)))
        self._unread = Unread()
        self._calls = Calls()
        known = {tool.name: _properties(tool) for tool in tools}
        self._reader = CallReader(self._unread, self._calls, style, known)
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
        if not self._style.bare or self._speaking:
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
        text, openings = self._unread.text, self._style.openings
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
