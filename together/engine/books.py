"""What the stages hold, as the head counts it: their ledgers' blocks, kept from the frames that it sends. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from backends.blocks import TokenBlocks
from together.engine.sequence import Sequence
from together.types import Limits


@dataclass(slots=True)
class Books:
    """Two accounts, because a frame's forks come before its drops: of what is held when the next frame's forks are
    made, and of what is held once all drops are obeyed, by which sequences are admitted.

    Where every stage's forks share blocks, a shared block counts once.
    """

    limits: Limits
    now: TokenBlocks = field(init=False)
    later: TokenBlocks = field(init=False)

    def __post_init__(self) -> None:
        own = self.limits.per_sequence // self.limits.block
        self.now, self.later = (TokenBlocks(self.limits.block, own) for _ in range(2))

    def fork(self, source: int, target: int, length: int) -> None:
        for account in (self.now, self.later):
            if self.limits.shares:
                account.fork(source, target, length)
            else:
                account.write(target, 0, length)

    def write(self, cache: int, position: int, stop: int) -> None:
        """A row is in a frame."""
        for account in (self.now, self.later):
            account.write(cache, position, stop)

    def drop(self, cache: int) -> None:
        """It will be ordered."""
        self.later.drop(cache)

    def dropped(self, caches: Iterable[int]) -> None:
        """The orders are in a frame."""
        for cache in caches:
            self.now.drop(cache)

    def shared(self, length: int) -> int:
        """Tokens that a copy of so many takes no room for."""
        return length // self.limits.block * self.limits.block if self.limits.shares else 0

    @property
    def held_now(self) -> int:
        """Tokens that the stages' blocks take when the next frame's forks are made."""
        return self.now.used * self.limits.block

    def held(self, running: Iterable[Sequence]) -> int:
        """Tokens that blocks take once all drops are obeyed and these sequences' known tokens are cached."""
        return (self.later.used + self._growth(running)) * self.limits.block

    def held_by(self, running: Iterable[Sequence]) -> int:
        """The same of these sequences alone."""
        sequences = list(running)
        tables = [self.later.tables[sequence.id] for sequence in sequences if sequence.id in self.later.tables]
        blocks = len({block for table in tables for block in table}) + self.later.per_sequence * len(tables)
        return (blocks + self._growth(sequences)) * self.limits.block

    def _growth(self, running: Iterable[Sequence]) -> int:
        """What a row gives back counts only when it is gone: others may be written before it."""
        return sum(max(0, self.later.growth(each.id, each.sent, len(each.tokens))) for each in running)
