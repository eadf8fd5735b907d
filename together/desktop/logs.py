"""What the app and the nodes of this machine note: files in one folder, and `logs`, which shows them as one."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from together.cluster.local import Noted, say_to_parent
from together.desktop.show import Formatter, print_line
from together.errors import AppError
from together.processes import FILED
from together.wording import reason_of

OURS = ("together", "backends", "webui")  # other libraries are heard from WARNING on
BYTES = 1_000_000  # of a file; then it begins anew, and the one before is kept
LOOK_EVERY = 0.3  # seconds
BEGINS = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")  # a record; its other lines have no time

log = logging.getLogger(__name__)


def keep_log(folder: Path, name: str) -> None:
    """From now on this process notes from INFO on in a file; what the terminal shows stays as it is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _File(folder / f"{name}.log", maxBytes=BYTES, backupCount=1, encoding="utf-8")
    except OSError as error:
        log.warning("no log is kept in %s: %s", folder, reason_of(error))
        return
    file.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _attach(file)
    filed = logging.getLogger(FILED)
    filed.addHandler(file)
    filed.setLevel(logging.INFO)


def note_to_parent() -> None:
    """From now on this process tells its parent what it notes from INFO on and does not show itself."""
    shown = min((handler.level for handler in logging.getLogger().handlers), default=logging.WARNING)
    handler = _ToParent(sys.stdout)
    handler.addFilter(lambda record: record.levelno < shown)
    _attach(handler)


def _attach(handler: logging.Handler) -> None:
    root = logging.getLogger()
    handler.setLevel(min(logging.INFO, root.level))
    root.addHandler(handler)
    for name in OURS:
        logging.getLogger(name).setLevel(handler.level)


class _Quiet(logging.Handler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk or a parent that is gone neither fills the terminal nor ends what is noted."""


class _File(_Quiet, RotatingFileHandler):
    pass


class _ToParent(_Quiet, logging.StreamHandler[TextIO]):
    def format(self, record: logging.LogRecord) -> str:
        return say_to_parent(Noted(record.levelno, record.name, super().format(record)))


# --- logs -------------------------------------------------------------------------------------------------------------


def show_logs(folder: Path, lines: int, follow: bool) -> None:
    """Print the last lines of all files by time, then new ones until Ctrl-C. Raises AppError where there is no file."""
    sizes: dict[Path, int] = {}
    for _ in new_lines(folder, sizes):  # what there is comes by time
        pass
    if not sizes:
        raise AppError(
            "nothing is noted yet: the app and the nodes of this machine write to {folder}", folder=str(folder)
        )
    for line in last_lines(folder, lines):
        print_line(line)
    while follow:
        for line in new_lines(folder, sizes):
            print_line(line)
        time.sleep(LOOK_EVERY)


def last_lines(folder: Path, count: int) -> list[str]:
    """Of all files together, in the order of time; the lines of a record stay together."""
    records: list[tuple[str, list[str]]] = []
    for file in sorted(folder.glob("*.log")):
        older = file.with_name(file.name + ".1")
        records += _records(_read(older) + _read(file))
    records.sort(key=lambda record: record[0])
    lines = [line for _, record in records for line in record]
    return lines[len(lines) - min(count, len(lines)) :]


def _records(text: str) -> Iterator[tuple[str, list[str]]]:
    record: list[str] = []
    for line in text.splitlines():
        if BEGINS.match(line) and record:
            yield record[0][:23], record
            record = []
        record.append(line)
    if record:
        yield record[0][:23], record


def new_lines(folder: Path, sizes: dict[Path, int]) -> Iterator[str]:
    """Whole lines that came since; `sizes` is what was read of each file, and is kept up."""
    for file in sorted(folder.glob("*.log")):
        seen = sizes.get(file, 0)
        try:
            with file.open("rb") as opened:
                if os.fstat(opened.fileno()).st_size < seen:
                    seen = 0  # it began anew
                opened.seek(seen)
                whole, end, _ = opened.read().rpartition(b"\n")
        except FileNotFoundError:  # it begins anew at this moment
            continue
        sizes[file] = seen + len(whole) + len(end)
        if end:
            yield from whole.decode(errors="replace").split("\n")


def _read(file: Path) -> str:
    """Nothing where it begins anew at this moment."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
