"""What a backend holds of quantized weights: each has them in the form that it multiplies fast. Pure."""

from __future__ import annotations

from dataclasses import replace

from together.models.matrices import PartWeights
from together.types import DTYPE_BYTES, Dtype, Packing

KERNEL_BITS = {2: 4, 3: 4, 4: 4, 5: 8, 6: 8, 8: 8}  # bits of an affine packing, and of the codes of torch's kernels
_MLX_GROUP = 32  # the smallest group of an affine packing that MLX multiplies with
_WORD = 32  # bits of a figure that a kernel has for each group


def widened(packing: Packing) -> Packing:
    """The packing whose codes torch's kernels take."""
    return replace(packing, bits=KERNEL_BITS[packing.bits]) if packing.mode == "affine" else packing


def stored_bits(packing: Packing) -> float:
    """Bits of a weight with its share of scales and biases, those of an affine packing in 16 bits each."""
    return packing.bits + (32 if packing.mode == "affine" else 8) / packing.group


def held_bits(packing: Packing, backend: str) -> float:
    """Bits of a weight of a matrix that is multiplied as a whole, at most; of others a backend holds what is stored.

    torch on a CPU: ONNX Runtime has scales for each group, and sums or zero points, and torch what those leave
    over; see backends/on_torch/nbits.py. Where products are exact, 8 bits are two of 4. Other kernels take less.
    """
    if backend != "torch" or packing.mode == "mxfp8":
        return stored_bits(packing)
    affine = packing.mode == "affine"
    codes = KERNEL_BITS[packing.bits] if affine else 8
    more = max(2 * _WORD, codes // 4 * (_WORD + 4)) + (_WORD if affine else 0)
    return codes + more / packing.group


def held_bytes(weights: PartWeights, dtype: Dtype, backend: str) -> int:
    """Bytes that a backend takes for them, the plain ones in `dtype`.

    torch holds what makes keys and values of a latent plain: it multiplies a part of it for each head.
    """
    if backend == "torch" and weights.by_head:
        return _held_by_head(weights, dtype)
    picked = dict(weights.picked)
    if weights.wide:
        bits = sum(
            (count - picked.get(packing, 0)) * _wide_bits(packing, dtype, backend)
            + picked.get(packing, 0) * (packing.bits + _WORD / packing.group)  # looked up as it is stored, at most
            for packing, count in weights.packed
        )
        return weights.plain * DTYPE_BYTES[dtype] + round(bits / 8)
    more = sum(
        (count - picked.get(packing, 0)) * (held_bits(packing, backend) - stored_bits(packing))
        for packing, count in weights.packed
    )
    return weights.nbytes(dtype) + max(0, round(more / 8))


def _held_by_head(weights: PartWeights, dtype: Dtype) -> int:
    plain, counts = dict(weights.by_head), dict(weights.packed)
    packed = tuple((packing, count - plain.get(packing, 0)) for packing, count in counts.items())
    stored = sum(round(count * stored_bits(packing) / 8) for packing, count in plain.items())
    rest = replace(
        weights,
        plain=weights.plain + sum(plain.values()),
        packed=packed,
        packed_bytes=max(0, weights.packed_bytes - stored),
        by_head=(),
    )
    return held_bytes(rest, dtype, "torch")


def unpacked_bytes(weights: PartWeights, dtype: Dtype, backend: str) -> int:
    """Bytes of those packed weights that a backend holds plain, since it has no product for their groups."""
    if backend != "mlx" or not weights.wide:
        return 0
    counts = (count for packing, count in weights.packed if packing.mode == "affine" and packing.group < _MLX_GROUP)
    return sum(counts) * DTYPE_BYTES[dtype]


def _wide_bits(packing: Packing, dtype: Dtype, backend: str) -> float:
    """Bits of a weight with scales and biases in fp32. MLX has no product for groups of 16: it holds them plain."""
    if backend == "torch" or packing.mode != "affine":
        return held_bits(packing, backend)
    plain = 8 * DTYPE_BYTES[dtype]
    return plain if packing.group < _MLX_GROUP else packing.bits + 2 * _WORD / packing.group
