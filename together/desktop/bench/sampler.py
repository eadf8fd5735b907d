"""`bench sampler`: what drawing the next tokens costs, on one core. Knows no model: the logits are random."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np

from together.sampling import Draw, sample
from together.types import Sampling

VOCABULARY = 128256
ROWS = 8
KNOWN = 2000  # tokens of each sequence, half of them prompt
SPREAD = 3.0  # standard deviation of the logits

SETTINGS = {
    "greedy": Sampling(temperature=0.0),
    "top-k, top-p, penalties": Sampling(0.8, 50, 0.9, 0.0, 1.1, 0.5, 0.5),
    "top-k": Sampling(0.8, top_k=50),
    "top-p": Sampling(0.8, top_p=0.9),
    "min-p": Sampling(0.8, min_p=0.05),
    "temperature": Sampling(0.8),
}


@dataclass(frozen=True, slots=True)
class SamplerLine:
    """One line of the table: milliseconds for all rows, the median and the slowest of the repeats."""

    settings: str
    rows: int
    vocabulary: int
    ms: float
    slowest_ms: float


def bench_sampler(repeats: int) -> list[SamplerLine]:
    """Every kind of settings over the same logits."""
    random = np.random.default_rng(0)
    logits = (random.normal(size=(ROWS, VOCABULARY)) * SPREAD).astype(np.float32)
    tokens = random.integers(0, VOCABULARY, KNOWN).tolist()
    lines = []
    for name, settings in SETTINGS.items():
        times = []
        for turn in range(repeats + 1):
            draws = [Draw(settings, KNOWN + turn, tokens, KNOWN // 2) for _ in range(ROWS)]
            began = time.perf_counter()
            sample(logits, draws)
            times.append((time.perf_counter() - began) * 1e3)
        lines.append(SamplerLine(name, ROWS, VOCABULARY, median(times[1:]), max(times[1:])))
    return lines
