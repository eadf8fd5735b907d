"""gpt-oss: windows in two of four layers, sinks, biases, and a rope that bends early."""

from tests.support.case import Case

_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 150_000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 1024,
}

CASES = (
    Case(
        "gpt_oss",
        "gpt_oss",
        {
            "head_dim": 32,  # compiled loops take it
            "sliding_window": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 40,
            "rope_parameters": _ROPE,
        },
        cut=1,
        wide={"intermediate_size": 128},
    ),
)
