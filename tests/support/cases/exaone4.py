"""EXAONE 4 with windows on both sides, and without."""

from tests.support.case import Case

_KINDS = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]

CASES = (
    Case("exaone4", "exaone4", {"sliding_window": 8, "sliding_window_pattern": "LGGL", "layer_types": _KINDS}),
    Case("exaone4-full", "exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
)
