"""What the metadata of one family's GGUF files says that others' does not, as keys of its config.json. Pure.

Keys are those of llama.cpp's `gguf-py/gguf/constants.py`. What an architecture computes whatever its file says is
written out here: each line of that kind is how llama.cpp's graph of it, or the published model, has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from together.models.gguf.metadata import MetadataReader

_GEMMA_27B = 62  # layers: the one Gemma 3 whose queries are scaled by the width of a head's share of the states
_SIGMOID = 2  # of `expert_gating_func`

Config = Mapping[str, Any]


def more_settings(family: str, reader: MetadataReader, config: Config) -> dict[str, Any]:
    """Keys that replace those of `config`, which all families have. Raises UnsupportedModel or BrokenModel."""
    found = _OF.get(family)
    return found(reader, config) if found is not None else {}


def _gemma3(reader: MetadataReader, config: Config) -> dict[str, Any]:
    large = config["num_hidden_layers"] == _GEMMA_27B
    scaled = config["hidden_size"] // config["num_attention_heads"] if large else config["head_dim"]
    return {
        "sliding_window": reader.count("attention.sliding_window"),
        "sliding_window_pattern": reader.count("attention.sliding_window_pattern", 6),
        "query_pre_attn_scalar": scaled,
        "rope_local_base_freq": reader.number("rope.freq_base_swa", 10_000.0),
    }


def _qwen3_moe(reader: MetadataReader, config: Config) -> dict[str, Any]:
    return {
        "num_experts": reader.count("expert_count"),
        "num_experts_per_tok": reader.count("expert_used_count"),
        "moe_intermediate_size": reader.count("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def _gpt_oss(reader: MetadataReader, config: Config) -> dict[str, Any]:
    """Windows in every other layer, and YaRN whose bounds are not rounded: no file says so."""
    scaling = config["rope_scaling"]
    return {
        "num_local_experts": reader.count("expert_count"),
        "num_experts_per_tok": reader.count("expert_used_count"),
        "intermediate_size": reader.count("expert_feed_forward_length"),
        "sliding_window": reader.count("attention.sliding_window"),
        "rope_scaling": scaling and {**scaling, "truncate": False},
    }


def _mistral(reader: MetadataReader, config: Config) -> dict[str, Any]:
    return {"sliding_window": reader.none_or("attention.sliding_window")}


_OF: dict[str, Callable[[MetadataReader, Config], dict[str, Any]]] = {
    "gemma3_text": _gemma3,
    "gpt_oss": _gpt_oss,
    "mistral": _mistral,
    "qwen3_moe": _qwen3_moe,
}
