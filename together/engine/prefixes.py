"""What the stages keep beside running sequences, prefixes for others to begin with, and orders for the next frame.

Knows neither requests nor frames: whose prefix is worth what is the scheduler's decision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from together.engine.sequence import Prefix, Sequence
from together.types import Fork, Limits, Orders

WORTH = 16  # tokens from which beginning with another sequence's caches pays for the orders


@dataclass(slots=True)
class Prefixes:
    """The cached prefixes, least recently used first, and the orders that the next frame has to carry."""

    limits: Limits
    held: dict[int, Prefix] = field(default_factory=dict)
    _forks: list[Fork] = field(default_factory=list)
    _drops: dict[int, int] = field(default_factory=dict)  # id → tokens that its blocks take until the drop is obeyed
    _ids: int = 0

    def new_id(self) -> int:
        """A name that no cache ever had."""
        self._ids += 1
        return self._ids

    @property
    def used(self) -> int:
        """Tokens that the prefixes' blocks take."""
        return sum(self.limits.blocks(prefix.sent) for prefix in self.held.values())

    @property
    def dropping(self) -> int:
        """Tokens that the stages still hold when the next frame's forks are made, and no longer for its rows."""
        return sum(self._drops.values())

    @property
    def urgent(self) -> bool:
        """Room on the stages waits for the next frame. Forks alone can wait for a frame with rows."""
        return bool(self._drops)

    def keep(self, prefix: Prefix) -> None:
        """The most recently used now."""
        self.held.pop(prefix.id, None)
        self.held[prefix.id] = prefix

    def take(self, cache: int) -> Prefix:
        """It becomes a running sequence's caches."""
        return self.held.pop(cache)

    def fork(self, source: int, target: int, length: int) -> None:
        if source in self.held:
            self.keep(self.held[source])
        self._forks.append(Fork(source, target, length))

    def drop(self, cache: int, tokens: int) -> None:
        """Free what is cached under that name, `tokens` by the head's books."""
        self._drops[cache] = self.limits.blocks(tokens)

    def evict(self, keep: int = -1) -> bool:
        """Give up the least recently used prefix except `keep`; False if there is none."""
        for prefix in self.held.values():
            if prefix.id != keep:
                self.discard(prefix.id)
                return True
        return False

    def discard(self, cache: int) -> None:
        """Give up one prefix, if it is there."""
        prefix = self.held.pop(cache, None)
        if prefix is not None:
            self.drop(cache, prefix.sent)

    def clear(self) -> None:
        while self.evict():
            pass

    def forget_orders(self, lost: Iterable[Orders]) -> None:
        """A new epoch: frames were lost, perhaps with their drops; what was to be forked is dropped by its owner."""
        self._forks.clear()
        self._drops = {cache: 0 for orders in lost for cache in orders.drops} | self._drops

    def take_orders(self) -> Orders:
        orders = Orders(tuple(self._drops), tuple(self._forks))
        self._drops, self._forks = {}, []
        return orders


def common(first: list[int], second: list[int]) -> int:
    """How many tokens two sequences share from their beginning. Slices compare at the speed of C."""
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
    """Caches to begin with: the first `length` tokens of a prefix, or of a sequence that has them or will have."""

    source: Prefix | Sequence
    length: int

    @property
    def ready(self) -> bool:
        return self.source.sent >= self.length

    @property
    def whole(self) -> bool:
        """Hardly more than what is used is cached: the caches go over to the new owner, nothing needs to be copied."""
        return isinstance(self.source, Prefix) and self.source.sent - self.length <= WORTH


def best_match(sequence: Sequence, prefixes: Prefixes, running: Iterable[Sequence]) -> Match | None:
    """The longest common prefix that is cached, or a clearly longer one that soon will be.

    At least the last token is left to compute. Whoever waits is not waited for, so nobody waits in a circle.
    """
    ready = later = Match(sequence, 0)
    most = len(sequence.tokens) - 1
    others = (other for other in running if other is not sequence and not other.waits_for)
    sources: tuple[Prefix | Sequence, ...] = (*reversed(prefixes.held.values()), *others)
    for source in sources:
        place = ready.length  # the next better one has the same token here: a look that spares most comparisons
        if place >= min(len(source.tokens), most) or source.tokens[place] != sequence.tokens[place]:
            continue
        length = min(common(source.tokens, sequence.tokens), most)
        if place < min(length, source.sent) >= source.rewind_floor:
            ready = Match(source, min(length, source.sent))
        if later.length < length > source.sent:
            later = Match(source, length)
    best = later if later.length >= ready.length + WORTH else ready
    return best if best.length >= WORTH else None
