"""Processes of ours: starting, reading and ending children, the signs to stop, and a process's own memory.

A child ends when its standard input does, which also happens when its parent is killed. No signal is needed, so this
works on Windows.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

CHECKOUT = Path(__file__).resolve().parents[1]
LONGEST_LINE = 2**16  # bytes
FILED = "said"  # the logger of what belongs into a process's log file alone
PATIENCE = 2.0  # seconds a process has to leave before it is killed


def command(*arguments: str) -> list[str]:
    """The command line of `python -m …` with this interpreter."""
    return [sys.executable, "-m", *arguments]


def surroundings(environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Keywords of every way to start a child: in this checkout, out of reach of the terminal's Ctrl-C."""
    return {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "cwd": CHECKOUT,
        "env": os.environ | (environment or {}),
        "start_new_session": True,  # ignored on Windows, where the flag below does the same
        "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    }


async def spawn(*arguments: str, environment: dict[str, str] | None = None) -> asyncio.subprocess.Process:
    """A child of ours, `python -m …`, with pipes for all three streams; see `end`."""
    return await asyncio.create_subprocess_exec(
        *command(*arguments), stderr=subprocess.PIPE, **surroundings(environment)
    )


async def lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """A child's output, line by line; a progress bar's carriage returns end lines too, and no line is endless."""
    rest = b""
    while chunk := await stream.read(LONGEST_LINE):
        *whole, rest = re.split(rb"[\r\n]+", rest + chunk)
        for line in filter(None, whole):
            yield line
        rest = rest[-LONGEST_LINE:]
    if rest:
        yield rest


async def end(process: asyncio.subprocess.Process, patience: float = PATIENCE) -> None:
    """Close its input, which tells it to leave; kill it when it does not within `patience` seconds."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(patience):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def leave_with_parent(code: int = 0) -> None:
    """For a child that has read all its orders: end this process at once, whatever it does, when its input ends."""
    _when_input_ends(lambda: os._exit(code))


def stop_with_parent(stop: asyncio.Event) -> None:
    """For a child that cleans up: set `stop` when its input ends."""
    loop = asyncio.get_running_loop()
    _when_input_ends(lambda: loop.call_soon_threadsafe(stop.set))


def _when_input_ends(act: Callable[[], object]) -> None:
    def wait() -> None:
        while os.read(sys.stdin.fileno(), LONGEST_LINE):  # not its buffer, whose lock a thread must not hold at the end
            pass
        act()

    threading.Thread(target=wait, daemon=True).start()


def claim_stdout() -> TextIO:
    """Keep standard output for the parent; what libraries print goes to standard error from now on."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return own


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
    signalled = False

    def handle(number: int, frame: object) -> None:
        nonlocal signalled
        if (signalled or stop.is_set()) and number == signal.SIGINT:
            os._exit(130)
        signalled = True
        if guard is not None:
            guard.begin()
        loop.call_soon_threadsafe(stop.set)

    # signal.signal, not loop.add_signal_handler, which does not exist on Windows
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_GIVE_BACK = {"linux": 4, "darwin": 5}  # MADV_DONTNEED; MADV_FREE: the system takes them when it needs them
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt


def trim_memory() -> None:
    """Return freed memory to the system, where the C library is glibc and keeps it: 700 MB after one long text.

    Takes up to 0.1 s; other threads run meanwhile.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def return_pages(address: int, size: int) -> None:
    """Whole pages in which nothing lies any more go back to the system, which gives new ones when they are written.

    What is there then is not defined. Nothing happens on Windows, or where the system refuses.
    """
    if sys.platform not in _GIVE_BACK:
        return
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE - begin
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), _GIVE_BACK[sys.platform])


def return_large_memory(least: int) -> None:
    """From now on, what has `least` bytes or more goes back to the system as soon as it is freed, where that is glibc.

    By itself, glibc keeps what it has once seen freed in pieces of up to 32 MiB, and holes make that grow.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, least)


def keep_freed_memory(most: int) -> None:
    """From now on, up to `most` bytes stay when they are freed, where that is glibc; that is 32 MiB at most.

    Memory that is got anew for each product of a prompt costs a fault for every page, and a fifth of the time.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, most)
        library.mallopt(_TRIM_THRESHOLD, 2 * most)
