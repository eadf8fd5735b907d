"""Attention of rows of one token on CPUs, by a loop of our own: keys and values are read once for all that see them.

A task is one key head and a span of tokens that some rows see. It keeps what is new among them, and mixes their values
for all queries of that head and those rows, in fp32. Who ends the last span of a row's head puts them together.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain

import torch
from torch import Tensor

from backends.on_torch.compiled import FLOATS, CompiledLoop, lanes
from backends.on_torch.mixing_loop import GIVEN, MixingLoop, OneToken, RowShare, SeenSpan, slot_numbers

_SPAN = 2**15  # numbers of a head's keys that a task reads
_SPANS = 32  # of a part at most, whose results need room: longer ones then
_QUERIES = 4  # at a time: more would not have their sums in registers
_ALONE = 2**17  # products that one thread has made before another has begun
_Given = ctypes.c_int64 * GIVEN


@dataclass(slots=True)
class Mixing:
    """What a step's rows of one token see, as the loop reads it: the same in all layers of a kind."""

    spans: int
    rows: int
    most: int  # rows that see the same
    seen: int  # tokens, by all rows together
    slots: int  # for spans' rows: room for what their queries found
    table: Tensor
    left: Tensor  # `[rows, kv_heads]`: spans that are still to be seen
    room: Tensor | None = None

    @classmethod
    def of(
        cls,
        parts: Sequence[tuple[range, list[int]]],
        tokens: Sequence[int],
        places: Sequence[int],
        pool: Tensor,
    ) -> Mixing:
        """`parts` are places and the rows that see them; each row is one of the step's `tokens`, kept at its place."""
        _, kv_heads, _, width = pool.shape
        spans: list[SeenSpan] = []
        shares: list[list[RowShare]] = [[] for _ in tokens]
        listed = slots = 0
        for part, rows in parts:
            step = max(_SPAN // width, -(-len(part) // _SPANS))
            for start in range(part.start, part.stop, step):
                spans.append(SeenSpan(start, min(start + step, part.stop), listed, len(rows), slots))
                for place, row in enumerate(rows):
                    shares[row].append(RowShare(slots, len(rows), place))
                slots += len(rows)
            listed += len(rows)
        counts = [len(each) for each in shares]
        first = len(spans) * len(SeenSpan._fields) + len(tokens) * len(OneToken._fields)
        starts = list(accumulate((count * len(RowShare._fields) for count in counts), initial=first))
        ones = map(OneToken, tokens, places, counts, starts)
        lists = (span._replace(rows=span.rows + starts[-1]) for span in spans)
        numbers = [*chain(*lists), *chain(*ones), *chain(*chain(*shares)), *chain(*(rows for _, rows in parts))]
        left = torch.tensor(counts)[:, None].expand(-1, kv_heads).contiguous()
        seen = sum(len(part) * len(rows) for part, rows in parts)
        most = max(len(rows) for _, rows in parts)
        return cls(len(spans), len(tokens), most, seen, slots, torch.tensor(numbers), left)

    def __call__(
        self,
        pool: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Keep the rows' keys and values, and attend.

        `[1, heads, tokens, width]` of all of the step's tokens → `[1, rows, heads, width]`. The pool is `[2, kv_heads,
        places, width]`; `sinks` `[heads]` are scores without a value.
        """
        assert pool.dtype == queries.dtype == keys.dtype == values.dtype, "they are moved as they are"
        _, heads, _, width = queries.shape
        _, kv_heads, capacity, _ = pool.shape
        group, size = heads // kv_heads, queries.element_size()
        head = capacity * width if pool.stride(0) else 0  # values follow all keys, or are the only head's keys
        assert head or kv_heads == 1
        asked = [each if each.stride(3) == 1 else each.contiguous() for each in (queries, keys, values)]
        out = queries.new_empty(1, self.rows, heads, width)
        sunk = None if sinks is None else sinks.float().contiguous()
        job = self.job((heads, kv_heads, width), queries.dtype, scaling, sinks=sinks is not None)
        given = _Given(
            *(number for each in asked for number in (each.data_ptr(), each.stride(1) * size, each.stride(2) * size)),
            *(pool.data_ptr(), head * size, kv_heads, group),
            *(*job.seen, out.data_ptr(), 0 if sunk is None else sunk.data_ptr()),
        )
        job.loop(job.tasks, job.step, ctypes.addressof(given))
        return out

    def job(self, shape: tuple[int, int, int], dtype: torch.dtype, scaling: float, *, sinks: bool = False) -> MixingJob:
        """`shape`: heads, key heads and width."""
        heads, kv_heads, width = shape
        if self.room is None:
            self.room = torch.empty(self.slots * heads * slot_numbers(width))
        most = self.most * (heads // kv_heads)
        loop = mixing_loop(dtype, width, -(-most // -(-most // _QUERIES)), scaling, sinks=sinks)
        tasks = self.spans * kv_heads
        step = tasks if self.seen * heads * width < _ALONE else 1
        return MixingJob(
            loop, tasks, step, (self.table.data_ptr(), self.spans, self.left.data_ptr(), self.room.data_ptr())
        )


@dataclass(frozen=True, slots=True)
class MixingJob:
    """What a job of a step's rows is, whatever the layer: `seen` are four of the numbers that it is given."""

    loop: CompiledLoop
    tasks: int
    step: int
    seen: tuple[int, int, int, int]


def mixes(pool: Tensor) -> bool:
    """Whether `Mixing` attends to what is kept there."""
    return pool.device.type == "cpu" and pool.dtype in FLOATS and lanes() > 0 and pool.shape[3] % lanes() == 0


@cache
def mixing_loop(dtype: torch.dtype, width: int, queries: int, scaling: float, *, sinks: bool = False) -> CompiledLoop:
    return MixingLoop(dtype, width, queries, scaling, sinks=sinks).compiled()
