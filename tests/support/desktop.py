"""A screen of its own for a test, with a program that keeps a tray on it, and a hand that clicks. Knows no test."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.support.patience import PATIENCE

PROGRAMS = ("Xvfb", "trayer")  # of Debian's packages xvfb and trayer
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]


class Desktop:
    """An X display; names of windows and places are those of the whole screen."""

    def __init__(self, display: str) -> None:
        from Xlib.display import Display

        self.display = display
        self._connection: Any = Display(display)

    @contextmanager
    def tray(self, log: Path) -> Iterator[None]:
        """A program that keeps the tray, until the block ends."""
        with _running(["trayer", "--widthtype", "request", "--edge", "top"], self.display, log):
            selection = self._connection.intern_atom("_NET_SYSTEM_TRAY_S0")
            _until(lambda: bool(self._connection.get_selection_owner(selection)), log)
            yield

    def icons(self) -> list[Any]:
        """The windows that lie in the tray and are seen."""
        return [window for window in _below(self._connection.screen().root) if _is_icon(window)]

    def click(self, window: Any) -> None:
        from Xlib import X
        from Xlib.ext import xtest

        shape, root = window.get_geometry(), self._connection.screen().root
        at = root.translate_coords(window, shape.width // 2, shape.height // 2)
        xtest.fake_input(self._connection, X.MotionNotify, x=-at.x if at.x < 0 else at.x, y=abs(at.y))
        for event in (X.ButtonPress, X.ButtonRelease):
            xtest.fake_input(self._connection, event, 1)
        self._connection.sync()

    def close(self) -> None:
        self._connection.close()


@contextmanager
def virtual_desktop(folder: Path) -> Iterator[Desktop]:
    """Without a tray at first."""
    folder.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "800x600x24", "-nolisten", "tcp"]
    with ExitStack() as stack:
        stack.callback(os.close, reader)
        with (folder / "xvfb.log").open("w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, pass_fds=[writer])
        stack.callback(_end, process)
        os.close(writer)
        desktop = Desktop(f":{os.read(reader, 16).decode().strip()}")
        stack.callback(desktop.close)
        yield desktop


@contextmanager
def _running(command: list[str], display: str, log: Path) -> Iterator[None]:
    with log.open("w") as out:
        process = subprocess.Popen(command, env=os.environ | {"DISPLAY": display}, stdout=out, stderr=out)
    try:
        yield
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(PATIENCE)


def _until(holds: Any, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def _below(window: Any) -> Iterator[Any]:
    from Xlib import error

    try:
        children = window.query_tree().children
    except error.BadWindow:  # it went at this moment
        return
    for child in children:
        yield child
        yield from _below(child)


def _is_icon(window: Any) -> bool:
    from Xlib import X, error

    try:
        seen = window.get_attributes().map_state == X.IsViewable
        return seen and "together" in (window.get_wm_class() or ())
    except error.BadWindow:
        return False
