"""An app for a while: started as a child where none runs, and stopped after. Knows no head."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from together.desktop.client import RunningApp, find_running
from together.errors import AppError

CHECKOUT = Path(__file__).resolve().parents[2]
START_WITHIN = 90.0  # seconds until the page answers
READY_WITHIN = 900.0  # seconds until a model serves
LEAVE_WITHIN = 8.0


@contextmanager
def app_for_a_while(home: Path, say: Callable[[str], None]) -> Iterator[RunningApp]:
    """This user's running app, or one that lives as long as this block; it serves when the block begins."""
    app = find_running(home)
    if app is not None:
        wait_until_ready(app, say)
        yield app
        return
    say("starting together for this chat")
    with tempfile.TemporaryFile() as errors, _child(errors) as child:
        app = _wait_for_page(home, child, errors)
        wait_until_ready(app, say)
        yield app


def wait_until_ready(app: RunningApp, say: Callable[[str], None]) -> None:
    """Return when a request would be served. Raises AppError with the reason when none will be."""
    deadline = time.monotonic() + READY_WITHIN
    told, started = "", time.monotonic()
    while (health := app.health()).get("status") != "ok":
        why = str(health.get("reason", "no model is loaded"))
        just_started = time.monotonic() - started < 10 and health.get("state") == "EMPTY"
        if (health.get("state") in ("FAILED", "EMPTY") and not just_started) or time.monotonic() > deadline:
            raise AppError(why)
        if why != told and health.get("state") != "EMPTY":
            say(why)
            told = why
        time.sleep(0.1)


@contextmanager
def _child(errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """`up` as a child: out of reach of our Ctrl-C, and ended by the end of its input, however we end."""
    command = [sys.executable, "-m", "together", "up", "--no-browser", "--port", "0", "--with-parent"]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        cwd=CHECKOUT,
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    try:
        yield child
    finally:
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(LEAVE_WITHIN)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait_for_page(home: Path, child: subprocess.Popen[bytes], errors: IO[bytes]) -> RunningApp:
    deadline = time.monotonic() + START_WITHIN
    while time.monotonic() < deadline:
        if (app := find_running(home)) is not None:
            return app
        if child.poll():
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise AppError(last.removeprefix("together: ") or f"the app ended with code {child.returncode}")
        time.sleep(0.1)
    raise AppError(f"the app did not show its page within {START_WITHIN:.0f} s")
