"""GLM-4.5: one dense layer, two shared experts, corrections and groups of the router, norms of heads."""

from tests.support.case import Case

_EXPERTS = {
    "moe_intermediate_size": 40,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_group": 3,
    "topk_group": 2,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.7,
    "first_k_dense_replace": 2,
}

CASES = (
    Case(
        "glm4_moe",
        "glm4_moe",
        {**_EXPERTS, "head_dim": 24, "use_qk_norm": True, "attention_bias": True},
        cut=1,
        wide={"head_dim": 32, "moe_intermediate_size": 128},
    ),
)
