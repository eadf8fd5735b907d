"""gelu(gate) · up of an MLP in one call, as torch takes most of its time for the tanh."""

from __future__ import annotations

from copy import copy
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from backends.on_torch.compiled import FLOATS, CompiledLoop, lanes
from backends.on_torch.program import ProgramDraft
from backends.on_torch.vectors import VectorCode

Gated = Literal["gelu", "silu"]  # GELU by tanh
_PROJECTIONS = "gate_proj", "up_proj", "down_proj"
_SAMPLE, _REACH = 1024, 8.0  # numbers, up to this size
_NEAR = 1e-6  # torch's own error where 1 + tanh is small
_TASK = 2**14  # numbers that a thread takes at a time
_PARTS = 4  # of a row in a program
_CUBE, _SLOPE = 0.044715, 1.5957691216057308  # of GELU by tanh: 2·√(2/π)


class GeluProjections(nn.Module):
    """Takes the place of a module that computes `down_proj(act_fn(gate_proj(x)) · up_proj(x))` with GELU by tanh."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (getattr(module, name) for name in _PROJECTIONS)
        self.act_fn, self._dtype = module.act_fn, dtype

    def forward(self, input: Tensor) -> Tensor:
        gate, up = self.gate_proj(input), self.up_proj(input)
        fits = gate.dtype == up.dtype == self._dtype and gate.shape[-1] >= lanes()
        found: Tensor = self.down_proj(gelu_times(gate, up) if fits else self.act_fn(gate) * up)
        return found


def fuse_gelu(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace each module that computes such a product of states in `dtype`: by a trial of it, not by its name."""
    for path, module in list(model.named_modules()):
        if gates_by_gelu(module, dtype):
            model.set_submodule(path, GeluProjections(module, dtype))


@torch.inference_mode()
def gates_by_gelu(module: nn.Module, dtype: torch.dtype) -> bool:
    """By what the module makes of a sample with other projections, and whether the loop makes the same of it."""
    if lanes() == 0 or dtype not in FLOATS or not all(hasattr(module, name) for name in (*_PROJECTIONS, "act_fn")):
        return False
    probe: Any = copy(module)
    probe.__dict__["_modules"] = dict(module._modules)
    probe.gate_proj, probe.up_proj, probe.down_proj = nn.Identity(), _Turned(), _Negative()
    gate = torch.linspace(-_REACH, _REACH, _SAMPLE).to(dtype)[None]
    up, wanted = gate.flip(-1), probe(gate).neg()
    if not torch.equal(gelu(gate, approximate="tanh") * up, wanted):
        return False
    found, step = gelu_times(gate, up), torch.finfo(dtype).eps
    return torch.allclose(found.float(), wanted.float(), rtol=max(_NEAR, 2 * step), atol=_NEAR * _REACH)


class _Turned(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input.flip(-1)


class _Negative(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return -input


def gelu_times(gate: Tensor, up: Tensor) -> Tensor:
    """GELU by tanh of `gate`, times `up`: both `[..., rows, width]` in one dtype, with at least `lanes()` in a row."""
    *_, rows, width = gate.shape
    if rows * width != gate.numel() or gate.stride(-1) != 1 or up.stride(-1) != 1:
        rows, gate, up = gate.numel() // width, gate.contiguous(), up.contiguous()
    out = torch.empty(gate.shape, dtype=gate.dtype)
    given = gate.data_ptr(), gate.stride(-2), up.data_ptr(), up.stride(-2)
    _loop(gate.dtype, "gelu")(rows, max(1, _TASK // width), width, *given, out.data_ptr())
    return out


def draft_gated(draft: ProgramDraft, gated_by: Gated, gate: Tensor, up: Tensor, out: Tensor) -> None:
    """Let a program make `out` of gate and up, all `[n, width]` in one dtype; in `out` rows follow one another."""
    count, width = gate.shape
    parts = _PARTS if count == 1 and width % (_PARTS * lanes()) == 0 else 1  # or other threads would wait for one
    rows, each = count * parts, width // parts
    strides = (each, each) if parts > 1 else (gate.stride(0), up.stride(0))
    given = gate.data_ptr(), strides[0], up.data_ptr(), strides[1], out.data_ptr()
    draft.add(_loop(gate.dtype, gated_by), rows, 1, each, *given)


@cache
def _loop(dtype: torch.dtype, gated_by: Gated) -> CompiledLoop:
    """Values: width; gate, and from row to row of it; the same of up; what becomes of them."""
    code = VectorCode()
    build, width = code.build, code.field(3)
    gate, up, out = (code.field(place, pointer=True) for place in (4, 6, 8))
    strides, last = (code.field(5), code.field(7), width), build.sub(width, code.number(lanes()))
    with code.loop(code.start, code.stop, 1) as (row, _), code.loop(code.number(0), width, lanes()) as (at, _):
        here = code.least(at, last)  # the last vector of a row overlaps the one before
        numbers = (build.add(build.mul(row, stride), here) for stride in strides)
        at_gate, at_up, to = (build.mul(number, code.number(dtype.itemsize)) for number in numbers)
        value = code.read(dtype, gate, at_gate)
        found = _gelu(code, value) if gated_by == "gelu" else build.fmul(value, code.sigmoid(value))
        code.write(dtype, found, out, to)  # rounded, as torch's is
        code.write(dtype, build.fmul(code.read(dtype, out, to), code.read(dtype, up, at_up)), out, to)
    return code.finish()


def _gelu(code: VectorCode, value: Any) -> Any:
    """(1 + tanh y) / 2 is the sigmoid of 2y."""
    build = code.build
    slope = code.fma(build.fmul(value, value), code.every(_CUBE * _SLOPE), code.every(_SLOPE))
    return build.fmul(value, code.sigmoid(build.fmul(value, slope)))
