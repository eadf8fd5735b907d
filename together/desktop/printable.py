"""Text of other machines and models as a terminal may show it: what would steer the terminal is shown as its escape.

Knows no terminal.
"""

from __future__ import annotations

import logging
import unicodedata

# C0 and C1 controls, halves of characters, line separators; and the marks that turn or hide the text around them.
STEERING = frozenset({"Cc", "Cs", "Zl", "Zp"})
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
LINES = "\n\t"


def printable(text: str, keep: str = LINES) -> str:
    """`"\\x1b[2J"` → the seven letters `\\x1b[2J`. What is in `keep` stays."""
    if text.isprintable():
        return text
    return "".join(letter if letter in keep or not _steers(letter) else _escape(letter) for letter in text)


def one_line(text: str) -> str:
    """The same for a name in a line or a table: there a new line or a tab would make up more of them."""
    return printable(text, keep="")


class Formatter(logging.Formatter):
    """Log lines quote names, too."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _steers(letter: str) -> bool:
    return letter in TURNING or unicodedata.category(letter) in STEERING


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
