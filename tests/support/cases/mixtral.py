"""Mixtral: with a window shorter than the prompt."""

from tests.support.case import Case

CASES = (
    Case(
        "mixtral",
        "mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 8, "rms_norm_eps": 1e-3},
    ),
)
