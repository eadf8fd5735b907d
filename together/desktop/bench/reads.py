"""How fast this machine reads its memory, and how much of it one token has to read: what bounds the speed of decode."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import psutil

from together.models.matrices import PartWeights
from together.models.spec import ModelSpec
from together.types import Dtype, LayerRange

_WORDS = 2**26  # of 8 bytes: 512 MiB, which no cache holds
_TURNS = 5


def cores() -> int:
    """Processor cores, as torch and llama.cpp count their threads by themselves."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


class MemoryReader:
    """Reads 512 MiB over and over, a part on each core."""

    def __init__(self) -> None:
        words = np.ones(_WORDS, np.uint64)
        self._parts = np.array_split(words, cores())
        self._bytes = words.nbytes

    def bytes_per_s(self) -> float:
        """Of the fastest turn, as what others do only ever adds."""
        with ThreadPoolExecutor(len(self._parts), "read") as pool:  # numpy lets go of the GIL meanwhile
            return self._bytes / min(self._turn(pool) for _ in range(_TURNS))

    def _turn(self, pool: ThreadPoolExecutor) -> float:
        began = time.perf_counter()
        list(pool.map(partial(np.bitwise_or.reduce, axis=0), self._parts))
        return time.perf_counter() - began


def step_bytes(spec: ModelSpec, dtype: Dtype, context: int) -> int:
    """What one more token reads: all layers, norm and head, and keys and values of `context` tokens.

    Rows of an embedding that is not the head are looked up: next to nothing.
    """
    whole = LayerRange(0, spec.layers)
    head = spec.embed_weights if spec.tied else spec.head_weights
    weights = sum(spec.layer_weights, PartWeights()) + spec.norm_weights + head
    return weights.nbytes(dtype) + context * spec.kv_bytes_per_token(whole, dtype)
