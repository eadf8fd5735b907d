"""Granite, dense and with experts: every factor differs from 1."""

from tests.support.case import Case

_FACTORS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.5,
    "attention_bias": True,
    "tie_word_embeddings": True,
}

CASES = (
    Case("granite", "granite", _FACTORS),
    Case(
        "granitemoe",
        "granitemoe",
        {**_FACTORS, "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 40},
        wide={"intermediate_size": 128},
    ),
)
