"""What a stage needs in memory. Pure arithmetic over a model's sizes."""

from __future__ import annotations

from together.models.spec import ModelSpec
from together.types import Dtype, LayerRange

WORKSPACE_BYTES = 64 * 2**20  # a step's temporary tensors; a backend's own code is not counted against the model
BLOCK = 256  # KV tokens are allocated in blocks of this many, per sequence: growing copies, larger blocks waste


def cache_tokens(context: int, users: int) -> int:
    """KV tokens for `users` sequences of `context` tokens, in whole blocks."""
    return users * (-(-context // BLOCK) * BLOCK)


def stage_memory(spec: ModelSpec, layers: LayerRange, dtype: Dtype, context: int, users: int) -> int:
    """Bytes that a stage is granted: its weights, the KV cache of `users` full contexts, and workspace."""
    cache = cache_tokens(context, users) * spec.kv_bytes_per_token(layers, dtype)
    return spec.stage_bytes(layers, dtype) + cache + WORKSPACE_BYTES


def gigabytes(size: int) -> str:
    """Bytes for a person."""
    return f"{size / 1e9:.1f} GB"
