"""Rows of a source's weights: quantized ones as codes, scales and biases, and any as plain numbers.

Experts that are stacked are one matrix here, of all their rows.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from together.models.codes import Floats, Groups
from together.models.headers import TensorInfo
from together.models.matrices import PackedMatrix, ScaledMatrix
from together.models.numbers import Halves, from_e4m3, numbers
from together.models.packing import Packing
from together.models.reading import read_into
from together.models.rows import read_groups, read_scaled
from together.weights.convert import BLOCK, check_finite
from together.weights.mlx.plan import Source, parts_of
from together.weights.quantize import E2M1, fp_scales


def blocks(source: Source) -> list[tuple[int, int]]:
    """Runs of rows that are read at once: `BLOCK` weights, or all where rows do not lie apart."""
    rows, width = prod(source.shape[:-1]), source.shape[-1]
    whole = isinstance(source, TensorInfo) and source.heads
    step = rows if whole else max(1, BLOCK // width)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def read_plain(source: Source, start: int, stop: int) -> Floats | Halves:
    """Rows as numbers, fp16 as it is and all else in fp32. Raises BrokenModel where one is none."""
    if isinstance(source, PackedMatrix):
        found: Floats | Halves = dequantized(read_packed(source, start, stop), source.packing)
    elif isinstance(source, ScaledMatrix):
        found = np.concatenate(list(read_scaled(source, start, stop)))
    elif source.heads:
        found = _plain_rows(source)[start:stop]
    else:
        found = _plain_rows(_flat(source).rows(start, stop))
    check_finite(found, parts_of(source)[0])
    return found


def read_packed(matrix: PackedMatrix, start: int, stop: int) -> Groups:
    """Rows of codes, each in a byte, with their scales and biases. Raises BrokenModel where the file changed."""
    return read_groups(_as_rows(matrix), start, stop)


def dequantized(groups: Groups, packing: Packing) -> Floats:
    """Plain rows in fp32."""
    if groups.biases is not None:
        return groups.affine()
    codes = groups.codes.reshape(*groups.scales.shape, -1)
    values = E2M1[codes] if packing.bits == 4 else from_e4m3(codes)
    found: Floats = values * fp_scales(groups.scales.astype(np.uint8), packing.mode)[..., None]
    return found.reshape(groups.codes.shape)


def _as_rows(matrix: PackedMatrix) -> PackedMatrix:
    """Of stacked experts one matrix of all their rows."""
    if len(matrix.shape) == 2:
        return matrix
    shape = (prod(matrix.shape[:-1]), matrix.shape[-1])
    return replace(matrix, shape=shape, tensors=tuple(_flat(tensor) for tensor in matrix.tensors))


def _flat(tensor: TensorInfo) -> TensorInfo:
    return replace(tensor, shape=(prod(tensor.shape[:-1]), tensor.shape[-1]))


def _plain_rows(tensor: TensorInfo) -> Floats | Halves:
    data = bytearray(tensor.nbytes)
    read_into(tensor, memoryview(data))
    return numbers(data, tensor.dtype).reshape(tensor.shape)
