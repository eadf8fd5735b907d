"""The exact best plan for up to 8 nodes: a dynamic programme over sets of nodes, with their last and first stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import inf

import numpy as np
from numpy.typing import NDArray

from together.planning.bounds import Bounds
from together.planning.search import EPSILON, Candidate, SearchProblem, best_plan, candidate, differ

Floats = NDArray[np.float64]
ROUNDED = 9  # decimals of a ms: sums in another order are the same time
Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Span:
    """One node under one limit: the window of starts for each stop, in the middle and as the last stage (`last_start`).

    `first` is how many first layers it takes as the first stage, `closing` how many last ones as the last.

    Two stretches of 2**level, from `left` and from `right`, cover the window; where it is empty, `empty` is true.
    """

    most: int
    first: int
    closing: int
    start: Places  # [layers + 1]
    level: Places
    right: Places
    empty: NDArray[np.bool_]
    last_start: int


class Windows:
    """Costs of the stages of one instance."""

    def __init__(self, instance: SearchProblem) -> None:
        self.instance = instance
        self.stops = np.arange(instance.layers + 1)
        self.prefixes = [np.array(held.prefix) for held in instance.held]
        self.times = [speed.prefix for speed in instance.speeds]
        self._never = [*instance.joined, instance.layers]  # where no stage but the last may end
        self._levels = np.frexp(np.maximum(self.stops, 1))[1] - 1  # the largest power of two within a width
        count = len(instance.names)
        self._starts = [self._earliest(i, self.prefixes[i]) for i in range(count)]
        wholes = [self.prefixes[i][-1:] + instance.held[i].tail for i in range(count)]
        self._last_starts = [int(self._earliest(i, wholes[i])[0]) for i in range(count)]

    def _earliest(self, node: int, stops: Floats) -> Places:
        """For each stop, in bytes, the first layer from which on everything up to it fits on the node."""
        prefix = self.prefixes[node]
        found: Places = np.searchsorted(prefix, stops - self.instance.room[node], side="left")
        return np.minimum(found, len(prefix) - 1)

    def most(self, node: int) -> tuple[int, int, int]:
        """How many layers its memory holds as the first stage, as an inner one and as the last one."""
        fits = self.prefixes[node] + self.instance.held[node].embed <= self.instance.room[node]
        inner = int((self.stops - self._starts[node]).max())
        return int(self.stops[fits].max(initial=0)), inner, self.instance.layers - self._last_starts[node]

    def spans(self, limit: float) -> list[Span]:
        found = []
        for node in range(len(self.instance.names)):
            most = self.instance.count_under(node, limit)
            speed, fixed = self.instance.speeds[node], self.instance.fixed[node]
            start = np.minimum(np.maximum(self._starts[node], self.stops - most), self.stops)
            first = most
            if speed.each:
                start = np.maximum(start, speed.starts_under(fixed, limit))
                first = speed.first_under(fixed, most, limit)
            width = self.stops - start
            level = self._levels[width]
            right = np.maximum(self.stops - (1 << level), 0)
            closing = self.instance.count_closing(node, limit)
            last = min(max(self._last_starts[node], self.instance.layers - closing), self.instance.layers)
            found.append(Span(most, first, closing, start, level, right, width == 0, last))
        return found

    def first(self, node: int, span: Span) -> Floats:
        """`[layers + 1]` ms of [0, l) on the first stage; infinite for none, for all, and where they do not fit."""
        needed = self.prefixes[node] + self.instance.held[node].embed
        fits = (self.stops <= span.first) & (needed <= self.instance.room[node])
        costs: Floats = np.where(fits, self.instance.fixed[node] + self.times[node], inf)
        costs[0] = inf
        costs[self._never] = inf
        return costs

    def only(self, node: int, span: Span) -> float:
        """ms of all layers on one node."""
        instance = self.instance
        if instance.layers > span.closing or not instance.holds_all(node):
            return inf
        return instance.closing[node] + instance.speeds[node].between(0, instance.layers)

    def middle(self, node: int, span: Span, arriving: Floats) -> Floats:
        """`[..., layers + 1]` costs of having taken l layers, from the costs before this node's stage."""
        times = self.times[node]
        lowest = _window_minimum(arriving - times, span)
        costs: Floats = lowest + (self.instance.fixed[node] + times)
        costs[..., self._never] = inf
        return costs

    def last(self, node: int, span: Span, arriving: Floats) -> Floats:
        """`[...]` costs with this node as the last stage."""
        if span.last_start >= self.instance.layers:
            return np.full(arriving.shape[:-1], inf)
        return self._costs(node, span.last_start, self.instance.layers, arriving).min(axis=-1)  # type: ignore[no-any-return]

    def back(self, node: int, span: Span, arriving: Floats, stop: int) -> tuple[int, int]:
        """From which row of `arriving`, and from which layer, the cheapest stage of `node` up to `stop` came."""
        start = span.last_start if stop == self.instance.layers else int(span.start[stop])
        costs = self._costs(node, start, stop, arriving)
        row, layer = np.unravel_index(int(costs.argmin()), costs.shape)
        return int(row), start + int(layer)

    def _costs(self, node: int, start: int, stop: int, arriving: Floats) -> Floats:
        """`[..., stop - start]` costs up to `stop` for each layer with which the node's stage may begin."""
        instance = self.instance
        fixed = (instance.closing if stop == instance.layers else instance.fixed)[node]
        times = self.times[node]
        costs: Floats = arriving[..., start:stop] + (fixed + (times[stop] - times[start:stop]))
        return costs


