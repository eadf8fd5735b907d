"""Reads rows of a GGUF file's quantized matrices, in the order in which they were published."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np
import numpy.typing as npt

from together.models.codes import Codes, Groups
from together.models.folder import broken
from together.models.gguf.blocks import read_blocks
from together.models.gguf.kinds import BLOCKS
from together.models.headers import TensorInfo
from together.wording import quoted

Read = Callable[[TensorInfo, memoryview], None]


def read_groups(tensor: TensorInfo, start: int, stop: int, read: Read) -> Groups:
    """From `start` to `stop` of the first axis: `[rows, …]`, or `[experts · rows, …]` of stacked experts.

    `read` fills a tensor's bytes; raises what it raises.
    """
    plain = replace(tensor, heads=0)
    if not tensor.heads:
        return groups_of(plain.rows(start, stop), read)
    size = tensor.shape[0] // tensor.heads
    first, last = start // size, -(-stop // size)  # whole heads
    found = groups_of(plain.rows(first * size, last * size), read)
    order = published_order((last - first) * size, last - first)[start - first * size : stop - first * size]
    biases = None if found.biases is None else found.biases[order]
    return Groups(found.codes[order], found.scales[order], biases)


def groups_of(tensor: TensorInfo, read: Read) -> Groups:
    """All of a tensor, its rows as they lie."""
    raw = np.empty(tensor.nbytes, np.uint8)
    read(tensor, raw.data)
    return unblocked(tensor.dtype, raw, prod(tensor.shape[:-1]))


def unblocked(dtype: str, raw: Codes, rows: int) -> Groups:
    """The bytes of `rows` rows of the type `dtype`."""
    return read_blocks(dtype, raw.reshape(rows, -1, BLOCKS[dtype].nbytes))


def publish(tensor: TensorInfo, target: memoryview) -> None:
    """Turn the bytes of a plain tensor in `target` into those that were published.

    Raises BrokenModel for a norm in a dtype that norms are not stored in.
    """
    if tensor.heads:
        rows = np.frombuffer(target, np.uint8).reshape(tensor.shape[0], -1)
        rows[...] = rows[published_order(len(rows), tensor.heads)]
    if tensor.larger:
        _lessen(tensor, target)


def _lessen(tensor: TensorInfo, target: memoryview) -> None:
    """One less of each number: in fp32, and rounded to what the file has."""
    kinds = {"F32": "<f4"} if tensor.gguf else {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    if tensor.dtype not in kinds:
        known = " or ".join(kinds)
        said = "{tensor} is {dtype}, not {known}"
        raise broken(tensor.file, said, tensor=quoted(tensor.name), dtype=tensor.dtype, known=known)
    held = np.frombuffer(target, kinds[tensor.dtype])
    if tensor.dtype == "BF16":
        bits = ((held.astype("<u4") << 16).view("<f4") - np.float32(1)).view("<u4")
        held[...] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    else:
        held[...] = held.astype("<f4") - np.float32(1)


def published_order(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """Where each published row lies among those of a file that interleaves the two halves of each head."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
