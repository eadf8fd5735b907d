"""Ways to be told to stop: Ctrl-C and SIGTERM, and an end that nothing can hold up. Knows nothing of what stops."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ExitGuard:
    """Ends this process, whatever it does then, `seconds` after the first `begin`."""

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, os._exit, (1,))
        self._timer.daemon = True

    def begin(self) -> None:
        if not self._timer.is_alive() and not self._timer.finished.is_set():
            self._timer.start()

    def cancel(self) -> None:
        self._timer.cancel()


@contextmanager
def stop_on_signals(stop: asyncio.Event, guard: ExitGuard | None = None) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop`; a second Ctrl-C ends the process at once. For the main thread.

    `guard` begins with the signal, not when the event loop sees `stop`: the loop may be held up.
    """
    loop = asyncio.get_running_loop()
    told = False

    def handle(number: int, frame: object) -> None:
        nonlocal told
        if (told or stop.is_set()) and number == signal.SIGINT:
            os._exit(130)
        told = True
        if guard is not None:
            guard.begin()
        loop.call_soon_threadsafe(stop.set)

    # signal.signal, not loop.add_signal_handler: that one does not exist on Windows
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
