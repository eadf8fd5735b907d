"""Granite 3, dense: Llama with four fixed factors."""

from __future__ import annotations

from typing import Any

from together.models.family import Config, Family, odd_heads, usual_range
from together.models.values import Values
from together.types import LayerRange

_FACTORS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")


def _more(values: Values, config: Config) -> dict[str, Any]:
    return {key: values.number(key, 1.0) for key in _FACTORS}


def _ranged(config: Config, layers: LayerRange) -> dict[str, Any]:
    """transformers multiplies whatever a model begins with."""
    return usual_range(config, layers) | ({"embedding_multiplier": 1.0} if layers.start else {})


FAMILIES = (
    Family(
        name="granite",
        title="Granite",
        torch=("granite", "Granite"),
        counts={
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": None,
            "head_dim": None,
            "max_position_embeddings": 2048,
        },
        switches=("attention_bias", "mlp_bias"),
        more=_more,
        ranged=_ranged,
        ignored_by_mlx=odd_heads,
        embedding_scale=lambda config: float(config["embedding_multiplier"]),
        logits_scale=lambda config: 1 / float(config["logits_scaling"]),
    ),
)
