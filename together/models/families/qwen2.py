"""Qwen2 and Qwen2.5: queries, keys and values have biases."""

from __future__ import annotations

from functools import partial

from together.models.family import (
    INPUTS,
    Config,
    Family,
    GgufNames,
    Tensors,
    attention_tensors,
    mlp_tensors,
    norm_tensors,
    odd_heads,
    qwen_windows,
)


def _tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    yield from attention_tensors(config, layer, biased=INPUTS)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    yield from mlp_tensors(config, layer)


FAMILIES = (
    Family(
        name="qwen2",
        title="Qwen2",
        torch=("qwen2", "Qwen2"),
        counts={
            "vocab_size": 151936,
            "intermediate_size": 22016,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": None,
            "max_position_embeddings": 32768,
        },
        more=partial(qwen_windows, typed=True),
        tensors=_tensors,
        written=True,
        ignored_by_mlx=odd_heads,
        gguf=GgufNames("qwen2"),
    ),
)
