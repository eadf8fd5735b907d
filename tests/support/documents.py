"""The blocks, commands and links of README and docs."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LAUNCH = ["python3", "launch.py"]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `document` is relative to the checkout."""

    document: str
    number: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}-{self.number}"

    @property
    def lines(self) -> list[list[str]]:
        """The words of each command of a block of commands, without what a shell takes for a comment."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


@cache
def blocks() -> tuple[Block, ...]:
    """Of all documents, in their order."""
    return tuple(
        Block(str(file.relative_to(ROOT)), number, language, text)
        for file in DOCUMENTS
        for number, (language, text) in enumerate(_FENCE.findall(file.read_text(encoding="utf-8")), 1)
    )


def block_with(document: str, text: str) -> Block:
    """The only block of a document that contains `text`."""
    (found,) = (block for block in blocks() if block.document == document and text in block.text)
    return found


def spans(file: Path) -> list[str]:
    """What stands in backticks outside of blocks."""
    return _SPAN.findall(_FENCE.sub("", file.read_text(encoding="utf-8")))


def links(file: Path) -> list[str]:
    """The targets of all links, outside of blocks."""
    return _LINK.findall(_FENCE.sub("", file.read_text(encoding="utf-8")))


def anchors(file: Path) -> set[str]:
    """The headings of a document as links name them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
