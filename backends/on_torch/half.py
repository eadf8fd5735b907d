"""Linear layers in half precision on CPUs, with one copy of the weights: few rows by a loop, many by torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from backends.on_torch.few import few_rows, few_rows_by_head, few_rows_of, takes
from backends.on_torch.shared import TOGETHER, SharedProduct

_FEW = 4  # rows from which widening wins (measured on AVX2)
_WIDENED = 2**19  # weights widened at a time: 2 MiB of fp32


@cache
def native(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `device` multiplies `dtype` by instructions of its own, as every GPU does."""
    if device.type != "cpu":
        return True
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


class HalfLinear(nn.Linear):
    """Takes the place of nn.Linear; `use_loops` says up to how many rows a loop multiplies."""

    few: int
    shared: Callable[[Tensor], Tensor] | None = None  # with layers that have the same input, up to `few` rows

    @property
    def kernel(self) -> str:
        many = "linear" if native(self.weight.dtype, self.weight.device) else "widened to fp32"
        return f"{many}, few rows by a loop" if self.few else many

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        count = rows.shape[0]
        if 0 < count <= self.few:
            out = few_rows(rows, self.weight) if self.shared is None else self.shared(input)
        elif _widens(rows):
            out = widened(rows, self.weight)
        else:
            return linear(input, self.weight, self.bias)
        if self.bias is not None:
            out += self.bias
        return out.reshape(*input.shape[:-1], out.shape[1])


def use_loops(model: nn.Module, few: int) -> None:
    """Let linear layers and experts of plain weights multiply up to `few` rows by loops."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = HalfLinear
        if isinstance(module, HalfLinear):
            module.few = few if takes(module.weight, 1) else 0
        elif hasattr(module, "has_gate") or hasattr(module, "few"):
            module.few = few  # type: ignore[assignment]
    for module in model.modules():
        for names in TOGETHER:
            layers = [getattr(module, name, None) for name in names]
            if all(isinstance(layer, HalfLinear) and layer.few for layer in layers):
                _share(layers)  # type: ignore[arg-type]


def _share(layers: Sequence[HalfLinear]) -> None:
    """A call costs so much that layers with the same input are one."""
    weights = [layer.weight for layer in layers]
    inputs = layers[0].in_features
    product = SharedProduct(lambda input: few_rows_of(input.reshape(-1, inputs), weights))
    for place, layer in enumerate(layers):
        layer.shared = partial(product.part, place)


def widened(rows: Tensor, weight: Tensor) -> Tensor:
    """rows `[n, in]` times weight `[out, in]`, both in half precision, summed in fp32 → `[n, out]`."""
    height, width = weight.shape
    step = max(1, _WIDENED // width)
    wide_rows = rows.float()
    wide_weight = torch.empty(min(step, height), width)
    out = torch.empty(rows.shape[0], height, dtype=rows.dtype)
    for start in range(0, height, step):
        part = weight[start : start + step]
        wide_part = wide_weight[: part.shape[0]].copy_(part)
        out[:, start : start + step] = wide_rows @ wide_part.T
    return out


def multiplied(rows: Tensor, weight: Tensor, few: int = 0) -> Tensor:
    """rows `[n, in]` times plain weights `[out, in]`; up to `few` rows by `few_rows`."""
    count = rows.shape[0]
    if 0 < count <= few and takes(weight, count):
        return few_rows(rows, weight)
    return widened(rows, weight) if _widens(rows) else linear(rows, weight)


def multiplied_by_head(rows: Tensor, weights: Tensor, few: int = 0) -> Tensor:
    """rows `[heads, n, in]` times plain weights `[heads, out, in]`; up to `few` rows by `few_rows_by_head`."""
    count = rows.shape[1]
    if 0 < count <= few and takes(weights[0], count):
        return few_rows_by_head(rows, weights)
    if native(rows.dtype, rows.device):
        return torch.bmm(rows, weights.transpose(1, 2))
    return torch.stack([multiplied(*pair) for pair in zip(rows, weights, strict=True)])


def _widens(rows: Tensor) -> bool:
    """Whether `widened` is faster with these than torch's own product."""
    return rows.shape[0] >= _FEW and not native(rows.dtype, rows.device)
