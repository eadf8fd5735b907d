"""Seed-OSS: Llama whose attention has biases, but for its output."""

from __future__ import annotations

from together.models.family import (
    GGUF_AFTER,
    GGUF_USUAL,
    INPUTS,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    mlp_tensors,
    norm_tensors,
)


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    inputs = INPUTS if config["attention_bias"] else ()
    yield from attention_tensors(config, layer, (*inputs, *(("o_proj",) if config["attention_out_bias"] else ())))
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    yield from mlp_tensors(config, layer)


FAMILIES = (
    Family(
        name="seed_oss",
        title="Seed-OSS",
        torch=("seed_oss", "SeedOss"),
        counts={
            "vocab_size": 155136,
            "intermediate_size": 27648,
            "num_attention_heads": 80,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 524288,
        },
        switches=("attention_out_bias", "mlp_bias"),
        on=("attention_bias",),
        tensors=_tensors,
        gguf=GgufNames("seed_oss", {**GGUF_USUAL, **GGUF_AFTER}),
    ),
)
