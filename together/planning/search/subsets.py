"""The exact best plan for up to 8 nodes where all layers weigh alike: fills every subset of the nodes."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from together.planning.search.instance import (
    EPSILON,
    Candidate,
    SearchProblem,
    beats,
    best_plan,
    choice_of,
    count_under,
)
from together.planning.search.rings import Ring, Rings, ring_ms

Stages = list[tuple[float, float, int]]  # ms per layer, ms per stage, cap; fastest first


class Filled(NamedTuple):
    """Score, ms of a token and of the slowest stage, and the limit on a stage's time under which the fill is made."""

    score: float
    token_ms: float
    slowest_ms: float
    limit: float


def stages_of(instance: SearchProblem, nodes: list[int], ends: tuple[int, int] | None = None) -> Stages:
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


def fill(instance: SearchProblem, stages: Stages, ring_ms: float, bound: float = inf) -> Filled | None:
    """The best fill with at least one layer each; None where nothing fits or nothing reaches `bound`.

    There must not be more stages than layers.
    """
    users = instance.users
    bound *= 1 + EPSILON

    def under(limit: float) -> Filled | None:
        return _filled(stages, instance.layers, users, ring_ms, limit)

    free = under(inf)
    if free is None or free.token_ms / users > bound:
        return None
    if bound < free.slowest_ms and free.score > bound:
        bounded = under(bound)
        if bounded is None or bounded.token_ms / users > bound:
            return None
    return best_plan(instance.limits, users, free, under)


def _filled(stages: Stages, layers: int, users: int, ring_ms: float, limit: float) -> Filled | None:
    """The fill with the lowest token time; None where the layers do not fit."""
    left = layers - len(stages)
    total = slowest = 0.0
    for speed, fixed, cap in stages:
        if fixed + cap * speed > limit:
            cap = count_under(speed, fixed, cap, limit)
        if cap < 1:
            return None
        take = cap if cap <= left + 1 else left + 1
        left -= take - 1
        time = fixed + take * speed
        total += time
        if time > slowest:
            slowest = time
    token = total + ring_ms
    return None if left or token == inf else Filled(max(token / users, slowest), token, slowest, limit)


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


def speed_order(instance: SearchProblem, nodes: list[int]) -> list[int]:
    """Fastest per layer first; among equals by their place."""
    return sorted(nodes, key=lambda i: (instance.speeds[i], i))


class _Found(NamedTuple):
    """The best fill of one subset, and its first and last stage."""

    filled: Filled
    mask: int
    first: int
    last: int


class Subsets:
    """All subsets of an instance's nodes and their rings."""

    def __init__(self, instance: SearchProblem) -> None:
        self.instance = instance
        self.members = sum(1 << i for i in instance.able)
        self._order = speed_order(instance, list(instance.able))
        self._late = tuple(b - a for a, b in zip(instance.fixed, instance.closing, strict=True))
        self._rings = Rings(instance.hops, instance.head, self.members)

    def best(self) -> Candidate | None:
        """The best plan; of those within the tolerance, the best of the fewest machines."""
        sizes = self._best_by_size()
        if not sizes:
            return None
        score = min(found.filled.score for found in sizes.values())
        near = [size for size in sorted(sizes) if sizes[size].filled.score <= score * (1 + self._slack)]
        chosen = sizes[near[0]]
        if self.instance.tolerance == 0:
            for size in near[1:]:
                chosen = sizes[size] if beats(sizes[size].filled, chosen.filled) else chosen
        return self._choice(chosen)

    def exactly(self, nodes: tuple[int, ...]) -> Candidate | None:
        """The best plan that uses all of these nodes; None where there is none."""
        found = self._find(sum(1 << node for node in nodes), inf) if len(nodes) <= self.instance.layers else None
        return None if found is None else self._choice(found)

    @property
    def _slack(self) -> float:
        return self.instance.tolerance + EPSILON

    def _best_by_size(self) -> dict[int, _Found]:
        best: dict[int, _Found] = {}
        lowest = inf
        for mask in self._masks():
            size = mask.bit_count()
            own = best[size].filled.score if size in best else inf
            found = self._find(mask, min(own, lowest * (1 + self._slack)))
            if found and (size not in best or beats(found.filled, best[size].filled)):
                best[size] = found
                lowest = min(lowest, found.filled.score)
        return best

    def _masks(self) -> list[int]:
        masks = [0]
        for node in self.instance.able:
            masks += [mask | 1 << node for mask in masks]
        usable = [mask for mask in masks[1:] if mask.bit_count() <= self.instance.layers]
        return sorted(usable, key=lambda mask: (mask.bit_count(), mask))

    def _find(self, mask: int, bound: float) -> _Found | None:
        """The best of one subset, if it is not worse than `bound`."""
        nodes = [i for i in self._order if mask >> i & 1]
        free, best = stages_of(self.instance, nodes), None
        if fill(self.instance, free, min(self._late[i] for i in nodes), bound) is None:
            return None  # even with no hop and no bytes at the ends
        for ring, first, last in self._pairs(mask):
            relaxed = fill(self.instance, free, ring + self._late[last], bound)
            if relaxed is None:
                break  # later pairs have longer rings
            stages = stages_of(self.instance, nodes, (first, last))
            filled = relaxed if stages == free else fill(self.instance, stages, ring, bound)
            if filled and (best is None or beats(filled, best.filled)):
                best, bound = _Found(filled, mask, first, last), filled.score
        return best

    def _pairs(self, mask: int) -> list[Ring]:
        """The rings to try, shortest first: only those that differ in what the ends hold or how long the last takes."""
        pairs = self._rings.pairs(mask, self._late)
        if self.instance.ends_weigh:
            return pairs
        if not self.instance.last_slower:
            return pairs[:1]
        return list({last: (ms, first, last) for ms, first, last in reversed(pairs)}.values())[::-1]

    def _choice(self, found: _Found) -> Candidate:
        nodes = [i for i in self._order if found.mask >> i & 1]
        stages = stages_of(self.instance, nodes, (found.first, found.last))
        counts = dict(zip(nodes, counts_of(stages, self.instance.layers, found.filled.limit), strict=True))
        order = self._rings.order(found.mask, found.first, found.last)
        ring = ring_ms(self.instance.hops, self.instance.head, order)
        return choice_of(self.instance, order, tuple(counts[node] for node in order), ring)
