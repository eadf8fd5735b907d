"""What a terminal shows: tables, the status, the progress of a load. Text from other machines is escaped."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from together.cluster_types import LetGo, NodeState, NodeStatus, StageStatus
from together.commands import as_typed
from together.errors import TogetherError
from together.processes import FILED
from together.sentences import Sentence, say
from together.types import Threads
from together.wording import part_text

if TYPE_CHECKING:
    from together.desktop.app_status import AppStatus
    from together.desktop.client import RunningApp

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
    """Escapes log lines, which quote names, too. Further lines of a record are indented: none looks like another."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record)).replace("\n", "\n  ")


def _steers(letter: str) -> bool:
    return letter in TURNING or unicodedata.category(letter) in STEERING


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def print_line(line: str) -> None:
    """Also into the log's file, where this process keeps one."""
    print(printable(line), flush=True)
    logging.getLogger(FILED).info("%s", line)


def print_aside(line: str) -> None:
    """For what is not the answer: a pipe behind stdout gets the answer only."""
    print(printable(line), file=sys.stderr, flush=True)


LONG = 3.0  # seconds after which a person wonders


class Screen:
    """Standard output of a program that runs on: lines that stay, and on a terminal one that is written over.

    Elsewhere what would be written over is a line as well, without how far it is.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._busy = ""
        self._since = 0.0  # of the same `busy`
        self._width = 0  # of what is to be written over

    def line(self, line: str) -> None:
        self._erase()
        print_line(line)

    def tell(self, sentence: Sentence) -> None:
        if sentence:
            self.line(str(sentence))

    def busy(self, doing: str, progress: float = 0.0) -> None:
        """What goes on now, nothing if `doing` is empty; `progress` is 0 to 1."""
        new = doing != self._busy
        if new:
            self._busy, self._since = doing, time.monotonic()
        if self._terminal:
            self._erase()
            self._draw(doing, progress) if doing else None
        elif doing and new:
            print_line(doing)

    def idle(self) -> None:
        self.busy("")

    def _draw(self, doing: str, progress: float) -> None:
        """With how far it is, and the seconds once it takes long: a line that stands still looks dead."""
        seconds = time.monotonic() - self._since
        done, long = f" {progress:.0%}" if progress else "", f" ({seconds:.0f} s)" if seconds >= LONG else ""
        shown = one_line(doing + done + long)[: shutil.get_terminal_size().columns - 1]
        print(shown, end="", flush=True)
        self._width = len(shown)

    def _erase(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", flush=True)
            self._width = 0


@contextmanager
def working(doing: str) -> Iterator[Callable[[str], None]]:
    """A line on stderr, where that is a terminal, as long as this block works; the function gives it other words."""
    console = Console(stderr=True)
    if not console.is_interactive:  # where rich would print an empty line
        yield lambda now: None
        return
    with console.status(Text(one_line(doing)), refresh_per_second=4) as status:  # a spinner that disturbs no measuring
        yield lambda now: status.update(Text(one_line(now)))


def progress_bars(*columns: ProgressColumn) -> Progress:
    """Bars on stderr as long as a `with` block works, where that is a terminal; elsewhere nothing."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_interactive)


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    """Returns once it is true, or after that time."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY)


# --- lines and tables -------------------------------------------------------------------------------------------------


def print_lines(lines: Iterable[str], console: Console | None = None) -> None:
    """Lines that may quote foreign text: never markup, never broken by the console."""
    console = console or Console()
    for line in lines:
        console.print(Text(one_line(line)), soft_wrap=True)


def threads_text(threads: Threads | None) -> str:
    """What a stage's steps get: `1`, or `1 (2 for prompts)`."""
    if threads is None:
        return ""
    return str(threads.few) if threads.few == threads.many else f"{threads.few} ({threads.many} for prompts)"


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], console: Console | None = None, whole: str = ""
) -> None:
    """A table of one row or more; without a head where no column has a name. The column `whole` is not broken.

    Text is never markup; numbers align right, with four significant digits.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False) if any(columns) else Table.grid(padding=(0, 2))
    for name in columns:
        table.add_column(Text(one_line(name)), overflow="fold", no_wrap=bool(whole) and name == whole)
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


def show_status(status: AppStatus, url: str, console: Console, reached: str = "") -> None:
    """Model, stages and nodes, for a person; `reached`: how other machines reach the page."""
    states = []
    for model in status.models:
        costs = [model.pace.text if model.pace else "", model.sharing]
        states += [model.serving.sentence, *filter(None, costs)]
    gone = let_go_in(status.nodes, status.let_go).values()
    print_lines([f"together at {url}", *filter(None, [reached]), *states, *map(str, gone), *hints(status)], console)
    if not status.nodes:
        print_lines([as_typed("no node is there; start one with: python3 launch.py node")], console)
        return
    show_machines(status, console)


def show_machines(status: AppStatus, console: Console) -> None:
    """A line for each node."""
    columns = ("node", "state", "device", "memory free", "layers held", "address")
    print_table(columns, map(_row, status.nodes), console, whole="address")


def hints(status: AppStatus) -> list[str]:
    """What a person may want to do, as a sentence each with the command for it."""
    found, several = [], len(status.models) > 1
    for model in status.models:
        if model.advice:
            name = f" {shlex.quote(model.serving.model)}" if several else ""
            found.append(as_typed(f"better: {model.advice}; move to it with: python3 launch.py balance{name}"))
    if status.offer:
        found.append(as_typed(f"{status.offer} Load it with: python3 launch.py load"))
    limits, notes = ([limit.text for limit in status.limits], [note.text for note in status.notes])
    return [*found, *status.locked, *limits, *notes]


LetGoBy = tuple[str, LetGo]  # the node's id, empty for the app or the node that looks, and what it let go


def let_go_in(nodes: Iterable[NodeStatus], own: Iterable[LetGo]) -> dict[LetGoBy, Sentence]:
    """What full caches let go, in words."""
    found = {("", gone): gone.sentence for gone in own}
    for node in nodes:
        found |= {(node.id, gone): say("let_go_by", node=node.name, let_go=gone.sentence) for gone in node.let_go}
    return found


def _free(node: NodeStatus) -> str:
    if node.state is NodeState.FAILED:
        return "-"
    return part_text(node.free_bytes, node.memory_bytes) if node.memory_bytes > 0 else "not known yet"


def _held(node: NodeStatus) -> str:
    """Layers, then the name of their model once: a node may have several stages of one."""
    models = dict.fromkeys(stage.model for stage in node.stages)
    stages = sorted(node.stages, key=lambda stage: stage.layers)
    layers = {model: [str(stage.layers) for stage in stages if stage.model == model] for model in models}
    return ", ".join(f"{', '.join(layers[model])} {model}" for model in models)


def _row(node: NodeStatus) -> tuple[str, ...]:
    """Of a node that is gone, memory and layers are those it had."""
    gone = node.state is NodeState.FAILED
    return (
        node.name,
        f"{node.state}: {node.cause}" if node.cause else str(node.state),
        ", ".join(device.description or device.name for device in node.devices),
        _free(node),
        "-" if gone else _held(node) or "none",
        f"{(node.endpoint.addresses or ('?',))[0]}:{node.endpoint.port}",
    )


# --- a load -----------------------------------------------------------------------------------------------------------

LOOK_EVERY = 0.3  # seconds
BEGINNING = "reading the model and planning"


def load_last_and_show(running: RunningApp) -> None:
    """Load what the app offers, which was applied last; where it serves already, load it again."""
    offer = running.status().offer
    print(one_line(offer or "Loading the last model again."), flush=True)
    load_and_show(running, {}, action="last" if offer else "load")


def load_and_show(running: RunningApp, order: dict[str, object], action: str = "load") -> None:
    """Returns when the model serves, and says who has which layers. Raises the app's own sentence where it does not."""
    before = running.status()
    name = load_with_progress(running, order, action)
    status = running.status()
    serving = status.serving_of(name) or status.serving
    known = let_go_in(before.nodes, before.let_go)
    for which, sentence in let_go_in(status.nodes, status.let_go).items():
        if which not in known:
            print(one_line(str(sentence)))
    names = {node.id: node.name for node in status.nodes}
    for stage in serving.plan.stages if serving.plan else ():
        print(f"{one_line(names.get(stage.node, stage.node))}: layers {stage.layers}")
    print(f"{one_line(serving.title)} is ready at {running.url}")


