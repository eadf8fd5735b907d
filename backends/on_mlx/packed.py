"""Packed matrices in the places of mlx-lm's modules: codes, scales and biases stay as they are stored."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_map_with_path

from together.models.packing import Packing


class _Packed(Module):
    """Weights to be loaded in the place of a plain module's, `[…, out, in]`; results are in `dtype`."""

    _function = "quantized_matmul"

    def __init__(self, plain: Module, packing: Packing, dtype: mx.Dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        *rows, inputs = plain.weight.shape
        self.weight = mx.zeros((*rows, packing.words(inputs)), mx.uint32)
        self.scales = mx.zeros((*rows, packing.groups(inputs)))
        self.biases = mx.zeros((*rows, packing.groups(inputs))) if packing.mode == "affine" else None
        if "bias" in plain:
            self.bias = plain.bias
        self._group, self._bits, self._mode = packing.group, packing.bits, packing.mode
        self._dtype = dtype
        # On a CPU, MLX's products add up in the dtype of the states: bf16 is a tenth off then, and ten times slower.
        self._within = mx.float32 if mx.default_device().type == mx.cpu else dtype

    @property
    def kernel(self) -> str:
        return f"{self._function}, {f'{self._bits} bit' if self._mode == 'affine' else self._mode}"

    def product(self, x: mx.array, *, transpose: bool = True) -> mx.array:
        """`[…, in]` to `[…, out]`, or without `transpose` the other way.

        Scales of another dtype than the states make MLX compute in fp32.
        """
        return mx.quantized_matmul(
            x.astype(self._within),
            self.weight,
            self.scales,
            self.biases,
            transpose=transpose,
            group_size=self._group,
            bits=self._bits,
            mode=self._mode,
        ).astype(self._dtype)


class MlxPackedLinear(_Packed):
    def __call__(self, x: mx.array) -> mx.array:
        found = self.product(x)
        return found + self.bias if "bias" in self else found


class MlxPackedEmbedding(_Packed):
    def __call__(self, ids: mx.array) -> mx.array:
        """`[…, in]` of each id, computed in fp32 and rounded once."""
        scales, biases = self.scales[ids], None
        if self.biases is not None:
            scales, biases = scales.astype(mx.float32), self.biases[ids].astype(mx.float32)
        rows = mx.dequantize(self.weight[ids], scales, biases, self._group, self._bits, self._mode, dtype=mx.float32)
        return rows.astype(self._dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        return self.product(x)


class MlxPackedExperts(_Packed):
    _function = "gather_qmm"

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """As mlx-lm's `SwitchLinear`: `[…, 1, in]` to `[…, 1, out]` by each token's expert."""
        found = mx.gather_qmm(
            x.astype(self._within),
            self.weight,
            self.scales,
            self.biases,
            rhs_indices=indices,
            group_size=self._group,
            bits=self._bits,
            mode=self._mode,
            sorted_indices=sorted_indices,
        ).astype(self._dtype)
        return found + mx.expand_dims(self.bias[indices], -2) if "bias" in self else found


class MlxPackedHeads(_Packed):
    """A matrix of each head: `[…, heads, n, in]` to `[…, heads, n, out]`, or the other way."""

    def __call__(self, x: mx.array, transpose: bool = True) -> mx.array:
        return self.product(x, transpose=transpose)


class MlxPackedTurned(_Packed):
    """The same of `TurnedHeads`."""

    def __call__(self, x: mx.array, transpose: bool = True) -> mx.array:
        return self.product(x, transpose=not transpose)


_PLAIN = {
    "Linear": "matmul",
    "Embedding": "matmul",
    "SwitchLinear": "gather_mm",
    "MultiLinear": "matmul",
    "TurnedHeads": "matmul",
}
_KINDS = {
    "Linear": MlxPackedLinear,
    "Embedding": MlxPackedEmbedding,
    "SwitchLinear": MlxPackedExperts,
    "MultiLinear": MlxPackedHeads,
    "TurnedHeads": MlxPackedTurned,
}


def pack_modules(model: Module, packings: Mapping[str, Packing], dtype: mx.Dtype) -> None:
    """Put modules for packed matrices in the places of plain ones, by the paths of these."""

    def packed(path: str, module: Module) -> Module:
        return _KINDS[type(module).__name__](module, packings[path], dtype) if path in packings else module

    model.update_modules(tree_map_with_path(packed, model.leaf_modules(), is_leaf=Module.is_module))


def can_pack(module: object) -> bool:
    """Whether `pack_modules` has one for its place: the routers of some families are matrices of their own kind."""
    return type(module).__name__ in _KINDS


def kernel_of(module: object) -> str:
    """MLX's function that multiplies in this module; empty where nothing does."""
    return module.kernel if isinstance(module, _Packed) else _PLAIN.get(type(module).__name__, "")
