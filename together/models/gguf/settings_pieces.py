"""What the metadata of several families' GGUF files say alike, as keys of their config.json. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from together.models.gguf.metadata import MetadataReader

Config = Mapping[str, Any]


def alike(reader: MetadataReader, key: str, counts: list[int], sliding: list[bool], kind: bool) -> int:
    """What all layers of a kind have; 0 where there are none. Raises UnsupportedModel."""
    found = {count for count, each in zip(counts, sliding, strict=True) if each == kind}
    if len(found) > 1:
        raise reader.refuse(key, sorted(found))
    return found.pop() if found else 0


def experts_of(reader: MetadataReader, key: str = "num_experts") -> dict[str, Any]:
    return {key: reader.count("expert_count"), "num_experts_per_tok": reader.count("expert_used_count")}


def grouped_settings(reader: MetadataReader, config: Config) -> dict[str, Any]:
    """Of DeepSeek's router. Files count layers that predict more tokens at once among the others."""
    return {
        **experts_of(reader, "n_routed_experts"),
        "num_hidden_layers": config["num_hidden_layers"] - (reader.none_or("nextn_predict_layers") or 0),
        "moe_intermediate_size": reader.count("expert_feed_forward_length"),
        "n_shared_experts": reader.count("expert_shared_count"),
        "first_k_dense_replace": reader.none_or("leading_dense_block_count") or 0,
        "routed_scaling_factor": reader.factor("expert_weights_scale", 1.0),
        "norm_topk_prob": reader.flag("expert_weights_norm", False),
        "n_group": reader.count("expert_group_count", 1),
        "topk_group": reader.count("expert_group_used_count", 1),
    }


def granite_factors(reader: MetadataReader, config: Config) -> dict[str, Any]:
    return {
        "attention_multiplier": reader.factor("attention.scale", config["head_dim"] ** -0.5),
        "embedding_multiplier": reader.factor("embedding_scale", 1.0),
        "residual_multiplier": reader.factor("residual_scale", 1.0),
        "logits_scaling": reader.factor("logit_scale", 1.0),
    }
