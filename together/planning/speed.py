"""How long a node computes for a run of layers: alike for all of them, or by kinds of layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from together.planning.problem import NodeProfile

Floats = NDArray[np.float64]
Places = NDArray[np.intp]
DECIMALS = 9  # of a ms: sums in another order are the same time
SLACK = 2 * 10.0**-DECIMALS


@dataclass(frozen=True, slots=True)
class Speed:
    """ms for each layer; `each` is empty where all take `mean`."""

    mean: float
    layers: int
    each: tuple[float, ...] = ()

    @classmethod
    def of(cls, node: NodeProfile, layers: int) -> Speed:
        kinds = set(node.layer_ms)
        if len(kinds) > 1:
            return cls(sum(node.layer_ms) / layers, layers, node.layer_ms)
        return cls(kinds.pop() if kinds else node.ms_per_layer, layers)

    @property
    def even(self) -> bool:
        return not self.each

    @property
    def flat(self) -> Speed:
        return Speed(self.mean, self.layers)

    @property
    def prefix(self) -> Floats:
        """`[layers + 1]` ms of the first l layers."""
        return _prefix(self)

    def between(self, start: int, stop: int) -> float:
        if not self.each:
            return (stop - start) * self.mean
        return float(self.prefix[stop] - self.prefix[start])

    def runs(self, most: int) -> list[float]:
        """Every time that a run of at most `most` layers takes."""
        if not self.each:
            return [count * self.mean for count in range(1, most + 1)]
        return _runs(self, most)

    def most_under(self, fixed: float, most: int, limit: float) -> int:
        """The longest run within `limit` ms, `fixed` included, of at most `most` layers; wherever it lies."""
        if not self.each:
            return count_under(self.mean, fixed, most, limit)
        stops = np.arange(self.layers + 1)
        return min(most, int((stops - self.starts_under(fixed, limit)).max()))

    def first_under(self, fixed: float, most: int, limit: float) -> int:
        """How many first layers run within `limit` ms."""
        if not self.each:
            return count_under(self.mean, fixed, most, limit)
        found = int(np.searchsorted(self.prefix, _room(fixed, limit), side="right")) - 1
        return min(most, max(found, 0))

    def last_under(self, fixed: float, most: int, limit: float) -> int:
        """How many last layers run within `limit` ms."""
        if not self.each:
            return count_under(self.mean, fixed, most, limit)
        return min(most, self.layers - int(self.starts_under(fixed, limit)[-1]))

    def starts_under(self, fixed: float, limit: float) -> Places:
        """`[layers + 1]`: for each stop the first layer from which on everything up to it runs within `limit` ms."""
        found: Places = np.searchsorted(self.prefix, self.prefix - _room(fixed, limit), side="left")
        return np.minimum(found, np.arange(self.layers + 1))


def _room(fixed: float, limit: float) -> float:
    """ms for layers within a limit, with what rounding may add."""
    return limit - fixed + SLACK if limit >= fixed else -1.0


@lru_cache(maxsize=256)
def _prefix(speed: Speed) -> Floats:
    if not speed.each:
        return np.arange(speed.layers + 1) * np.float64(speed.mean)
    found: Floats = np.concatenate([[0.0], np.cumsum(speed.each)])
    return found


@lru_cache(maxsize=256)
def _runs(speed: Speed, most: int) -> list[float]:
    prefix = speed.prefix
    if most < 1:
        return []
    found = [np.unique((prefix[count:] - prefix[:-count]).round(DECIMALS)) for count in range(1, most + 1)]
    return [float(ms) for ms in np.unique(np.concatenate(found))]


def count_under(speed: float, fixed: float, most: int, limit: float) -> int:
    """How many layers a stage runs within `limit` ms, at most `most`, by the rounding of fixed + count × speed."""
    if fixed + most * speed <= limit:
        return most
    if fixed > limit:
        return 0
    count = int((limit - fixed) / speed)
    while fixed + count * speed > limit:
        count -= 1
    while fixed + (count + 1) * speed <= limit:
        count += 1
    return count
