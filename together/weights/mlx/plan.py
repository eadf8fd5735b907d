"""What becomes of every tensor of a model in a folder of MLX's format, by headers alone. Pure.

Quantized weights that MLX has a product for keep their codes; others become plain in bf16. A form that is asked for
quantizes what is plain, and what has more bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from backends.on_mlx.config import runs_packed
from together.models.form import EXPERT, Form, packing_for, stack_of
from together.models.headers import ELEMENT_BYTES, TensorInfo
from together.models.matrices import PLAIN, PackedMatrix, ScaledMatrix, Shape
from together.models.names import EMBED, HEAD, NORM, layer_of
from together.models.needed import Needed
from together.models.packing import Packing
from together.types import Dtype

Source = TensorInfo | PackedMatrix | ScaledMatrix
Fp8 = Literal["fp8"]
WIDE = "BF16"  # what quantized weights become that MLX has no packing for
MOST_BYTES = 5 * 2**30  # of a file, as mlx-lm has it
_STORED: dict[Dtype, str] = {dtype: name for name, dtype in PLAIN.items()}
_ENTRY = 160  # bytes of a tensor's description in a header, beside its name
_SCALE_BYTES = 8  # of the scale and bias of a group at most


@dataclass(frozen=True, slots=True)
class FolderMatrix:
    """One tensor of the folder, or a quantized matrix with what belongs to it.

    `copied`: a plain tensor, as it is. `kept`: the codes of a quantized one, as they are. `widened`: a quantized one,
    now plain. `quantized`: by the rules of the form that was asked for. `shape` is that of the plain weights, experts
    first; `dtype` that of plain weights, or what scales are in where it holds them.
    """

    name: str
    sources: tuple[Source, ...]  # one, or those of all experts
    shape: Shape
    how: Literal["copied", "kept", "widened", "quantized"]
    packing: Packing | None
    dtype: str

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def source_bytes(self) -> int:
        return sum(part.nbytes for source in self.sources for part in parts_of(source))

    @property
    def most_bytes(self) -> int:
        """Scales may need less."""
        if self.packing is None:
            return self.elements * ELEMENT_BYTES[self.dtype]
        rows, groups = self.elements // self.shape[-1], self.packing.groups(self.shape[-1])
        scales = rows * groups * (_SCALE_BYTES if self.packing.mode == "affine" else 1)
        return 4 * rows * self.packing.words(self.shape[-1]) + scales


@dataclass(frozen=True, slots=True)
class FolderPlan:
    """All matrices and vectors of the folder, file by file."""

    files: tuple[tuple[FolderMatrix, ...], ...]

    @property
    def matrices(self) -> tuple[FolderMatrix, ...]:
        return tuple(matrix for file in self.files for matrix in file)

    @property
    def most_bytes(self) -> int:
        return sum(matrix.most_bytes for matrix in self.matrices) + sum(map(header_room, self.files))

    @property
    def source_bytes(self) -> int:
        return sum(matrix.source_bytes for matrix in self.matrices)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the files, as mlx-lm has them."""
        count = len(self.files)
        if count == 1:
            return ("model.safetensors",)
        return tuple(f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1))

    @property
    def quantization(self) -> dict[str, Any]:
        """For config.json: how most weights are packed, and the modules that are packed otherwise."""
        counts: Counter[Packing] = Counter()
        for matrix in self.matrices:
            if matrix.packing is not None:
                counts[matrix.packing] += matrix.elements
        if not counts:
            return {}
        usual = max(counts, key=lambda packing: (counts[packing], packing))
        found = _settings(usual)
        for matrix in self.matrices:
            if matrix.packing not in (None, usual):
                found[matrix.name.removesuffix(".weight")] = _settings(matrix.packing)
        return found


