"""Ministral 3: Mistral whose queries grow with their positions, beyond the length of the training."""

from __future__ import annotations

from typing import Any

from together.errors import UnsupportedModel
from together.models.family import SLIDING, WINDOW, Config, Family, GgufNames, layer_kinds
from together.models.rope import QUERIES_GROW
from together.models.values import Values

_THETA = 1_000_000.0
_ROPE = {  # what transformers assumes where config.json is silent
    "rope_type": "yarn",
    "rope_theta": _THETA,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def _more(values: Values, config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {"sliding_window": None}
    if values.found.get("sliding_window") is not None:
        found["sliding_window"] = values.count("sliding_window", WINDOW)
        layers = config["num_hidden_layers"]
        if set(layer_kinds(values, layers, [SLIDING] * layers)) != {SLIDING}:  # transformers passes over them
            raise UnsupportedModel(
                "{model} has a sliding_window and layers without one, which does not run here in this family",
                model=values.name,
            )
    return found


FAMILIES = (
    Family(
        name="ministral3",
        title="Ministral 3",
        torch=("ministral3", "Ministral3"),
        mlx_settings={
            "rope_parameters": {"rope_theta": _THETA, **dict.fromkeys(QUERIES_GROW, 1.0)}
        },  # in place of ours
        counts={
            "vocab_size": 131072,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262144,
        },
        more=_more,
        epsilon=1e-5,
        rope=_ROPE,
        rope_kinds=("yarn",),
        rope_needs=QUERIES_GROW,
        gguf=GgufNames(
            "mistral3",  # and so say newer files of Mistral
            interleaved=True,
            computed=("attention.temperature_scale", "rope.scaling.yarn_log_multiplier"),
        ),
    ),
)
