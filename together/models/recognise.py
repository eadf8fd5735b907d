"""Which tensors of a checkpoint are one quantized matrix, and how it is packed: by names, dtypes and shapes. Pure.

GPTQ: `qweight` `[inputs·bits/32, outputs]`, `scales` `[groups, outputs]`, `qzeros` `[groups, outputs·bits/32]`, and
`g_idx` `[inputs]`. AWQ (gemm): the same with `qweight` `[inputs, outputs/8]`, so that the two are never alike.
compressed-tensors: `weight_packed` `[outputs, inputs·bits/32]` or `weight` in int8, `weight_scale` `[outputs, groups]`
and `weight_zero_point` alike or packed along the outputs; of 4-bit floats also `weight_global_scale`.
FP8: `weight` in 8-bit floats, and `weight_scale_inv` or `weight_scale`.
gpt-oss: of fused experts `[experts, inputs, outputs]` the same bytes as MLX has them, `_blocks` `[experts, outputs,
groups, 16]` of mxfp4 and `_scales`; outputs come before inputs there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from together.errors import BrokenModel
from together.models.form import EXPERT, stack_of
from together.models.gguf.kinds import PACKINGS
from together.models.headers import TensorInfo
from together.models.matrices import (
    BIASES,
    CODES,
    PLAIN,
    SCALES,
    Layout,
    Matrices,
    PackedMatrix,
    ScaledMatrix,
    Shape,
    beside,
    shown,
)
from together.models.packing import AFFINE_BITS, AFFINE_GROUPS, FP_PACKINGS, WORD, Packing, packing_of
from together.models.quantization import WHOLE_ROWS, Zeros
from together.wording import MOST, cut

BLOCK = 128  # outputs and inputs under one scale of blocks in 8-bit floats
E2M1_BITS = 5  # of codes for 4-bit floats as whole numbers: twice their values, plus 12
_TRANSPOSED_BITS = (2, 4, 8)  # of GPTQ: whole codes in a word
_AWQ_BITS = 4
_BYTE = 8


def find_matrices(shapes: Mapping[str, Shape], tensors: Mapping[str, TensorInfo], zeros: Zeros) -> Matrices:
    """Those of the matrices `shapes` that are quantized; experts that are stored one by one are stacked."""
    packed = {key: packed_matrix(key, shape, tensors, zeros) for key, shape in shapes.items()}
    scaled = {key: scaled_matrix(key, shape, tensors) for key, shape in shapes.items()}
    return Matrices(
        _stacked({key: matrix for key, matrix in packed.items() if matrix is not None}, shapes),
        {key: matrix for key, matrix in scaled.items() if matrix is not None},
    )


def packed_matrix(
    key: str, shape: Shape, tensors: Mapping[str, TensorInfo], zeros: Zeros = "gptq"
) -> PackedMatrix | None:
    """The matrix `key` of `shape` if it is packed in a way that runs here; None where it is plain or nothing known."""
    if len(shape) < 2:
        return None
    weight = tensors.get(key)
    if weight is None and len(shape) > 2:
        return _blocks(key, shape, tensors)
    if weight is not None:
        return _by_weight(key, shape, weight, tensors)
    parts = _Parts(key, shape, tensors)
    if parts.get("qweight"):
        return _transposed(parts, zeros)
    return _packed_floats(parts) or _integers(parts, parts.get("weight_packed"))


def scaled_matrix(key: str, shape: Shape, tensors: Mapping[str, TensorInfo]) -> ScaledMatrix | None:
    """The matrix `key` of `shape` if it is stored in 8-bit floats; None where it is not."""
    weight = tensors.get(key)
    if weight is None or weight.dtype != "F8_E4M3" or weight.shape != shape or len(shape) != 2:
        return None
    outputs, inputs = shape
    known = ((), (1,), (1, 1), (outputs,), (outputs, 1), (-(-outputs // BLOCK), -(-inputs // BLOCK)))
    found = [tensors[name] for end in _FLOAT_SCALES if (name := beside(key, end)) in tensors]
    fits = len(found) == 1 and found[0].dtype in PLAIN and found[0].shape in known
    return ScaledMatrix(weight, found[0]) if fits else None


_FLOAT_SCALES = ("weight_scale_inv", "weight_scale")


def unknown_packing(name: str, key: str, shape: Shape, tensors: Mapping[str, TensorInfo]) -> BrokenModel:
    """The error for a matrix with scales beside it, or codes in its place, that is nothing known."""
    there = [tensor for end in _SHOWN if (tensor := tensors.get(beside(key, end)))]
    return BrokenModel(
        "{model}: {key} is {asked} by config.json, and its tensors are no packing of that ({there}); get this model "
        "again, or choose another version of it",
        model=name,
        key=cut(key, MOST),
        asked=shown(shape),
        there=tuple(f"{tensor.name.rpartition('.')[2]} {tensor.dtype} {shown(tensor.shape)}" for tensor in there),
    )


_SHOWN = (*CODES, SCALES, BIASES, "qzeros", *_FLOAT_SCALES, "weight_zero_point", "weight_global_scale")


def check_groups(model: str, matrices: Iterable[PackedMatrix], declared: Collection[int]) -> None:
    """Raises BrokenModel for a matrix whose tensors have groups of another size than config.json declares."""
    for matrix in matrices if declared else ():
        for one in matrix.stored:
            inputs, groups = one.shape[-1], _groups(one)
            most = max(declared)
            whole = groups == 1 and (WHOLE_ROWS in declared or most >= inputs)
            if groups and not whole and inputs // groups not in declared:
                raise BrokenModel(
                    "{model}: {key} has groups of {found} weights by its tensors, and config.json declares {declared}; "
                    "get this model again, or choose another version of it",
                    model=model,
                    key=cut(one.tensors[0].key, MOST),
                    found=inputs // groups,
                    declared=tuple("whole rows" if size == WHOLE_ROWS else str(size) for size in sorted(declared)),
                )


def _groups(matrix: PackedMatrix) -> int:
    """Scales of each output; 0 where no declaration is about them."""
    scales = matrix.tensors[1].shape if len(matrix.tensors) > 1 else ()
    match matrix.layout:
        case "gptq" | "gptq_v2" | "awq":
            return scales[0]
        case "integers":
            return scales[1]
    return 0


# --- layouts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Parts:
    """The tensors beside a matrix `[outputs, inputs]`."""

    key: str
    shape: Shape
    tensors: Mapping[str, TensorInfo]

    def get(self, end: str) -> TensorInfo | None:
        return self.tensors.get(beside(self.key, end))

    def matrix(
        self, bits: int, groups: int, layout: Layout, tensors: tuple[TensorInfo | None, ...]
    ) -> PackedMatrix | None:
        """Of `groups` scales for each output: several of them are alike where its groups are larger than ours."""
        inputs = self.shape[-1]
        if not groups or inputs % groups:
            return None
        group = next((group for group in sorted(AFFINE_GROUPS, reverse=True) if inputs // groups % group == 0), None)
        if group is None or bits not in AFFINE_BITS:
            return None
        there = tuple(tensor for tensor in tensors if tensor is not None)
        return PackedMatrix(Packing("affine", bits, group), self.shape, there, layout)


def _by_weight(key: str, shape: Shape, weight: TensorInfo, tensors: Mapping[str, TensorInfo]) -> PackedMatrix | None:
    if weight.gguf:
        known = PACKINGS.get(weight.dtype) if weight.shape == shape else None
        return None if known is None else PackedMatrix(known, shape, (weight,), "gguf")
    if weight.dtype == "I8" and len(shape) == 2:
        return _integers(_Parts(key, shape, tensors), weight)
    return _mlx(key, shape, weight, tensors) if weight.dtype == "U32" else None


def _mlx(key: str, shape: Shape, words: TensorInfo, tensors: Mapping[str, TensorInfo]) -> PackedMatrix | None:
    scales, biases = tensors.get(beside(key, SCALES)), tensors.get(beside(key, BIASES))
    if scales is None or not words.shape or not scales.shape:
        return None
    packing = packing_of(shape[-1], words.shape[-1], scales.shape[-1], biases=biases is not None)
    if packing is None or words.shape[:-1] != shape[:-1] or scales.shape[:-1] != shape[:-1]:
        return None
    if biases is None:
        return PackedMatrix(packing, shape, (words, scales)) if scales.dtype == "U8" else None
    fits = biases.shape == scales.shape and {scales.dtype, biases.dtype} <= PLAIN.keys()
    return PackedMatrix(packing, shape, (words, scales, biases)) if fits else None


def _blocks(key: str, shape: Shape, tensors: Mapping[str, TensorInfo]) -> PackedMatrix | None:
    blocks, scales = tensors.get(f"{key}_blocks"), tensors.get(f"{key}_scales")
    if blocks is None or scales is None or (blocks.dtype, scales.dtype) != ("U8", "U8"):
        return None
    experts, inputs, outputs = shape
    packing = FP_PACKINGS["mxfp4"]
    groups = (experts, outputs, inputs // packing.group)
    if inputs % packing.group or scales.shape != groups or blocks.shape != (*groups, packing.group // 2):
        return None
    words = replace(blocks, dtype="U32", shape=(experts, outputs, packing.words(inputs)))
    return PackedMatrix(packing, (experts, outputs, inputs), (words, scales))


def _transposed(parts: _Parts, zeros: Zeros) -> PackedMatrix | None:
    """GPTQ and AWQ, whose tensors have the inputs first."""
    outputs, inputs = parts.shape
    codes, scales, points, order = (parts.get(end) for end in ("qweight", SCALES, "qzeros", "g_idx"))
    if codes is None or scales is None or codes.dtype != "I32" or scales.dtype not in PLAIN:
        return None
    if len(scales.shape) != 2 or scales.shape[1] != outputs or len(codes.shape) != 2:
        return None
    awq = codes.shape[0] == inputs
    bits = _AWQ_BITS if awq else codes.shape[0] * WORD // inputs
    packed = outputs * bits // WORD
    if bits not in _TRANSPOSED_BITS or outputs * bits % WORD:
        return None
    if codes.shape != ((inputs, packed) if awq else (inputs * bits // WORD, outputs)):
        return None
    groups = scales.shape[0]
    if points is not None and (points.dtype != "I32" or points.shape != (groups, packed)):
        return None
    if order is not None and (order.dtype not in ("I32", "I64") or order.shape != (inputs,)):
        return None
    return parts.matrix(bits, groups, "awq" if awq else zeros, (codes, scales, points, order))


def _integers(parts: _Parts, codes: TensorInfo | None) -> PackedMatrix | None:
    """compressed-tensors' signed whole numbers: packed into words, or in bytes."""
    outputs, inputs = parts.shape
    scales, points = parts.get("weight_scale"), parts.get("weight_zero_point")
    if codes is None or scales is None or len(codes.shape) != 2 or scales.dtype not in PLAIN:
        return None
    bits = {"I32": codes.shape[1] * WORD // inputs, "I8": _BYTE}.get(codes.dtype, 0)
    if codes.shape != (outputs, inputs if codes.dtype == "I8" else inputs * bits // WORD):
        return None
    if len(scales.shape) != 2 or scales.shape[0] != outputs:
        return None
    groups = scales.shape[1]
    along = (-(-outputs * bits // WORD), groups)
    if points is not None and (points.dtype, points.shape) not in (("I8", scales.shape), ("I32", along)):
        return None
    return parts.matrix(bits, groups, "integers", (codes, scales, points))


def _packed_floats(parts: _Parts) -> PackedMatrix | None:
    """compressed-tensors' nvfp4: two codes to a byte, a small scale for 16 weights and one for all."""
    outputs, inputs = parts.shape
    codes, scales, all_ = (parts.get(f"weight_{end}") for end in ("packed", "scale", "global_scale"))
    if codes is None or scales is None or all_ is None or (codes.dtype, scales.dtype, all_.dtype) != _FLOATS:
        return None
    if codes.shape != (outputs, inputs // 2) or inputs % 16 or scales.shape != (outputs, inputs // 16):
        return None
    return parts.matrix(E2M1_BITS, inputs // 16, "floats", (codes, scales, all_)) if all_.elements == 1 else None


_FLOATS = ("U8", "F8_E4M3", "F32")


# --- experts ----------------------------------------------------------------------------------------------------------


def _stacked(found: dict[str, PackedMatrix], shapes: Mapping[str, Shape]) -> dict[str, PackedMatrix]:
    """The experts' matrices of a projection as one, where all are packed alike; others stay as they are."""
    stacks: dict[str, dict[int, str]] = {}
    for key in shapes:
        match = EXPERT.fullmatch(key)
        if match:
            stacks.setdefault(stack_of(key), {})[int(match[2])] = key
    whole = dict(found)
    for name, numbered in stacks.items():
        parts = tuple(found[numbered[i]] for i in sorted(numbered) if numbered[i] in found)
        kinds = {(part.packing, part.layout, *(tensor.dtype for tensor in part.tensors)) for part in parts}
        if len(parts) < len(numbered) or len(kinds) > 1:
            continue
        for key in numbered.values():
            del whole[key]
        whole[name] = _stack(parts)
    return whole


def _stack(parts: tuple[PackedMatrix, ...]) -> PackedMatrix:
    first = parts[0]
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    return PackedMatrix(first.packing, (len(parts), *first.shape), tensors, first.layout, parts)
