"""What the engine needs of a ring, as a protocol. Knows no network: the ring's client has these members."""

from __future__ import annotations

from typing import Protocol

from together.types import Frame


class RingPort(Protocol):
    """A loaded ring as the engine sees it: shapes that the scheduler plans with, and one frame in, one answer out."""

    @property
    def stages(self) -> int: ...

    @property
    def capacity(self) -> int:
        """KV tokens that the smallest stage holds over all sequences, in whole blocks."""

    @property
    def block(self) -> int:
        """Tokens per KV block; the largest of the ring."""

    @property
    def rewind(self) -> int | None:
        """How many last tokens of a sequence every stage can undo; None is unbounded."""

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""

    @property
    def chunk(self) -> int:
        """The most tokens in one frame."""

    async def push(self, frame: Frame) -> None:
        """Send a frame to the first stage; waits while the link is full. Raises RingBroken."""

    async def receive(self) -> Frame:
        """The next answer, in step order: results or a failure, and timings. Raises RingBroken."""
