"""Plans for more nodes than subsets can be counted: a dynamic programme along one tour through all of them.

Every plan whose ring follows the tour, skipping any nodes, is looked at exactly; the tour is a good one, not the best.
So the answer is exact where all hops are alike and room is counted in layers, and near it elsewhere: where the last
stage is slower, every node is tried as the last one where hops are alike, and elsewhere a few of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import inf

import numpy as np
from numpy.typing import NDArray

from together.planning.ordered import Windows
from together.planning.search import EPSILON, Candidate, SearchProblem, best_plan, candidate, speed_order

Floats = NDArray[np.float64]
ANCHORS = 3  # nodes tried as the first one where there is no head and hops differ, and as the last one
_FAR = 1e6  # ms that an unusable link counts in a tour; in a plan it is never used


@dataclass(frozen=True, slots=True)
class Route:
    """Nodes in the order in which a ring may visit them, ms to begin at each, and ms to come back from each.

    With `last`, rings of two machines and more end at that one.
    """

    order: tuple[int, ...]
    start: tuple[float, ...]
    back: tuple[float, ...]
    last: int | None = None


class Tours:
    """The search along every way of one instance, or along the given ones."""

    def __init__(self, instance: SearchProblem, given: list[Route] | None = None) -> None:
        self.instance = instance
        self.hops = np.array(instance.hops, dtype=np.float64)
        self.windows = Windows(instance)
        self.ways = ways(instance) if given is None else given

    def best(self) -> list[Candidate]:
        """The best plan found, and, where the tolerance allows fewer machines, that one too."""
        best: Candidate | None = None
        along = self.ways[0] if self.ways else None
        for way in self.ways:
            if best is None or self._promises(way, best):
                found = self._search(way)
                if found and found.beats(best):
                    best, along = found, way if self.instance.last_slower else along
        if best is None or along is None:
            return []
        fewer = self._fewer(best, along) if self.instance.tolerance > 0 and len(best.order) > 1 else None
        return [best] if fewer is None else [best, fewer]

    def _promises(self, way: Route, best: Candidate) -> bool:
        """Whether the way has anything better than the best so far."""
        aim = best.score * (1 - EPSILON)
        if way.last is not None and not self._can_close(way.last, aim):
            return False
        return _Walk(self, way, aim, 1).token_ms(0) / self.instance.frames < aim

    def _can_close(self, node: int, aim: float) -> bool:
        """Whether any plan with this last stage may be better, by two sums that cost little."""
        instance = self.instance
        token = self._early_ms + instance.closing[node] - instance.fixed[node]
        held = sum(instance.count_under(i, aim) for i in instance.able if i != node)
        return token / instance.frames < aim and held + instance.count_closing(node, aim) >= instance.layers

    @cached_property
    def _early_ms(self) -> float:
        """The token time if nobody were slower as the last, along a way that any node may end."""
        early = Tours(replace(self.instance, closing=self.instance.fixed), self.ways[-1:])
        return _Walk(early, early.ways[0], inf, 1).token_ms(0)

    def _search(self, way: Route) -> Candidate | None:
        free = _Walk(self, way, inf, 1).trace(0)
        if free is None:
            return None
        least = self.instance.least_limit
        return best_plan(self.instance, free, lambda limit: _Walk(self, way, limit, 1).trace(0), least)

    def _fewer(self, best: Candidate, way: Route) -> Candidate | None:
        """The plan of fewest machines along a way within the tolerance, if it has fewer."""
        bound = best.score * (1 + self.instance.tolerance + EPSILON)
        most = len(best.order) - 1
        held = sorted((self.instance.count_under(i, bound) for i in self.instance.able), reverse=True)
        if sum(held[:most]) < self.instance.layers:
            return None
        walk = _Walk(self, way, bound, most + 1)
        for size in range(1, most + 1):
            if walk.token_ms(size) / self.instance.frames <= bound:
                return walk.trace(size)
        return None


class _Walk:
    """All states along one way under one limit: `value[place][machines, layers]`. One row: machines are not counted."""

    def __init__(self, tours: Tours, way: Route, limit: float, rows: int) -> None:
        self.tours, self.instance, self.way, self.rows = tours, tours.instance, way, rows
        self.spans = tours.windows.spans(limit)
        self.value: Floats = np.full((len(way.order), rows, self.instance.layers + 1), inf)
        self.ends: Floats = np.full((len(way.order), rows), inf)  # the plan is whole, its last stage here
        self._step = 1 if rows > 1 else 0
        for place, node in enumerate(way.order):
            self._visit(place, node)

    def _visit(self, place: int, node: int) -> None:
        windows, span, step = self.tours.windows, self.spans[node], self._step
        if span.most < 1:
            return
        if place:
            arriving = self._arriving(place, node)
            self.value[place, step:] = windows.middle(node, span, arriving)[: self.rows - step]
            last = windows.last(node, span, arriving)[: self.rows - step]
            self.ends[place, step:] = last + self.way.back[place] + self.instance.head_ms
        first = windows.first(node, span) + self.way.start[place]
        np.minimum(self.value[place, step], first, out=self.value[place, step])
        ring = self.instance.ring_ms((node,))
        self.ends[place, step] = min(self.ends[place, step], windows.only(node, span) + ring)

    def _arriving(self, place: int, node: int) -> Floats:
        hops = self.tours.hops[list(self.way.order[:place]), node]
        found: Floats = (self.value[:place] + hops[:, None, None]).min(axis=0)
        return found

    def token_ms(self, row: int) -> float:
        return float(self.ends[:, row].min())

    def trace(self, row: int) -> Candidate | None:
        """The cheapest plan of a row, which is a number of machines where those are counted."""
        if self.token_ms(row) == inf:
            return None
        place, stop = int(self.ends[:, row].argmin()), self.instance.layers
        order: list[int] = []
        counts: list[int] = []
        while True:
            node, value = self.way.order[place], self._value(place, row, stop)
            order.append(node)
            alone = self._alone(place, node, stop)
            if alone <= value * (1 + EPSILON):
                counts.append(stop)
                break
            row -= self._step
            hops = self.tours.hops[list(self.way.order[:place]), node]
            arriving = self.value[:place, row] + hops[:, None]
            place, start = self.tours.windows.back(node, self.spans[node], arriving, stop)
            counts.append(stop - start)
            stop = start
        order.reverse()
        counts.reverse()
        return candidate(self.instance, tuple(order), tuple(counts))

    def _value(self, place: int, row: int, stop: int) -> float:
        return float(self.ends[place, row] if stop == self.instance.layers else self.value[place, row, stop])

    def _alone(self, place: int, node: int, stop: int) -> float:
        """The cost of this stage being the first one."""
        windows, span = self.tours.windows, self.spans[node]
        if stop == self.instance.layers:
            return windows.only(node, span) + self.instance.ring_ms((node,))
        return float(windows.first(node, span)[stop]) + self.way.start[place]


# --- ways -------------------------------------------------------------------------------------------------------------


def ways(instance: SearchProblem) -> list[Route]:
    """The orders to search: along a short tour from the head, or, without one, from each of a few good nodes."""
    found = _any_end(instance)
    return [*_closing(instance, found[0].order), *found] if found and instance.last_slower else found


def _closing(instance: SearchProblem, order: tuple[int, ...]) -> list[Route]:
    """The order with one node at its end, which must be the last: all nodes where hops are alike, else the quickest."""
    head, hops = instance.head, instance.hops
    last = sorted(order, key=lambda i: (instance.closing[i] + instance.speeds[i].mean, i))
    involved = {*order, *([] if head is None else [head])}
    found = []
    for node in last if len({hops[a][b] for a in involved for b in involved if a != b}) <= 1 else last[:ANCHORS]:
        place = order.index(node)
        after, before = order[place + 1 :], order[:place]
        turned = (*after, *before, node) if head is None else (*before, *after, node)
        ends = hops[node if head is None else head]
        back = 0.0 if head is None else ends[node]
        found.append(Route(turned, tuple(ends[i] for i in turned), (*(inf for _ in turned[1:]), back), node))
    return found


def _any_end(instance: SearchProblem) -> list[Route]:
    nodes = speed_order(instance, instance.able)
    if not nodes:
        return []
    head, hops = instance.head, instance.hops
    others = {hops[a][b] for a in nodes for b in nodes if a != b}
    if head is not None:
        order = tuple(i for i in _tour(hops, [head, *(i for i in nodes if i != head)]) if i in nodes)
        orders = [order, order[::-1], (*order[1:], *order[:1])] if instance.by_bytes else [order]
        return [_from_head(instance, order) for order in dict.fromkeys(orders)]
    if len(others) <= 1:  # all hops alike: any node may be first
        back = next(iter(others), 0.0)
        orders = [tuple(nodes), tuple(reversed(nodes))] if instance.by_bytes else [tuple(nodes)]
        return [Route(order, (0.0,) * len(nodes), (back,) * len(nodes)) for order in orders]
    tour = _tour(hops, nodes)
    found = []
    for anchor in promising(instance)[:ANCHORS]:
        place = tour.index(anchor)
        order = tuple(tour[place:] + tour[:place])
        start = tuple(0.0 if i == anchor else inf for i in order)
        found.append(Route(order, start, tuple(hops[i][anchor] for i in order)))
    return found


def _from_head(instance: SearchProblem, order: tuple[int, ...]) -> Route:
    """A head that takes layers stands at an end of the order, where a hop to it is none."""
    assert instance.head is not None
    hops = tuple(instance.hops[instance.head][i] for i in order)
    return Route(order, hops, hops)


def promising(instance: SearchProblem) -> list[int]:
    """Nodes by how likely a good plan uses them: the least time per layer when full first."""

    def per_layer(node: int) -> float:
        count = instance.most[node]
        mean, ms = instance.held[node].mean, instance.speeds[node].mean
        if instance.room[node] < inf and mean > 0:
            count = min(count, int(instance.room[node] / mean))
        return ms + (instance.fixed[node] + ms) / max(count, 1)

    return sorted(instance.able, key=lambda i: (per_layer(i), i))


def _tour(hops: tuple[tuple[float, ...], ...], nodes: list[int]) -> list[int]:
    """A short tour: always the nearest next, then reversing stretches as long as that shortens it."""
    far = [[min(hop, _FAR) for hop in row] for row in hops]
    tour, rest = [nodes[0]], nodes[1:]
    while rest:
        nearest = min(rest, key=lambda i: far[tour[-1]][i])
        tour.append(nearest)
        rest.remove(nearest)
    return _untangle(tour, far)


def _untangle(tour: list[int], far: list[list[float]]) -> list[int]:
    improved = True
    while improved:
        improved = False
        for i in range(1, len(tour) - 1):
            for j in range(i + 1, len(tour)):
                before, first, last, after = tour[i - 1], tour[i], tour[j], tour[(j + 1) % len(tour)]
                saved = far[before][first] + far[last][after] - far[before][last] - far[first][after]
                if saved > EPSILON * _FAR:
                    tour[i : j + 1] = tour[i : j + 1][::-1]
                    improved = True
    return tour
