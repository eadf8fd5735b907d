"""Layers of equal size on a given set of nodes with given caps: the best counts. Knows no ring and no order.

One layer each, then the fastest first up to its cap; for several people also up to a limit on a stage's time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from together.planning.search.instance import EPSILON, Instance
from together.planning.search.limits import best_limits, count_under

Stages = list[tuple[float, float, int]]  # ms per layer, ms per stage, cap; fastest first


@dataclass(frozen=True, slots=True)
class Filled:
    """Score, ms per token, and the limit on a stage's time under which the fill is made."""

    score: float
    token_ms: float
    limit: float


def stages_of(instance: Instance, nodes: list[int], ends: tuple[int | None, int] | None = None) -> Stages:
    """What `fill` needs of these nodes, which are in order of `speed_order`; with the first and the last of them.

    Without ends, as if nobody had to be first or last.
    """
    if ends is None:
        return [(instance.speeds[i], instance.fixed[i], instance.cap(i, 0)) for i in nodes]
    first, last = ends
    return [
        (
            instance.speeds[i],
            (instance.closing if i == last else instance.fixed)[i],
            instance.cap(i, instance.ends_bytes(i == first, i == last)),
        )
        for i in nodes
    ]


def fill(instance: Instance, stages: Stages, ring_ms: float, bound: float = inf) -> Filled | None:
    """The best fill with at least one layer each; None where nothing fits or nothing reaches `bound`.

    There must not be more stages than layers.
    """
    users, layers = instance.users, instance.layers
    bound *= 1 + EPSILON
    total, slowest = _filled(stages, layers, inf)
    token = total + ring_ms
    if token == inf or token / users > bound:
        return None
    if slowest <= token / users:
        return Filled(token / users, token, inf)
    if bound < slowest and (_filled(stages, layers, bound)[0] + ring_ms) / users > bound:
        return None
    return _balanced(instance, stages, ring_ms, token, slowest)


def _balanced(instance: Instance, stages: Stages, ring_ms: float, free_ms: float, slowest: float) -> Filled:
    best = Filled(inf, inf, inf)

    def token_ms(limit: float) -> float:
        return _filled(stages, instance.layers, limit)[0] + ring_ms

    for limit in best_limits(instance.limits, instance.users, token_ms, free_ms, slowest):
        total, longest = _filled(stages, instance.layers, limit)
        score = max((total + ring_ms) / instance.users, longest)
        if best.score == inf or score < best.score * (1 - EPSILON):
            best = Filled(score, total + ring_ms, limit)
    return best


def _filled(stages: Stages, layers: int, limit: float) -> tuple[float, float]:
    """Stage times in all, and the longest, both infinite where the layers do not fit."""
    left = layers - len(stages)
    total = longest = 0.0
    for speed, fixed, cap in stages:
        if fixed + cap * speed > limit:
            cap = count_under(speed, fixed, cap, limit)
        if cap < 1:
            return inf, inf
        take = cap if cap <= left + 1 else left + 1
        left -= take - 1
        time = fixed + take * speed
        total += time
        if time > longest:
            longest = time
    return (inf, inf) if left else (total, longest)


def counts_of(stages: Stages, layers: int, limit: float) -> list[int]:
    """The counts behind a `Filled`, in the order of `stages`; nodes of one speed share alike, which costs no time."""
    caps = [count_under(speed, fixed, cap, limit) for speed, fixed, cap in stages]
    left, counts = layers - len(stages), []
    for cap in caps:
        counts.append(min(cap, left + 1))
        left -= counts[-1] - 1
    assert left == 0, "counts of a fill that does not exist"
    for speed in {stage[0] for stage in stages}:
        _even(stages, caps, counts, [i for i, stage in enumerate(stages) if stage[0] == speed])
    return counts


def _even(stages: Stages, caps: list[int], counts: list[int], alike: list[int]) -> None:
    """Deal the layers of these stages out anew: the next one to who would be done first."""
    total = sum(counts[i] for i in alike)
    for i in alike:
        counts[i] = 1
    for _ in range(total - len(alike)):
        free = [i for i in alike if counts[i] < caps[i]]
        counts[min(free, key=lambda i: (stages[i][1] + counts[i] * stages[i][0], i))] += 1


def speed_order(instance: Instance, nodes: list[int]) -> list[int]:
    """Fastest per layer first; among equals by their place."""
    return sorted(nodes, key=lambda i: (instance.speeds[i], i))
