"""Which tensors a model of each family needs, by name and shape, and what a checkpoint lacks of them. Pure.

From the effective configuration (`models/config.py`) and safetensors headers alone, so that a model that cannot run is
refused before anything is unloaded or read. All other tensors (vision towers, draft layers, buffers, scores) are
passed over, whatever their dtype and shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.models.config import purpose
from together.models.headers import TensorInfo
from together.models.names import EMBED, HEAD, NORM
from together.types import Dtype
from together.wording import MOST, cut

PLAIN: dict[str, Dtype] = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
Shape = tuple[int, ...]

_BIASED = {  # family: projections that have a bias, besides those that attention_bias and mlp_bias ask for
    "qwen2": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
}
_SCORES = ("score.weight", "model.score.weight", "classifier.weight", "v_head.summary.weight", "value_head.weight")
_PACKED = {  # what tensors of a packed matrix are called, and the quantization that packs so
    "qweight": "gptq or awq",
    "weight_packed": "compressed-tensors",
    "scales": "packed",
    "weight.absmax": "bitsandbytes",
    "weight_scale_inv": "fp8",
}


def layer_needs(config: Mapping[str, Any], layer: int) -> Iterator[tuple[str, Shape]]:
    """Name and shape of every tensor of one decoder layer."""
    start, family, hidden = f"model.layers.{layer}.", config["model_type"], config["hidden_size"]
    attention = _attention(config)
    mlp = {"gate_proj": (config["intermediate_size"], hidden), "up_proj": (config["intermediate_size"], hidden),
           "down_proj": (hidden, config["intermediate_size"])}  # fmt: skip
    for name, shape in attention.items():
        yield f"{start}self_attn.{name}.weight", shape
        if config.get("attention_bias") or f"self_attn.{name}" in _BIASED.get(family, ()):
            yield f"{start}self_attn.{name}.bias", shape[:1]
    if family in ("qwen3", "qwen3_moe", "gemma3_text"):
        yield f"{start}self_attn.q_norm.weight", (config["head_dim"],)
        yield f"{start}self_attn.k_norm.weight", (config["head_dim"],)
    for name in _norms(family):
        yield f"{start}{name}.weight", (hidden,)
    if family == "qwen3_moe" and layer not in config["mlp_only_layers"]:
        yield from _experts(config, f"{start}mlp.")
        return
    for name, shape in mlp.items():
        yield f"{start}mlp.{name}.weight", shape
        if config.get("mlp_bias"):
            yield f"{start}mlp.{name}.bias", shape[:1]


def needs(config: Mapping[str, Any], *, head: bool) -> dict[str, Shape]:
    """Name and shape of every tensor of the model; `head`: its LM head is a matrix of its own."""
    matrix = (config["vocab_size"], config["hidden_size"])
    found: dict[str, Shape] = {EMBED: matrix, NORM: matrix[1:]}
    if head:
        found[HEAD] = matrix
    for layer in range(config["num_hidden_layers"]):
        found.update(layer_needs(config, layer))
    return found


def check_tensors(name: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """Raises UnsupportedModel or BrokenModel unless `tensors`, by canonical name, are a whole model of this shape."""
    head = HEAD in tensors
    what = purpose(config, head=head or config["tie_word_embeddings"])
    if what:
        raise UnsupportedModel(
            "{model} is {what}: it writes no text; choose a causal language model", model=name, what=what
        )
    if not head and not config["tie_word_embeddings"]:
        raise _headless(name, tensors)
    for key, shape in needs(config, head=head).items():
        found = tensors.get(key)
        if found is None:
            raise missing(name, key, tensors)
        if found.dtype not in PLAIN:
            raise quantized(name, stored_as(found, tensors))
        if found.shape != shape:
            raise misshapen(name, found, shape)
    _check_biases(name, config, tensors)


def missing(name: str, key: str, tensors: Mapping[str, TensorInfo]) -> BrokenModel | UnsupportedModel:
    """The error for a tensor that is not there, by what is there in its place."""
    for end, method in _PACKED.items():
        if key.endswith(".weight") and _beside(key, end) in tensors:
            return quantized(name, method)
    layer = key.partition(".experts.")[0]
    if layer != key and any(item.startswith((f"{layer}.experts.gate_up", f"{layer}.switch_mlp.")) for item in tensors):
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
    key, there = cut(found.key, MOST), _shape(found.shape)
    return BrokenModel(
        "{model}: {key} is {there} in {file} and {asked} by config.json; take both from the same version of the model",
        model=name,
        key=key,
        there=there,
        file=found.file.name,
        asked=_shape(shape),
    )


def quantized(name: str, how: str) -> UnsupportedModel:
    """The error for weights that are packed."""
    return UnsupportedModel("{model} is quantized ({how}); choose it in bf16, fp16 or fp32", model=name, how=how)


def stored_as(tensor: TensorInfo, tensors: Mapping[str, TensorInfo]) -> str:
    """What to call the packing of a needed tensor whose dtype is none that is computed in."""
    return next((_PACKED[end] for end in _PACKED if _beside(tensor.name, end) in tensors), tensor.dtype.lower())


# --- parts ------------------------------------------------------------------------------------------------------------


def _attention(config: Mapping[str, Any]) -> dict[str, Shape]:
    hidden, dim = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    return {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
    }


def _norms(family: str) -> tuple[str, ...]:
    usual = ("input_layernorm", "post_attention_layernorm")
    return (*usual, "pre_feedforward_layernorm", "post_feedforward_layernorm") if family == "gemma3_text" else usual


def _experts(config: Mapping[str, Any], start: str) -> Iterator[tuple[str, Shape]]:
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    yield f"{start}gate.weight", (config["num_experts"], hidden)
    for expert in range(config["num_experts"]):
        yield f"{start}experts.{expert}.gate_proj.weight", (inner, hidden)
        yield f"{start}experts.{expert}.up_proj.weight", (inner, hidden)
        yield f"{start}experts.{expert}.down_proj.weight", (hidden, inner)


def _headless(name: str, tensors: Mapping[str, TensorInfo]) -> UnsupportedModel:
    score = next((key for key in _SCORES if key in tensors), None)
    said = (
        "{model} has {tensor} in the place of an LM head: it is a classifier or reward model; choose a causal one"
        if score
        else "{model} has no {tensor}, and its config.json does not tie it to the embedding (tie_word_embeddings): it "
        "is an embedding or base model, or a part of one; choose a causal language model"
    )
    return UnsupportedModel(said, model=name, tensor=score or HEAD)


def _beside(key: str, end: str) -> str:
    """The tensor of packing that belongs to a matrix: `x.qweight` for `x.weight`."""
    return f"{key.removesuffix('.weight')}.{end}"


def _check_biases(name: str, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> None:
    """A bias that is stored and not asked for would be left out, and the answers be wrong in silence."""
    asked = dict(layer_needs(config, 0))
    for key in asked:
        bias = f"{key.removesuffix('.weight')}.bias"
        found = tensors.get(bias) if key.endswith("_proj.weight") and bias not in asked else None
        if found is not None and found.dtype in PLAIN and found.shape == asked[key][:1]:
            raise UnsupportedModel(
                "{model} stores {bias}, and its config.json asks for no bias there; if it needs it, set attention_bias "
                "or mlp_bias in config.json, else choose another version",
                model=name,
                bias=bias,
            )


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "a single number"
