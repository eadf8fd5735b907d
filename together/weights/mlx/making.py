"""Writes the weights of a folder in MLX's format, block by block, in a child process.

`python -m together.weights.mlx.making` reads a FolderOrder as a line on its input and prints how many bytes of the
source are done. It leaves when its input closes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from together.errors import BrokenModel
from together.jsonfile import write_synced
from together.models.checkpoint import INDEX
from together.models.codes import Floats, Groups, pack
from together.models.form import form_of
from together.models.headers import TensorInfo
from together.models.matrices import BIASES, SCALES, PackedMatrix, beside
from together.models.needed import needed_tensors
from together.models.numbers import NARROW, Bytes, as_bytes, fits, narrowed
from together.models.packing import Packing
from together.models.reading import CHUNK, read_into
from together.models.spec import read_spec
from together.sentences import template
from together.types import LayerRange
from together.weights.convert import in_order, quantized
from together.weights.converting import TOLD_EVERY, serve_order
from together.weights.mlx.files import Chunk, SafetensorsFile
from together.weights.mlx.plan import FolderMatrix, FolderPlan, Source, header_room, parts_of, plan_folder
from together.weights.mlx.rows import blocks, read_packed, read_plain
from together.weights.part import NO_ROOM, DiskFull
from together.wording import reason_of

_AHEAD = 2  # blocks in work for each thread
NO_ROOM_THERE = template("free some space there, or choose a folder on a larger disk")

Run = Callable[..., Iterator[Any]]
Tell = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class FolderOrder:
    """Write the weights of the model in `source`, which has this fingerprint, into `draft`; `form` may be empty."""

    home: str
    source: str
    fingerprint: str
    form: str
    draft: str


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of the folder: its bytes come when they are asked for, and in the order of the parts."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Iterable[Chunk]


def make_weights(order: FolderOrder, tell: Tell) -> None:
    """Raises BrokenModel where the source is another model now, or DiskFull."""
    source = Path(order.source)
    spec = read_spec(source)
    if spec.fingerprint != order.fingerprint:
        raise changed(spec.name)
    needed = needed_tensors(source, LayerRange(0, spec.layers), Path(order.home))
    plan = plan_folder(needed, form_of(order.form) if order.form else None, spec.dtype)
    with saving(Path(order.draft), spec.name):
        write_weights(plan, Path(order.draft), os.cpu_count() or 1, tell)


def write_weights(plan: FolderPlan, folder: Path, threads: int, tell: Tell) -> None:
    """All files and their index. `tell` gets the bytes of the source that are done. Raises OSError, BrokenModel."""
    sizes: dict[str, int] = {}
    places: dict[str, str] = {}
    progress = _Progress(tell)
    with ThreadPoolExecutor(threads, "convert") as pool:
        run = in_order(pool, threads * _AHEAD)
        for name, file in zip(plan.names, plan.files, strict=True):
            with SafetensorsFile(folder / name, header_room(file)) as made:
                for matrix in file:
                    _add(made, matrix, run, progress)
                made.finish()
            sizes |= made.sizes
            places |= dict.fromkeys(made.sizes, name)
    elements = sum(matrix.elements for matrix in plan.matrices)
    index = {
        "metadata": {"total_size": sum(sizes.values()), "total_parameters": elements},
        "weight_map": dict(sorted(places.items())),
    }
    write_synced(folder / INDEX, json.dumps(index, indent=4).encode())


def changed(model: str) -> BrokenModel:
    """The error for a source that is not what it was when the conversion began."""
    return BrokenModel("{model} was changed while it was converted; convert it again", model=model)


@contextmanager
def saving(folder: Path, what: str) -> Iterator[None]:
    """Turns what a disk refuses into a sentence. Raises DiskFull."""
    try:
        yield
    except OSError as error:
        right = template("give this user the right to write there, or choose another folder")
        raise DiskFull(
            "{what} cannot be written into {folder} ({reason}); {advice}",
            what=what,
            folder=str(folder.parent),
            reason=reason_of(error),
            advice=NO_ROOM_THERE if error.errno in NO_ROOM else right,
        ) from error


@dataclass(slots=True)
class _Progress:
    tell: Tell
    done: int = 0
    told: int = 0

    def add(self, size: int) -> None:
        self.done += size
        if self.done - self.told >= TOLD_EVERY:
            self.told = self.done
            self.tell(self.done)


def _add(made: SafetensorsFile, matrix: FolderMatrix, run: Run, progress: _Progress) -> None:
    """The first part stands for all of the source: it is read for it."""
    before = progress.done
    share = matrix.source_bytes / max(1, matrix.most_bytes)
    for part in parts_made(matrix, run):
        made.add(part.name, part.dtype, part.shape, _counted(part.chunks, share, progress))
    progress.add(before + matrix.source_bytes - progress.done)


def _counted(chunks: Iterable[Chunk], share: float, progress: _Progress) -> Iterator[Chunk]:
    for chunk in chunks:
        progress.add(int(len(chunk) * share))
        yield chunk


def parts_made(matrix: FolderMatrix, run: Run) -> Iterator[Part]:
    """The tensors of a matrix; ask for the next one when all bytes of the last are taken. Raises BrokenModel."""
    match matrix.how:
        case "copied":
            yield Part(matrix.name, matrix.dtype, matrix.shape, _stored(matrix.sources))
        case "widened":
            work = _each_block(matrix, run, lambda source, rows: narrowed(_floats(source, rows), matrix.dtype))
            yield Part(matrix.name, matrix.dtype, matrix.shape, (block.data for block in work))
        case "quantized":
            yield from _quantized(matrix, _packing(matrix), run)
        case "kept" if all(isinstance(source, PackedMatrix) and source.layout == "mlx" for source in matrix.sources):
            yield from _as_stored(matrix)
        case "kept":
            yield from _repacked(matrix, _packing(matrix), run)


def _as_stored(matrix: FolderMatrix) -> Iterator[Part]:
    """All tensors of MLX's own layout."""
    above = matrix.shape[: len(matrix.shape) - len(matrix.sources[0].shape)]
    for tensors in zip(*map(parts_of, matrix.sources), strict=True):
        end = tensors[0].name.rpartition(".")[2]
        name = matrix.name if end == "weight" else beside(matrix.name, end)
        yield Part(name, tensors[0].dtype, (*above, *tensors[0].shape), _stored(tensors))


