"""The search for the best limit on a stage's time, with whatever finds the lowest token time under a limit. Pure.

With m people at once the score is max(D/m, B). D falls and B rises with the limit, so the best is where they meet.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from math import inf


def count_under(speed: float, fixed: float, most: int, limit: float) -> int:
    """How many layers a stage runs within `limit` ms, at most `most`, by the rounding of fixed + count × speed."""
    if fixed + most * speed <= limit:
        return most
    if fixed > limit:
        return 0
    count = int((limit - fixed) / speed)
    while fixed + count * speed > limit:
        count -= 1
    while fixed + (count + 1) * speed <= limit:
        count += 1
    return count


def best_limits(
    limits: list[float],
    users: int,
    token_ms: Callable[[float], float],
    free_ms: float,
    slowest_ms: float,
    least_ms: float = 0.0,
) -> list[float]:
    """The two limits of which one is the best: the lowest with D/m within it, and the one before.

    `limits` are sorted and hold every time a stage can take; `token_ms(limit)` is the lowest D with no stage over the
    limit (infinite: impossible); without a limit it is the finite `free_ms`, with a slowest stage of `slowest_ms`.
    Nothing is possible under `least_ms`.
    """
    low = bisect_left(limits, max(free_ms / users, least_ms)) - 1  # these are below D/m
    high = min(bisect_left(limits, slowest_ms), len(limits) - 1)
    if slowest_ms <= free_ms / users:
        return [limits[high]]
    middle = low + 1  # first the lowest one: with many people it is often the best
    while high - low > 1:
        time = token_ms(limits[middle])
        if time / users <= limits[middle]:
            high = middle
            low = max(low, bisect_left(limits, time / users) - 1)
        else:
            low = middle
            if time < inf:
                high = min(high, bisect_left(limits, time / users))
        middle = (low + high) // 2
    return [limits[index] for index in (high, low) if index >= 0]
