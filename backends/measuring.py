"""How backends time themselves: actions in turns, warm, the fastest; how much memory may be used.

Knows no framework, and not who else uses the machine: that is counted around it (together/cluster/measure.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import psutil

from together.errors import NotEnoughMemory
from together.wording import sizes_text

LEAST_TURNS = 3
AGREED = 1.05  # an action's two fastest turns so near each other were disturbed by nobody
PATIENCE = 3  # times as long is gone on where they are not
SPAN_BYTES = 512 * 2**20  # layers are timed in a circle of this size: a pass over it finds nothing in a cache
HEAD_BYTES = 2**30  # a larger LM head is timed by a part of it
SHARE = 4  # no more than this part of the free memory is taken, where that is enough for one layer
SPARE_EXPERTS = 4  # times those that a token uses: enough to go round, and not all of a large model's


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a model is timed: whole layers, and rows of the LM head."""

    layers: int
    vocabulary: int


def extent(name: str, layers: int, layer_bytes: int, vocabulary: int, row_bytes: int, free_bytes: int) -> Extent:
    """What to make up for timing a model of `layers` layers. Raises NotEnoughMemory where not even one layer fits."""
    rows = min(vocabulary, max(HEAD_BYTES // row_bytes, 1))
    needed = layer_bytes + rows * row_bytes
    if needed > free_bytes:
        need, free = sizes_text(needed, free_bytes)
        raise NotEnoughMemory(
            f"{name} cannot be measured here: one layer and the LM head need {need} and {free} are free; "
            "close other programs or unload what is loaded"
        )
    wanted = -(-SPAN_BYTES // layer_bytes)
    room = (free_bytes // SHARE - rows * row_bytes) // layer_bytes
    return Extent(max(1, min(layers, max(wanted, 2), room)), rows)


def experts_to_time(experts: int, used: int) -> int:
    """How many of a layer's experts are made up, where a token uses `used` of them: time goes by those."""
    return min(experts, SPARE_EXPERTS * used)


def fastest(*actions: Callable[[], object], seconds: float) -> tuple[float, ...]:
    """Seconds that each action takes, warm: its fastest turn, as what others do on the machine only ever adds.

    In turns, so that a slow moment hits all; `seconds` for all together, and longer where no two turns agree.
    """
    for action in actions:
        action()
    turns: list[tuple[float, ...]] = []
    began = perf_counter()
    while len(turns) < LEAST_TURNS or perf_counter() - began < seconds * (1 if _agree(turns) else PATIENCE):
        turns.append(tuple(_timed(action) for action in actions))
    return tuple(min(times) for times in zip(*turns, strict=True))


def _agree(turns: list[tuple[float, ...]]) -> bool:
    pairs = (sorted(times)[:2] for times in zip(*turns, strict=True))
    return all(second <= AGREED * first for first, second in pairs)


def _timed(action: Callable[[], object]) -> float:
    began = perf_counter()
    action()
    return perf_counter() - began


def resident_bytes() -> int:
    """What this process takes of the machine's memory now."""
    return int(psutil.Process().memory_info().rss)
