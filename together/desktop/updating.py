"""The second half of `launch.py update`: what runs here begins anew, and the machines that are older are named."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from together.checkout import SHORT, own_version
from together.cluster.identity import nodes_run
from together.desktop.again import order_anew
from together.desktop.app_status import AppStatus
from together.desktop.client import RunningApp, find_running
from together.desktop.entries import living
from together.desktop.show import print_line, working
from together.errors import AppError, TogetherError
from together.view import NoteKind

BACK_WITHIN = 120.0  # seconds
OTHERS_WITHIN = 20.0
LOOK_EVERY = 0.5


def finish_update(home: Path, before: str) -> None:
    """`before` is the commit that the checkout had. Raises AppError where the app does not come back."""
    own = own_version()
    new = not own.endswith(f"+{before[:SHORT]}")
    print_line(f"together is {own} now, and was {before[:SHORT]}" if new else f"together {own} is the newest there is")
    running = find_running(home)
    if running is None:
        if nodes_run(home) and new:
            order_anew(home)
            print_line("the nodes of this machine begin anew")
        return
    before_it = _seen(running)
    if before_it is None or before_it.version != own:
        order_anew(home)
        with working("starting the app anew"):
            _wait_until_back(home, own, _others(before_it))
        print_line(f"the app runs {own} now")
    for line in other_versions(_seen(find_running(home))):
        print_line(line)


def _seen(running: RunningApp | None) -> AppStatus | None:
    """None where it ends just now, or has another status than this version reads."""
    try:
        return running.status() if running is not None else None
    except TogetherError:
        return None


def _others(status: AppStatus | None) -> set[str]:
    """The nodes that the app did not start itself."""
    return {node.id for node in living(status) if node.owner != status.head} if status is not None else set()


def _wait_until_back(home: Path, own: str, others: set[str]) -> None:
    """Until the app runs the new version, and then a while until the machines that it had are there again."""
    begun, back = time.monotonic(), False
    while (passed := time.monotonic() - begun) < BACK_WITHIN and not (back and passed > OTHERS_WITHIN):
        time.sleep(LOOK_EVERY)
        status = _seen(find_running(home))
        back = status is not None and status.version == own
        if back and status is not None and others <= {node.id for node in living(status)}:
            return
    if back:
        return
    raise AppError(
        "the app did not come back with the new version; stop it with python3 launch.py stop, start it again, and see "
        "what python3 launch.py logs says"
    )


def other_versions(status: AppStatus | None) -> Iterator[str]:
    """What is to be done on each machine that has another version."""
    if status is not None:
        yield from (note.text for note in status.notes if note.kind is NoteKind.VERSION)
