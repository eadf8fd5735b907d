"""Phi-3: rope turns half of each head, and a window is shorter than prompts; and with a rope for long texts."""

from tests.support.case import Case

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 3.0, 6.0, 9.0, 20.0],
}

CASES = (
    Case("phi3", "phi3", {"sliding_window": 8, "rope_parameters": _ROPE}),
    Case(
        "phi3-long",
        "phi3",
        {"hidden_size": 64, "rope_parameters": _LONG, "original_max_position_embeddings": 64},
        wide={"num_attention_heads": 8},
    ),
)
