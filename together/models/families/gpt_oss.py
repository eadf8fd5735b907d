"""gpt-oss: sinks in attention, windows in every other layer, and experts with biases and a clamped gate."""

from __future__ import annotations

from typing import Any

from together.models.family import (
    FULL,
    GGUF_COUNTS,
    GGUF_EXPERTS,
    GGUF_USUAL,
    SLIDING,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    experts_of,
    layer_kinds,
    norm_tensors,
    start_of,
)
from together.models.values import Values, bad_value

_WINDOW, _THETA = 128, 150_000.0
_ALPHA, _LIMIT = 1.702, 7.0
_ROPE = {  # what transformers assumes where config.json is silent
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    start, hidden, inner = start_of(layer), config["hidden_size"], config["intermediate_size"]
    experts = config["num_local_experts"]
    yield from attention_tensors(config, layer)
    yield f"{start}self_attn.sinks", (config["num_attention_heads"],)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    yield f"{start}mlp.router.weight", (experts, hidden)
    yield f"{start}mlp.router.bias", (experts,)
    if stacked:
        shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        for name, shape in shapes.items():
            yield f"{start}mlp.switch_mlp.{name}.weight", (experts, *shape)
            yield f"{start}mlp.switch_mlp.{name}.bias", (experts, shape[0])
        return
    for name, shape in {"gate_up_proj": (hidden, 2 * inner), "down_proj": (inner, hidden)}.items():
        yield f"{start}mlp.experts.{name}", (experts, *shape)
        yield f"{start}mlp.experts.{name}_bias", (experts, shape[1])


def _more(values: Values, config: Config) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    if values.found.get("sliding_window", _WINDOW) is None:
        raise bad_value(values.name, "sliding_window", None)
    usual = [FULL if layer % 2 else SLIDING for layer in range(layers)]
    experts = experts_of(values, config, ("num_local_experts", "num_experts"), 128)
    found = {
        "num_local_experts": experts,
        "sliding_window": values.count("sliding_window", _WINDOW),
        "layer_types": layer_kinds(values, layers, usual),
        "attention_bias": values.switch("attention_bias", True),
        "swiglu_alpha": values.number("swiglu_alpha", _ALPHA),
        "swiglu_limit": values.number("swiglu_limit", _LIMIT),
    }
    if values.found.get("rope_parameters") is None and values.found.get("rope_scaling") is None:
        found["rope_parameters"] = {**_ROPE, "rope_theta": config["rope_parameters"]["rope_theta"]}
    return found


FAMILIES = (
    Family(
        name="gpt_oss",
        title="gpt-oss",
        torch=("gpt_oss", "GptOss"),
        counts={
            "vocab_size": 201088,
            "intermediate_size": 2880,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 131072,
            "num_experts_per_tok": 4,
        },
        more=_more,
        tensors=_tensors,
        activations=("silu", "swish"),
        epsilon=1e-5,
        theta=_THETA,
        mlx_settings={"layer_types": [SLIDING, FULL]},  # it looks for one of each, whatever a range has
        mlx_fixed={"attention_bias": True, "swiglu_alpha": _ALPHA, "swiglu_limit": _LIMIT},
        experts="num_local_experts",
        mlx_experts="experts",
        gguf=GgufNames(
            "gpt-oss",
            {
                **GGUF_USUAL,
                **GGUF_EXPERTS,
                "post_attention_norm": "post_attention_layernorm",
                "ffn_gate_inp": "mlp.router",
                "attn_out": "self_attn.o_proj",  # so Ollama's own files have it
            },
            also=("gptoss",),  # and so they call it
            whole={"attn_sinks.weight": "self_attn.sinks", "attn_sinks": "self_attn.sinks"},
            computed=GGUF_COUNTS,
        ),
    ),
)
