"""What a decoder layer of transformers is made of, where a program can do all of it. Knows no family by its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn.functional import gelu, silu

from backends.on_torch.blocks import Blocks
from backends.on_torch.compiled import lanes
from backends.on_torch.few import MOST_ROWS, drafts
from backends.on_torch.gelu import Gated
from backends.on_torch.half import HalfLinear
from backends.on_torch.norms import RootNorm
from backends.on_torch.quantized import QuantizedLinear
from backends.on_torch.rotary import Rotation

_BEFORE = {"input_layernorm", "post_attention_layernorm"}  # norms of what attention and the MLP are given
_BEHIND = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}  # of Gemma, which also has one behind each
_QKV, _HEAD_NORMS = ("q_proj", "k_proj", "v_proj"), ("q_norm", "k_norm")
_GATED = "gate_proj", "up_proj"


@dataclass(frozen=True, slots=True)
class LayerParts:
    """Two blocks, attention and MLP: a norm, the block, maybe another norm, and the sum with what came in."""

    attention_norm: RootNorm
    qkv: tuple[Any, Any, Any]
    head_norms: tuple[RootNorm, RootNorm] | None
    rotation: Rotation | None  # None: positions are not looked at
    out: Any
    behind_attention: RootNorm | None
    mlp_norm: RootNorm
    gate_up: tuple[Any, Any]
    gated_by: Gated
    down: Any
    behind_mlp: RootNorm | None
    heads: int
    kv_heads: int
    width: int  # of a head
    scaling: float
    angles: str  # which of a model's rotary angles it takes

    @classmethod
    def of(cls, layer: Any, config: Any, place: int) -> Self | None:
        """None for a layer that has something else in it. That it computes nothing else is for a trial to show."""
        names = {name for name, _ in layer.named_children()}
        if names not in ({"self_attn", "mlp"} | _BEFORE, {"self_attn", "mlp"} | _BEFORE | _BEHIND):
            return None
        attention, mlp, wrapped = layer.self_attn, layer.mlp, "pre_feedforward_layernorm" in names
        turned, gated_by = getattr(attention, "use_rope", True), _gated_by(mlp)
        rotation = getattr(attention, "rotation", None)
        inside = {name for name, _ in attention.named_children()}
        normed = inside.issuperset(_HEAD_NORMS)
        known = inside - set(_HEAD_NORMS) if normed else inside
        if known != {*_QKV, "o_proj"} or gated_by is None or (turned and rotation is None):
            return None
        norms = [getattr(layer, name) for name in (*sorted(_BEFORE), *(sorted(_BEHIND) if wrapped else ()))]
        head_norms = [getattr(attention, name) for name in _HEAD_NORMS] if normed else []
        linears = [*(getattr(attention, name) for name in (*_QKV, "o_proj"))]
        linears += [getattr(mlp, name) for name in (*_GATED, "down_proj")]
        if not all(isinstance(norm, RootNorm) for norm in (*norms, *head_norms)) or not all(map(multiplies, linears)):
            return None
        width = attention.head_dim
        if any(norm.width != width for norm in head_norms) or width % lanes():
            return None
        kinds = getattr(config, "layer_types", None) or []
        return cls(
            attention_norm=layer.input_layernorm,
            qkv=tuple(linears[:3]),
            head_norms=tuple(head_norms) if normed else None,
            rotation=rotation if turned else None,
            out=linears[3],
            behind_attention=layer.post_attention_layernorm if wrapped else None,
            mlp_norm=layer.pre_feedforward_layernorm if wrapped else layer.post_attention_layernorm,
            gate_up=tuple(linears[4:6]),
            gated_by=gated_by,
            down=linears[6],
            behind_mlp=layer.post_feedforward_layernorm if wrapped else None,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            width=width,
            scaling=attention.scaling,
            angles=kinds[place] if place < len(kinds) else "",
        )

    def most_rows(self) -> int:
        """Of a step that a program does."""
        return min(map(most_rows_of, (*self.qkv, self.out, *self.gate_up, self.down)))


def most_rows_of(linear: nn.Module) -> int:
    """Of a product; 0 where rows are multiplied faster in another way."""
    if isinstance(linear, HalfLinear):
        return min(MOST_ROWS, linear.few)
    fp32 = not isinstance(linear, nn.Linear) or linear.weight.dtype == torch.float32
    return MOST_ROWS if fp32 else 0


def multiplies(linear: nn.Module) -> bool:
    """Whether a program can do this product of few rows."""
    if type(linear) in (nn.Linear, HalfLinear):
        return most_rows_of(linear) > 0 and drafts(linear.weight)  # type: ignore[arg-type]
    if not isinstance(linear, QuantizedLinear) or linear.columns is None:
        return False
    parts = linear.columns.whole.parts
    forms = {part.form if isinstance(part, Blocks) else None for part in parts}
    return len(forms) == 1 and None not in forms and linear.columns.start % lanes() == 0


@torch.inference_mode()
def _gated_by(mlp: Any) -> Gated | None:
    if {name for name, _ in mlp.named_children()} - {"act_fn"} != {*_GATED, "down_proj"}:
        return None
    sample = torch.linspace(-4.0, 4.0, 64)
    try:
        found = mlp.act_fn(sample)
    except (AttributeError, TypeError):
        return None
    if torch.equal(found, silu(sample)):
        return "silu"
    return "gelu" if torch.equal(found, gelu(sample, approximate="tanh")) else None
