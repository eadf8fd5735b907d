"""Granite: every factor differs from 1."""

from tests.support.case import Case

CASES = (
    Case(
        "granite",
        "granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.5,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
)
