"""Modules that compute with quantized matrices: what takes the place of nn.Linear, nn.Embedding and stacked experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from backends.on_torch.half import native
from backends.on_torch.packed import Packed

_TILE = {"cpu": 2**19}  # weights that are plain at a time: 2 MiB in fp32 stay in a processor's cache
_LARGE_TILE = 2**26


class Kernel(Protocol):
    """Some rows of a quantized matrix `[outputs, inputs]`, in whatever form multiplies fast."""

    def __call__(self, rows: Tensor) -> Tensor:
        """`[n, inputs]` → `[n, outputs]` in the same dtype, without the layer's bias."""


class Tiles:
    """Plain weights of some outputs at a time: right for every packing, dtype and device."""

    def __init__(self, packed: Packed) -> None:
        self.packed = packed

    def __call__(self, rows: Tensor) -> Tensor:
        outputs, inputs = self.packed.shape
        step = max(1, _TILE.get(rows.device.type, _LARGE_TILE) // inputs)
        kind = rows.dtype if native(rows.dtype, rows.device) else torch.float32
        given = rows.to(kind)
        out = rows.new_empty(len(rows), outputs)
        for start in range(0, outputs, step):
            out[:, start : start + step] = linear(given, self.packed[start : start + step].weights(kind))
        return out


class MatrixProduct:
    """Of a whole matrix, whose parts follow one another along the outputs."""

    def __init__(self, parts: Sequence[Kernel]) -> None:
        self._parts = parts

    @property
    def parts(self) -> Sequence[Kernel]:
        return self._parts

    @property
    def kernel(self) -> str:
        """Its name: all parts have the same one."""
        return type(self._parts[0]).__name__

    def __call__(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        found = [part(rows) for part in self._parts]
        out = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        return out.reshape(*input.shape[:-1], out.shape[1])


@dataclass(frozen=True, slots=True)
class Columns:
    """What a layer has of a product: its outputs from `start` to `stop`."""

    whole: MatrixProduct
    start: int
    stop: int


class QuantizedLinear(nn.Module):
    """Takes the place of nn.Linear; `kernel` is the name of what multiplies."""

    def __init__(
        self,
        product: Callable[[Tensor], Tensor],
        bias: Tensor | None,
        kernel: str = "",
        columns: Columns | None = None,
    ) -> None:
        """`columns`: which ones of a whole product those of `product` are."""
        super().__init__()
        self.bias, self._product, self.kernel, self.columns = bias, product, kernel, columns

    def forward(self, input: Tensor) -> Tensor:
        out = self._product(input)
        if self.bias is not None:
            out += self.bias
        return out


class PackedRows(Protocol):
    """A quantized matrix whose rows are looked up."""

    def __getitem__(self, ids: Tensor) -> Packed: ...


class QuantizedEmbedding(nn.Module):
    """Takes the place of nn.Embedding: only the rows that are looked up become plain."""

    def __init__(
        self, packed: PackedRows, dtype: torch.dtype, scale: Tensor | None, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.weight = torch.empty(0, dtype=dtype, device=device)  # Llama 4's class asks it where ids have to be
        self._packed, self._dtype, self._scale = packed, dtype, scale

    def forward(self, input: Tensor) -> Tensor:
        rows = self._packed[input.flatten()].weights(self._dtype)
        if self._scale is not None:
            rows *= self._scale.to(self._dtype)
        return rows.reshape(*input.shape, -1)
