"""The messages between a node and its stage process, on the stage's standard streams.

Each is a JSON object on a line: the node writes one Launch, the stage writes StageEvents. When its input ends, the
stage's node is gone or wants it to end.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import BinaryIO, TextIO

from pydantic import TypeAdapter

from together.cluster_types import StageOrder
from together.types import Fault


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one stage. `ports` are the first and last that it may listen on.

    `folder` is where this machine has the model, `home` the app's own folder.
    """

    order: StageOrder
    folder: str
    home: str
    node_name: str
    host: str
    ports: tuple[int, int]

    def line(self) -> bytes:
        return _LAUNCH.dump_json(self) + b"\n"

    @classmethod
    def read(cls, stream: BinaryIO) -> Launch:
        return _LAUNCH.validate_json(stream.readline())


@dataclass(frozen=True, slots=True)
class StageEvent:
    """A stage's report. Which fields count depends on `kind`."""

    kind: str  # "progress", "ready", "broken" (a link; the stage lives), "failed" (it cannot start)
    progress: float = 0.0
    cause: str = ""
    port: int = 0
    capacity: int = 0
    block: int = 1
    rewind: int | None = None
    epoch: int = -1
    fault: Fault = Fault.OTHER

    def line(self) -> str:
        return _EVENT.dump_json(self).decode() + "\n"

    @classmethod
    def parse(cls, line: bytes) -> StageEvent | None:
        """None for a line that is not an event: some library printed it."""
        try:
            return _EVENT.validate_json(line, strict=True)
        except ValueError:
            return None


_LAUNCH, _EVENT = TypeAdapter(Launch), TypeAdapter(StageEvent)


def claim_stdout() -> TextIO:
    """Keep standard output for events; what libraries print goes to standard error from now on."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return own
