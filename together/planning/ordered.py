"""The exact best plan for up to 8 nodes where layers differ in size: a dynamic programme over sets, ends and layers.

A state is (set of nodes used, the last of them, the first of them, layers taken), its value the ms so far. One sweep
gives the lowest token time under a limit on a stage's time, for every number of machines at once. Knows no sentence.
"""

from __future__ import annotations

from math import inf

import numpy as np
from numpy.typing import NDArray

from together.planning.instance import EPSILON, Choice, Instance, choice_of
from together.planning.limits import best_limits
from together.planning.rings import ring_ms
from together.planning.windows import Windows

Floats = NDArray[np.float64]
Sets = NDArray[np.intp]


class Ordered:
    """Sweeps over one instance."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.count = len(instance.names)
        self.hops = np.array(instance.hops, dtype=np.float64).reshape(self.count, self.count)
        self.windows = Windows(instance)
        masks = np.arange(1 << self.count)
        self.sizes = np.array([int(mask).bit_count() for mask in masks])
        self.largest = min(len(instance.able), instance.layers)

    def best(self) -> Choice | None:
        """The best plan; of those within the tolerance, the best of the fewest machines."""
        best = self._search(range(1, self.largest + 1))
        if best is None or self.instance.tolerance == 0:
            return best
        bound = best.score * (1 + self.instance.tolerance + EPSILON)
        for size, token in sorted(self._lowest(bound, len(best.order) - 1).items()):
            if token / self.instance.users <= bound:
                return self.exactly(size)
        return best

    def exactly(self, size: int) -> Choice | None:
        """The best plan of so many machines."""
        return self._search(range(size, size + 1)) if size <= self.largest else None

    def _search(self, sizes: range) -> Choice | None:
        """The best plan of these sizes."""

        def token_ms(limit: float) -> float:
            found = self._lowest(limit, sizes[-1])
            return min((found[size] for size in sizes if size in found), default=inf)

        free = best = self._under(inf, sizes)
        if free is None:
            return None
        users, slowest, least = self.instance.users, free.slowest_ms, self.instance.least_limit
        for limit in best_limits(self.instance.limits, users, token_ms, free.token_ms, slowest, least):
            found = self._under(limit, sizes) if limit < slowest else free
            best = found if found and found.beats(best) else best
        return best

    def _under(self, limit: float, sizes: range) -> Choice | None:
        """The plan of these sizes with the lowest token time under a limit."""
        sweep = _Sweep(self, limit, sizes[-1])
        found = [sweep.best[size] for size in sizes if size in sweep.best]
        if not found:
            return None
        order, counts = sweep.trace(min(found))
        return choice_of(self.instance, order, counts, ring_ms(self.instance.hops, self.instance.head, order))

    def _lowest(self, limit: float, largest: int) -> dict[int, float]:
        """By number of machines, the lowest token time."""
        return {size: found[0] for size, found in _Sweep(self, limit, largest).best.items()}


End = tuple[float, int, int, int]  # token ms, set, last node, first node


class _Sweep:
    """All states under one limit. `value[set, last, first, layers]`, `best[size]` the cheapest end."""

    def __init__(self, search: Ordered, limit: float, largest: int) -> None:
        self.search, self.instance, self.windows = search, search.instance, search.windows
        self.spans = self.windows.spans(limit)
        count, layers = search.count, self.instance.layers
        self.value: Floats = np.full((1 << count, count, count, layers + 1), inf)
        self.best: dict[int, End] = {}
        self._begin()
        for size in range(2, largest + 1):
            for node in self.instance.able:
                self._extend(node, size)

    def _begin(self) -> None:
        for node in self.instance.able:
            self.value[1 << node, node, node] = self.windows.first(node, self.spans[node])
            ring = ring_ms(self.instance.hops, self.instance.head, (node,))
            self._end(1, (self.windows.only(node, self.spans[node]) + ring, 1 << node, node, node))

    def _backs(self, last: int, sets: Sets) -> Floats:
        """`[sets, firsts]` ms from the last stage to the first, by way of the head where that is not in the set."""
        hops, head = self.search.hops, self.instance.head
        if head is None:
            return np.broadcast_to(hops[last], (len(sets), len(hops)))
        inside = (sets >> head & 1 == 1)[:, None]
        found: Floats = np.where(inside, hops[last], hops[last, head] + hops[head])
        return found

    def _end(self, size: int, end: End) -> None:
        if end[0] < inf and (size not in self.best or end[0] < self.best[size][0] * (1 - EPSILON)):
            self.best[size] = end

    def _extend(self, node: int, size: int) -> None:
        """Let `node` come last in all sets of this size."""
        sets = np.flatnonzero((self.search.sizes == size) & (np.arange(1 << self.search.count) >> node & 1 == 1))
        before = self.value[sets ^ (1 << node)] + self.search.hops[:, node][None, :, None, None]
        arriving: Floats = before.min(axis=1)  # [sets, firsts, layers + 1]
        ends = self.windows.last(node, self.spans[node], arriving)  # [sets, firsts]
        totals = ends + self._backs(node, sets)
        place = np.unravel_index(int(totals.argmin()), totals.shape)
        self._end(size, (float(totals[place]), int(sets[place[0]]), node, int(place[1])))
        self.value[sets, node] = self.windows.middle(node, self.spans[node], arriving)

    def trace(self, end: End) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Order and counts of the plan behind an end."""
        _, mask, node, first = end
        stop, order, counts = self.instance.layers, [node], []
        while mask != 1 << node:
            mask ^= 1 << node
            arriving = self.value[mask, :, first] + self.search.hops[:, node, None]  # [nodes, layers + 1]
            previous, start = self.windows.back(node, self.spans[node], arriving, stop)
            counts.append(stop - start)
            node, stop = previous, start
            order.append(node)
        return tuple(reversed(order)), (stop, *reversed(counts))
