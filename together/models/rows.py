"""Reads rows of quantized matrices of every layout: as affine groups, or as plain weights. Numpy.

An affine group is w = scale · code + bias. Of whole numbers with a zero point the bias is −scale · zero, which fp32
holds exactly for scales of 16 bits. Groups that are larger than a backend's are several with the same scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import gcd, prod

import numpy as np

from together.models.codes import DOUBLED, Codes, Floats, Groups, Words, unpack
from together.models.folder import broken, title
from together.models.gguf import rows as gguf_rows
from together.models.headers import TensorInfo
from together.models.matrices import Layout, PackedMatrix, ScaledMatrix
from together.models.numbers import from_e4m3, numbers
from together.models.orders import InputOrder
from together.models.packing import WORD, Packing
from together.models.reading import read_columns, read_stored
from together.models.recognise import BLOCK
from together.wording import quoted

ReadRows = Callable[[PackedMatrix, int, int], Groups]

_AWQ_ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # where in a word the codes of eight outputs stand
_BYTE = 8
_NO_SCALE = 255  # of exponent codes
_AT_ONCE = 2**21  # weights in 8-bit floats that are widened at a time


def read_groups(matrix: PackedMatrix, start: int, stop: int) -> Groups:
    """From `start` to `stop` of the first axis: `[rows, …]`, or `[experts · rows, …]` of stacked experts.

    Raises BrokenModel if a file changed, or for scales that are no numbers; UnsupportedModel for a matrix whose groups
    are no runs of its inputs.
    """
    found = _READ.get(matrix.layout, _transposed)(matrix, start, stop)
    if matrix.layout != "mlx":  # MLX itself computes with such scales, and steps refuse what comes of it
        _check_numbers(matrix, found)
    return found


def read_scaled(matrix: ScaledMatrix, start: int, stop: int) -> Iterator[Floats]:
    """From `start` to `stop` of the outputs in fp32, some rows at a time. Raises BrokenModel if a file changed."""
    outputs, inputs = matrix.shape
    scale = _read(matrix.scale)
    blocks = scale.ndim == 2 and scale.shape[1] == -(-inputs // BLOCK) and scale.shape[0] == -(-outputs // BLOCK)
    step = max(1, _AT_ONCE // inputs)
    for at in range(start, stop, step):
        end = min(at + step, stop)
        weights = _read(matrix.weight.rows(at, end))
        if blocks and scale.size > 1:
            spread = np.repeat(scale, BLOCK, axis=1)[:, :inputs]
            for row, values in enumerate(weights, at):
                values *= spread[row // BLOCK]
        else:
            weights *= scale.reshape(-1, 1)[at:end] if scale.size > 1 else scale.reshape(())
        yield weights


# --- layouts ----------------------------------------------------------------------------------------------------------


def _gguf(matrix: PackedMatrix, start: int, stop: int) -> Groups:
    return gguf_rows.read_groups(matrix.tensors[0], start, stop, read_stored)


def _mlx(matrix: PackedMatrix, start: int, stop: int) -> Groups:
    words, scales, *biases = (tensor.rows(start, stop) for tensor in matrix.tensors)
    codes = unpack(_words(_raw(words), words), matrix.packing.bits)
    rows = prod(codes.shape[:-1])
    factors = _raw(scales) if scales.dtype == "U8" else _read(scales)
    more = _read(biases[0]).reshape(rows, -1) if biases else None
    return Groups(codes.reshape(rows, -1), factors.reshape(rows, -1), more)


def _integers(matrix: PackedMatrix, start: int, stop: int) -> Groups:
    """compressed-tensors' signed numbers: packed ones are stored 2^(bits − 1) larger, so that none is negative."""
    codes, scales = matrix.tensors[0], matrix.tensors[1]
    bits = _BYTE if codes.dtype == "I8" else codes.shape[1] * WORD // matrix.shape[1]
    read = _raw(codes.rows(start, stop))
    found = read.reshape(stop - start, -1) ^ np.uint8(128) if codes.dtype == "I8" else unpack(_words(read, codes), bits)
    factors = _read(scales.rows(start, stop))
    return _affine(found, factors, _signed_zeros(matrix, bits, start, stop), matrix.packing)


def _signed_zeros(matrix: PackedMatrix, bits: int, start: int, stop: int) -> Floats | np.float32:
    """Zero points as codes; without a tensor of them they are 0."""
    points, middle = matrix.part("weight_zero_point"), np.float32(2 ** (bits - 1))
    if points is None:
        return middle
    if points.dtype == "I8":
        stored = _raw(points.rows(start, stop)).view(np.int8).reshape(stop - start, -1)
        return stored.astype(np.float32) + middle
    words = _words(_raw(points), points)  # packed along the outputs
    return unpack(words.T, bits)[:, start:stop].T.astype(np.float32)


