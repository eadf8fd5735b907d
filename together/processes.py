"""Child processes: starting, reading and ending them, and a process's own memory.

A child ends when its standard input does, which also happens when its parent is killed. Signals are not needed, so this
works on Windows.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
LONGEST_LINE = 2**16  # bytes
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
    """For a child that has read all its orders: end this process at once, in whatever it does, when its input ends."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), LONGEST_LINE):  # not its buffer, whose lock a thread must not hold at the end
            pass
        os._exit(code)

    threading.Thread(target=wait, daemon=True).start()


def stop_with_parent(stop: asyncio.Event) -> None:
    """For a child that cleans up: set `stop` when its input ends."""
    loop = asyncio.get_running_loop()

    def wait() -> None:
        while os.read(sys.stdin.fileno(), LONGEST_LINE):
            pass
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait, daemon=True).start()


def trim_memory() -> None:
    """Return freed memory to the system, where the C library is glibc and keeps it: 700 MB after one long text.

    Takes up to 0.1 s; other threads run meanwhile.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
