"""Shortest rings through sets of nodes, by Held and Karp's dynamic programme. Knows only hops, no layers.

Sets are bit masks of node indices. A ring runs through the used nodes and, if there is one, the head, and closes.
"""

from __future__ import annotations

from itertools import pairwise
from math import inf

Hops = tuple[tuple[float, ...], ...]
Ended = tuple[float, int | None, int]  # ms of a ring, its first stage (None: no matter which) and its last
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

    def length(self, mask: int, last: int) -> float:
        return self.table.get(mask, {}).get(last, inf)

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
    """The shortest ring of every set, whoever is first in it. `late` is what each node adds when it is last, in ms."""

    def __init__(self, hops: Hops, head: int | None, members: int, late: tuple[float, ...] = ()) -> None:
        self.hops, self.head, self.late = hops, head, late
        if head is not None:
            self._paths = {head: Paths(hops, head, members)}
        else:  # a ring may start anywhere: at its lowest node
            indices = [i for i in range(len(hops)) if members >> i & 1]
            self._paths = {i: Paths(hops, i, members & -(1 << i)) for i in indices}

    def shortest(self, mask: int) -> tuple[float, int]:
        """ms of the ring through the nodes of `mask` (and the head), and which node comes last in it; inf if none."""
        start, whole = self._start(mask)
        ends = self._paths[start].table.get(whole, {})
        back = self.hops[start]
        return min(((cost + back[end], end) for end, cost in ends.items()), default=(inf, start))

    def order(self, mask: int) -> tuple[int, ...]:
        """The used nodes in the order of the shortest ring."""
        start, whole = self._start(mask)
        path = self._paths[start].nodes(whole, self.shortest(mask)[1])
        return path if mask >> start & 1 else path[1:]

    def pairs(self, mask: int) -> list[Ended]:
        """The shortest ring for each last stage, with the least ms together with what that one adds first."""
        start, whole = self._start(mask)
        shortest, natural = self.shortest(mask)
        if mask >> start & 1:  # a ring of stages alone can begin, and so end, at any of them
            found = [(shortest, last) for last in range(len(self.hops)) if mask >> last & 1]
        else:
            back = self.hops[start]
            found = [(cost + back[end], end) for end, cost in self._paths[start].table.get(whole, {}).items()]
        found.sort(key=lambda ring: (round(ring[0] + self.late[ring[1]], ROUNDED), ring[1] != natural, ring[1]))
        return [(ms, None, last) for ms, last in found if ms < inf]

    def ended(self, mask: int, last: int) -> tuple[int, ...]:
        """The order of the ring of `pairs` with this last stage; the head's node, if it can, comes first."""
        start, whole = self._start(mask)
        if not mask >> start & 1:
            return self._paths[start].nodes(whole, last)[1:]
        order = self.order(mask)
        place = order.index(last)
        turned = (*order[place + 1 :], *order[: place + 1])
        mirrored = (*reversed(turned[:-1]), last)
        return mirrored if mirrored[0] == self.head else turned

    def _start(self, mask: int) -> tuple[int, int]:
        if self.head is not None:
            return self.head, mask | 1 << self.head
        return (mask & -mask).bit_length() - 1, mask


class EndedRings:
    """The shortest ring of every set for every pair of first and last stage. `late` as for `Rings`."""

    def __init__(self, hops: Hops, head: int | None, members: int, late: tuple[float, ...]) -> None:
        self.hops, self.head, self.late = hops, head, late
        self._paths = {i: Paths(hops, i, members) for i in range(len(hops)) if members >> i & 1}

    def pairs(self, mask: int) -> list[Ended]:
        """Every usable ring, shortest with what its last adds first; of equal ones that with the head's node first."""
        nodes = [i for i in range(len(self.hops)) if mask >> i & 1]
        away = None if self.head is None or mask >> self.head & 1 else self.head
        found = [
            (self._paths[first].length(mask, last) + closing_ms(self.hops, away, first, last), first, last)
            for first in nodes
            for last in nodes
            if first != last or len(nodes) == 1
        ]
        found = [ring for ring in found if ring[0] < inf]
        late = self.late
        found.sort(key=lambda r: (round(r[0] + late[r[2]], ROUNDED), self._place_of_head(r[1], r[2]), r[1], r[2]))
        return [*found]

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
