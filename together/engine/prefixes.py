"""Cached prefixes, which the next sequences start with, and the orders that copy and free caches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from together.engine.books import Books
from together.engine.sequence import WORTH, Sequence
from together.requests import LOCAL, Owner
from together.types import Fork, Orders


@dataclass(frozen=True, slots=True)
class Prefix:
    """A finished sequence's cached tokens."""

    id: int  # its name in the caches
    tokens: list[int]  # as a sequence's `keys`
    rewind_floor: int  # lowest position, besides 0, that its caches can go back to
    owner: Owner = LOCAL

    @property
    def sent(self) -> int:
        return len(self.tokens)

    @property
    def keys(self) -> list[int]:
        return self.tokens


@dataclass(slots=True)
class Prefixes:
    """The cached prefixes, least recently used first, and the orders that the next frame has to carry."""

    books: Books
    held: dict[int, Prefix] = field(default_factory=dict)
    drops: dict[int, None] = field(default_factory=dict)  # ids, in order
    lean: bool = False  # none is kept, and stages give back what is freed: a machine of the ring needs its memory
    trims: bool = False  # the next frame's stages give back what is free
    _forks: list[Fork] = field(default_factory=list)
    _ids: int = 0

    def new_id(self) -> int:
        """A name that no cache ever had."""
        self._ids += 1
        return self._ids

    def keep(self, prefix: Prefix) -> None:
        """Make it the most recently used."""
        self.held.pop(prefix.id, None)
        if self.lean:
            self.drop(prefix.id)
        else:
            self.held[prefix.id] = prefix

    def fork(self, source: int, target: int, length: int) -> None:
        if source in self.held:
            self.keep(self.held[source])
        self._forks.append(Fork(source, target, length))
        self.books.fork(source, target, length)

    def drop(self, cache: int) -> None:
        """Free a cache."""
        self.drops[cache] = None
        self.trims = self.trims or self.lean
        self.books.drop(cache)

    def evict(self, keep: int = -1) -> bool:
        """Give up the least recently used prefix except `keep`; False if there is none."""
        oldest = next((cache for cache in self.held if cache != keep), None)
        if oldest is not None:
            self.discard(oldest)
        return oldest is not None

    def discard(self, cache: int) -> None:
        """Give up one prefix, if it is there."""
        if self.held.pop(cache, None) is not None:
            self.drop(cache)

    def clear(self) -> None:
        while self.evict():
            pass

    def be_lean(self, lean: bool) -> None:
        """Give up all prefixes and keep none, or keep them again."""
        if lean and not self.lean:
            self.clear()
        self.trims = self.trims or (lean and not self.lean)
        self.lean = lean

    def alike(self, owner: Owner, tokens: list[int]) -> Prefix | None:
        """An owner's with exactly these tokens."""
        return next((each for each in self.held.values() if each.owner == owner and each.tokens == tokens), None)

    def forget(self, owner: Owner | None) -> int:
        """Give up all of an owner's, or everybody's; how many these were."""
        own = [prefix.id for prefix in self.held.values() if owner in (None, prefix.owner)]
        for cache in own:
            self.discard(cache)
        return len(own)

    def forget_orders(self, lost: Iterable[Orders]) -> None:
        """A new epoch: frames were lost, perhaps with their drops; what was to be forked is dropped by its owner."""
        self._forks.clear()
        self.trims = self.trims or self.lean
        self.drops = {cache: None for orders in lost for cache in orders.drops} | self.drops

    def take_orders(self) -> Orders:
        orders = Orders(tuple(self.drops), tuple(self._forks), self.trims)
        self.books.dropped(self.drops)
        self.drops, self._forks, self.trims = {}, [], False
        return orders


def common(first: list[int], second: list[int]) -> int:
    """The number of leading tokens that two sequences share. Slices compare at the speed of C."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True)
class Match:
    """Caches to start with: the first `length` tokens of a prefix, or of a sequence that has them or will have."""

    source: Prefix | Sequence
    length: int

    @property
    def ready(self) -> bool:
        return self.source.sent >= self.length

    @property
    def whole(self) -> bool:
        """Nearly all that is cached is used: the new owner takes the caches over, nothing needs to be copied."""
        return isinstance(self.source, Prefix) and self.source.sent - self.length <= WORTH


def _stop(source: Prefix | Sequence, length: int) -> int:
    """Where one that cannot go back will stand still within its first `length` tokens: others can begin there."""
    return source.stable if isinstance(source, Sequence) and source.stable <= length else 0


def best_match(sequence: Sequence, prefixes: Prefixes, running: Iterable[Sequence]) -> Match | None:
    """The longest common prefix that is cached, or a clearly longer one that soon will be.

    What must be computed is left to compute. No sequence waits for one that waits, so there are no circles. What others
    than its owner had computed does not count: how soon an answer begins would tell what they wrote.
    """
    ready = later = Match(sequence, 0)
    most, keys = sequence.reusable, sequence.keys
    others = (other for other in running if other is not sequence and not other.waits_for)
    sources: tuple[Prefix | Sequence, ...] = (*reversed(prefixes.held.values()), *others)
    for source in sources:
        if source.owner != sequence.owner:
            continue
        place = ready.length  # a better one has the same token here, which spares most comparisons
        known = source.keys
        if place >= min(len(known), most) or known[place] != keys[place]:
            continue
        length = min(common(known, keys), most)
        if place < min(length, source.sent) >= source.rewind_floor:
            ready = Match(source, min(length, source.sent))
        if prefixes.books.limits.rewind == 0:
            length = _stop(source, length)
        if later.length < length > source.sent:
            later = Match(source, length)
    best = later if later.length >= ready.length + WORTH else ready
    return best if best.length >= WORTH else None
