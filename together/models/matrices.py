"""The quantized matrices of a checkpoint, and how much of a model is packed how. Pure.

`recognise.py` finds them by the names, dtypes and shapes of tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from together.models.headers import TensorInfo
from together.models.names import LOOKED_UP
from together.models.packing import Packing
from together.types import DTYPE_BYTES, Dtype

PLAIN: dict[str, Dtype] = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
SCALES, BIASES = "scales", "biases"
CODES = ("weight", "qweight", "weight_packed")  # what the tensor with a matrix's weights may be called
_PARTS = (
    *CODES, SCALES, BIASES, "qzeros", "g_idx",
    "weight_scale", "weight_zero_point", "weight_global_scale", "weight_scale_inv", "weight_shape", "weight_g_idx",
)  # fmt: skip
BY_HEAD = (".kv_b_proj.weight", ".embed_q.weight", ".unembed_out.weight")  # what makes keys and values of a latent
_LEAST_GROUP = 32  # of MLX's own affine packings
Shape = tuple[int, ...]
Layout = Literal["mlx", "gguf", "gptq", "gptq_v2", "awq", "integers", "floats"]


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """Weights `shape` (`[outputs, inputs]`, or experts first) as they are stored: `tensors`, by their names' ends.

    In MLX's layout they are words `[..., inputs·bits/32]` in U32, scales `[..., inputs/group]`, and biases alike for an
    affine packing, in this order. All others become `packing` when they are read (`rows.py`); the first tensor has the
    weights. `experts` are the matrices of a stack that is stored one by one.
    """

    packing: Packing
    shape: Shape
    tensors: tuple[TensorInfo, ...]
    layout: Layout = "mlx"
    experts: tuple[PackedMatrix, ...] = ()

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """As stored."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def wide(self) -> bool:
        """Whether it becomes affine groups with scales and biases in fp32, also where a backend has no such groups."""
        return self.layout != "mlx" or (self.packing.mode == "affine" and self.packing.group < _LEAST_GROUP)

    @property
    def stored(self) -> tuple[PackedMatrix, ...]:
        """What lies in files: itself, or its experts."""
        return self.experts or (self,)

    def part(self, end: str) -> TensorInfo | None:
        """The tensor whose name ends so."""
        return next((tensor for tensor in self.tensors if tensor.name.rpartition(".")[2] == end), None)


@dataclass(frozen=True, slots=True)
class ScaledMatrix:
    """Weights in 8-bit floats `[outputs, inputs]`, and scales: one, one for each output, or one for each square of 128.

    They are made plain when they are read: the products in fp32, rounded once.
    """

    weight: TensorInfo
    scale: TensorInfo

    @property
    def shape(self) -> Shape:
        return self.weight.shape

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return self.weight, self.scale

    @property
    def nbytes(self) -> int:
        """As stored."""
        return self.weight.nbytes + self.scale.nbytes


@dataclass(frozen=True, slots=True)
class Matrices:
    """The quantized matrices of a model or of a range, by name; `parts` are the names of all their tensors."""

    packed: dict[str, PackedMatrix]
    scaled: dict[str, ScaledMatrix] = field(default_factory=dict)

    @property
    def parts(self) -> set[str]:
        packed = {tensor.name for matrix in self.packed.values() for tensor in matrix.tensors}
        return packed | {tensor.name for each in self.scaled.values() for tensor in each.tensors}


@dataclass(frozen=True, slots=True)
class PartWeights:
    """Weights of one part of a model: how many are plain, and how many are packed how."""

    plain: int = 0
    packed: tuple[tuple[Packing, int], ...] = ()
    packed_bytes: int = 0  # as stored, with scales and biases
    picked: tuple[tuple[Packing, int], ...] = ()  # those of `packed` whose rows are looked up
    gguf: bool = False  # of a GGUF file
    wide: bool = False  # scales and biases of the packed ones are held in fp32, as theirs are products
    scaled: int = 0  # those of `plain` that are stored in 8-bit floats
    by_head: tuple[tuple[Packing, int], ...] = ()  # those of `packed` that are `BY_HEAD`

    @property
    def elements(self) -> int:
        return self.plain + sum(count for _, count in self.packed)

    @property
    def most(self) -> Packing | None:
        """How the largest share is packed; None where that is plain."""
        packing, count = max(self.packed, key=lambda item: item[1], default=(None, 0))
        return packing if count > self.plain else None

    def nbytes(self, dtype: Dtype) -> int:
        """Bytes with the plain weights in `dtype` and the packed ones as they are stored."""
        return self.plain * DTYPE_BYTES[dtype] + self.packed_bytes

    def __add__(self, more: PartWeights) -> PartWeights:
        return PartWeights(
            self.plain + more.plain,
            _sum(self.packed, more.packed),
            self.packed_bytes + more.packed_bytes,
            _sum(self.picked, more.picked),
            self.gguf or more.gguf,
            self.wide or more.wide,
            self.scaled + more.scaled,
            _sum(self.by_head, more.by_head),
        )


def beside(key: str, end: str) -> str:
    """The tensor that belongs to a matrix: `x.scales` for `x.weight`."""
    return f"{key.removesuffix('.weight')}.{end}"


def matrix_of(key: str) -> str:
    """The matrix that a tensor may be a part of, `x.weight` for `x.scales`; any other name as it is."""
    start, _, end = key.rpartition(".")
    return f"{start}.weight" if end in _PARTS else key


def is_stored(key: str, names: Container[str]) -> bool:
    """Whether the weights of the matrix `key` are among the tensors `names`, plain or quantized."""
    return any(beside(key, end) in names for end in CODES)


def weights_of(needed: Iterable[TensorInfo], found: Matrices) -> dict[str, PartWeights]:
    """What each needed matrix or vector holds, by its name; a packed one counts once, with its scales and biases."""
    parts = found.parts
    weights = {t.name: PartWeights(plain=t.elements, gguf=t.gguf) for t in needed if t.name not in parts}
    for name, each in found.scaled.items():
        weights[name] = PartWeights(plain=each.weight.elements, scaled=each.weight.elements)
    for name, matrix in found.packed.items():
        counts = ((matrix.packing, matrix.elements),)
        picked = counts if name in LOOKED_UP else ()
        gguf = matrix.layout == "gguf"
        by_head = counts if name.endswith(BY_HEAD) else ()
        weights[name] = PartWeights(0, counts, matrix.nbytes, picked, gguf=gguf, wide=matrix.wide, by_head=by_head)
    return weights


def _sum(*counts: tuple[tuple[Packing, int], ...]) -> tuple[tuple[Packing, int], ...]:
    found: Counter[Packing] = Counter()
    for each in counts:
        found.update(dict(each))
    return tuple(sorted(found.items()))


def shown(shape: Shape) -> str:
    """A shape for a person."""
    return "×".join(map(str, shape)) or "a single number"
