"""Memory of caches."""

from __future__ import annotations

import mlx.core as mx


def moved(array: mx.array, begin: int, end: int, room: int) -> mx.array:
    """New memory for `room` tokens of `[1, heads, tokens, width]`, with those from `begin` to `end` in front."""
    _, heads, _, dim = array.shape
    fresh = mx.zeros((1, heads, room, dim), array.dtype)
    if end > begin:
        fresh[:, :, : end - begin] = array[:, :, begin:end]
    return fresh
