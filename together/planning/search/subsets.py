"""The exact best plan for up to 8 nodes where all layers weigh alike: every subset of the nodes.

Knows no layers of different size; `ordered.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from together.planning.search.fill import Filled, Stages, counts_of, fill, speed_order, stages_of
from together.planning.search.instance import EPSILON, Choice, Instance, choice_of, differ
from together.planning.search.rings import EndedRings, Rings, ring_ms

Ends = tuple[int | None, int]  # first (None: no matter which) and last stage


@dataclass(frozen=True, slots=True)
class _Found:
    """The best fill of one subset, and its first and last stage where one of these matters."""

    filled: Filled
    mask: int
    ends: Ends | None

    def beats(self, other: _Found | None) -> bool:
        if other is None or differ(self.filled.score, other.filled.score):
            return other is None or self.filled.score < other.filled.score
        return differ(self.filled.token_ms, other.filled.token_ms) and self.filled.token_ms < other.filled.token_ms


class Subsets:
    """All subsets of an instance's nodes and their rings."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.members = sum(1 << i for i in instance.able)
        self._order = speed_order(instance, list(instance.able))
        self._late = tuple(b - a for a, b in zip(instance.fixed, instance.closing, strict=True))
        kind = EndedRings if instance.ends_weigh else Rings
        self._rings: Rings | EndedRings = kind(instance.hops, instance.head, self.members, self._late)

    def best(self) -> Choice | None:
        """The best plan; of those within the tolerance, the best of the fewest machines."""
        sizes = self._best_by_size()
        if not sizes:
            return None
        score = min(found.filled.score for found in sizes.values())
        near = [size for size in sorted(sizes) if sizes[size].filled.score <= score * (1 + self._slack)]
        chosen = sizes[near[0]]
        if self.instance.tolerance == 0:
            for size in near[1:]:
                chosen = sizes[size] if sizes[size].beats(chosen) else chosen
        return self._choice(chosen)

    def exactly(self, nodes: tuple[int, ...]) -> Choice | None:
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
            if found and found.beats(best.get(size)):
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
        stages = stages_of(self.instance, nodes)
        if isinstance(self._rings, EndedRings) or self.instance.last_slower:
            return self._find_ends(mask, nodes, stages, bound)
        ring, _ = self._rings.shortest(mask)
        filled = fill(self.instance, stages, ring, bound) if ring < inf else None
        return None if filled is None else _Found(filled, mask, None)

    def _find_ends(self, mask: int, nodes: list[int], free: Stages, bound: float) -> _Found | None:
        """As if nobody had to hold the ends first: what is too slow even so needs no look at each pair."""
        best: _Found | None = None
        if fill(self.instance, free, min(self._late[i] for i in nodes), bound) is None:
            return None
        for ring, first, last in self._rings.pairs(mask):
            relaxed = fill(self.instance, free, ring + self._late[last], bound)
            if relaxed is None:
                break  # later pairs have longer rings
            stages = stages_of(self.instance, nodes, (first, last))
            filled = relaxed if stages == free else fill(self.instance, stages, ring, bound)
            if filled and (found := _Found(filled, mask, (first, last))).beats(best):
                best, bound = found, filled.score
        return best

    def _choice(self, found: _Found) -> Choice:
        nodes = [i for i in self._order if found.mask >> i & 1]
        stages, order = stages_of(self.instance, nodes, found.ends), self._ring_of(found)
        counts = dict(zip(nodes, counts_of(stages, self.instance.layers, found.filled.limit), strict=True))
        ring = ring_ms(self.instance.hops, self.instance.head, order)
        return choice_of(self.instance, order, tuple(counts[node] for node in order), ring)

    def _ring_of(self, found: _Found) -> tuple[int, ...]:
        """The used nodes in ring order."""
        if found.ends is None:
            assert isinstance(self._rings, Rings)
            return self._rings.order(found.mask)
        first, last = found.ends
        if isinstance(self._rings, Rings):
            return self._rings.ended(found.mask, last)
        assert first is not None
        return self._rings.order(found.mask, first, last)
