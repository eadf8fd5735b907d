"""Which modules of a transformers model are made anew from quantized matrices, and what is left to transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

from backends.on_torch.experts import BiasedExperts, EachExpert, Experts, Gate, QuantizedExperts, gate_of
from backends.on_torch.kernels import Precision, quantized_experts, quantized_linears
from backends.on_torch.parts import JoinedRows
from backends.on_torch.quantized import PackedRows, QuantizedEmbedding
from backends.on_torch.stacked import Readable, StackedExperts, with_same_input
from backends.on_torch.tensors import GroupRows, Joined, Lazy, Quantized, Scaled, UnchangedRows
from together.models.family import PROJECTIONS
from together.models.form import STACK
from together.models.names import HEAD, LOOKED_UP
from together.processes import keep_freed_memory

Source = Lazy | Scaled | Quantized
Matrix = Quantized | JoinedRows
_FUSED = ".experts.gate_up_proj"  # as transformers stores all of a layer
_WEIGHT = ".weight"
_KEPT = 32 * 2**20  # bytes that steps use again and again
# So small that they are used plain.
_ROUTERS = (
    ".mlp.gate.weight",
    ".mixer.gate.weight",
    ".router.weight",
    ".router.proj.weight",
    ".router.layer.weight",
)


@dataclass(frozen=True, slots=True)
class Sorted:
    """`state` is for transformers, by the names of its parameters; modules are made from the rest."""

    state: dict[str, Lazy | Scaled | Joined | Quantized | JoinedRows]
    matrices: dict[str, Matrix] = field(default_factory=dict)  # by parameter
    experts: dict[str, tuple[Source, ...]] = field(
        default_factory=dict
    )  # by module: gate, up and down, or gate_up and down, or without a gate up and down
    biases: dict[str, tuple[Source, ...]] = field(default_factory=dict)  # alike, of experts that have some


def sort_sources(sources: dict[str, Source], *, turned: bool = False) -> Sorted:
    """By canonical names. Plain experts that are stacked get the names that transformers has for them.

    `turned`: transformers has inputs before outputs there, so that they are modules of ours.
    """
    found = Sorted({name: source for name, source in sources.items() if STACK not in name})
    for name in [name for name in found.state if name.endswith(_FUSED) and isinstance(sources[name], Quantized)]:
        path = name.rpartition(".")[0]
        names = [f"{path}.{part}" for part in ("gate_up_proj", "down_proj")]
        added = [f"{part}_bias" for part in names if f"{part}_bias" in sources]
        found.experts[path] = tuple(sources[part] for part in names)
        found.biases[path] = tuple(sources[part] for part in added)
        for part in (*names, *added):
            del found.state[part]
    for name, source in list(found.state.items()):
        if _is_packed(source) and not is_router(name):
            found.matrices[name] = found.state.pop(name)  # type: ignore[assignment]
    for start in {name.partition(STACK)[0] for name in sources if STACK in name}:
        parts = tuple(sources[name] for part in PROJECTIONS if (name := f"{start}{STACK}{part}.weight") in sources)
        biases = tuple(sources[name] for part in PROJECTIONS if (name := f"{start}{STACK}{part}.bias") in sources)
        plain = [part for part in parts if isinstance(part, Lazy)]
        if len(plain) < len(parts) or biases or turned:
            found.experts[f"{start}.experts"] = parts
            found.biases[f"{start}.experts"] = biases
        else:
            first = "gate_up_proj" if len(plain) == len(PROJECTIONS) else "up_proj"
            found.state[f"{start}.experts.{first}"] = Joined.of(plain[:-1])
            found.state[f"{start}.experts.down_proj"] = plain[-1]
    for start, experts in _one_by_one(found.state).items():
        _join(found.state, start, experts)
    return found


def _is_packed(source: object) -> bool:
    return isinstance(source, Quantized) or (isinstance(source, JoinedRows) and bool(source.quantized))


def _one_by_one(state: Mapping[str, object]) -> dict[str, int]:
    """Where plain experts are stored one by one, and how many there are."""
    found: dict[str, set[int]] = {}
    for name, source in state.items():
        match = _EXPERT.fullmatch(name)
        if match is not None and isinstance(source, Lazy):
            found.setdefault(match[1], set()).add(int(match[2]))
    return {start: len(experts) for start, experts in found.items()}


def _join(state: dict[str, Any], start: str, experts: int) -> None:
    """One parameter of them each, as transformers has it: it would make three copies on the way there."""
    for names in _NAMES:
        keys = [f"{start}.experts.{i}.{name}.weight" for i, name in product(range(experts), names)]
        parts = [part for key in keys if isinstance(part := state.get(key), Lazy)]
        gated = f"{start}.experts.0.{PROJECTIONS[0]}.weight" in state
        if len(parts) < len(keys) or (gated and len(names) == 2):
            continue  # of another family, or some are in 8-bit floats
        *first, down = ([part.info for part in parts[place :: len(names)]] for place in range(len(names)))
        inner, reader = "gate_up_proj" if len(first) == 2 else "up_proj", parts[0].reader
        state[f"{start}.experts.{inner}"] = Joined(tuple(zip(*first, strict=True)), reader)
        state[f"{start}.experts.down_proj"] = Joined(tuple((each,) for each in down), reader)
        for key in keys:
            del state[key]
        return


_EXPERT = re.compile(r"(.+\.(?:mlp|block_sparse_moe|mixer))\.experts\.(\d+)\.(?:down_proj|w2)\.weight")
_NAMES = PROJECTIONS, ("w1", "w3", "w2"), PROJECTIONS[1:]  # gate, up and down, or without a gate


def is_router(name: str) -> bool:
    return name.endswith(_ROUTERS)


def replace_modules(model: Any, found: Sorted, precision: Precision) -> None:
    """One after the other, so that no more than one matrix is there in two forms. Raises what reading raises."""
    for path, parts in found.experts.items():
        module = model.get_submodule(path)
        in_turns = not module.is_concatenated
        made = _experts(gate_of(module), parts, found.biases[path], precision, in_turns=in_turns)
        model.set_submodule(path, made)
    linears: dict[str, Readable] = {name: matrix for name, matrix in found.matrices.items() if name not in LOOKED_UP}
    replace_linears(model, linears, precision)
    for name in found.matrices.keys() & set(LOOKED_UP):
        path = name.removesuffix(_WEIGHT)
        scale = getattr(model.get_submodule(path), "embed_scale", None)
        packed = _embedding(found.matrices[name], found)
        model.set_submodule(path, QuantizedEmbedding(packed, precision.dtype, scale, precision.device))
    keep_freed_memory(_KEPT)


def replace_linears(model: Any, matrices: Mapping[str, Readable], precision: Precision) -> None:
    """By parameter. On a CPU a call costs so much that those with the same input are one product."""
    alone = [(name,) for name in matrices]
    for names in with_same_input(matrices) if precision.device.type == "cpu" else alone:
        paths = [name.removesuffix(_WEIGHT) for name in names]
        biases = [model.get_submodule(path).bias for path in paths]
        layers = quantized_linears([matrices[name] for name in names], biases, precision)
        for path, layer in zip(paths, layers, strict=True):
            model.set_submodule(path, layer)


def _experts(
    gated: Gate, parts: Sequence[Source], biases: Sequence[Source], precision: Precision, *, in_turns: bool
) -> QuantizedExperts:
    """Of gate, up and down: the first two as one where they are packed alike.

    `in_turns`: where they are stored as one, their outputs take turns.
    """
    *first, down = parts
    added = [bias[...].to(precision.device) for bias in biases]
    alike = [
        part for part in first if isinstance(part, Quantized) and part.packing == getattr(first[0], "packing", None)
    ]
    if len(alike) == len(first) == 2:
        inner = [quantized_experts(StackedExperts(alike), precision)]
        added = [torch.cat(added[:2], dim=1), added[2]] if added else []
    else:
        inner = [_held(part, precision) for part in first]
    projections = [*inner, _held(down, precision)]
    if added:
        projections = [BiasedExperts(*pair) for pair in zip(projections, added, strict=True)]
    return QuantizedExperts(gated, projections[:-1], projections[-1], in_turns=in_turns and len(first) == 1)


def _held(source: Source, precision: Precision) -> Experts:
    return quantized_experts(source, precision) if isinstance(source, Quantized) else EachExpert(source[...])


def _embedding(matrix: Matrix, found: Sorted) -> PackedRows:
    """A tied one is looked up in its file on a CPU, as the head holds the matrix in the form that multiplies fast."""
    assert isinstance(matrix, Quantized)
    tied = found.matrices.get(HEAD) is matrix
    if not tied or matrix.reader.device.type != "cpu":
        return matrix.read()
    rows, files = matrix.mapped(), {tensor.file for tensor in matrix.matrix.tensors}
    return UnchangedRows(rows, files, by_path=isinstance(rows, GroupRows))
