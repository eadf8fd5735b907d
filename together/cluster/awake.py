"""Keeps this machine from falling asleep while it has work. One interface for all systems; where none helps, nothing.

A machine that a person puts to sleep, by its lid for example, does sleep.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from together.processes import end, surroundings

log = logging.getLogger(__name__)

GRACE = 30.0  # seconds that it stays awake after its last work: the next question may come
# Each holds the system awake as long as the command behind it runs: `cat` ends when its input does, so also with us.
PROGRAMS = {
    "darwin": (("caffeinate", "-i"),),
    "linux": (
        ("systemd-inhibit", "--what=idle:sleep", "--who=together", "--why=a model answers", "--mode=block"),
        ("systemd-inhibit", "--what=idle", "--who=together", "--why=a model answers", "--mode=block"),  # may be all
    ),
}
_CONTINUOUS, _SYSTEM_REQUIRED = 0x80000000, 0x00000001  # Windows' ES_CONTINUOUS, ES_SYSTEM_REQUIRED


class WakeLock(Protocol):
    """Something that keeps the system awake from `take` to `release`."""

    async def take(self) -> None: ...

    async def release(self) -> None: ...


@dataclass(slots=True)
class ProgramHold:
    """By a program of the system, with the first of `commands` that it lets us use."""

    commands: Sequence[Sequence[str]]
    _process: asyncio.subprocess.Process | None = None
    _refused: int = 0  # of the commands

    @property
    def holds(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def take(self) -> None:
        if self.holds:
            return
        if self._process is not None:  # it left by itself
            log.info("%s keeps nothing awake: it ended with code %s", self._program, self._process.returncode)
            self._refused, self._process = self._refused + 1, None
        program = shutil.which(self._program) if self._refused < len(self.commands) else None
        if program is None:
            return
        given = surroundings() | {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        try:
            self._process = await asyncio.create_subprocess_exec(
                program, *self.commands[self._refused][1:], "cat", **given
            )
        except OSError as error:
            log.info("%s cannot be started: %s", program, error)
            self._refused += 1

    async def release(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await end(process)

    @property
    def _program(self) -> str:
        return self.commands[min(self._refused, len(self.commands) - 1)][0]


@dataclass(slots=True)
class WindowsHold:
    """By the state of the thread that calls, which is the event loop's each time."""

    set_state: Callable[[int], int]

    async def take(self) -> None:
        self.set_state(_CONTINUOUS | _SYSTEM_REQUIRED)

    async def release(self) -> None:
        self.set_state(_CONTINUOUS)


def hold_of(system: str) -> WakeLock | None:
    """What there is on a system; None where nothing is."""
    if system == "win32":
        return WindowsHold(ctypes.windll.kernel32.SetThreadExecutionState)  # type: ignore[attr-defined,unused-ignore]
    return ProgramHold(PROGRAMS[system]) if system in PROGRAMS else None


@dataclass(slots=True)
class Awake:
    """`look` every second or so, `close` at the end; nothing is held while there is no work."""

    hold: WakeLock | None = field(default_factory=lambda: hold_of(sys.platform))
    clock: Callable[[], float] = time.monotonic
    _worked: float | None = None  # when there was work last, while it is held

    async def look(self, working: bool) -> None:
        now = self.clock()
        self._worked = now if working else self._worked
        if self.hold is None or self._worked is None:
            return
        if now - self._worked < GRACE:
            await self.hold.take()
        else:
            await self.close()

    async def close(self) -> None:
        if self.hold is not None and self._worked is not None:
            self._worked = None
            await self.hold.release()
