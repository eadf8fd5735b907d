"""Which tensors a model of each family needs, by name and shape, and what a checkpoint lacks of them. Pure.

From the effective configuration (`models/config.py`) and safetensors headers alone, so that a model that cannot run is
refused before anything is unloaded or read. All other tensors (most towers, draft layers, buffers, scores) are
passed over, whatever their dtype and shape.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from math import prod
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.models.config import purpose
from together.models.families import BY_NAME
from together.models.family import Tensors
from together.models.form import ROUTERS, STACK, stack_of
from together.models.gguf.kinds import BLOCKS, PACKINGS
from together.models.headers import TensorInfo
from together.models.matrices import (
    CODES,
    PLAIN,
    SCALES,
    Matrices,
    Shape,
    beside,
    is_stored,
    matrix_of,
    shown,
)
from together.models.names import EMBED, HEAD, NORM
from together.models.quantization import Zeros
from together.models.recognise import find_matrices, unknown_packing
from together.wording import MOST, cut

_SCORES = ("score.weight", "model.score.weight", "classifier.weight", "v_head.summary.weight", "value_head.weight")
_OTHERS = {  # what a tensor beside or in the place of a matrix is called, and the quantization that stores it
    "weight.absmax": "bitsandbytes",
    "SCB": "bitsandbytes",
    "B": "marlin",
    "W_q": "hqq",
    "codebooks": "aqlm",
    "weight_scales": "eetq",
    "weight._data": "quanto",
    "_weight_qdata": "torchao",
    "weight_qdata": "torchao",
    "q_weight": "exl2",
    "trellis": "exl3",
    "centroids.weight": "vptq",
}
_BESIDE = (SCALES, "weight_scale", "weight_scale_inv", *CODES[1:])  # no plain matrix has one of them
_PASSED_OVER = (  # what is stored with a quantized matrix for activations, caches or checks, which go without here
    "input_scale", "output_scale", "input_zero_point", "output_zero_point", "input_global_scale",
    "k_scale", "v_scale", "q_scale", "weight_shape",
)  # fmt: skip


def layer_needs(config: Mapping[str, Any], layer: int, *, stacked: bool = False) -> Tensors:
    """Name and shape of every tensor of one decoder layer, as if none were packed.

    `stacked`: all experts of a projection are one tensor, as MLX stores them.
    """
    return BY_NAME[config["model_type"]].tensors(config, layer, stacked)


def layer_params(config: Mapping[str, Any], layer: int) -> tuple[int, int]:
    """Parameters of a decoder layer, and how many of them one token uses: of experts, the chosen ones."""
    sizes = {name: prod(shape) for name, shape in layer_needs(config, layer, stacked=True)}
    whole, experts = sum(sizes.values()), sum(size for name, size in sizes.items() if STACK in name)
    if not experts:
        return whole, whole
    count = config[BY_NAME[config["model_type"]].experts]
    return whole, whole - experts + experts * config["num_experts_per_tok"] // count


def needs(config: Mapping[str, Any], *, head: bool, stored: Collection[str] = ()) -> dict[str, Shape]:
    """Name and shape of every tensor of the model; `head`: its LM head is a matrix of its own.

    Of the ways in which a matrix may be stored it is the one that has tensors among `stored`, or the published one.
    """
    stacked = is_stacked(stored)
    matrix = (config["vocab_size"], config["hidden_size"])
    found: dict[str, Shape] = {EMBED: matrix, NORM: matrix[1:]}
    if head:
        found[HEAD] = matrix
    found.update(BY_NAME[config["model_type"]].opening(config))
    tower = dict(BY_NAME[config["model_type"]].tower(config))
    if any(name in tower for name in stored):  # without one it runs, too, and sees nothing
        found.update(tower)
    for layer in range(config["num_hidden_layers"]):
        found.update(layer_needs(config, layer, stacked=stacked))
        for whole, parts in BY_NAME[config["model_type"]].parted(config, layer).items():
            if any(is_stored(part, stored) for part in parts):
                del found[whole]
                found.update(parts)
    return found


def check_tensors(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], zeros: Zeros = "gptq"
) -> None:
    """Raises UnsupportedModel or BrokenModel unless `tensors`, by canonical name, are a whole model of this shape."""
    head = is_stored(HEAD, tensors)
    what = purpose(config, head=head or config["tie_word_embeddings"])
    if what:
        raise UnsupportedModel(
            "{model} is {what}: it writes no text; choose a causal language model", model=name, what=what
        )
    if not head and not config["tie_word_embeddings"]:
        raise _headless(name, tensors)
    shapes = needs(config, head=head, stored=tensors)
    found = find_matrices(shapes, tensors, zeros)
    parts = found.parts
    for key, shape in shapes.items():
        if key not in found.packed and not any(beside(key, end) in parts for end in CODES):
            _check(name, key, shape, tensors)
    _check_experts(name, shapes, found)
    _check_biases(name, shapes, tensors)
    _check_parts(name, shapes, found, tensors)


def _check(name: str, key: str, shape: Shape, tensors: Mapping[str, TensorInfo]) -> None:
    """A matrix that is not quantized in a way that runs here must be plain."""
    found = tensors.get(key)
    if found is None:
        raise missing(name, key, tensors, shape)
    if has_scales(key, tensors):
        raise unknown_packing(name, key, shape, tensors)
    if found.shape != shape and (found.dtype in PLAIN or found.dtype in PACKINGS):
        raise misshapen(name, found, shape)
    if found.gguf and found.dtype in PACKINGS:
        said = "{model}: {key} is a vector in blocks of {kind}; get this model again, or another version of it"
        raise BrokenModel(said, model=name, key=cut(key, MOST), kind=found.dtype)
    if found.dtype not in PLAIN:
        raise quantized(name, stored_as(found, tensors))


def has_scales(key: str, tensors: Container[str]) -> bool:
    """Whether tensors of a quantization that may be known lie beside the matrix `key`."""
    return any(beside(key, end) in tensors for end in _BESIDE)


def _check_experts(name: str, shapes: Mapping[str, Shape], found: Matrices) -> None:
    """Where experts are stored one by one, those of a layer are all plain, or all stacks."""
    stacked = {key.rpartition(STACK)[0] for key in found.packed if STACK in key}
    for key in shapes:
        fused = key.replace(".experts.gate_up_proj", ".experts.down_proj")
        if fused != key and (key in found.packed) != (fused in found.packed):
            raise _mixed(name, key)
        stack = stack_of(key)
        if stack == key or stack in found.packed:
            continue
        if key in found.packed or stack.rpartition(STACK)[0] in stacked:
            raise _mixed(name, key)


def _mixed(name: str, key: str) -> UnsupportedModel:
    return UnsupportedModel(
        "{model} has some experts of a layer quantized otherwise than the rest, as {key}, which does not run here; "
        "choose another version",
        model=name,
        key=key,
    )


def is_stacked(names: Iterable[str]) -> bool:
    """Whether all experts of a projection are one tensor."""
    return any(STACK in name for name in names)


def missing(
    name: str, key: str, tensors: Mapping[str, TensorInfo], shape: Shape = ()
) -> BrokenModel | UnsupportedModel:
    """The error for a tensor that is not there, by what is there in its place."""
    if is_stored(key, tensors):
        return unknown_packing(name, key, shape, tensors)
    for end, method in _OTHERS.items():
        if key.endswith(".weight") and beside(key, end) in tensors:
            return quantized(name, method)
    layer = key.partition(".experts.")[0]
    if layer != key and any(item.startswith(f"{layer}.experts.gate_up") for item in tensors):
        return UnsupportedModel(
            "{model} stores all experts of a layer as one tensor, which does not run here; choose a version with one "
            "tensor per expert",
            model=name,
        )
    return BrokenModel(
        "{model} has no tensor {key}, which its config.json asks for: a file is not whole, or config.json is another "
        "model's; get this model again",
        model=name,
        key=key,
    )


def misshapen(name: str, found: TensorInfo, shape: Shape) -> BrokenModel:
    """The error for a tensor of another shape than config.json says."""
    key, there = cut(found.key, MOST), shown(found.shape)
    return BrokenModel(
        "{model}: {key} is {there} in {file} and {asked} by config.json; take both from the same version of the model",
        model=name,
        key=key,
        there=there,
        file=found.file.name,
        asked=shown(shape),
    )


def quantized(name: str, how: str) -> UnsupportedModel:
    """The error for weights that are packed in a way that does not run here."""
    if how in BLOCKS:
        return UnsupportedModel(
            "{model} has weights of the type {how}, which does not run here; choose a file with one of {known}",
            model=name,
            how=how,
            known=tuple(PACKINGS),
        )
    return UnsupportedModel(
        "{model} is quantized ({how}), which does not run here; load its plain version, with --quantize 4 if that is "
        "too large, or choose it in MLX's format, GGUF, GPTQ, AWQ, compressed-tensors or FP8",
        model=name,
        how=how,
    )


def stored_as(tensor: TensorInfo, tensors: Mapping[str, TensorInfo]) -> str:
    """What to call the packing of a needed tensor whose dtype is none that is computed in."""
    if tensor.gguf:
        return tensor.dtype
    return next((_OTHERS[end] for end in _OTHERS if beside(tensor.name, end) in tensors), tensor.dtype.lower())


# --- parts ------------------------------------------------------------------------------------------------------------


def _headless(name: str, tensors: Mapping[str, TensorInfo]) -> UnsupportedModel:
    score = next((key for key in _SCORES if key in tensors), None)
    said = (
        "{model} has {tensor} in the place of an LM head: it is a classifier or reward model; choose a causal one"
        if score
        else "{model} has no {tensor}, and its config.json does not tie it to the embedding (tie_word_embeddings): it "
        "is an embedding or base model, or a part of one; choose a causal language model"
    )
    return UnsupportedModel(said, model=name, tensor=score or HEAD)


def _check_biases(name: str, shapes: Mapping[str, Shape], tensors: Mapping[str, TensorInfo]) -> None:
    """A bias that is stored and not asked for would be left out, and the answers be wrong in silence."""
    for key, shape in shapes.items():
        bias = beside(key, "bias")
        found = tensors.get(bias) if key.endswith(_BIASABLE) and bias not in shapes else None
        if found is not None and found.dtype in PLAIN and found.shape == shape[:-1]:
            raise UnsupportedModel(
                "{model} stores {bias}, and its config.json asks for no bias there; if it needs it, set attention_bias "
                "or mlp_bias in config.json, else choose another version",
                model=name,
                bias=bias,
            )


def _check_parts(name: str, shapes: Mapping[str, Shape], found: Matrices, tensors: Mapping[str, TensorInfo]) -> None:
    """What is stored with a quantized matrix and not known, as a second scale, would be left out of it in silence."""
    parts = found.parts
    held = {matrix_of(part) for part in parts}
    for key in tensors:
        path, _, end = key.rpartition(".")
        if key in parts or end in ("weight", "bias") or end in _PASSED_OVER or f"{path}.weight" not in shapes:
            continue
        if f"{path}.weight" in held or matrix_of(key) != key:
            raise UnsupportedModel(
                "{model} stores {key} with a quantized matrix, which does not run here; choose another version",
                model=name,
                key=cut(key, MOST),
            )


_BIASABLE = ("_proj.weight", *ROUTERS)  # of any layer, experts and routers among them
