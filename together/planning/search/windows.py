"""What it costs a node to take layers [l', l) for all l' and l at once, under memory caps and a limit on its time.

Which l' are allowed for one l is a window that only moves forward, because sizes only add up. Knows no ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from together.planning.search.instance import Instance

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Span:
    """One node under one limit: the window of starts for each stop, in the middle and as the last stage (`last_start`).

    Two stretches of 2**level, from `left` and from `right`, cover the window; where it is empty, `empty` is true.
    """

    most: int
    closing: int  # most layers as the last stage
    start: Places  # [layers + 1]
    level: Places
    right: Places
    empty: NDArray[np.bool_]
    last_start: int


class Windows:
    """Costs of the stages of one instance."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.stops = np.arange(instance.layers + 1)
        self.prefix = np.array(instance.prefix)
        self._levels = np.frexp(np.maximum(self.stops, 1))[1] - 1  # the largest power of two within a width
        count = len(instance.names)
        self._starts = [self._earliest(instance.room[i], self.prefix) for i in range(count)]
        whole = self.prefix[-1:] + instance.tail
        self._last_starts = [int(self._earliest(instance.room[i], whole)[0]) for i in range(count)]

    def _earliest(self, room: float, stops: Floats) -> Places:
        """For each stop, in bytes, the first layer from which on everything up to it fits in `room`."""
        found: Places = np.searchsorted(self.prefix, stops - room, side="left")
        return np.minimum(found, len(self.prefix) - 1)

    def spans(self, limit: float) -> list[Span]:
        found = []
        for node in range(len(self.instance.names)):
            most = self.instance.count_under(node, limit)
            start = np.minimum(np.maximum(self._starts[node], self.stops - most), self.stops)
            width = self.stops - start
            level = self._levels[width]
            right = np.maximum(self.stops - (1 << level), 0)
            closing = self.instance.count_closing(node, limit)
            last = min(max(self._last_starts[node], self.instance.layers - closing), self.instance.layers)
            found.append(Span(most, closing, start, level, right, width == 0, last))
        return found

    def first(self, node: int, span: Span) -> Floats:
        """`[layers + 1]` ms of [0, l) on the first stage; infinite for none, for all, and where they do not fit."""
        fits = (self.stops <= span.most) & (self.prefix + self.instance.embed <= self.instance.room[node])
        costs: Floats = np.where(fits, self.instance.fixed[node] + self.stops * self.instance.speeds[node], inf)
        costs[0] = costs[-1] = inf
        return costs

    def only(self, node: int, span: Span) -> float:
        """ms of all layers on one node."""
        instance = self.instance
        if instance.layers > span.closing or not instance.holds_all(node):
            return inf
        return instance.closing[node] + instance.layers * instance.speeds[node]

    def middle(self, node: int, span: Span, arriving: Floats) -> Floats:
        """`[..., layers + 1]` costs of having taken l layers, from the costs before this node's stage."""
        speed = self.instance.speeds[node]
        lowest = _window_minimum(arriving - self.stops * speed, span)
        costs: Floats = lowest + (self.instance.fixed[node] + self.stops * speed)
        costs[..., -1] = inf  # who takes the last layer is the last stage
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
        costs: Floats = arriving[..., start:stop] + (fixed + (stop - self.stops[start:stop]) * instance.speeds[node])
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
