"""The icon in the tray or menu bar: the entries of the menu, each carried out by a process of its own.

Knows no toolkit: `Icon` is all that one has to do, and `pystray_icon.py` does it. An icon is a process of its own,
since most systems want its main thread, and so that it can neither hold up the app nor end it.
"""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from together.desktop.at_login import is_on, way_here
from together.desktop.client import find_running
from together.desktop.entries import Entry, MenuState, entries
from together.desktop.show import one_line
from together.errors import AppError, TogetherError
from together.processes import command
from together.wording import cut

log = logging.getLogger(__name__)

LOOK_EVERY = 2.0  # seconds
ANSWERS_WITHIN = 5.0  # seconds for the app to say what runs
MOST = 300  # letters of a notification


class NoTray(AppError):
    """This desktop shows no icon of ours, and why."""


@dataclass(frozen=True, slots=True)
class TrayView:
    """What an icon shows: whether an app runs, a line about it, and the menu."""

    runs: bool
    line: str
    entries: tuple[Entry, ...]


class Icon(Protocol):
    """One icon. `run` belongs to the main thread; the others may be called by any, once it has begun."""

    def run(self, begun: Callable[[], None]) -> None:
        """Returns after `close`, or when the person closes the icon. Raises NoTray."""

    def show(self, shown: TrayView) -> None: ...

    def tell(self, text: str) -> None:
        """A notification, where the desktop has any."""

    def close(self) -> None: ...


def run_tray(home: Path, make: Callable[[Callable[[Entry], None]], Icon]) -> bool:
    """Until the icon is closed; False where this home has one already. Raises NoTray.

    `make` is given what carries out an entry, which returns at once.
    """
    home.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home / "tray.lock").acquire(timeout=0):
            _Tray(home, make).run()
    except Timeout:
        return False
    return True


@dataclass(slots=True)
class _Tray:
    home: Path
    make: Callable[[Callable[[Entry], None]], Icon]
    _ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        icon = self.make(lambda entry: self._begin(icon, entry))
        looking = threading.Thread(target=self._keep_up, args=(icon,), daemon=True)
        try:
            icon.run(looking.start)
        finally:
            self._ended.set()

    def _keep_up(self, icon: Icon) -> None:
        last = None
        while not self._ended.is_set():
            now = seen_now(self.home)
            if now != last:
                icon.show(now)
                last = now
            self._ended.wait(LOOK_EVERY)

    def _begin(self, icon: Icon, entry: Entry) -> None:
        threading.Thread(target=self._carry_out, args=(icon, entry), daemon=True).start()

    def _carry_out(self, icon: Icon, entry: Entry) -> None:
        """Whatever comes of it is told: nobody sees a terminal."""
        icon.tell(cut(said_by(entry), MOST))
        icon.show(seen_now(self.home))


def seen_now(home: Path) -> TrayView:
    status, running = None, find_running(home, ANSWERS_WITHIN)
    if running is not None:
        with closing(running), suppress(TogetherError):  # it may end just now
            status = running.status()
    found = entries(MenuState(status, is_on(way_here())))
    return TrayView(status is not None, one_line(found[0].label), found)


def said_by(entry: Entry) -> str:
    """Carry it out, and what it said; an app that is started by it goes on without us."""
    nowhere = subprocess.DEVNULL
    line = command("together", *entry.shown)
    if entry.lasts:
        subprocess.Popen(line, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)
        return "together is being started"
    done = subprocess.run(line, stdin=nowhere, capture_output=True, check=False)
    said = (done.stderr if done.returncode else done.stdout).decode(errors="replace").strip()
    return said.removeprefix("together: ") or entry.label
