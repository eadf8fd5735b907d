"""Qwen3.5 and Qwen3-Next: both kinds of layers on both sides of the cut, more heads of values than of keys.

Experts are fused in Qwen3.5's files and one by one in Qwen3-Next's, which has a dense layer too.
"""

from tests.support.case import Case

_HYBRID = {
    "head_dim": 32,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
}
_EXPERTS = {
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 56,
    "num_experts": 5,
    "num_experts_per_tok": 2,
}
_WIDE = {"moe_intermediate_size": 128, "shared_expert_intermediate_size": 192}

CASES = (
    Case("qwen3_5", "qwen3_5_text", _HYBRID, rewinds=False),
    Case("qwen3_5_moe", "qwen3_5_moe_text", {**_HYBRID, **_EXPERTS}, rewinds=False, wide=_WIDE),
    Case("qwen3_next", "qwen3_next", {**_HYBRID, **_EXPERTS, "mlp_only_layers": [1]}, rewinds=False, wide=_WIDE),
)
