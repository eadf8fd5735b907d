"""Products of quantized matrices by ONNX Runtime's MatMulNBits, on CPUs: fast with few rows and with many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from backends.on_torch.affine import Plane, as_affine, extended, extended_rows, width
from backends.on_torch.onnx_graph import CODES, INPUT, OUTPUT, SCALES, ZEROS, nbits_model
from backends.on_torch.packed import Packed
from together.models.codes import Floats
from together.types import Packing

try:
    import onnxruntime
except ImportError:  # not every platform has it
    onnxruntime = None

_INT8, _FP32 = 4, 1  # accuracy levels: what activations become
_MOST_THREADS = 8  # each session has threads of its own, and a model has hundreds of sessions
_MOST_FOR_SMALL = 4  # products of many small matrices
_SMALL = 64  # outputs of the matrix that shows what a session does with its codes
_ERRORS = 3  # what a session logs
_FEW, _MANY = 1, 64  # rows of products: some kernels go by their number
_OTHER = 2  # than what is given in a trial


class NBitsStack:
    """Products with `[count, outputs, inputs]`, any of them at a time, in one session, as one for each took too much.

    ONNX Runtime multiplies with whole zero points; what they leave is multiplied with the sums of groups, as more
    inputs of the same product. `exact`: activations stay fp32, and torch multiplies what is left. The kernel for 8 bits
    is slow then, and two products of 4 bits take its place.
    """

    def __init__(self, packed: Packed, *, exact: bool) -> None:
        count, outputs, _ = packed.shape
        affine = as_affine(packed.flat(), halves=exact)
        self._group, self._exact, planes, rest = packed.packing.group, exact, affine.planes, affine.rest
        if rest is not None and not exact:
            planes, rest = tuple(extended(plane, rest, self._group) for plane in planes), None
        self._bits, self._inputs = planes[0].bits, planes[0].scales.shape[1] * self._group
        self._rests = None if rest is None else rest.unflatten(0, (count, outputs))
        self._sessions = [_Session(plane.divided(count), self._group, exact=exact) for plane in planes]

    def __call__(self, rows: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """By place: `[n, inputs]` → `[n, outputs]` in the same dtype, with n above 0."""
        wide = {place: self._wide(given) for place, given in rows.items()}
        arrays = {place: given.numpy() for place, given in wide.items()}
        first, *more = (session(arrays) for session in self._sessions)
        found = {}
        for place, given in wide.items():
            out = torch.from_numpy(first[place])
            for others in more:
                out += torch.from_numpy(others[place])
            if self._rests is not None:
                out += linear(given.unflatten(1, (-1, self._group)).sum(-1), self._rests[place])
            elif not self._exact:
                out += 0 * given.sum(-1, keepdim=True)  # what is no number would become some whole one
            found[place] = out.to(rows[place].dtype)
        return found

    def _wide(self, rows: Tensor) -> Tensor:
        """In fp32, with what the session has more inputs for."""
        if rows.shape[1] == self._inputs:
            return rows.float().contiguous()
        return extended_rows(rows, self._inputs, self._group, self._bits)


class NBits:
    """A kernel for one matrix."""

    def __init__(self, packed: Packed, *, exact: bool) -> None:
        self._outputs = packed.shape[0]
        self._stack = NBitsStack(packed[None], exact=exact)

    def __call__(self, rows: Tensor) -> Tensor:
        return self._stack({0: rows})[0] if len(rows) else rows.new_empty(0, self._outputs)

    @staticmethod
    @cache
    def takes(packing: Packing, inputs: int, *, exact: bool) -> bool:
        """Whether this processor has a kernel for it: where it has none, each product makes all weights plain."""
        bits = 4 if exact else width(packing)
        if onnxruntime is None or width(packing) is None or bits is None:
            return False
        return CODES not in _read_later(bits, inputs, packing.group, exact=exact)


@cache
def _read_later(bits: int, inputs: int, group: int, *, exact: bool) -> frozenset[str]:
    """What a session reads at each product where it was given; it has the rest in a form of its own.

    By trial: it depends on the processor and on the version, and nobody tells.
    """
    groups = inputs // group
    codes = np.full((_SMALL, inputs * bits // 8), 0x33, np.uint8)
    plane = Plane(bits, codes, np.ones((_SMALL, groups), np.float32), np.zeros((_SMALL, groups), np.uint8))
    session = _Session([plane], group, exact=exact, kept=frozenset((CODES, SCALES, ZEROS)))
    rows = [{0: np.ones((count, inputs), np.float32)} for count in (_FEW, _MANY)]
    before = [session(each)[0] for each in rows]
    assert all(each.any() for each in before)
    found = set()
    for name, (array, _) in session.given[0].items():
        kept = array.copy()
        array[...] = _OTHER
        if any(not np.array_equal(session(each)[0], was) for each, was in zip(rows, before, strict=True)):
            found.add(name)
        array[...] = kept
    return frozenset(found)


class _Session:
    """Products of one shape. What it does not read any more is let go once it is made: all but `kept`."""

    def __init__(self, planes: Sequence[Plane], group: int, *, exact: bool, kept: frozenset[str] | None = None) -> None:
        bits, (outputs, groups) = planes[0].bits, planes[0].scales.shape
        self._none = np.empty((0, groups * group), np.float32)
        self._inputs = [f"{INPUT}{place}" for place in range(len(planes))]
        options, given = _options(len(planes)), [_given(plane) for plane in planes]
        for place, values in enumerate(given):
            for name, (_, value) in values.items():
                options.add_initializer(f"{name}{place}", value)
        shape = len(planes), outputs, groups * group, bits, group
        with TemporaryDirectory(prefix="together-") as folder:
            model, empty = Path(folder, "products.onnx"), Path(folder, "empty")
            model.write_bytes(nbits_model(*shape, _FP32 if exact else _INT8, empty.name))
            empty.touch()
            self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        if kept is None:
            kept = _read_later(bits, groups * group, group, exact=exact)
        self.given = [{name: values[name] for name in kept} for values in given]

    def __call__(self, rows: Mapping[int, Floats]) -> dict[int, Floats]:
        """Those that are not asked for get no rows, and take a microsecond each."""
        given = dict.fromkeys(self._inputs, self._none) | {self._inputs[place]: array for place, array in rows.items()}
        found = self._session.run([f"{OUTPUT}{place}" for place in rows], given)
        return dict(zip(rows, found, strict=True))


def _options(products: int) -> onnxruntime.SessionOptions:
    """Threads that sleep between products, as torch's have their turn then."""
    options = onnxruntime.SessionOptions()
    most = _MOST_THREADS if products == 1 else _MOST_FOR_SMALL
    options.intra_op_num_threads = min(torch.get_num_threads(), most)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False  # or each session keeps what its last shapes took, for nothing that is saved
    options.log_severity_level = _ERRORS
    return options


def _given(plane: Plane) -> dict[str, tuple[np.ndarray[Any, Any], Any]]:
    """By input of a product: what it is given, and ONNX Runtime's value that refers to it."""
    codes = plane.codes.reshape(*plane.scales.shape, -1)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        CODES: codes,
        SCALES: np.ascontiguousarray(plane.scales),
        ZEROS: _zero_points(plane),
    }
    return {name: (array, onnxruntime.OrtValue.ortvalue_from_numpy(array)) for name, array in arrays.items()}


def _zero_points(plane: Plane) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """As the kernel packs them: two of 4 bits in a byte, each output's in bytes of its own."""
    if plane.bits == 8:
        return plane.zeros
    even = np.pad(plane.zeros, ((0, 0), (0, plane.zeros.shape[1] % 2)))
    return np.ascontiguousarray(even[:, ::2] | even[:, 1::2] << 4)
