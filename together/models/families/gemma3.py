"""Gemma 3: norms around attention and MLP, windows in most layers, and a rope for each kind of layer."""

from __future__ import annotations

from typing import Any

from together.models.family import (
    FULL,
    GGUF_HEAD_NORMS,
    GGUF_USUAL,
    SLIDING,
    WINDOW,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    head_norm_tensors,
    layer_kinds,
    mlp_tensors,
    norm_tensors,
)
from together.models.values import Values, bad_value

_AROUND = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from attention_tensors(config, layer)
    yield from head_norm_tensors(config, layer)
    around = "pre_feedforward_layernorm", "post_feedforward_layernorm"
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm", *around)
    yield from mlp_tensors(config, layer)


def _more(values: Values, config: Config) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    if values.found.get("sliding_window", WINDOW) is None:
        raise bad_value(values.name, "sliding_window", None)
    key = "sliding_window_pattern" if "sliding_window_pattern" in values.found else "_sliding_window_pattern"
    pattern = 6 if values.found.get("layer_types") is not None else values.count(key, 6)
    usual = [SLIDING if (layer + 1) % pattern else FULL for layer in range(layers)]
    caps = {key: values.number(key, None) for key in ("attn_logit_softcapping", "final_logit_softcapping")}
    window = values.count("sliding_window", WINDOW)
    return {"sliding_window": window, "layer_types": layer_kinds(values, layers, usual), **caps}


FAMILIES = (
    Family(
        name="gemma3_text",
        title="Gemma 3",
        torch=("gemma3", "Gemma3"),
        mlx_settings={"sliding_window_pattern": 1},
        counts={
            "vocab_size": 262208,
            "intermediate_size": 9216,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131072,
            "query_pre_attn_scalar": 256,
        },
        switches=("attention_bias",),
        more=_more,
        tensors=_tensors,
        embedding_scale=lambda config: float(config["hidden_size"] ** 0.5),
        activation=("hidden_activation", "gelu_pytorch_tanh"),
        tied=True,
        ropes={SLIDING: ("rope_local_base_freq", 10_000.0), FULL: ("rope_theta", 1_000_000.0)},
        written=True,
        gguf=GgufNames("gemma3", {**GGUF_USUAL, **GGUF_HEAD_NORMS, **_AROUND}, larger=True),
        wrappers=("gemma3",),
    ),
)
