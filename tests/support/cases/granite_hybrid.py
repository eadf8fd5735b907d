"""Granite 4: with experts, and without them; steps of several lengths, and groups of heads where MLX has some, too."""

from tests.support.case import Case

_HYBRID = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.6,
    "logits_scaling": 2.5,
    "tie_word_embeddings": True,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_d_state": 20,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
    "shared_intermediate_size": 56,
}
_WIDE = {"mamba_d_head": 64, "mamba_n_heads": 4, "shared_intermediate_size": 128, "intermediate_size": 128}

CASES = (
    Case(
        "granite4",
        "granitemoehybrid",
        {**_HYBRID, "num_local_experts": 0, "position_embedding_type": "rope", "attention_bias": True},
        rewinds=False,
        wide=_WIDE,
    ),
    Case(
        "granite4-experts",
        "granitemoehybrid",
        {**_HYBRID, "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 40, "mamba_proj_bias": True},
        rewinds=False,
        wide=_WIDE,
    ),
)
