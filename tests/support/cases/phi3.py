"""Phi-3: rope turns half of each head, and a window is shorter than prompts."""

from tests.support.case import Case

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}

CASES = (Case("phi3", "phi3", {"sliding_window": 8, "rope_parameters": _ROPE}),)
