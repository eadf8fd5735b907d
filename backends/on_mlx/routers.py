"""Which experts a router with corrected scores chooses, by transformers' rules where mlx-lm has others."""

from __future__ import annotations

import mlx.core as mx


def group_expert_select(
    gates: mx.array,
    correction: mx.array,
    top_k: int,
    n_group: int,
    topk_group: int,
    scaling: float,
    norm: bool,
) -> tuple[mx.array, mx.array]:
    """In the place of mlx-lm's functions of this name: `[…, experts]` to the chosen ones and their shares.

    mlx-lm's give experts of groups that are left out a score of 0, which may be the best, and do not norm a single one.
    """
    scores = mx.sigmoid(gates.astype(mx.float32))
    ranked = scores + correction
    if topk_group < n_group:
        grouped = mx.unflatten(ranked, axis=-1, shape=(n_group, -1))
        best = mx.topk(grouped, 2, axis=-1).sum(axis=-1, keepdims=True)
        left = n_group - topk_group
        out = mx.argpartition(best, kth=left - 1, axis=-2)[..., :left, :]
        grouped = mx.put_along_axis(grouped, out, mx.array(-mx.inf), axis=-2)
        ranked = mx.flatten(grouped, -2, -1)
    chosen = mx.argpartition(-ranked, kth=top_k - 1, axis=-1)[..., :top_k]
    shares = mx.take_along_axis(scores, chosen, axis=-1)
    if norm:
        shares = shares / (shares.sum(axis=-1, keepdims=True) + 1e-20)
    return chosen, shares * scaling
