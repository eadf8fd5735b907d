"""Matrix products in half precision on CPUs whose instructions have none, where torch's own are slow. Knows no model.

torch's bf16 product there takes time in proportion to the rows: 7 times what follows at 256 rows. One to three rows are
bound by reading the weights and stay with it; more rows widen the weights to fp32, a block that fits a cache at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

EXPERTS = "together_experts"
_FEW = 4  # rows from which widening wins (measured on AVX2)
_BLOCK = 2**19  # weights widened at a time: 2 MiB of fp32


def speed_up(model: Any) -> Any:
    """Give the model's linear layers the faster product where this CPU needs it."""
    if next(model.parameters()).device.type == "cpu" and not _native(next(model.parameters()).dtype):
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = _WideningLinear
    return model


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