def _window_minimum(values: Floats, span: Span) -> Floats:
    """`[..., layers + 1]`: the least value in each stop's window, infinite where it is empty; by doubling widths."""
    flat = values.reshape(-1, values.shape[-1])
    levels = int(span.level.max()) + 1
    minima: Floats = np.empty((levels, *flat.shape))
    minima[0] = flat
    for level in range(1, levels):
        half = 1 << (level - 1)  # what lies beyond the end is never read
        np.minimum(minima[level - 1, :, :-half], minima[level - 1, :, half:], out=minima[level, :, :-half])
    found: Floats = np.minimum(minima[span.level, :, span.start], minima[span.level, :, span.right])
    found[span.empty] = inf
    return found.T.reshape(values.shape)


Sets = NDArray[np.intp]
Members = NDArray[np.intp]  # [sets, nodes in each]


class Ordered:
    """Sweeps over one instance."""

    def __init__(self, instance: SearchProblem) -> None:
        self.instance = instance
        self.count = len(instance.names)
        self.hops = np.array(instance.hops, dtype=np.float64).reshape(self.count, self.count)
        self.windows = Windows(instance)
        self.bounds = Bounds(instance, {node: self.windows.most(node) for node in instance.able})
        self.largest = min(len(instance.able), instance.layers)
        # Of equal plans of the same nodes the first found is taken: the head's machine begins, a late one ends.
        last = instance.able[::-1]
        self.steps = [self._step(node, size) for size in range(2, self.largest + 1) for node in last]
        # What no sweep writes (a last or first node outside the set, one that is both) stays infinite for all of them.
        self.value: Floats = np.full((1 << self.count, self.count, self.count, instance.layers + 1), inf)

    def _step(self, node: int, size: int) -> _Step:
        """All sets of other nodes that `node` can follow to make one of this size."""
        chosen = combinations([other for other in self.instance.able if other != node], size - 1)
        members = np.array(list(chosen), dtype=np.intp).reshape(-1, size - 1)
        sets = np.sum(1 << members, axis=1)
        ascending = np.argsort(sets)
        return _Step(node, size, sets[ascending], members[ascending])

    @cached_property
    def best(self) -> Candidate | None:
        """The best plan of any number of machines."""
        return self._search(range(1, self.largest + 1))

    def fewest(self, best: float) -> Candidate | None:
        """Of the plans within the tolerance of a score the best of the fewest machines; None where there is none."""
        bound = best * (1 + self.instance.tolerance + EPSILON)
        if self.best is None or self.best.score > bound:
            return None
        if self.instance.tolerance == 0:
            return self.best
        for size, token in sorted(self._lowest(bound, len(self.best.order) - 1).items()):
            if token / self.instance.frames <= bound:
                return self.exactly(size)
        return self.best

    @cached_property
    def _free(self) -> dict[int, tuple[End, Candidate]]:
        """By number of machines, the lowest token time without a limit, and its plan."""
        sweep = _Sweep(self, inf, range(1, self.largest + 1))
        return {size: (end, candidate(self.instance, *sweep.trace(end))) for size, end in sweep.best.items()}

    def exactly(self, size: int) -> Candidate | None:
        """The best plan of `size` machines."""
        return self._search(range(size, size + 1)) if size <= self.largest else None

    def _search(self, sizes: range) -> Candidate | None:
        """The best plan of these sizes."""
        found = {size: end for size, (end, _) in self._free.items() if size in sizes}
        if not found:
            return None
        _, free = self._free[_cheapest(found)]
        least = self.bounds.least_limit(sizes[-1])
        return best_plan(self.instance, free, lambda limit: self._under(limit, sizes), least)

    def _under(self, limit: float, sizes: range) -> Candidate | None:
        """The plan of these sizes with the lowest token time under a limit."""
        sweep = _Sweep(self, limit, sizes)
        found = {size: end for size, end in sweep.best.items() if size in sizes}
        return candidate(self.instance, *sweep.trace(found[_cheapest(found)])) if found else None

    def _lowest(self, limit: float, largest: int) -> dict[int, float]:
        """By number of machines, the lowest token time."""
        return {size: found[0] for size, found in _Sweep(self, limit, range(1, max(largest, 1) + 1)).best.items()}


