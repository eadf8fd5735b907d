"""The search for the best limit on a stage's time, with whatever finds the lowest token time under a limit. Pure.

With m people at once the score is max(D/m, B). D falls and B rises with the limit, so the best is where they meet.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from math import inf


def best_limits(limits: list[float], users: int, token_ms: Callable[[float], float], free_ms: float) -> list[float]:
    """The two limits of which one is the best: the lowest with D/m within it, and the one before.

    `limits` are sorted and hold every time a stage can take; `token_ms(limit)` is the lowest D with no stage over the
    limit (infinite: impossible), `free_ms` the finite D without a limit.
    """
    low = bisect_left(limits, free_ms / users) - 1  # these are below D/m
    high = len(limits) - 1
    while high - low > 1:
        middle = (low + high) // 2
        time = token_ms(limits[middle])
        if time / users <= limits[middle]:
            high = middle
            low = max(low, bisect_left(limits, time / users) - 1)
        else:
            low = middle
            if time < inf:
                high = max(min(high, bisect_left(limits, time / users)), low + 1)
    return [limits[index] for index in (high, low) if index >= 0]
