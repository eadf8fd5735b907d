"""What no plan of a few nodes exceeds, found without searching: how many layers they hold, wherever those lie."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

import numpy as np
from numpy.typing import NDArray

from together.planning.search import SearchProblem

Caps = tuple[int, int, int]  # layers as the first stage, as an inner one, as the last one
Flags = NDArray[np.bool_]


class Bounds:
    """Of one instance; `room` has what each node's memory holds."""

    def __init__(self, instance: SearchProblem, room: Mapping[int, Caps]) -> None:
        self.instance, self._room = instance, room
        count = len(instance.names)
        self._members: Flags = (np.arange(1 << count)[:, None] >> np.arange(count) & 1).astype(bool)  # [sets, nodes]
        self._sizes = self._members.sum(axis=1)

    def least_limit(self, largest: int) -> float:
        """Below this limit on a stage there is no plan of at most `largest` machines; infinite where there is none."""
        limits, low = self.instance.limits, -1
        high = len(limits)
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.held(largest, limits[middle]) >= self.instance.layers
            low, high = (low, middle) if enough else (middle, high)
        return limits[high] if high < len(limits) else inf

    def held(self, largest: int, limit: float) -> int:
        """Layers on at most `largest` nodes, with the best last one."""
        caps = self._caps(limit)
        before = sorted(((max(first, inner), node) for node, (first, inner, _) in caps.items()), reverse=True)
        most = 0
        for end, (_, _, last) in caps.items():
            others = [cap for cap, node in before if node != end]
            most = max(most, last + sum(others[: largest - 1]))
        return most

    def hopeful(self, largest: int, limit: float) -> Flags:
        """`[sets]`: whether these and the best others, `largest` in all, hold all layers: else no plan begins so."""
        caps = np.zeros(len(self.instance.names), dtype=np.intp)
        for node, each in self._caps(limit).items():
            caps[node] = max(each)
        others = -np.sort(-np.where(self._members, 0, caps), axis=1)
        held = np.cumsum(np.insert(others, 0, self._members @ caps, axis=1), axis=1)  # [sets, others taken]
        extra = largest - self._sizes
        enough: Flags = held[np.arange(len(held)), np.maximum(extra, 0)] >= self.instance.layers
        enough &= extra >= 0
        return enough

    def _caps(self, limit: float) -> dict[int, Caps]:
        """Of the nodes that could hold a layer, within their memory and a limit on a stage."""
        found = {}
        for node, (first, inner, last) in self._room.items():
            most = self.instance.count_under(node, limit)
            found[node] = min(first, most), min(inner, most), min(last, self.instance.count_closing(node, limit))
        return found
