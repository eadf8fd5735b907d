"""GLM-4, dense: four norms a layer, gate and up in one matrix, rope over neighbours in half of each head."""

from __future__ import annotations

from together.models.family import (
    GGUF_USUAL,
    INPUTS,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    norm_tensors,
    start_of,
)

_NORMS = ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")
_NAMES = {
    **GGUF_USUAL,
    "post_attention_norm": "post_self_attn_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
    "ffn_up": "mlp.gate_up_proj",
}


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    yield from attention_tensors(config, layer, INPUTS if config["attention_bias"] else ())
    yield from norm_tensors(config, layer, *_NORMS)
    yield f"{start_of(layer)}mlp.gate_up_proj.weight", (2 * inner, hidden)
    yield f"{start_of(layer)}mlp.down_proj.weight", (hidden, inner)


FAMILIES = (
    Family(
        name="glm4",
        title="GLM-4",
        torch=("glm4", "Glm4"),
        counts={
            "vocab_size": 151552,
            "intermediate_size": 13696,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "max_position_embeddings": 131072,
        },
        mlx_settings={"partial_rotary_factor": 0.5},  # asked for; each layer gets its rope from us
        on=("attention_bias",),
        tensors=_tensors,
        epsilon=1.5625e-7,
        rotary=0.5,
        rotaries=True,
        interleaved=True,
        gguf=GgufNames("glm4", _NAMES),
    ),
)
