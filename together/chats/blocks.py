"""Where an answer that is still written can be cut into finished blocks of Markdown."""

from __future__ import annotations

import re

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")


class BlockSplitter:
    """Cuts a growing text at blank lines where what follows begins anew, outside of code and formulas.

    `tail` is what no finished block has yet. A line counts once it is complete.
    """

    def __init__(self) -> None:
        self.tail = ""
        self._looked = 0  # letters of the tail that were looked at
        self._fence = ""  # what closes the code that is open
        self._formula = ""  # what closes the formula that is open
        self._blank = False  # the line before was blank

    def add(self, text: str) -> list[str]:
        """The blocks that are finished now."""
        self.tail += text
        blocks: list[str] = []
        while True:
            start = self._looked
            if self._cuts(start):
                blocks.append(self.tail[:start])
                self.tail, self._looked, self._blank, start = self.tail[start:], 0, False, 0
            end = self.tail.find("\n", start)
            if end < 0:
                return blocks
            self._line(self.tail[start:end])
            self._looked = end + 1

    def _cuts(self, start: int) -> bool:
        """Whether a block begins at `start`: a line that goes on with a list or a quotation does not begin one."""
        first = self.tail[start : start + 1]
        return self._blank and start > 0 and bool(first) and not first.isspace()

    def _line(self, line: str) -> None:
        self._blank = False
        stripped = line.strip()
        if self._formula:
            if stripped.endswith(self._formula):
                self._formula = ""
        elif self._fence:
            found = _FENCE.fullmatch(line)
            if found and found[1].startswith(self._fence) and not found[2].strip():
                self._fence = ""
        elif found := _FENCE.fullmatch(line):
            self._fence = found[1]
        elif stripped.startswith(("$$", r"\[")):
            closes = "$$" if stripped.startswith("$$") else r"\]"
            self._formula = "" if len(stripped) > 2 and stripped.endswith(closes) else closes
        else:
            self._blank = not stripped
