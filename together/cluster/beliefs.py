"""What a head believes about devices that ran out of memory: plans use less of them, for a while. Knows no plan."""

from __future__ import annotations

import asyncio
import math
import shlex
from dataclasses import dataclass, field

from together.cluster.membership import Membership
from together.errors import BadPlan
from together.sentences import Sentence, say
from together.types import StagePlan
from together.view import MemoryLimit

LESS_MEMORY = 0.9  # of what a device ran out of memory with is what it is trusted with
LIFE = 600.0  # seconds; what took the memory then, another program perhaps, may be gone


@dataclass(frozen=True, slots=True)
class Belief:
    """A stage of `asked` bytes ran out of memory, at event loop time `at`."""

    name: str  # of the node
    run: str  # of the node
    asked: int
    usable: int
    cause: str | Sentence
    at: float


@dataclass(slots=True)
class Beliefs:
    """By place, (node id, device). One ends after LIFE, when its node starts again, or by `forget`."""

    membership: Membership
    _held: dict[tuple[str, str], Belief] = field(default_factory=dict)

    def learn(self, stage: StagePlan, cause: str | Sentence) -> bool:
        """A stage ran out of memory. Whether that is news: its device is trusted with less than before."""
        self._expire()
        place, node = (stage.node, f"{stage.backend}/{stage.device}"), self.membership.status(stage.node)
        usable, known = int(stage.memory_bytes * LESS_MEMORY), self._held.get(place)
        name, run = (node.name, node.run) if node else (stage.node, "")
        least = min(usable, known.usable) if known else usable
        self._held[place] = Belief(name, run, stage.memory_bytes, least, cause, _now())
        self.membership.changed.notify()
        return known is None or least < known.usable

    def usable(self, node: str, device: str) -> float:
        """The most bytes of a device that plans may use; infinity where nothing is known against it."""
        self._expire()
        belief = self._held.get((node, device))
        return math.inf if belief is None else belief.usable

    def forget(self, name: str) -> None:
        """All of a node, by name or id. Raises BadPlan where nothing is believed about one of that name."""
        self._expire()
        gone = [place for place, belief in self._held.items() if name in (belief.name, place[0])]
        if not gone:
            known = ", ".join(sorted({belief.name for belief in self._held.values()})) or "none"
            raise BadPlan(f"no node {name} is given less for lack of memory; those that are: {known}")
        for place in gone:
            del self._held[place]
        self.membership.changed.notify()

    def shown(self) -> tuple[MemoryLimit, ...]:
        self._expire()
        return tuple(_shown(place, belief) for place, belief in sorted(self._held.items()))

    def _expire(self) -> None:
        for (node, device), belief in list(self._held.items()):
            status = self.membership.status(node)
            again = status is not None and status.run != belief.run
            if again or _now() - belief.at >= LIFE:
                del self._held[node, device]


def _shown(place: tuple[str, str], belief: Belief) -> MemoryLimit:
    node, device = place
    seconds = max(belief.at + LIFE - _now(), 0.0)
    text = say(
        "memory_limit",
        node=belief.name,
        sizes=(belief.asked, belief.usable),
        device=device,
        cause=belief.cause,
        minutes=math.ceil(seconds / 60),
        quoted=shlex.quote(belief.name),
    )
    return MemoryLimit(node, belief.name, device, belief.usable, seconds, text)


def _now() -> float:
    return asyncio.get_running_loop().time()
