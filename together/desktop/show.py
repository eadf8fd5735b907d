"""Text for a terminal: `status`, and strangers' words with control characters escaped."""

from __future__ import annotations

import logging
import unicodedata
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

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


GB = 1e9


def show_status(status: dict[str, Any], url: str, console: Console) -> None:
    """Model, stages and nodes, for a person."""
    serving = status["serving"]
    console.print(Text(f"together at {url}"))
    for line in (serving["sentence"], *hints(status)):
        console.print(Text(one_line(line)), soft_wrap=True)
    if not status["nodes"]:
        console.print("no node is there; start one with: python3 launch.py node")
        return
    table = Table("node", "state", "device", "memory free", "layers held", "address")
    for node in status["nodes"]:
        table.add_row(*(Text(one_line(text)) for text in _row(node)))
    console.print(table)


def hints(status: dict[str, Any]) -> list[str]:
    """What a person may want to do, as a sentence each with the command for it."""
    found = []
    if status["advice"]:
        found.append(f"better: {status['advice']}; move to it with: python3 launch.py balance")
    if status["offer"]:
        found.append(f"{status['offer']} Load it with: python3 launch.py load")
    found += [limit["text"] for limit in status["limits"]]
    return found


def _row(node: dict[str, Any]) -> tuple[str, ...]:
    state = f"{node['state']}: {node['cause']}" if node["cause"] else str(node["state"])
    devices = ", ".join(device["description"] or device["name"] for device in node["devices"])
    memory = f"{node['free_bytes'] / GB:.1f} of {node['memory_bytes'] / GB:.1f} GB"
    held = ", ".join(
        f"{stage['layers']['start']}:{stage['layers']['stop']} {stage['model']}" for stage in node["stages"]
    )
    endpoint = node["endpoint"]
    return (
        node["name"],
        state,
        devices,
        memory,
        held or "none",
        f"{(endpoint['addresses'] or ['?'])[0]}:{endpoint['port']}",
    )
