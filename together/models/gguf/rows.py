"""Reads rows of a GGUF file's quantized matrices, in the order in which they were published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from math import prod

import numpy as np
import numpy.typing as npt

from together.errors import UnsupportedModel
from together.models.codes import Codes, Groups
from together.models.folder import broken
from together.models.gguf.blocks import read_blocks
from together.models.gguf.kinds import BLOCKS
from together.models.headers import HeadTiles, TensorInfo
from together.wording import quoted

Read = Callable[[TensorInfo, memoryview], None]


def read_groups(tensor: TensorInfo, start: int, stop: int, read: Read) -> Groups:
    """From `start` to `stop` of the first axis: `[rows, …]`, or `[experts · rows, …]` of stacked experts.

    `read` fills a tensor's bytes; raises what it raises.
    """
    plain, tiles = replace(tensor, heads=0, tiles=None), tensor.tiles
    if tiles is not None and not tiles.columns:
        runs = [groups_of(plain.rows(*run), read) for run in runs_of(tiles, tensor.shape[0], start, stop)]
        return _one_after_another(runs)
    if not tensor.heads:
        found = groups_of(plain.rows(start, stop), read)
        return found if tiles is None else _with_columns(tensor, tiles, found)
    size = tensor.shape[0] // tensor.heads
    first, last = start // size, -(-stop // size)  # whole heads
    found = groups_of(plain.rows(first * size, last * size), read)
    order = published_order((last - first) * size, last - first)[start - first * size : stop - first * size]
    biases = None if found.biases is None else found.biases[order]
    return Groups(found.codes[order], found.scales[order], biases)


def runs_of(tiles: HeadTiles, rows: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Where the published rows from `start` to `stop` lie, in runs."""
    order = tiled_order(rows, tiles)[start:stop]
    ends = [*np.flatnonzero(np.diff(order) != 1) + 1, len(order)]
    for first, end in pairwise([0, *ends]):
        yield int(order[first]), int(order[end - 1]) + 1


def tiled_order(count: int, tiles: HeadTiles) -> npt.NDArray[np.intp]:
    """Where each published row or column lies among those of a file."""
    places = np.arange(tiles.first, count).reshape(-1, tiles.groups, tiles.size)
    return np.concatenate([np.arange(tiles.first), places.swapaxes(0, 1).reshape(-1)])


def _one_after_another(runs: list[Groups]) -> Groups:
    biases = [run.biases for run in runs if run.biases is not None]
    return Groups(
        np.concatenate([run.codes for run in runs]),
        np.concatenate([run.scales for run in runs]),
        np.concatenate(biases) if biases else None,
    )


def _with_columns(tensor: TensorInfo, tiles: HeadTiles, found: Groups) -> Groups:
    """Groups go with their codes. Raises UnsupportedModel for heads that are no whole groups."""
    group = found.codes.shape[1] // found.scales.shape[1]
    if tiles.size % group:
        said = "{tensor} has heads of {size} values in groups of {group}, which does not run here; choose a file in F16"
        raise UnsupportedModel(said, tensor=quoted(tensor.name), size=tiles.size, group=group)
    order = tiled_order(found.codes.shape[1], tiles)
    groups = order[::group] // group
    biases = None if found.biases is None else found.biases[:, groups]
    return Groups(found.codes[:, order], found.scales[:, groups], biases)


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
    if tensor.tiles:
        _untile(tensor, tensor.tiles, target)
    if tensor.larger:
        _lessen(tensor, target)
    if tensor.decay:
        _undecay(tensor, target)


def _untile(tensor: TensorInfo, tiles: HeadTiles, target: memoryview) -> None:
    rows = tensor.shape[0]
    if tiles.columns:
        cells = np.frombuffer(target, np.uint8).reshape(rows, tensor.shape[1], -1)
        cells[...] = cells[:, tiled_order(tensor.shape[1], tiles)]
    else:
        lines = np.frombuffer(target, np.uint8).reshape(rows, -1)
        lines[...] = lines[tiled_order(rows, tiles)]


def _undecay(tensor: TensorInfo, target: memoryview) -> None:
    """The logarithm of what is held, less its sign, in fp32. Raises BrokenModel for what has none."""
    if tensor.dtype != "F32":
        raise broken(tensor.file, "{tensor} is {dtype}, not F32", tensor=quoted(tensor.name), dtype=tensor.dtype)
    held = np.frombuffer(target, "<f4")
    if not (held < 0).all():
        raise broken(tensor.file, "{tensor} has decays that are none", tensor=quoted(tensor.name))
    held[...] = np.log(-held.astype(np.float64))


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
