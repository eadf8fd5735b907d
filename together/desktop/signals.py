"""Ways to be told to stop: Ctrl-C, SIGTERM, and the end of a parent. Knows nothing of what stops."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop`; a second Ctrl-C ends the process at once. For the main thread."""
    loop = asyncio.get_running_loop()

    def handle(number: int, frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            os._exit(130)
        loop.call_soon_threadsafe(stop.set)

    # signal.signal, not loop.add_signal_handler: that one does not exist on Windows
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_with_parent(stop: asyncio.Event) -> None:
    """Set `stop` when our input ends: the parent holds its other end, and the system closes it with the parent."""
    loop = asyncio.get_running_loop()

    def wait() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait, daemon=True).start()
