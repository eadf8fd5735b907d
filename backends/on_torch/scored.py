"""What Llama 4's classes do by a model's beginning or for all experts, for packed rows and the chosen ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backends.ledger import positions
from backends.on_torch.attention import GROWTH
from backends.on_torch.linear import run_experts
from together.types import Row


class ScoredExperts(nn.Module):
    """In the place of transformers' class, which gives every token to every expert; with its weights."""

    has_gate = is_concatenated = is_transposed = True
    has_bias = False
    few = 0  # rows that a loop multiplies, as `use_loops` says

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj, self.act_fn = plain.gate_up_proj, plain.down_proj, plain.act_fn

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return run_experts(self, hidden, chosen, weights)

    def _apply_gate(self, both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        found: Tensor = up * self.act_fn(gate)
        return found


class ScoredMixture(nn.Module):
    """In the place of transformers' class: scores weigh what the chosen experts are given, not what they find."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.top_k, self.router, self.shared_expert = plain.top_k, plain.router, plain.shared_expert
        self.experts = ScoredExperts(plain.experts)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """`[1, tokens, width]` to `[tokens, width]`, and the router's logits."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        logits = nn.functional.linear(rows, self.router.weight)
        best, chosen = logits.topk(self.top_k, dim=1)
        scores = torch.sigmoid(best.float()).to(rows.dtype)
        given = (rows[:, None] * scores[..., None]).flatten(0, 1)  # [tokens · top_k, width]
        found = self.experts(given, chosen.reshape(-1, 1), torch.ones_like(scores).reshape(-1, 1))
        return self.shared_expert(rows) + found.view(*scores.shape, -1).sum(dim=1), logits


class QueryGrowth:
    """Of layers without rope: transformers' class counts positions from the first token that it is given."""

    def __init__(self, attention: Any) -> None:
        self._floor, self._scale = attention.floor_scale, attention.attn_scale

    def __call__(self, query: Tensor, rows: Sequence[Row]) -> Tensor:
        """`[1, heads, tokens, head_dim]`."""
        places = torch.tensor(positions(rows), dtype=torch.float32, device=query.device)
        grown = torch.log1p(torch.floor((places + 1.0) / self._floor)) * self._scale + 1.0
        found: Tensor = query * grown[:, None]
        return found.to(query.dtype)


def use_scores(model: Any) -> None:
    """Give each layer of Llama 4 what packed rows need."""
    for layer in model.model.layers:
        if layer.is_moe_layer:
            layer.feed_forward = ScoredMixture(layer.feed_forward)
        attention = layer.self_attn
        if attention.attn_temperature_tuning and not attention.use_rope:
            attention.attn_temperature_tuning = False
            setattr(attention, GROWTH, QueryGrowth(attention))