def plan_folder(needed: Needed, form: Form | None, dtype: Dtype, most: int = MOST_BYTES) -> FolderPlan:
    """`needed` are the tensors of the whole model, `dtype` is its own, and `form` what is asked for, if anything is.

    A file has at most `most` bytes, unless one matrix has more.
    """
    sources: dict[str, Source] = {tensor.name: tensor for tensor in needed.plain}
    sources |= needed.scaled | {name: matrix for name, matrix in needed.packed.items() if not matrix.experts}
    grouped: dict[str, list[tuple[int, Source]]] = {
        name: list(enumerate(matrix.experts)) for name, matrix in needed.packed.items() if matrix.experts
    }
    for name, source in sources.items():
        match = EXPERT.fullmatch(name)
        grouped.setdefault(stack_of(name), []).append((int(match[2]) if match else -1, source))
    found = [_matrix(name, sorted(each, key=lambda one: one[0]), form, dtype) for name, each in grouped.items()]
    return FolderPlan(tuple(_files(sorted(found, key=_place), most)))


def parts_of(source: Source) -> tuple[TensorInfo, ...]:
    """The stored tensors of a source."""
    return (source,) if isinstance(source, TensorInfo) else source.tensors


def header_room(file: Sequence[FolderMatrix]) -> int:
    """Bytes that a file's header needs at most, with its length; a multiple of 8."""
    tensors = sum((1 if matrix.packing is None else 3) * (len(matrix.name) + _ENTRY) for matrix in file)
    return (tensors + 2 * _ENTRY) // 8 * 8


def _matrix(name: str, numbered: Sequence[tuple[int, Source]], form: Form | None, dtype: Dtype) -> FolderMatrix:
    sources = tuple(source for _, source in numbered)
    one = sources[0].shape
    shape = one if numbered[0][0] < 0 else (len(sources), *one)
    wanted = packing_for(name, shape, form) if form is not None else None
    packing, plain = _common_packing(sources), _common_dtype(sources)
    kept = packing is not None and runs_packed(packing)
    if wanted is not None and not (packing is not None and kept and packing.bits <= wanted.bits):
        return FolderMatrix(name, sources, shape, "quantized", wanted, plain or _STORED[dtype])
    if kept:
        return FolderMatrix(name, sources, shape, "kept", packing, _STORED[dtype])
    return FolderMatrix(name, sources, shape, "copied" if plain else "widened", None, plain or WIDE)


def _common_packing(sources: Iterable[Source]) -> Packing | None:
    """How all are packed; None where one is plain, or they differ."""
    found = {source.packing if isinstance(source, PackedMatrix) else None for source in sources}
    return found.pop() if len(found) == 1 else None


def _common_dtype(sources: Iterable[Source]) -> str:
    """Of plain tensors that all have it; else nothing."""
    found = {source.dtype if isinstance(source, TensorInfo) else "" for source in sources}
    return found.pop() if len(found) == 1 else ""


def _place(matrix: FolderMatrix) -> tuple[int, int, str]:
    """In the model's order."""
    ends = {EMBED: -1, NORM: 1, HEAD: 2}
    return ends.get(matrix.name, 0), layer_of(matrix.name) or 0, matrix.name


def _files(matrices: Iterable[FolderMatrix], most: int) -> Iterable[tuple[FolderMatrix, ...]]:
    file: list[FolderMatrix] = []
    size = 0
    for matrix in matrices:
        own = matrix.most_bytes + header_room([matrix])
        if file and size + own > most:
            yield tuple(file)
            file, size = [], 0
        file.append(matrix)
        size += own
    yield tuple(file)


def _settings(packing: Packing | None) -> dict[str, Any]:
    assert packing is not None
    return {"group_size": packing.group, "bits": packing.bits, "mode": packing.mode}


def widened_by_packing(matrices: Iterable[FolderMatrix]) -> Mapping[Packing | Fp8 | None, tuple[int, int]]:
    """How many matrices of each packing, or in 8-bit floats, became plain, and their bytes."""
    found: dict[Packing | Fp8 | None, tuple[int, int]] = {}
    for matrix in matrices:
        if matrix.how == "widened":
            scaled = all(isinstance(source, ScaledMatrix) for source in matrix.sources)
            packing: Packing | Fp8 | None = "fp8" if scaled else _common_packing(matrix.sources)
            count, size = found.get(packing, (0, 0))
            found[packing] = count + 1, size + matrix.most_bytes
    return found
