"""Matrix products in half precision on CPUs whose instructions have none, where torch's own are slow. Knows no model.

torch's bf16 product there takes time in proportion to the rows. Where a trial shows that it pays, linear layers are
packed as fp16: 8 rows then cost twice what one costs, not 5 times. What is not packed (experts, a matrix that is an
embedding too, widths far from a multiple of 512, all of them where FBGEMM is missing) stays with torch's product for
one to three rows, which are bound by reading the weights; for more rows the weights are widened to fp32, a block that
fits a cache at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from backends.measuring import fastest
from backends.on_torch import packed
from backends.on_torch.packed import Held, Matrix

EXPERTS = "together_experts"
_FEW = 4  # rows from which widening wins (measured on AVX2)
_BLOCK = 2**19  # weights widened at a time: 2 MiB of fp32
_TRIAL_ROWS, _TRIAL_SIDE, _TRIAL_SECONDS = 8, 1024, 0.02
_CLEARLY = 0.75  # of the time that it takes today: then packing pays


def speed_up(model: Any, stored: Mapping[str, Matrix] | None = None) -> Any:
    """Give the model's linear layers the faster product where this CPU needs it.

    `stored`, by parameter name, has the weights that are not in the model yet: those of layers that are to be packed.
    """
    first = next(model.parameters())
    if packs(first.dtype, first.device):
        _pack_all(model, stored or {}, first.dtype)
    if first.device.type == "cpu" and not _native(first.dtype):
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = _WideningLinear
    return model


def packs(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether linear layers are packed here."""
    return device.type == "cpu" and dtype.itemsize == 2 and packed.can_pack() and _packing_pays(dtype)


@cache
def _packing_pays(dtype: torch.dtype) -> bool:
    """Try it, for some milliseconds: no list of chips would be complete."""
    weight, rows = torch.randn(_TRIAL_SIDE, _TRIAL_SIDE), torch.randn(_TRIAL_ROWS, _TRIAL_SIDE).to(dtype)
    half, tight = weight.to(dtype), packed.pack(weight)
    tried = (lambda: _product(rows, half), lambda: packed.product(rows.float(), tight).to(dtype))
    today, then = fastest(*tried, seconds=_TRIAL_SECONDS)
    return then < _CLEARLY * today


def linear_weights(model: nn.Module) -> set[str]:
    """Names of the parameters that `speed_up` packs where it packs: used by one linear layer and nothing else."""
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    layers = ((name, module) for name, module in model.named_modules() if type(module) is nn.Linear)
    return {
        f"{name}.weight" for name, layer in layers if uses[id(layer.weight)] == 1 and packed.fits(layer.in_features)
    }


def _pack_all(model: nn.Module, stored: Mapping[str, Matrix], dtype: torch.dtype) -> None:
    """One layer after the other, so that no more than one is there twice."""
    with packed.Packer(dtype) as packer:
        for name in sorted(linear_weights(model)):
            path = name.removesuffix(".weight")
            layer = model.get_submodule(path)
            matrix = stored.get(name) or Held(layer.weight.detach())  # type: ignore[operator]
            model.set_submodule(path, packer.layer(matrix, layer.bias))  # type: ignore[arg-type]


def _native(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies `dtype` by instructions of its own."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


class _WideningLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        if rows.shape[0] < _FEW:
            return linear(input, self.weight, self.bias)
        out = widened(rows, self.weight)
        if self.bias is not None:
            out += self.bias
        return out.reshape(*input.shape[:-1], -1)


def widened(rows: Tensor, weight: Tensor) -> Tensor:
    """rows `[n, in]` times weight `[out, in]`, both in half precision, summed in fp32 → `[n, out]`."""
    height, width = weight.shape
    step = max(1, _BLOCK // width)
    wide_rows = rows.float()
    wide_weight = torch.empty(min(step, height), width)
    out = torch.empty(rows.shape[0], height, dtype=rows.dtype)
    for start in range(0, height, step):
        part = weight[start : start + step]
        wide_part = wide_weight[: part.shape[0]].copy_(part)
        out[:, start : start + step] = wide_rows @ wide_part.T
    return out


def register_experts() -> None:
    """Let mixture-of-experts models be loaded with `experts_implementation=EXPERTS`."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(EXPERTS, run_experts)


def run_experts(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Each expert over its tokens: hidden `[tokens, width]`, chosen and weights `[tokens, experts per token]`.

    transformers' own ways either copy the weights of every chosen expert or multiply all rows slowly in half precision.
    """
    out = torch.zeros_like(hidden)
    for expert in torch.unique(chosen).tolist():
        tokens, place = torch.where(chosen == expert)
        gate, up = _product(hidden[tokens], module.gate_up_proj[expert]).chunk(2, dim=-1)
        states = _product(module.act_fn(gate) * up, module.down_proj[expert])
        out.index_add_(0, tokens, states * weights[tokens, place, None])
    return out


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    if rows.shape[0] < _FEW or _native(rows.dtype):
        return linear(rows, weight)
    return widened(rows, weight)
