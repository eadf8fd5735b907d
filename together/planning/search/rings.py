"""Shortest rings through sets of nodes, by Held and Karp's dynamic programme. Knows only hops, no layers.

Sets are bit masks of node indices. A ring runs through the used nodes and, if there is one, the head, and closes.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf

Hops = tuple[tuple[float, ...], ...]
Ring = tuple[float, int, int]  # ms, first and last stage
ROUNDED = 9  # decimals of a ms: sums in another order are the same ring


class Paths:
    """Shortest paths from one node through every set to every end: `table[mask][last]`, `mask` holds the start."""

    def __init__(self, hops: Hops, start: int, members: int) -> None:
        self.hops, self.start = hops, start
        others = [i for i in range(len(hops)) if members >> i & 1 and i != start]
        self.table: dict[int, dict[int, float]] = {1 << start: {start: 0.0}}
        layer = [1 << start]
        for _ in others:
            following: dict[int, dict[int, float]] = {}
            for mask in layer:
                for end, cost in self.table[mask].items():
                    row = hops[end]
                    for new in others:
                        if not mask >> new & 1 and (total := cost + row[new]) < inf:
                            ends = following.setdefault(mask | 1 << new, {})
                            if total < ends.get(new, inf):
                                ends[new] = total
            self.table.update(following)
            layer = list(following)

    def nodes(self, mask: int, last: int) -> tuple[int, ...]:
        """The path itself, from start to `last`."""
        path = [last]
        while len(path) < mask.bit_count():
            end, rest = path[-1], _without(mask, path)
            costs = self.table[rest]
            path.append(min(sorted(costs), key=lambda i: costs[i] + self.hops[i][end]))
        return tuple(reversed(path))


def _without(mask: int, nodes: list[int]) -> int:
    for node in nodes:
        mask &= ~(1 << node)
    return mask


class Rings:
    """The shortest ring of every set of `members` for every pair of first and last stage."""

    def __init__(self, hops: Hops, head: int | None, members: int) -> None:
        self.hops, self.head = hops, head
        self._paths = {i: Paths(hops, i, members) for i in range(len(hops)) if members >> i & 1}

    def pairs(self, mask: int, late: tuple[float, ...]) -> list[Ring]:
        """Every usable ring, shortest with what its last adds first; of equal ones that with the head's node first."""
        nodes = [i for i in range(len(self.hops)) if mask >> i & 1]
        away = None if self.head is None or mask >> self.head & 1 else self.head
        found = []
        for first in nodes:
            lengths = self._paths[first].table.get(mask, {})
            for last, length in lengths.items():
                ms = length + closing_ms(self.hops, away, first, last)
                if ms < inf:
                    found.append((round(ms + late[last], ROUNDED), self._place_of_head(first, last), first, last, ms))
        found.sort()
        return [(ms, first, last) for _, _, first, last, ms in found]

    def order(self, mask: int, first: int, last: int) -> tuple[int, ...]:
        return self._paths[first].nodes(mask, last)

    def _place_of_head(self, first: int, last: int) -> int:
        """First is natural, last as good; between others a token passes its machine twice."""
        return 0 if first == self.head else 1 if last == self.head else 2


def closing_ms(hops: Hops, away: int | None, first: int, last: int) -> float:
    """From the last stage to the first, by way of the head where that is `away`: on a node without layers."""
    if away is None:
        return hops[last][first]
    return hops[last][away] + hops[away][first]


def ring_ms(hops: Hops, head: int | None, order: tuple[int, ...]) -> float:
    """ms of a given ring: its hops from stage to stage, and the way back."""
    between = sum(hops[a][b] for a, b in pairwise(order))
    return between + closing_ms(hops, None if head in order else head, order[0], order[-1])
