"""The rules of recurrent layers for one token of a row: torch would go through a state five times, in forty calls.

A layer's step is two calls: the convolution of all channels with what it keeps, and then each head's state, which is
read, changed and asked while it lies in the nearest cache. Sums are in fp32, and what lies between is not rounded.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backends.on_torch.compiled import FLOATS, CompiledLoop, lanes
from backends.on_torch.states import KeptTensors
from backends.on_torch.vectors import VectorCode

with suppress(ImportError):  # nothing is compiled then
    from llvmlite import ir

_CHANNELS = 2**13  # that a thread takes at a time
_VECTORS = 5, 4, 3, 2, 1  # of a state's row that may be sums at a time
_EPSILON = 1e-6  # of the length of queries and keys, as transformers has it


class TokenNumbers(NamedTuple):
    """One token's numbers, in fp32: `query` and `key` `[key heads, width]`, `value` `[heads, value width]`.

    `decay` (a factor) and `weight` are `[heads]`. By the delta rule `weight` is that of what is new, and queries and
    keys get the length 1; by Mamba-2's it is the length of the step, and `through` is what of a value goes past the
    state.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    decay: Tensor
    weight: Tensor
    through: Tensor | None = None


def takes(kept: KeptTensors, convolution: nn.Conv1d) -> bool:
    """Whether loops run for a layer that keeps these."""
    widths = (*kept.state.shape[1:], len(kept.tail))
    if lanes() == 0 or kept.state.device.type != "cpu" or any(width % lanes() for width in widths):
        return False
    return convolution.weight.dtype == kept.tail.dtype and kept.tail.dtype in FLOATS


def mix_channels(tail: Tensor, new: Tensor, convolution: nn.Conv1d) -> tuple[Tensor, Tensor]:
    """SiLU of the convolution `[channels]` in fp32, and the tail after it. `new` is a token's `[channels]`."""
    channels, before = tail.shape
    weight, bias = convolution.weight, convolution.bias
    found, after = torch.empty(channels), torch.empty_like(tail)
    parts = tail.contiguous(), new.contiguous(), weight.contiguous(), after, found
    added = bias.contiguous().data_ptr() if bias is not None else 0
    loop = _convolution(tail.dtype, before, biased=bias is not None)
    loop(channels, _CHANNELS, *(part.data_ptr() for part in parts), added)
    return found, after


def step_state(asked: TokenNumbers, state: Tensor) -> tuple[Tensor, Tensor]:
    """What a token reads `[heads, value width]` in fp32, and the state `[heads, key width, value width]` after it."""
    heads, keys, values = state.shape
    found, after = torch.empty(heads, values), torch.empty_like(state)
    through = () if asked.through is None else (asked.through.contiguous(),)
    parts = (*(part.contiguous() for part in asked[:5]), state.contiguous(), after, found, *through)
    group = heads // len(asked.key)
    vectors = next(count for count in _VECTORS if values % (count * lanes()) == 0)
    loop = _rule(vectors, delta=asked.through is None)
    loop(heads, 1, group, keys, values, *(part.data_ptr() for part in parts))
    return found, after


class StateCode(VectorCode):
    def move(self, dtype: torch.dtype, source: Any, place: Any, target: Any, to: Any) -> None:
        kind, size = ir.IntType(8 * dtype.itemsize), self.number(dtype.itemsize)
        value = self.load(source, kind, self.build.mul(place, size))
        self.store(value, target, self.build.mul(to, size))


@cache
def _convolution(dtype: torch.dtype, before: int, *, biased: bool) -> CompiledLoop:
    """Values: tail `[channels, before]`, a token's channels, weights; the tail after it, what is found; the bias."""
    code = StateCode()
    build = code.build
    tail, new, weight, after, found = (code.field(place, pointer=True) for place in range(3, 8))
    bias = code.field(8, pointer=True)
    with code.loop(code.start, code.stop, 1) as (channel, _):
        first = build.mul(channel, code.number(before))
        factors = build.mul(channel, code.number(before + 1))
        newest = code.one(dtype, new, channel)
        sum_ = build.fmul(newest, code.one(dtype, weight, build.add(factors, code.number(before))))
        for place in range(before):
            at = build.add(first, code.number(place))
            factor = code.one(dtype, weight, build.add(factors, code.number(place)))
            sum_ = build.fadd(sum_, build.fmul(code.one(dtype, tail, at), factor))
            if place:
                code.move(dtype, tail, at, after, build.sub(at, code.number(1)))
        code.move(dtype, new, channel, after, build.add(first, code.number(before - 1)))
        if biased:
            sum_ = build.fadd(sum_, code.one(dtype, bias, channel))
        code.store(sum_, found, build.mul(channel, code.number(4)))
    with code.loop(code.start, code.stop, lanes()) as (channel, _):
        at = build.mul(channel, code.number(4))
        mixed = code.load(found, code.vector, at)
        code.store(build.fmul(mixed, code.sigmoid(mixed)), found, at)
    return code.finish()


