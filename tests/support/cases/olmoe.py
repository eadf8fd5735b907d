"""OLMoE with fewer heads of keys and scores that are normed."""

from tests.support.case import Case

_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": True, "attention_bias": True}

CASES = (Case("olmoe", "olmoe", _EXPERTS),)
