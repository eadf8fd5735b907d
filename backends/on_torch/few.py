"""Products of few rows with plain weights in half precision: as fast as the weights can be read from memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from backends.on_torch.choices import compared, one_thread, recalled
from backends.on_torch.compiled import FLOATS, Code, CompiledLoop, has_bf16_products, lanes, registers
from backends.on_torch.program import ProgramDraft

MOST_ROWS = 8
_HALVES = torch.bfloat16, torch.float16
_TURNS = 4  # vectors of a row at a time: their sums do not wait for one another
_INPUTS = 32  # whole vectors, whatever their width
_ACROSS = 8  # outputs that several rows are multiplied with at a time, so that rows are read less often
_ACROSS_PAIRS = 4  # the same where pairs are multiplied, and rows do not stay in the nearest cache
_NEAR = 2**13  # numbers of all rows that stay there beside the weights
_TASK = 2**18  # weights that a thread takes at a time
_CLEARLY = 1.1
_TRIAL, _TRIAL_INPUTS, _TRIAL_SECONDS = 2**25, 2048, 0.3  # weights: more than caches hold


def takes(weight: Tensor, rows: int) -> bool:
    """Whether `few_rows` multiplies with these weights, `[outputs, inputs]`."""
    return rows <= MOST_ROWS and weight.dtype in _HALVES and _has_loop(weight)


def drafts(weight: Tensor) -> bool:
    """Whether `draft_few` does: where Python has no part, the loop is worth it in fp32, too."""
    return weight.dtype in FLOATS and _has_loop(weight) and weight.shape[0] % lanes() == 0


def _has_loop(weight: Tensor) -> bool:
    return (
        lanes() > 0
        and weight.device.type == "cpu"
        and weight.shape[0] >= _ACROSS
        and weight.shape[1] % _INPUTS == 0
        and weight.is_contiguous()
    )


def few_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """rows `[n, inputs]` times weight `[outputs, inputs]`, summed in fp32 → `[n, outputs]`, with n from 1 on."""
    outputs, inputs = weight.shape
    given, out = rows.contiguous(), rows.new_empty(rows.shape[0], outputs)
    _loop_for(given, weight)(outputs, _step(inputs), inputs, given.data_ptr(), weight.data_ptr(), out.data_ptr())
    return out


def draft_few(draft: ProgramDraft, rows: Tensor, weight: Tensor, out: Tensor) -> None:
    """Let a program multiply contiguous rows; `out` `[n, outputs]` is contiguous, too."""
    outputs, inputs = weight.shape
    places = rows.data_ptr(), weight.data_ptr(), out.data_ptr()
    draft.add(_loop_for(rows, weight), outputs, _step(inputs), inputs, *places)


def few_rows_of(rows: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """The same with each of several weights of one dtype and as many inputs."""
    count, inputs = rows.shape
    given, found = rows.contiguous(), [rows.new_empty(count, weight.shape[0]) for weight in weights]
    step, start = _step(inputs), given.data_ptr()
    jobs = [
        (weight.shape[0], step, inputs, start, weight.data_ptr(), out.data_ptr())
        for weight, out in zip(weights, found, strict=True)
    ]
    _loop_for(given, weights[0]).all(jobs)
    return found


def few_rows_by_head(rows: Tensor, weights: Tensor) -> Tensor:
    """The same with a weight `[heads, outputs, inputs]` for each head's rows, `[heads, n, inputs]`."""
    heads, count, inputs = rows.shape
    given, out = rows.contiguous(), rows.new_empty(heads, count, weights.shape[1])
    starts = ((each.data_ptr(), each[0].nbytes) for each in (given, weights, out))
    places = zip(*(range(start, start + heads * size, size) for start, size in starts), strict=True)
    step = _step(inputs)
    _loop_for(given[0], weights[0]).all([(weights.shape[1], step, inputs, *place) for place in places])
    return out


