"""Sums of states in a program: a residual, a bias."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from backends.on_torch.compiled import Code, CompiledLoop, lanes
from backends.on_torch.program import ProgramDraft


def draft_sum(draft: ProgramDraft, states: Tensor, added: Tensor) -> None:
    """Let a program add to `states` `[n, width]` as many rows, or one `[width]` to all: whole vectors in one dtype."""
    count, width = states.shape
    stride = added.stride(0) if added.dim() == 2 else 0
    draft.add(_loop(states.dtype), count, 1, width, states.data_ptr(), states.stride(0), added.data_ptr(), stride)


@cache
def _loop(dtype: torch.dtype) -> CompiledLoop:
    """Values: width; rows, and from one to the next; what is added, and from one to the next."""
    code = Code()
    build, width = code.build, code.field(3)
    states, added = (code.field(place, pointer=True) for place in (4, 6))
    strides = code.field(5), code.field(7)
    with code.loop(code.start, code.stop, 1) as (row, _), code.loop(code.number(0), width, lanes()) as (at, _):

        def place(stride: Any, row: Any = row, at: Any = at) -> Any:
            return build.mul(build.add(build.mul(row, stride), at), code.number(dtype.itemsize))

        here, there = map(place, strides)
        total = build.fadd(code.read(dtype, states, here), code.read(dtype, added, there))
        code.write(dtype, total, states, here)
    return code.finish()
