"""MiniMax M2: corrected scores, and rope over half of each head."""

from tests.support.case import Case

_ROPE = {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5}
_EXPERTS = {"num_local_experts": 6, "num_experts_per_tok": 2}

CASES = (
    Case("minimax_m2", "minimax_m2", {**_EXPERTS, "head_dim": 24, "rope_parameters": _ROPE}, wide={"head_dim": 32}),
)
