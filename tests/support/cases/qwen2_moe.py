"""Qwen2-MoE: a shared expert of its own width, and windows on both sides of the cut."""

from tests.support.case import Case

_SHAPE = {
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 56,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 3,
}

CASES = (
    Case(
        "qwen2_moe",
        "qwen2_moe",
        _SHAPE,
        wide={"moe_intermediate_size": 128, "shared_expert_intermediate_size": 192},
    ),
)
