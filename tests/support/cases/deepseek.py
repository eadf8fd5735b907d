"""Latent attention whose values are narrower and wider than its keys, a dense start, and experts of groups."""

from tests.support.case import Case

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
SHAPE = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 40,
    "n_shared_experts": 2,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "attention_bias": True,
}
WIDE = {
    "q_lora_rank": 64,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "v_head_dim": 32,
    "moe_intermediate_size": 128,
}
CASES = (
    Case(
        "deepseek_v3",
        "deepseek_v3",
        {
            **SHAPE,
            "q_lora_rank": 20,
            "v_head_dim": 10,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 1.7,
            "first_k_dense_replace": 2,
            "rope_parameters": YARN,
        },
        cut=1,
        wide=WIDE,
    ),
    Case(
        "glm4_moe_lite",
        "glm4_moe_lite",
        {
            **SHAPE,
            "q_lora_rank": None,
            "v_head_dim": 28,
            "n_group": 2,
            "topk_group": 1,
            "routed_scaling_factor": 1.3,
            "norm_topk_prob": False,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        },
        cut=1,
        wide=WIDE,
    ),
)
