"""Llama 2 and 3, and the many models that call themselves so."""

from __future__ import annotations

from together.models.family import Family, GgufNames

FAMILIES = (
    Family(
        name="llama",
        title="Llama",
        torch=("llama", "Llama"),
        counts={
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "num_attention_heads": 32,
            "num_key_value_heads": None,
            "head_dim": None,
            "max_position_embeddings": 2048,
        },
        switches=("attention_bias", "mlp_bias"),
        written=True,
        gguf=GgufNames("llama", interleaved=True),  # Mistral's files say llama, too
    ),
)
