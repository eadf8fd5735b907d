"""Makes converted units from plain ones: the same bytes on every machine, block by block of rows.

Only numpy, by the rules of `weights/quantize.py`. `weights/converting.py` runs this in a child process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from together.errors import BrokenModel
from together.models.codes import Floats, pack
from together.models.form import Form, Target, stored_order, targets_of
from together.models.headers import TensorInfo
from together.models.numbers import Bytes, Halves, as_bytes, narrowed, numbers, overflows
from together.models.packing import Packing
from together.models.reading import CHUNK, read_into
from together.sentences import template
from together.weights.quantize import quantize_affine, quantize_fp
from together.wording import quoted

BLOCK = 2**18  # weights that are quantized at once: 10 MB of memory for each thread, and the caches hold most
_AHEAD = 2  # blocks in work for each thread, so that their results do not pile up

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows `[start, stop)` of a matrix."""

    source: TensorInfo
    start: int
    stop: int

    def read(self) -> Floats | Halves:
        """[rows, width] as numbers. Raises BrokenModel where one is none, or the file changed."""
        source, part = self.source, self.source.rows(self.start, self.stop)
        data = bytearray(part.nbytes)
        read_into(part, memoryview(data))
        found = numbers(data, source.dtype).reshape(part.shape)
        check_finite(found, source)
        return found


def check_finite(found: Floats | Halves, source: TensorInfo) -> None:
    """Raises BrokenModel where one is no number."""
    if not np.isfinite(found).all():
        raise _refusal(source, "values that are no numbers")


def _refusal(source: TensorInfo, what: str) -> BrokenModel:
    message = "{tensor} in {file} holds {what}; get this model again, or run it as it is"
    return BrokenModel(message, tensor=quoted(source.name), file=source.file.name, what=template(what))


def converted(tensors: Iterable[TensorInfo], form: Form, threads: int) -> Iterator[bytes | memoryview]:
    """What follows the header in the file of a converted unit; `tensors` are those of the plain one.

    Each has its canonical name and lies in its file. Raises BrokenModel.
    """
    kept: dict[str, Bytes] = {}  # scales and biases until it is their turn: an eighth of the codes at most
    with ThreadPoolExecutor(threads, "convert") as pool:
        for target, stored in stored_order(targets_of(tensors, form)):
            if target.packing is None:
                yield from _plain(target)
            elif stored.name == target.name:
                yield from _codes(target, target.packing, kept, in_order(pool, threads * _AHEAD))
            else:
                yield kept.pop(stored.name).data


def _plain(target: Target) -> Iterator[bytes]:
    for source in target.sources:
        for start in range(source.start, source.stop, CHUNK):
            part = replace(source, start=start, stop=min(start + CHUNK, source.stop))
            data = bytearray(part.nbytes)
            read_into(part, memoryview(data))
            yield bytes(data)


def _codes(
    target: Target, packing: Packing, kept: dict[str, Bytes], run: Callable[..., Iterator[list[Bytes]]]
) -> Iterator[memoryview]:
    """The codes of a matrix; its scales and biases are in `kept` after."""
    others = [np.empty(tensor.nbytes, np.uint8) for tensor in target.tensors[1:]]
    done = [0] * len(others)
    for codes, *beside in run(
        lambda rows: quantized(rows.read(), packing, rows.source.dtype, rows.source), _blocks(target)
    ):
        yield codes.data
        for index, part in enumerate(beside):
            others[index][done[index] : done[index] + part.size] = part
            done[index] += part.size
    kept.update(zip((tensor.name for tensor in target.tensors[1:]), others, strict=True))


def _blocks(target: Target) -> Iterator[_Rows]:
    for source in target.sources:
        rows, width = source.shape
        step = max(1, BLOCK // width)
        yield from (_Rows(source, start, min(start + step, rows)) for start in range(0, rows, step))


def quantized(weights: Floats | Halves, packing: Packing, dtype: str, source: TensorInfo) -> list[Bytes]:
    """Codes, scales, and biases where there are some, as bytes of the file; `dtype` is that of affine scales.

    Raises BrokenModel, naming the `source` of the weights, where that dtype holds no such scales.
    """
    if packing.mode != "affine":
        codes, scales = quantize_fp(weights, packing.mode)
        return [as_bytes(pack(codes, packing.bits)), as_bytes(scales)]
    with np.errstate(over="ignore", invalid="ignore"):  # MLX would write these, too
        codes, scale, bias = quantize_affine(weights.astype(np.float32), packing.bits, packing.group)
    if overflows(scale, dtype) or overflows(bias, dtype):
        raise _refusal(source, "values so far apart that no scale holds them")
    return [as_bytes(pack(codes, packing.bits)), *(narrowed(part, dtype) for part in (scale, bias))]


def in_order(pool: ThreadPoolExecutor, ahead: int = 0) -> Callable[..., Iterator[T]]:
    """As `map`, on threads of the pool, with at most so many results that nobody has taken."""

    def run(work: Callable[[U], T], items: Iterable[U]) -> Iterator[T]:
        waiting: deque[Future[T]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    return run
