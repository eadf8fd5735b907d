"""The exact best plan for up to 8 nodes where layers differ in size: a dynamic programme over sets, ends and layers.

A state is (set of nodes used, the last of them, the first of them, layers taken), its value the ms so far. One sweep
gives the lowest token time under a limit on a stage's time, for every number of machines at once. Knows no sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import inf

import numpy as np
from numpy.typing import NDArray

from together.planning.search.instance import EPSILON, Choice, Instance, choice_of
from together.planning.search.limits import best_limits
from together.planning.search.rings import ring_ms
from together.planning.search.windows import Windows

Floats = NDArray[np.float64]
Sets = NDArray[np.intp]
Members = NDArray[np.intp]  # [sets, nodes in each]


class Ordered:
    """Sweeps over one instance."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.count = len(instance.names)
        self.hops = np.array(instance.hops, dtype=np.float64).reshape(self.count, self.count)
        self.windows = Windows(instance)
        self.largest = min(len(instance.able), instance.layers)
        self.steps = [self._step(node, size) for size in range(2, self.largest + 1) for node in instance.able]
        # What no sweep writes (a last or first node outside the set, one that is both) stays infinite for all of them.
        self.value: Floats = np.full((1 << self.count, self.count, self.count, instance.layers + 1), inf)

    def _step(self, node: int, size: int) -> _Step:
        """All sets of other nodes that `node` can follow to make one of this size."""
        chosen = combinations([other for other in self.instance.able if other != node], size - 1)
        members = np.array(list(chosen), dtype=np.intp).reshape(-1, size - 1)
        sets = np.sum(1 << members, axis=1)
        ascending = np.argsort(sets)  # of equal plans the first found is taken
        return _Step(node, size, sets[ascending], members[ascending])

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
        free = best = self._under(inf, sizes)
        if free is None:
            return None
        plans: dict[float, Choice | None] = {}

        def token_ms(limit: float) -> float:
            plan = plans[limit] = self._under(limit, sizes)
            return plan.token_ms if plan else inf

        users, slowest, least = self.instance.users, free.slowest_ms, self.instance.least_limit
        for limit in best_limits(self.instance.limits, users, token_ms, free.token_ms, slowest, least):
            if limit < slowest and limit not in plans:
                token_ms(limit)
            found = plans[limit] if limit < slowest else free
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


@dataclass(frozen=True, slots=True)
class _Step:
    """Letting `node` come last: in which sets without it, and who is in these, so that sets become of this size."""

    node: int
    size: int
    sets: Sets
    members: Members


class _Sweep:
    """All states under one limit. `value[set, last, first, layers]`, `best[size]` the cheapest end.

    The values lie in the search's one array: the next sweep writes over them.
    """

    def __init__(self, search: Ordered, limit: float, largest: int) -> None:
        self.search, self.instance, self.windows = search, search.instance, search.windows
        self.spans = self.windows.spans(limit)
        self.value = search.value
        self.best: dict[int, End] = {}
        self._begin()
        for step in search.steps:
            if step.size <= largest:
                self._extend(step)

    def _begin(self) -> None:
        for node in self.instance.able:
            self.value[1 << node, node, node] = self.windows.first(node, self.spans[node])
            ring = ring_ms(self.instance.hops, self.instance.head, (node,))
            self._end(1, (self.windows.only(node, self.spans[node]) + ring, 1 << node, node, node))

    def _backs(self, step: _Step) -> Floats:
        """`[sets, firsts]` ms from the last stage to the first, by way of the head where that is in no stage."""
        hops, head, last = self.search.hops, self.instance.head, step.node
        direct: Floats = hops[last, step.members]
        if head is None or head == last:
            return direct
        inside = (step.sets >> head & 1 == 1)[:, None]
        found: Floats = np.where(inside, direct, hops[last, head] + hops[head, step.members])
        return found

    def _end(self, size: int, end: End) -> None:
        if end[0] < inf and (size not in self.best or end[0] < self.best[size][0] * (1 - EPSILON)):
            self.best[size] = end

    def _extend(self, step: _Step) -> None:
        node, sets, members = step.node, step.sets, step.members
        before = self.value[sets[:, None, None], members[:, :, None], members[:, None, :]]
        before += self.search.hops[members, node][:, :, None, None]
        arriving: Floats = before.min(axis=1)  # [sets, firsts, layers + 1]
        totals = self.windows.last(node, self.spans[node], arriving) + self._backs(step)  # [sets, firsts]
        row, column = np.unravel_index(int(totals.argmin()), totals.shape)
        whole = sets | 1 << node
        self._end(step.size, (float(totals[row, column]), int(whole[row]), node, int(members[row, column])))
        self.value[whole[:, None], node, members] = self.windows.middle(node, self.spans[node], arriving)

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
