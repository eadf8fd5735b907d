"""Tensors of a checkpoint's files as MLX's arrays: lazy where MLX reads the file itself, else read and unpacked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import cast

import mlx.core as mx
import numpy as np

from backends.on_mlx.config import runs_packed
from together.models.codes import Floats, pack
from together.models.form import CORRECTION
from together.models.headers import TensorInfo
from together.models.matrices import BIASES, PLAIN, SCALES, PackedMatrix, beside
from together.models.needed import Needed
from together.models.reading import read_into
from together.models.rows import read_groups, read_scaled
from together.types import Dtype

_FUSED = re.compile(
    r"(.+\.(?:mlp|feed_forward)|model\.layers\.\d+)\.experts\.(gate_up_proj|down_proj)"
    r"(_bias|\.weight|\.scales|\.biases|)"
)
_GEMMA = re.compile(r"model\.layers\.\d+")
_AT_ONCE = 2**21  # weights that are there in fp32 at a time
_ENDS = ("weight", SCALES, BIASES)
MX: dict[Dtype, mx.Dtype] = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}
_STORED = {name: MX[dtype] for name, dtype in PLAIN.items()} | {"U32": mx.uint32, "U8": mx.uint8}


def held_arrays(needed: Needed, dtype: mx.Dtype) -> Iterator[tuple[str, mx.array]]:
    """Plain weights in `dtype`, and the parts of packed matrices as MLX has them, by name."""
    packed = [part for matrix in needed.packed.values() if matrix.layout == "mlx" for part in matrix.tensors]
    lazy = dict(_open([*packed, *(tensor for tensor in needed.plain if not tensor.gguf)]))
    for tensor in needed.plain:
        array = _read(tensor) if tensor.gguf or tensor.larger or tensor.cut else lazy[tensor.name].reshape(tensor.shape)
        yield tensor.name, array.astype(mx.float32 if tensor.name.endswith(CORRECTION) else dtype)
    for name, scaled in needed.scaled.items():
        yield name, _held_plain(read_scaled(scaled, 0, scaled.shape[0]), dtype)
    for name, matrix in needed.packed.items():
        parts = [_arrays(stored, lazy, dtype) for stored in matrix.stored]
        for place, end in enumerate(_ENDS[: len(parts[0])]):
            arrays = [part[place] for part in parts]
            yield beside(name, end), mx.stack(arrays) if matrix.experts else arrays[0]


def unfused(arrays: Iterable[tuple[str, mx.array]]) -> Iterator[tuple[str, mx.array]]:
    """Experts as MLX has them, where they are stored as `gate_up_proj` `[experts, inputs, outputs]`.

    There the outputs of gate and up take turns in an `mlp`; elsewhere those of gate come first. Packed ones have
    outputs before inputs, and so have Gemma 4's, which mlx-lm itself parts where they are plain.
    """
    for name, array in arrays:
        match = _FUSED.fullmatch(name)
        if match is None or (_GEMMA.fullmatch(match[1]) and not match[3]):
            yield name, array
            continue
        path, end = f"{match[1]}.switch_mlp", match[3].strip("._") or "weight"
        turned = array if match[3] else array.swapaxes(1, 2)
        if match[2] == "down_proj":
            yield f"{path}.down_proj.{end}", turned
        else:
            middle = turned.shape[1] // 2
            in_turns = match[1].endswith(".mlp")
            parts = (turned[:, ::2], turned[:, 1::2]) if in_turns else (turned[:, :middle], turned[:, middle:])
            yield f"{path}.gate_proj.{end}", mx.contiguous(parts[0])
            yield f"{path}.up_proj.{end}", mx.contiguous(parts[1])


def unfused_names(name: str) -> list[str]:
    """The matrices of MLX that a packed matrix becomes."""
    match = _FUSED.fullmatch(name)
    if match is None:
        return [name]
    parts = ["gate_proj", "up_proj"] if match[2] == "gate_up_proj" else [match[2]]
    return [f"{match[1]}.switch_mlp.{part}.weight" for part in parts]


def _arrays(matrix: PackedMatrix, lazy: Mapping[str, mx.array], dtype: mx.Dtype) -> list[mx.array]:
    """Words, scales and biases, without what there is not; or plain weights, where MLX has no product."""
    if matrix.layout == "mlx" and runs_packed(matrix.packing):
        return [lazy[tensor.name].view(_STORED[tensor.dtype]).reshape(tensor.shape) for tensor in matrix.tensors]
    if not runs_packed(matrix.packing):
        return [_held_plain(_widened(matrix), dtype).reshape(matrix.shape)]
    found = read_groups(matrix, 0, matrix.shape[0])
    parts = [pack(found.codes, matrix.packing.bits), found.scales, found.biases]
    return [mx.array(part).reshape(*matrix.shape[:-1], -1) for part in parts if part is not None]


def _widened(matrix: PackedMatrix) -> Iterator[Floats]:
    """The weights of an affine packing in fp32, some rows at a time."""
    step = max(1, _AT_ONCE // prod(matrix.shape[1:]))
    for at in range(0, matrix.shape[0], step):
        yield read_groups(matrix, at, min(at + step, matrix.shape[0])).affine()


def _held_plain(parts: Iterable[Floats], dtype: mx.Dtype) -> mx.array:
    """`[rows, n]` in `dtype`, of parts in fp32 of which no more than one is there at a time."""
    found = []
    for rows in parts:
        found.append(mx.array(rows).astype(dtype))
        mx.eval(found[-1])
    return mx.concatenate(found)


def _open(tensors: Sequence[TensorInfo]) -> Iterator[tuple[str, mx.array]]:
    """Lazy arrays by name: MLX reads a tensor's bytes when it is evaluated."""
    for file in sorted({tensor.file for tensor in tensors}):
        own = [tensor for tensor in tensors if tensor.file == file]
        try:
            arrays = cast(dict[str, mx.array], mx.load(str(file)))
        except RuntimeError:  # MLX has no name for the dtype of a tensor that nobody needs
            yield from ((tensor.name, _read(tensor)) for tensor in own)
            continue
        yield from ((tensor.name, arrays[tensor.key]) for tensor in own)


def _read(tensor: TensorInfo) -> mx.array:
    raw = np.empty(tensor.nbytes, np.uint8)
    read_into(tensor, raw.data)
    return mx.array(raw).view(_STORED[tensor.dtype]).reshape(tensor.shape)