def _step(inputs: int) -> int:
    return max(1, _TASK // inputs // _ACROSS) * _ACROSS


def _loop_for(rows: Tensor, weight: Tensor) -> CompiledLoop:
    count, inputs = rows.shape
    pairs = count > 1 and weight.dtype == torch.bfloat16 and has_bf16_products()  # one row waits for memory
    return _loop(weight.dtype, count, *_at_a_time(count, inputs, pairs=pairs), pairs)


@cache
def most_few(dtype: torch.dtype, home: Path | None) -> int:
    """Up to how many rows `few_rows` is faster than torch's product: by a trial, once on a machine."""
    if lanes() == 0 or dtype not in _HALVES:
        return 0
    names = [str(count) for count in range(MOST_ROWS + 1)]
    return int(recalled(home, f"few rows in {dtype}", names, lambda: str(max(_trial(dtype), _trial(dtype)))))


def _trial(dtype: torch.dtype) -> int:
    weight = torch.ones(_TRIAL // _TRIAL_INPUTS, _TRIAL_INPUTS, dtype=dtype)
    rows = [torch.ones(count, _TRIAL_INPUTS, dtype=dtype) for count in range(1, MOST_ROWS + 1)]
    with one_thread():
        times = compared(
            *(partial(product, given, weight) for product in (few_rows, linear) for given in rows),
            seconds=_TRIAL_SECONDS,
        )
    return faster_to(times[:MOST_ROWS], times[MOST_ROWS:])


def faster_to(times: Sequence[float], others: Sequence[float]) -> int:
    """For how many of the first ones this way does not take clearly longer than the other.

    Too few cost more than too many: a step's program ends where loops end. A busy moment takes one count for slow.
    """
    slower = (place for place, (one, other) in enumerate(zip(times, others, strict=True)) if one > other * _CLEARLY)
    return next(slower, len(times))


@cache
def _at_a_time(rows: int, inputs: int, *, pairs: bool) -> tuple[int, int]:
    """How many outputs are multiplied at a time, and how many vectors of a row: rows have whole turns."""
    if pairs and rows * inputs > _NEAR:
        return _ACROSS_PAIRS, 1
    if not pairs and rows > 1:
        return min(_ACROSS, registers() // rows), 1
    numbers, most = lanes() * (2 if pairs else 1), min(_TURNS, registers() // 2 // rows)
    return 1, next(turns for turns in (4, 2, 1) if turns <= most and inputs % (turns * numbers) == 0)


@cache
def _loop(dtype: torch.dtype, rows: int, across: int, turns: int, pairs: bool) -> CompiledLoop:
    """All products of `rows` rows with `across` outputs at a time; the last ones overlap those before."""
    code = Code()
    last = code.build.sub(code.outputs, code.number(across))
    with code.loop(code.start, code.stop, across) as (index, _):
        _FewRows(code, dtype, rows, pairs=pairs).multiply(code.least(index, last), across, turns)
    return code.finish()


class _FewRows:
    """Code for rows, weights and products in one dtype; `pairs`: by the processor's own products of bf16 numbers."""

    def __init__(self, code: Code, dtype: torch.dtype, rows: int, *, pairs: bool) -> None:
        self._code, self._dtype, self._rows, self._pairs = code, dtype, rows, pairs
        self._width = code.build.mul(code.field(3), code.number(dtype.itemsize))  # bytes of a row
        self._given, self._weight, self._out = (code.field(place, pointer=True) for place in (4, 5, 6))

    def multiply(self, first: Any, across: int, turns: int) -> None:
        """With `across` outputs from `first` on, `turns` vectors of each at a time."""
        code, build = self._code, self._code.build
        outputs = [build.add(first, code.number(place)) for place in range(across)]
        starts = [build.mul(output, self._width) for output in outputs]
        vector = lanes() * (4 if self._pairs else self._dtype.itemsize)  # bytes
        zeros = [code.zero()] * (turns * across * self._rows)
        with code.loop(code.number(0), self._width, turns * vector, zeros) as (at, sums):
            for turn in range(turns):
                part = slice(turn * across * self._rows, (turn + 1) * across * self._rows)
                sums[part] = self._added(build.add(at, code.number(turn * vector)), starts, sums[part])
        for place, output in enumerate(outputs):
            for row in range(self._rows):
                self._write(row, output, sums[place * self._rows + row :: across * self._rows])

    def _added(self, at: Any, starts: list[Any], sums: list[Any]) -> list[Any]:
        """The sums with the products of one vector of each row and each output."""
        code, build = self._code, self._code.build
        places = (build.add(at, build.mul(self._width, code.number(row))) for row in range(self._rows))
        rows = [self._vector(self._given, place) for place in places]
        weights = [self._vector(self._weight, build.add(start, at)) for start in starts]
        pairs = [(weight, row) for weight in weights for row in rows]
        if self._pairs:
            return [code.dot_pairs(before, *pair) for pair, before in zip(pairs, sums, strict=True)]
        return [code.fma(*pair, before) for pair, before in zip(pairs, sums, strict=True)]

    def _vector(self, pointer: Any, at: Any) -> Any:
        return self._code.pairs(pointer, at) if self._pairs else self._code.read(self._dtype, pointer, at)

    def _write(self, row: int, output: Any, sums: list[Any]) -> None:
        code, build = self._code, self._code.build
        place = build.add(build.mul(code.outputs, code.number(row)), output)
        whole = code.total(reduce(build.fadd, sums))
        code.write(self._dtype, whole, self._out, build.mul(place, code.number(self._dtype.itemsize)))