def _floats(matrix: PackedMatrix, start: int, stop: int) -> Groups:
    """4-bit floats as whole numbers: twice their values, plus 12, under half the scale."""
    codes, scales, all_ = matrix.tensors
    raw = _raw(codes.rows(start, stop)).reshape(stop - start, -1)
    factors = _read(scales.rows(start, stop)) / _read(all_).reshape(())
    doubled = DOUBLED[unpack(raw.view("<u4"), 4)]
    return _affine(doubled, factors * np.float32(0.5), np.float32(DOUBLED[0]), matrix.packing)


def _transposed(matrix: PackedMatrix, start: int, stop: int) -> Groups:
    """GPTQ and AWQ: inputs come first, so that outputs are columns; AWQ packs along the outputs."""
    codes, scales = matrix.tensors[0], matrix.tensors[1]
    awq, inputs = matrix.layout == "awq", matrix.shape[1]
    if order := InputOrder.of(matrix):
        order.require_plain(title(order.tensor.file.parent), _raw(order.tensor).tobytes())
    bits = 4 if awq else codes.shape[0] * WORD // inputs
    if awq:
        found = _along_outputs(codes, bits, start, stop, awq=True)
    else:
        found = unpack(_columns(codes, start, stop).view("<u4").T, bits)
    factors = _widened(_columns(scales, start, stop), scales.dtype).T
    return _affine(found, factors, _stored_zeros(matrix, bits, start, stop), matrix.packing)


def _stored_zeros(matrix: PackedMatrix, bits: int, start: int, stop: int) -> Floats | np.float32:
    """Without a tensor of them they are in the middle."""
    points = matrix.part("qzeros")
    if points is None:
        return np.float32(2 ** (bits - 1))
    more = _ONES[bits] if matrix.layout == "gptq" else _NOTHING
    return _along_outputs(points, bits, start, stop, awq=matrix.layout == "awq", more=more).astype(np.float32)


# What GPTQ's first version took from whole words of zero points: one of each, where a zero point of 0 borrows from the
# next one (gptqmodel's `convert_gptq_v2_to_v1_format`).
_NOTHING = np.uint32(0)
_ONES = {bits: np.uint32(sum(1 << at for at in range(0, WORD, bits))) for bits in (2, 4, 8)}


def _along_outputs(
    tensor: TensorInfo, bits: int, start: int, stop: int, *, awq: bool, more: np.uint32 = _NOTHING
) -> Codes:
    """Codes of outputs `[stop − start, n]` from words `[n, outputs·bits/32]`, to each of which `more` is added."""
    count = WORD // gcd(bits, WORD)  # codes that fill whole words
    first, last = start // count, -(-stop // count)
    words = _columns(tensor, first, last).view("<u4") + more
    found = unpack(words, bits)
    if awq:
        found = found.reshape(len(found), -1, len(_AWQ_ORDER))[..., _AWQ_ORDER].reshape(len(found), -1)
    return np.ascontiguousarray(found[:, start - first * count : stop - first * count].T)


_READ: dict[Layout, ReadRows] = {"mlx": _mlx, "gguf": _gguf, "integers": _integers, "floats": _floats}


# --- arrays -----------------------------------------------------------------------------------------------------------


def _check_numbers(matrix: PackedMatrix, found: Groups) -> None:
    """Raises BrokenModel for scales that are no numbers: every answer would be none."""
    wrong = (found.scales == _NO_SCALE) if found.scales.dtype == np.uint8 else ~np.isfinite(found.scales)
    if wrong.any() or (found.biases is not None and not np.isfinite(found.biases).all()):
        tensor = matrix.tensors[0]
        raise broken(tensor.file, "{tensor} has scales that are no numbers", tensor=quoted(tensor.name))


def _affine(codes: Codes, scales: Floats, zeros: Floats | np.float32, packing: Packing) -> Groups:
    """`codes` `[rows, n]`, the others `[rows, groups]`."""
    repeated = packing.groups(codes.shape[1]) // scales.shape[1]
    biases = -(scales * zeros)
    return Groups(codes, np.repeat(scales, repeated, axis=1), np.repeat(biases, repeated, axis=1))


def _raw(tensor: TensorInfo) -> Codes:
    raw = np.empty(tensor.nbytes, np.uint8)
    read_stored(tensor, raw.data)
    return raw


def _words(raw: Codes, tensor: TensorInfo) -> Words:
    return raw.view("<u4").reshape(-1, *tensor.shape[1:])


def _read(tensor: TensorInfo) -> Floats:
    return _widened(_raw(tensor), tensor.dtype).reshape(tensor.shape)


def _columns(tensor: TensorInfo, start: int, stop: int) -> Codes:
    """The bytes of columns, `[rows, …]`."""
    rows, columns = tensor.shape
    raw = np.empty(tensor.nbytes // columns * (stop - start), np.uint8)
    read_columns(tensor, start, stop, raw.data)
    return raw.reshape(rows, -1)


def _widened(raw: Codes, dtype: str) -> Floats:
    """Bytes of floating-point numbers in fp32; the last axis becomes that of numbers."""
    if dtype == "F8_E4M3":
        return from_e4m3(raw)
    return numbers(raw.data, dtype).reshape(*raw.shape[:-1], -1).astype(np.float32, copy=False)
