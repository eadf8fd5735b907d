"""A stage process that waits for its orders: it has imported what stages of its backend need, and holds no weights."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass

from pydantic_core import to_json

from backends.base import warm
from together.jsonfile import decode_json

GENTLY = 10  # how nice the thread is that imports


@dataclass(frozen=True, slots=True)
class Warm:
    """What a node tells a stage process that has no orders yet: a line of JSON, before the line of its Launch."""

    warm: str  # a backend

    def line(self) -> bytes:
        return to_json(self) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Warm | None:
        """None for a line that is something else."""
        try:
            return decode_json(line, cls)
        except ValueError:
            return None


def orders() -> bytes:
    """The line of the Launch; what is told before it is done meanwhile. Without orders this process ends."""
    line = sys.stdin.buffer.readline()
    told = Warm.parse(line)
    if told is None:
        return line
    warming = threading.Thread(target=_warm, args=(told.warm,), daemon=True)
    warming.start()
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(0)
    warming.join()  # two threads that import the same modules may see half of one
    return line


def _warm(backend: str) -> None:
    """Stages and others go first, where a thread can have less of a processor than its process."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), GENTLY)
    warm(backend)
