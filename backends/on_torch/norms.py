"""Norms by root mean square in one call: a transformers module makes seven of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from backends.on_torch.compiled import FLOATS, Code, CompiledLoop, lanes
from backends.on_torch.program import ProgramDraft

_EPSILONS = "variance_epsilon", "eps"  # as the families name it
_SCALES = 1e-3, 1.0, 1e2  # of the sample's rows: epsilon counts in the first
_NEAR = 1e-6  # what the order of a sum may change
_TASK = 2**15  # numbers that a thread takes at a time


@dataclass(frozen=True, slots=True)
class RootMeanSquare:
    """x · (weight + offset) / √(mean x² + epsilon) in fp32; `rounded`: to x's dtype before the weight, too."""

    epsilon: float
    offset: float
    rounded: bool

    def __call__(self, rows: Tensor, weight: Tensor) -> Tensor:
        """By torch, in the order of the families' own modules: equal to theirs in every bit."""
        wide = rows.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        wide = wide.to(rows.dtype).float() if self.rounded else wide
        return (wide * self.factors(weight)).to(rows.dtype)

    def factors(self, weight: Tensor) -> Tensor:
        return weight.float() + self.offset


class RootNorm(nn.Module):
    """Takes the place of `module`, which computes by `definition`."""

    def __init__(self, module: nn.Module, definition: RootMeanSquare) -> None:
        super().__init__()
        weight = module.get_parameter("weight").detach()
        self.plain, self._dtype, self.width = module, weight.dtype, len(weight)
        self._factors = definition.factors(weight)
        self._loop = _loop(weight.dtype, definition.epsilon, definition.rounded)
        self._adding = _loop(weight.dtype, definition.epsilon, definition.rounded, adding=True)
        self._step = max(1, _TASK // len(weight))

    @property
    def weight(self) -> nn.Parameter:
        """Some layers look at its dtype."""
        return self.plain.get_parameter("weight")

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype != self._dtype:
            return self.plain(input)  # type: ignore[no-any-return]
        given, width = input.contiguous(), self.width
        out = torch.empty_like(given)
        parts = (part.data_ptr() for part in (given, self._factors, out))
        self._loop(given.numel() // width, self._step, width, *parts)
        return out

    def draft(self, draft: ProgramDraft, given: Tensor, out: Tensor) -> None:
        """Let a program make `out` of `given`, both `[rows, width]` and contiguous; they may be the same."""
        places = (part.data_ptr() for part in (given, self._factors, out))
        draft.add(self._loop, given.numel() // self.width, self._step, self.width, *places)

    def draft_sum(self, draft: ProgramDraft, states: Tensor, added: Tensor, out: Tensor) -> None:
        """The same of `states`, to which another is added first."""
        places = (part.data_ptr() for part in (states, self._factors, out, added))
        draft.add(self._adding, states.numel() // self.width, self._step, self.width, *places)


def fuse_norms(model: nn.Module) -> None:
    """Replace each module that computes a norm: by a trial of it, not by its name."""
    for path, module in list(model.named_modules()):
        norm = fused_norm(module)
        if norm is not None:
            model.set_submodule(path, norm)


def _takes_rows_alone(module: nn.Module) -> bool:
    """A norm with a gate takes that, too."""
    given = signature(module.forward).parameters
    alone = sum(each.default is Parameter.empty for each in given.values() if each.kind is not Parameter.VAR_KEYWORD)
    return alone == 1 and "gate" not in given


@torch.inference_mode()
def fused_norm(module: nn.Module) -> RootNorm | None:
    """None where the module computes something else, or no loop takes its weight."""
    parameters = dict(module.named_parameters())
    if set(parameters) != {"weight"} or not takes(parameters["weight"]) or not _takes_rows_alone(module):
        return None
    weight = parameters["weight"]
    sample = _sample(weight)
    known = (RootMeanSquare(*each) for each in product(_epsilons(module), (0.0, 1.0), (True, False)))
    wanted = module(sample)
    found = next((each for each in known if torch.equal(each(sample, weight), wanted)), None)
    if found is None:
        return None
    norm, step = RootNorm(module, found), torch.finfo(weight.dtype).eps
    return norm if torch.allclose(norm(sample).float(), wanted.float(), rtol=max(_NEAR, 2 * step), atol=0) else None


def takes(weight: Tensor) -> bool:
    """Whether there are loops for a norm with this weight."""
    whole = lanes() > 0 and weight.dim() == 1 and len(weight) > 0 and len(weight) % lanes() == 0
    return whole and weight.device.type == "cpu" and weight.dtype in FLOATS


def _epsilons(module: nn.Module) -> Iterator[float]:
    found = (getattr(module, name, None) for name in _EPSILONS)
    return (value for value in found if isinstance(value, float))


def _sample(weight: Tensor) -> Tensor:
    values = torch.randn(len(_SCALES), len(weight), generator=torch.Generator().manual_seed(0))
    return (values * torch.tensor(_SCALES)[:, None]).to(weight.dtype)


@cache
def _loop(dtype: torch.dtype, epsilon: float, rounded: bool, *, adding: bool = False) -> CompiledLoop:
    """Values: width; rows, factors, what becomes of the rows; with `adding` what is added to the rows first."""
    code = Code()
    build, width, none = code.build, code.field(3), code.number(0)
    given, factors, out = (code.field(place, pointer=True) for place in (4, 5, 6))

    def place(row: Any, at: Any) -> Any:
        return build.mul(build.add(build.mul(row, width), at), code.number(dtype.itemsize))

    with code.loop(code.start, code.stop, 1) as (row, _):
        with code.loop(none, width, lanes(), [code.zero()]) as (at, sums):
            value = code.read(dtype, given, place(row, at))
            if adding:
                more = code.read(dtype, code.field(7, pointer=True), place(row, at))
                code.write(dtype, build.fadd(value, more), given, place(row, at))
                value = code.read(dtype, given, place(row, at))
            sums[0] = code.fma(value, value, sums[0])
        mean = build.fdiv(code.total(sums[0]), build.sitofp(width, code.f32))
        scale = code.splat(build.fdiv(code.float(1.0), code.root(build.fadd(mean, code.float(epsilon)))))
        with code.loop(none, width, lanes()) as (at, _):
            value = build.fmul(code.read(dtype, given, place(row, at)), scale)
            if rounded:
                code.write(dtype, value, out, place(row, at))
                value = code.read(dtype, out, place(row, at))
            factor = code.load(factors, code.vector, build.mul(at, code.number(4)))
            code.write(dtype, build.fmul(value, factor), out, place(row, at))
    return code.finish()