def _quantized(matrix: FolderMatrix, packing: Packing, run: Run) -> Iterator[Part]:
    beside_it: list[list[Bytes]] = []

    def codes() -> Iterator[Chunk]:
        read = lambda source, rows: quantized(read_plain(source, *rows), packing, matrix.dtype, parts_of(source)[0])  # noqa: E731
        for block, *others in _each_block(matrix, run, read):
            beside_it.append(others)
            yield block.data

    yield _codes(matrix, packing, codes())
    dtype = matrix.dtype if packing.mode == "affine" else "U8"
    for end, chunks in zip((SCALES, BIASES), zip(*beside_it, strict=True), strict=False):
        yield Part(beside(matrix.name, end), dtype, _groups(matrix, packing), (chunk.data for chunk in chunks))


def _repacked(matrix: FolderMatrix, packing: Packing, run: Run) -> Iterator[Part]:
    """The same codes, with scales and biases in the narrowest dtype that holds them exactly."""
    found: list[Groups] = []

    def codes() -> Iterator[Chunk]:
        for groups in _each_block(matrix, run, lambda source, rows: _packed(source, rows, packing)):
            found.append(replace(groups, codes=np.empty(0, np.uint8)))
            yield groups.codes.data

    yield _codes(matrix, packing, codes())
    shape = _groups(matrix, packing)
    if packing.mode != "affine":
        yield Part(beside(matrix.name, SCALES), "U8", shape, [as_bytes(groups.scales).data for groups in found])
        return
    scales, biases = [_float32(groups.scales) for groups in found], [_float32(groups.biases) for groups in found]
    dtype = narrowest([*scales, *biases], matrix.dtype)
    for end, numbers in ((SCALES, scales), (BIASES, biases)):
        yield Part(beside(matrix.name, end), dtype, shape, (narrowed(part, dtype).data for part in numbers))


def narrowest(numbers: list[Floats], own: str) -> str:
    """The dtype of two bytes that holds all of them exactly, the model's `own` first; fp32 where none does."""
    order = sorted(NARROW, key=lambda dtype: dtype != own)
    return next((dtype for dtype in order if all(fits(part, dtype) for part in numbers)), "F32")


def _codes(matrix: FolderMatrix, packing: Packing, chunks: Iterable[Chunk]) -> Part:
    return Part(matrix.name, "U32", (*matrix.shape[:-1], packing.words(matrix.shape[-1])), chunks)


def _groups(matrix: FolderMatrix, packing: Packing) -> tuple[int, ...]:
    return (*matrix.shape[:-1], packing.groups(matrix.shape[-1]))


def _packing(matrix: FolderMatrix) -> Packing:
    assert matrix.packing is not None
    return matrix.packing


def _each_block(matrix: FolderMatrix, run: Run, work: Callable[[Source, tuple[int, int]], Any]) -> Iterator[Any]:
    items = chain.from_iterable(((source, rows) for rows in blocks(source)) for source in matrix.sources)
    return run(lambda item: work(*item), items)


def _packed(source: Source, rows: tuple[int, int], packing: Packing) -> Groups:
    """With the codes in words, as bytes."""
    assert isinstance(source, PackedMatrix)
    found = read_packed(source, *rows)
    return replace(found, codes=as_bytes(pack(found.codes, packing.bits)))


def _floats(source: Source, rows: tuple[int, int]) -> Floats:
    return read_plain(source, *rows).astype(np.float32, copy=False)


def _float32(values: Any) -> Floats:
    found: Floats = np.asarray(values, np.float32)
    return found


def _stored(tensors: Iterable[Source]) -> Iterator[Chunk]:
    """Bytes as they are; of a GGUF file, those that were published."""
    for tensor in tensors:
        assert isinstance(tensor, TensorInfo)
        step = tensor.nbytes if tensor.changed else CHUNK
        for start in range(tensor.start, tensor.stop, step):
            part = replace(tensor, start=start, stop=min(start + step, tensor.stop))
            data = bytearray(part.nbytes)
            read_into(part, memoryview(data))
            yield bytes(data)


if __name__ == "__main__":
    serve_order(FolderOrder, make_weights)
