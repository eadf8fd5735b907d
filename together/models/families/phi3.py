"""Phi-3 and Phi-4: queries, keys and values are one matrix, gate and up another; some have a rope for long texts."""

from __future__ import annotations

from typing import Any

from together.models.family import GGUF_USUAL, Config, Family, GgufNames, Tensors, norm_tensors, odd_heads, start_of
from together.models.rope import FACTORS, LONG
from together.models.values import Values, bad_value


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield f"{start_of(layer)}self_attn.qkv_proj.weight", (queries + 2 * keys, hidden)
    yield f"{start_of(layer)}self_attn.o_proj.weight", (hidden, queries)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    yield f"{start_of(layer)}mlp.gate_up_proj.weight", (2 * inner, hidden)
    yield f"{start_of(layer)}mlp.down_proj.weight", (hidden, inner)


def _more(values: Values, config: Config) -> dict[str, Any]:
    """Raises BrokenModel."""
    rope = config["rope_parameters"]
    turned = int(config["head_dim"] * rope.get("partial_rotary_factor", 1.0))
    for key in FACTORS:
        if key in rope and len(rope[key]) != turned // 2:
            raise bad_value(values.name, key, rope[key])
    given = values.found.get("sliding_window")
    return {"sliding_window": None if given is None else values.count("sliding_window", None)}


FAMILIES = (
    Family(
        name="phi3",
        title="Phi-3 and Phi-4",
        torch=("phi3", "Phi3"),
        counts={
            "vocab_size": 32064,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": None,
            "head_dim": None,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
        },
        more=_more,
        tensors=_tensors,
        epsilon=1e-5,
        rotaries=True,
        ignored_by_mlx=odd_heads,
        rope_kinds=("default", LONG),
        gguf=GgufNames("phi3", {**GGUF_USUAL, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    ),
)