@cache
def _rule(vectors: int, *, delta: bool) -> CompiledLoop:
    """Values: heads of a key head, both widths; query, key, value, decay, weight, state, the state after it, found.

    Without `delta`, what of a value goes past the state, too. `vectors` of a row are sums at a time.
    """
    code = StateCode()
    build, wide = code.build, vectors * lanes()
    group, keys, values = (code.field(place) for place in (3, 4, 5))
    query, key, value, decay, weight, state, after, found = (code.field(place, pointer=True) for place in range(6, 14))
    none, four = code.number(0), code.number(4)
    with code.loop(code.start, code.stop, 1) as (head, _):
        own = build.mul(build.sdiv(head, group), keys)
        asking, known = (code.at(each, build.mul(own, four)) for each in (query, key))
        kept = code.splat(code.one(torch.float32, decay, head))
        share = code.splat(code.one(torch.float32, weight, head))
        lengths = [_unit(code, each, keys) for each in (asking, known)] if delta else []
        if delta:
            lengths[0] = build.fdiv(lengths[0], code.splat(code.root(build.sitofp(keys, code.f32))))
        first = build.mul(build.mul(head, keys), build.mul(values, four))
        old, new = (code.at(each, first) for each in (state, after))
        with code.loop(none, values, wide) as (column, _):
            start = build.mul(column, four)
            steps = [code.number(4 * lanes() * each) for each in range(vectors)]
            places = [build.add(start, step) for step in steps]
            mine = [build.add(build.add(build.mul(build.mul(head, values), four), start), step) for step in steps]
            given = [code.load(value, code.vector, place) for place in mine]
            added = [build.fmul(each, share) for each in given]
            if delta:
                with code.loop(none, keys, 1, [code.zero()] * vectors) as (row, sums):
                    factor = code.splat(code.one(torch.float32, known, row))
                    line = code.at(old, build.mul(build.mul(row, values), four))
                    for each, place in enumerate(places):
                        sums[each] = code.fma(code.load(line, code.vector, place), factor, sums[each])
                scale = build.fmul(kept, lengths[1])
                added = [
                    build.fmul(build.fmul(build.fsub(own_, build.fmul(sum_, scale)), share), lengths[1])
                    for own_, sum_ in zip(given, sums, strict=True)
                ]
            with code.loop(none, keys, 1, [code.zero()] * vectors) as (row, sums):
                factor = code.splat(code.one(torch.float32, known, row))
                asked = code.splat(code.one(torch.float32, asking, row))
                line = build.mul(build.mul(row, values), four)
                for each, place in enumerate(places):
                    at = build.add(line, place)
                    changed = code.fma(code.load(old, code.vector, at), kept, build.fmul(factor, added[each]))
                    code.store(changed, new, at)
                    sums[each] = code.fma(changed, asked, sums[each])
            for place, own, sum_ in zip(mine, given, sums, strict=True):
                if delta:
                    sum_ = build.fmul(sum_, lengths[0])
                else:
                    past = code.splat(code.one(torch.float32, code.field(14, pointer=True), head))
                    sum_ = code.fma(own, past, sum_)
                code.store(sum_, found, place)
    return code.finish()


def _unit(code: StateCode, numbers: Any, count: Any) -> Any:
    """What numbers are multiplied by to have the length 1."""
    with code.loop(code.number(0), count, lanes(), [code.zero()]) as (at, sums):
        part = code.load(numbers, code.vector, code.build.mul(at, code.number(4)))
        sums[0] = code.fma(part, part, sums[0])
    whole = code.build.fadd(code.total(sums[0]), code.float(_EPSILON))
    return code.splat(code.build.fdiv(code.float(1.0), code.root(whole)))
