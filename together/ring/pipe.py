"""What a node and its stage process say to each other over the stage's standard streams. Knows neither of them.

One JSON object per line: the node writes one Launch, the stage writes Events. End of file on the stage's input means
that its node is gone or wants it gone.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from typing import BinaryIO, TextIO

from together.cluster_types import StageOrder
from together.ring import wire
from together.types import Fault


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one stage. `ports` are the ones it may listen on; `folder` is where this machine has the model.

    `home` is the app's own folder.
    """

    order: StageOrder
    folder: str
    home: str
    node_name: str
    host: str
    ports: tuple[int, int]

    def line(self) -> bytes:
        values = {
            "order": wire.STAGE_ORDER.encode(self.order).hex(),
            "folder": self.folder,
            "home": self.home,
            "node_name": self.node_name,
            "host": self.host,
            "ports": list(self.ports),
        }
        return json.dumps(values).encode() + b"\n"

    @classmethod
    def read(cls, stream: BinaryIO) -> Launch:
        values = json.loads(stream.readline())
        order = wire.STAGE_ORDER.decode(bytes.fromhex(values["order"]))
        first, last = values["ports"]
        return cls(order, values["folder"], values["home"], values["node_name"], values["host"], (first, last))


@dataclass(frozen=True, slots=True)
class StageEvent:
    """What a stage reports; which fields count depends on `kind`."""

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
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def parse(cls, line: bytes) -> StageEvent | None:
        """None for a line that is not an event: some library printed it."""
        try:
            event = cls(**json.loads(line))
            return replace(event, fault=Fault(event.fault))
        except (ValueError, TypeError):
            return None


def claim_stdout() -> TextIO:
    """The real standard output for events; what libraries print goes to standard error from now on."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return own
