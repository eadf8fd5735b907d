"""GLM-4: rope turns a quarter of each head."""

from tests.support.case import Case

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}

CASES = (
    Case("glm4", "glm4", {"head_dim": 24}),
    Case("glm4-quarter", "glm4", {"head_dim": 16, "attention_bias": False, "rope_parameters": _ROPE}),
)
