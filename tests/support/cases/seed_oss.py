"""Seed-OSS: biases where it has them by default, and everywhere else."""

from tests.support.case import Case

CASES = (
    Case("seed_oss", "seed_oss", {"head_dim": 20}),
    Case("seed_oss-biased", "seed_oss", {"head_dim": 24, "attention_out_bias": True, "mlp_bias": True}),
)