def load_with_progress(running: RunningApp, order: dict[str, object], action: str = "load") -> str:
    """Returns the model's name when it serves; until then a bar for each stage is on stderr.

    Raises as `load_and_show`.
    """
    failure: list[TogetherError] = []
    names: list[str] = []

    def work() -> None:
        try:
            names.append(str(running.ask(action, order)["model"]))
        except TogetherError as error:
            failure.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    name, said = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[said]}", markup=False)
    with progress_bars(SpinnerColumn(), name, BarColumn(), said) as progress:
        bars: dict[int, TaskID] = {}
        step = progress.add_task(BEGINNING, total=None, said="")
        while worker.is_alive():
            worker.join(LOOK_EVERY)
            status = running.status()
            draw_stages(progress, bars, status)
            doing = next((each.serving.step for each in reversed(status.models) if each.serving.step), "")
            progress.update(step, description=one_line(doing) or BEGINNING, visible=not bars)
    if failure:
        raise failure[0]
    return names[0]


def draw_stages(progress: Progress, bars: dict[int, TaskID], status: AppStatus) -> None:
    """One bar for each slot of the rings that are being loaded or changed."""
    all_rings = {each.serving.ring: bool(each.serving.step) for each in status.models}
    rings = {ring for ring, busy in all_rings.items() if busy or len(all_rings) == 1}
    for node in status.nodes:
        for stage in node.stages:
            if stage.ring not in rings:
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
        fetched = f"{part_text(stage.fetched_bytes, stage.fetch_bytes)}{'' if stage.fetched_bytes else ' yet'}"
        doing = "converting" if stage.converting else "fetching"
        return stage.fetched_bytes / stage.fetch_bytes, f"{doing}, {fetched}{waits}"
    return stage.progress, f"{round(stage.progress * layers)} of {layers} layers"
