"""Llama 4: chunks shorter than a prompt, a layer without rope whose queries grow, and experts in every other layer."""

from tests.support.case import Case

_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = (
    Case(
        "llama4",
        "llama4_text",
        {
            "head_dim": 20,
            "intermediate_size": 40,
            "intermediate_size_mlp": 72,
            "num_local_experts": 5,
            "interleave_moe_layer_step": 2,
            "no_rope_layers": [1, 1, 0, 1],
            "attention_chunk_size": 7,
            "floor_scale": 5,
            "attn_scale": 0.4,
            "attention_bias": True,
            "rms_norm_eps": 1e-3,  # so large that it shows where norms of queries and keys have another
            "rope_parameters": _ROPE,
        },
        wide={"intermediate_size": 128, "intermediate_size_mlp": 256, "head_dim": 32},
    ),
)
