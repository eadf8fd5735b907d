"""Rings of the toy whose last stage wants to say a given answer, token by token, and then to end. Knows no test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from backends.base import Shard
from backends.checksum import ChecksumShard, Words
from backends.ledger import Logits
from together.types import Row

WANTED = 100.0  # above all other logits: a mask alone decides otherwise


class TellingShard(ChecksumShard):
    """The toy's shard, whose best token at each place is that of `answer`."""

    def __init__(self, shard: ChecksumShard, answer: Sequence[int]) -> None:
        super().__init__(shard._shape.layers, shard._weights, shard._toy, shard.capacity)
        self._answer = tuple(answer)

    def _to_numpy(self, rows: tuple[Row, ...], logits: Words) -> Logits:
        values = super()._to_numpy(rows, logits)
        places = [
            row.position + offset + 1 - row.sample.prompt_length
            for row in rows
            if row.sample is not None
            for offset in row.sample.offsets
        ]
        for value, place in zip(values, places, strict=True):
            value[self._answer[min(place, len(self._answer) - 1)]] = WANTED
        return values


def telling(loads: Sequence[Callable[[], Shard]], answer: Sequence[int]) -> list[Callable[[], Shard]]:
    """`loads` of a ring, the last one telling `answer`, whose last token is the end."""
    return [*loads[:-1], partial(_load, loads[-1], answer)]


def _load(load: Callable[[], Shard], answer: Sequence[int]) -> Shard:
    shard = load()
    assert isinstance(shard, ChecksumShard)
    return TellingShard(shard, answer)
