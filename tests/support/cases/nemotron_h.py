"""Nemotron-H: a layer that is an MLP alone, one that attends, and experts that work in a latent space."""

from tests.support.case import Case

_MAMBA = {
    "mamba_num_heads": 6,
    "mamba_head_dim": 16,
    "ssm_state_size": 20,
    "n_groups": 2,
    "chunk_size": 8,
    "head_dim": 24,
    "time_step_min": 0.4,
    "mlp_bias": True,
}
_EXPERTS = {
    "n_routed_experts": 6,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "moe_shared_expert_intermediate_size": 56,
    "routed_scaling_factor": 2.5,
}
_WIDE = {"mamba_head_dim": 64, "mamba_num_heads": 4, "head_dim": 32}
_WIDE_EXPERTS = {"moe_intermediate_size": 128, "moe_shared_expert_intermediate_size": 192}

CASES = (
    Case(
        "nemotron_h",
        "nemotron_h",
        {**_MAMBA, "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"]},
        rewinds=False,
        wide=_WIDE,
    ),
    Case(
        "nemotron_h-experts",
        "nemotron_h",
        {**_MAMBA, **_EXPERTS, "layers_block_type": ["moe", "linear_attention", "full_attention", "moe"]},
        rewinds=False,
        wide={**_WIDE, **_WIDE_EXPERTS},
    ),
    Case(
        "nemotron_h-latent",
        "nemotron_h",
        {
            **_MAMBA,
            **_EXPERTS,
            "moe_latent_size": 32,
            "use_bias": True,
            "layers_block_type": ["linear_attention", "moe", "mlp", "full_attention"],
        },
        rewinds=False,
        wide={**_WIDE, **_WIDE_EXPERTS, "moe_latent_size": 64},
    ),
)
