"""Which families' GGUF files run here: their tensors under the names that all readers use. Pure.

The tables are the families' own (`GgufNames`).

Names are those of llama.cpp's `gguf-py/gguf/constants.py`; what its converter changes in the weights is undone: rows of
queries and keys that it interleaves for its own rope, norms that it stores one larger than they are published, and
heads of values, decays and shapes of recurrent layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from together.models.families import BY_NAME
from together.models.family import Family, GgufNames
from together.models.headers import HeadTiles, TensorInfo
from together.models.names import EMBED, HEAD, LAYER_EMBED, NORM

_BLOCK = re.compile(r"blk\.(\d{1,6})\.(\w+?)(?:\.(\d{1,6}))?(?:\.(weight|bias|scale))?")
_ENDS = {"token_embd.weight": EMBED, "output_norm.weight": NORM, "output.weight": HEAD}
_ENDS |= {  # of Gemma 4, what makes inputs of all layers
    "per_layer_token_embd.weight": LAYER_EMBED,
    "per_layer_model_proj.weight": "model.per_layer_model_projection.weight",
    "per_layer_proj_norm.weight": "model.per_layer_projection_norm.weight",
}
_CONVOLUTION = ".conv1d.weight"
_COLUMNS = (".A_log", ".D")  # of Mamba-2's rule: a number for each head, in rows of one
_ONE_ROW = ".shared_expert_gate.weight"
FAMILIES: dict[str, Family] = {
    name: family for family in BY_NAME.values() for name in (family.gguf.architecture, *family.gguf.also) if name
}


def family_of(architecture: str, metadata: Mapping[str, object]) -> Family:
    """The family of a file; some architectures stand for several, which their settings tell apart."""
    has = {key for key in ("sliding_window", "temperature_scale") if metadata.get(f"{architecture}.attention.{key}")}
    match architecture:
        case "llama" if metadata.get("llama.expert_count"):
            return BY_NAME["mixtral"]
        case "llama" if "sliding_window" in has:
            return BY_NAME["mistral"]
        case "mistral3" if "temperature_scale" not in has:
            return BY_NAME["mistral"]
        case "deepseek2" if metadata.get("tokenizer.ggml.pre") == "glm4":
            return BY_NAME["glm4_moe_lite"]
        case "olmo2" if "sliding_window" in has:
            return BY_NAME["olmo3"]
    return FAMILIES[architecture]


def canonical_name(family: Family, stored: str) -> str:
    """Of a tensor; one that no layer needs keeps its own."""
    names = family.gguf
    if stored in _ENDS:
        return _ENDS[stored]
    match = _BLOCK.fullmatch(stored)
    if match is None:
        return stored
    layer, part, expert, end = match.groups()
    if expert is not None and part in names.experts and "ffn_gate_inp" in names.tensors:
        return f"model.layers.{layer}.{family.block}.experts.{expert}.{names.experts[part]}.{end}"
    own = part if end is None else f"{part}.{end}"
    if expert is None and own in names.whole:
        return f"model.layers.{layer}.{names.whole[own]}"
    known = names.tensors.get(part) if expert is None and end in ("weight", "bias") else None
    return stored if known is None else f"model.layers.{layer}.{known}.{end}"


def as_stored(config: Mapping[str, object], tensor: TensorInfo) -> TensorInfo:
    """A tensor with what its file did to it; `config` is the effective configuration."""
    if not tensor.gguf:
        return tensor
    shape = tensor.shape
    if tensor.name.endswith(_ONE_ROW) and len(shape) == 1:  # older converters left out axes of 1
        shape = (1, *shape)
    if tensor.name.endswith(_CONVOLUTION) and len(shape) == 2:
        shape = (shape[0], 1, shape[1])
    if tensor.name.endswith(_COLUMNS) and len(shape) == 2 and shape[1] == 1:
        shape = shape[:1]
    if _is_norm_of_groups(config, tensor.name) and len(shape) == 2:
        shape = (shape[0] * shape[1],)
    return replace(
        tensor,
        shape=shape,
        heads=_heads(config, tensor.name),
        larger=_is_larger(config, tensor.name),
        tiles=_tiles(config, tensor.name),
        decay=tensor.name.endswith(".A_log"),
    )


def _is_norm_of_groups(config: Mapping[str, object], name: str) -> bool:
    """A group to a row, as layers by Mamba-2's rule have them."""
    part = BY_NAME[str(config["model_type"])].recurrent
    return bool(part) and name.endswith(f".{part}.norm.weight")


def _heads(config: Mapping[str, object], name: str) -> int:
    path = name.rpartition(".")[0]
    if not _names(config).interleaved or not path.endswith((".q_proj", ".k_proj")):
        return 0
    heads = config["num_attention_heads" if path.endswith("q_proj") else "num_key_value_heads"]
    assert isinstance(heads, int)
    return heads


def _is_larger(config: Mapping[str, object], name: str) -> bool:
    return _names(config).larger and name.endswith("norm.weight") and not name.endswith(".linear_attn.norm.weight")


def _tiles(config: Mapping[str, Any], name: str) -> HeadTiles | None:
    """Where heads of keys have several of values, llama.cpp repeats them otherwise than they were published."""
    _, linear, part = name.partition(".linear_attn.")
    if not linear or not _names(config).tiled or config["linear_num_key_heads"] == config["linear_num_value_heads"]:
        return None
    size, groups = config["linear_value_head_dim"], config["linear_num_key_heads"]
    match part:
        case "in_proj_qkv.weight" | "conv1d.weight":
            return HeadTiles(groups, size, first=2 * groups * config["linear_key_head_dim"])
        case "in_proj_z.weight":
            return HeadTiles(groups, size)
        case "in_proj_a.weight" | "in_proj_b.weight" | "A_log" | "dt_bias":
            return HeadTiles(groups, 1)
        case "out_proj.weight":
            return HeadTiles(groups, size, columns=True)
    return None


def _names(config: Mapping[str, object]) -> GgufNames:
    return BY_NAME[str(config["model_type"])].gguf
