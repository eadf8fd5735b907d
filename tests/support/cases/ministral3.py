"""Ministral 3, whose queries grow within a short prompt: with a rope that bends early, and with windows."""

from tests.support.case import Case

_EARLY = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 6,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
    "llama_4_scaling_beta": 0.4,
}
_FAST = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 5,
    "beta_fast": 2.0,
    "beta_slow": 0.5,
    "mscale": 1.0,
    "mscale_all_dim": 0.0,
    "llama_4_scaling_beta": 0.7,
}

CASES = (
    Case("ministral3", "ministral3", {"head_dim": 20, "rope_parameters": _EARLY, "tie_word_embeddings": False}),
    Case(
        "ministral3-window",
        "ministral3",
        {"head_dim": 32, "rope_parameters": _FAST, "sliding_window": 8, "tie_word_embeddings": True},
    ),
)
