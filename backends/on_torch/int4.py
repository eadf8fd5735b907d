"""torch's own product of 4-bit weights on CPUs, with activations in bf16."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from backends.on_torch.packed import Packed
from together.types import Packing

_GROUPS = (32, 64, 128)
_OUTPUTS = 64  # what the kernel packs together
_MIDDLE = 8  # of the codes: the kernel's weights are scale · (code − 8) + bias
_AT_ONCE = 2**21  # weights that are packed at a time: codes take four bytes each meanwhile


class Int4:
    """A kernel; its scales and biases are in bf16."""

    def __init__(self, packed: Packed) -> None:
        assert packed.biases is not None
        self._outputs, inputs = packed.shape
        self._group = packed.packing.group
        rows = max(1, _AT_ONCE // inputs // _OUTPUTS) * _OUTPUTS
        self._codes = torch.cat([_packed(packed[at : at + rows]) for at in range(0, self._outputs, rows)])
        scales, biases = packed.factors(), packed.biases.float()
        both = torch.stack([scales, biases + _MIDDLE * scales], dim=-1).to(torch.bfloat16)
        both = torch.nn.functional.pad(both, (0, 0, 0, 0, 0, len(self._codes) - self._outputs))
        self._scales = both.transpose(0, 1).contiguous()  # [groups, outputs, 2]

    def __call__(self, rows: Tensor) -> Tensor:
        given = rows.to(torch.bfloat16).contiguous()
        found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(given, self._codes, self._group, self._scales)
        return found[:, : self._outputs].to(rows.dtype)

    @staticmethod
    @cache
    def takes(packing: Packing, inputs: int) -> bool:
        """Whether this torch has the product for it."""
        if packing.mode != "affine" or packing.bits != 4 or packing.group not in _GROUPS:
            return False
        words = torch.zeros(_OUTPUTS, packing.words(inputs), dtype=torch.int32)
        ones = torch.ones(_OUTPUTS, packing.groups(inputs))
        try:
            Int4(Packed(packing, words, ones, ones))(torch.zeros(1, inputs))
        except (AttributeError, RuntimeError):
            return False
        return True


def _packed(part: Packed) -> Tensor:
    """`[outputs, inputs/2]`, the outputs filled up to whole blocks."""
    codes = part.codes().to(torch.int32)
    if len(codes) % _OUTPUTS:
        codes = torch.nn.functional.pad(codes, (0, 0, 0, -len(codes) % _OUTPUTS))
    found: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return found