End = tuple[float, int, int, int]  # token ms, set, last node, first node


def _cheapest(ends: Mapping[int, End]) -> int:
    """The size whose end takes the least time; of equal ones the smallest."""
    best, *others = sorted(ends)
    for size in others:
        best = size if ends[size][0] < ends[best][0] * (1 - EPSILON) else best
    return best


@dataclass(frozen=True, slots=True)
class _Step:
    """Appending `node` to `sets` without it, whose `members` are listed; the new sets have `size` nodes."""

    node: int
    size: int
    sets: Sets
    members: Members

    @property
    def wholes(self) -> Sets:
        return self.sets | 1 << self.node

    def within(self, hopeful: NDArray[np.bool_]) -> _Step:
        """Only what leads to these sets."""
        kept = hopeful[self.wholes]
        return self if kept.all() else _Step(self.node, self.size, self.sets[kept], self.members[kept])


class _Sweep:
    """All states under one limit. `value[set, last, first, layers]`, `best[size]` the cheapest end.

    The values lie in the search's one array: the next sweep writes over them.
    """

    def __init__(self, search: Ordered, limit: float, sizes: range) -> None:
        self.search, self.instance, self.windows = search, search.instance, search.windows
        self.sizes, self.spans = sizes, self.windows.spans(limit)
        self.hopeful = search.bounds.hopeful(sizes[-1], limit)
        self.value = search.value
        self.best: dict[int, End] = {}
        self._begin()
        for step in search.steps:
            if step.size <= sizes[-1]:
                self._extend(step.within(self.hopeful))

    def _begin(self) -> None:
        for node in self.instance.able:
            self.value[1 << node, node, node] = self.windows.first(node, self.spans[node])
            ring = self.instance.ring_ms((node,))
            self._end(1, (self.windows.only(node, self.spans[node]) + ring, 1 << node, node, node))

    def _backs(self, step: _Step) -> Floats:
        """`[sets, firsts]` ms from the last stage to the first, by way of the head where that is in no stage."""
        hops, head, last = self.search.hops, self.instance.head, step.node
        direct: Floats = hops[last, step.members] + self.instance.head_ms
        if head is None or head == last:
            return direct
        inside = (step.sets >> head & 1 == 1)[:, None]
        around: Floats = hops[last, head] + hops[head, step.members] + self.instance.head_ms
        found: Floats = np.where(inside, direct, around)
        return found

    def _end(self, size: int, end: End) -> None:
        """Of equal plans keep that with the earlier nodes."""
        best = self.best.get(size, (inf, 0, 0, 0))
        same = not differ(end[0], best[0])
        if end[0] < inf and (end[1] < best[1] if same else end[0] < best[0]):
            self.best[size] = end

    def _extend(self, step: _Step) -> None:
        node, sets, members = step.node, step.sets, step.members
        if not len(sets):
            return
        before = self.value[sets[:, None, None], members[:, :, None], members[:, None, :]]
        before += self.search.hops[members, node][:, :, None, None]
        arriving: Floats = before.min(axis=1)  # [sets, firsts, layers + 1]
        if step.size in self.sizes:
            self._finish(step, arriving)
        if step.size < self.sizes[-1]:
            self.value[step.wholes[:, None], node, members] = self.windows.middle(node, self.spans[node], arriving)

    def _finish(self, step: _Step, arriving: Floats) -> None:
        """With the step's node as the last one."""
        node = step.node
        totals = self.windows.last(node, self.spans[node], arriving) + self._backs(step)  # [sets, firsts]
        row, column = np.unravel_index(int(totals.round(ROUNDED).argmin()), totals.shape)
        self._end(step.size, (float(totals[row, column]), int(step.wholes[row]), node, int(step.members[row, column])))

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
