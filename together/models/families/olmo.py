"""OLMo 2 and 3: norms after attention and MLP, and of all heads' queries and keys; 3 has windows."""

from __future__ import annotations

from typing import Any

from together.models.family import (
    FULL,
    GGUF_AFTER,
    GGUF_HEAD_NORMS,
    GGUF_USUAL,
    MAX_LAYERS,
    SLIDING,
    WINDOW,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    layer_kinds,
    mlp_tensors,
    norm_tensors,
    wide_norm_tensors,
)
from together.models.values import Values

_NAMES = {**GGUF_USUAL, **GGUF_HEAD_NORMS, **GGUF_AFTER}
_COUNTS: dict[str, int | None] = {
    "vocab_size": 50304,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
}


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from attention_tensors(config, layer)
    yield from wide_norm_tensors(config, layer)
    yield from norm_tensors(config, layer, "post_attention_layernorm", "post_feedforward_layernorm")
    yield from mlp_tensors(config, layer)


def _windows(values: Values, config: Config) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    usual = [SLIDING if (layer + 1) % 4 else FULL for layer in range(layers)]
    return {
        "sliding_window": values.count("sliding_window", WINDOW),
        "layer_types": layer_kinds(values, layers, usual),
    }


FAMILIES = (
    Family(
        name="olmo2",
        title="OLMo 2",
        torch=("olmo2", "Olmo2"),
        counts=_COUNTS,
        switches=("attention_bias",),
        tensors=_tensors,
        epsilon=1e-5,
        written=True,
        gguf=GgufNames("olmo2", _NAMES),  # OLMo 3's files say olmo2, too
    ),
    Family(
        name="olmo3",
        title="OLMo 3",
        torch=("olmo3", "Olmo3"),
        mlx_settings={"layer_types": [SLIDING, FULL] * (MAX_LAYERS // 2)},  # it wants to find both in any model
        counts=_COUNTS,
        switches=("attention_bias",),
        more=_windows,
        tensors=_tensors,
        epsilon=1e-5,
        written=True,
        gguf=GgufNames(tensors=_NAMES, computed=("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor")),
        ropes={SLIDING: ("", 500_000.0), FULL: ("rope_theta", 500_000.0)},  # as transformers reads older files
    ),
)
