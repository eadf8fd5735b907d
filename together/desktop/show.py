"""What a terminal shows: tables, the status, the progress of a load. Text from other machines is escaped."""

from __future__ import annotations

import logging
import sys
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from together.cluster_types import NodeStatus, StageStatus
from together.errors import TogetherError

if TYPE_CHECKING:
    from together.desktop.client import AppStatus, RunningApp

# C0 and C1 controls, halves of characters, line separators; and the marks that turn or hide the text around them.
STEERING = frozenset({"Cc", "Cs", "Zl", "Zp"})
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
LINES = "\n\t"
GB = 1e9


def printable(text: str, keep: str = LINES) -> str:
    """`"\\x1b[2J"` → the seven letters `\\x1b[2J`. What is in `keep` stays."""
    if text.isprintable():
        return text
    return "".join(letter if letter in keep or not _steers(letter) else _escape(letter) for letter in text)


def one_line(text: str) -> str:
    """As `printable`, for a line or a table's cell: line breaks and tabs are escaped, too."""
    return printable(text, keep="")


class Formatter(logging.Formatter):
    """Escapes log lines, which quote names, too."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _steers(letter: str) -> bool:
    return letter in TURNING or unicodedata.category(letter) in STEERING


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def print_line(line: str) -> None:
    print(printable(line), flush=True)


def print_aside(line: str) -> None:
    """For what is not the answer: a pipe behind stdout gets the answer only."""
    print(printable(line), file=sys.stderr, flush=True)


# --- lines and tables -------------------------------------------------------------------------------------------------


def print_lines(lines: Iterable[str], console: Console | None = None) -> None:
    """Lines that may quote foreign text: never markup, never broken by the console."""
    console = console or Console()
    for line in lines:
        console.print(Text(one_line(line)), soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], console: Console | None = None) -> None:
    """A table of one row or more; without a head where no column has a name.

    Text is never markup; numbers align right, with four significant digits.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False) if any(columns) else Table.grid(padding=(0, 2))
    for name in columns:
        table.add_column(Text(one_line(name)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell_text(value), "", justify=_justify(value)) for value in row))
    if table.row_count:
        (console or Console()).print(table)


def _justify(value: object) -> Literal["left", "right"]:
    return "left" if isinstance(value, str) else "right"


def cell_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell_text, value))
    return one_line(str(value))


# --- status -----------------------------------------------------------------------------------------------------------


def show_status(status: AppStatus, url: str, console: Console) -> None:
    """Model, stages and nodes, for a person."""
    print_lines([f"together at {url}", status.serving.sentence, *hints(status)], console)
    if not status.nodes:
        console.print("no node is there; start one with: python3 launch.py node")
        return
    columns = ("node", "state", "device", "memory free", "layers held", "address")
    print_table(columns, map(_row, status.nodes), console)


def hints(status: AppStatus) -> list[str]:
    """What a person may want to do, as a sentence each with the command for it."""
    found = []
    if status.advice:
        found.append(f"better: {status.advice}; move to it with: python3 launch.py balance")
    if status.offer:
        found.append(f"{status.offer} Load it with: python3 launch.py load")
    return found + [limit.text for limit in status.limits]


def _row(node: NodeStatus) -> tuple[str, ...]:
    return (
        node.name,
        f"{node.state}: {node.cause}" if node.cause else str(node.state),
        ", ".join(device.description or device.name for device in node.devices),
        f"{node.free_bytes / GB:.1f} of {node.memory_bytes / GB:.1f} GB",
        ", ".join(f"{stage.layers} {stage.model}" for stage in node.stages) or "none",
        f"{(node.endpoint.addresses or ('?',))[0]}:{node.endpoint.port}",
    )


# --- a load -----------------------------------------------------------------------------------------------------------

LOOK_EVERY = 0.3  # seconds


def load_last_and_show(running: RunningApp) -> None:
    """Load what the app offers, which was applied last; where it serves already, load it again."""
    offer = running.status().offer
    print(one_line(offer or "Loading the last model again."), flush=True)
    load_and_show(running, {}, action="last" if offer else "load")


def load_and_show(running: RunningApp, order: dict[str, object], action: str = "load") -> None:
    """Returns when the model serves. Raises the app's own sentence where it does not."""
    failure: list[TogetherError] = []

    def work() -> None:
        try:
            running.ask(action, order)
        except TogetherError as error:
            failure.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[said]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars: dict[int, TaskID] = {}
        while worker.is_alive():
            worker.join(LOOK_EVERY)
            draw_stages(progress, bars, running.status())
    if failure:
        raise failure[0]
    status = running.status()
    names = {node.id: node.name for node in status.nodes}
    for stage in status.serving.plan.stages if status.serving.plan else ():
        print(f"{one_line(names.get(stage.node, stage.node))}: layers {stage.layers}")
    print(f"{one_line(status.serving.model)} is ready at {running.url}")


def draw_stages(progress: Progress, bars: dict[int, TaskID], status: AppStatus) -> None:
    """One bar for each slot of the ring that is being loaded."""
    for node in status.nodes:
        for stage in node.stages:
            if stage.ring != status.serving.ring:
                continue
            if stage.slot not in bars:
                bars[stage.slot] = progress.add_task(f"{one_line(node.name)} {stage.layers}", total=1.0, said="")
            done, said = _progress(stage)
            progress.update(bars[stage.slot], completed=done, said=said)


def _progress(stage: StageStatus) -> tuple[float, str]:
    """0 to 1 and words: first the bytes that come from elsewhere, then the layers."""
    layers = len(stage.layers)
    if stage.fetched_bytes < stage.fetch_bytes:
        waits = f", waits for {one_line(stage.waiting)}" if stage.waiting else ""
        fetched = f"{stage.fetched_bytes / 1e6:.0f} of {stage.fetch_bytes / 1e6:.0f} MB"
        return stage.fetched_bytes / stage.fetch_bytes, f"fetching, {fetched}{waits}"
    return stage.progress, f"{round(stage.progress * layers)} of {layers} layers"
