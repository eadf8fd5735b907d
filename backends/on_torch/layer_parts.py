"""What a decoder layer of transformers is made of, where a program can do it. Knows no family by its name."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import unwrap
from types import FunctionType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from backends.on_torch.blocks import Blocks
from backends.on_torch.compiled import lanes
from backends.on_torch.few import MOST_ROWS, drafts
from backends.on_torch.gelu import Gated, GeluProjections
from backends.on_torch.half import HalfLinear
from backends.on_torch.norms import RootNorm
from backends.on_torch.quantized import QuantizedLinear
from backends.on_torch.rotary import Rotation

_BLOCKS = {"self_attn", "mlp"}
_QKV, _FUSED_QKV = ("q_proj", "k_proj", "v_proj"), "qkv_proj"
_GATED, _FUSED_GATED = ("gate_proj", "up_proj"), "gate_up_proj"
_HEAD_NORMS = "q_norm", "k_norm"
_ACTS = "act_fn", "activation_fn"
# All that the code of a known block may name. A trial cannot show what only some states or positions meet (a clamp, a
# factor from some length on): code that names anything else is not known.
_OF_LAYERS = {
    *_BLOCKS,
    *("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    *("resid_attn_dropout", "resid_mlp_dropout"),
}
_OF_DROPOUT = {"dropout", "functional", "nn", "residual_dropout", "training"}
_OF_ATTENTION = {
    *(*_QKV, _FUSED_QKV, *_HEAD_NORMS, "o_proj", "sinks", "apply_rotary_pos_emb", "use_rope"),
    *("is_sliding", "sliding_window", "layer_idx", "head_dim", "scaling", "num_attention_heads", "num_key_value_heads"),
    *("ALL_ATTENTION_FUNCTIONS", "get_interface", "eager_attention_forward", "_attn_implementation", "config"),
    *("shape", "view", "reshape", "transpose", "contiguous", "update", "getattr", "attention_dropout"),
    *_OF_DROPOUT,
}
_OF_MLP = {*_GATED, _FUSED_GATED, "down_proj", *_ACTS, "chunk", *_OF_DROPOUT}


@dataclass(frozen=True, slots=True)
class BlockNorms:
    """Of a block: what it is given, and what is added of it. None: as it is."""

    before: RootNorm | None
    behind: RootNorm | None


@dataclass(frozen=True, slots=True)
class AttentionParts:
    qkv: tuple[Any, ...]  # three layers, or one that has all their outputs
    head_norms: tuple[RootNorm, RootNorm] | None  # of each head, or of all together
    rotation: Rotation | None  # None: positions are not looked at
    out: Any
    sinks: Tensor | None
    heads: int
    kv_heads: int
    width: int  # of a head
    scaling: float
    angles: str  # which of a model's rotary angles it takes

    @classmethod
    def of(cls, attention: Any, config: Any, place: int) -> Self | None:
        inside = _children(attention)
        qkv = tuple(inside.pop(name) for name in (_FUSED_QKV, *_QKV) if name in inside)
        out = inside.pop("o_proj", None)
        norms = tuple(inside.pop(name) for name in _HEAD_NORMS if name in inside)
        width, heads, kv_heads = (
            getattr(attention, "head_dim", 0),
            config.num_attention_heads,
            config.num_key_value_heads,
        )
        rotation, turned = getattr(attention, "rotation", None), _turns(attention)
        sizes = (width, heads * width), (width, kv_heads * width)
        if (
            not _names(attention) <= _OF_ATTENTION
            or inside
            or out is None
            or len(qkv) not in (1, 3)
            or len(norms) not in (0, 2)
            or not width
            or width % lanes()
        ):
            return None
        if not all(map(multiplies, (*qkv, out))) or (turned and rotation is None):
            return None
        if norms and not all(_is_norm(norm, *allowed) for norm, allowed in zip(norms, sizes, strict=True)):
            return None
        kinds, sinks = getattr(config, "layer_types", None) or [], getattr(attention, "sinks", None)
        return cls(
            qkv=qkv,
            head_norms=norms or None,  # type: ignore[arg-type]
            rotation=rotation if turned else None,
            out=out,
            sinks=None if sinks is None else sinks.detach().float().contiguous(),
            heads=heads,
            kv_heads=kv_heads,
            width=width,
            scaling=attention.scaling,
            angles=kinds[place] if place < len(kinds) else "",
        )


@dataclass(frozen=True, slots=True)
class GatedParts:
    """An MLP: down of act(gate) · up."""

    gate_up: tuple[Any, ...]  # two layers, or one that has both outputs
    gated_by: Gated
    down: Any

    @classmethod
    def of(cls, mlp: Any) -> Self | None:
        inside = _children(mlp)
        act = next((inside.pop(name) for name in _ACTS if name in inside), None)
        gate_up = tuple(inside.pop(name) for name in (_FUSED_GATED, *_GATED) if name in inside)
        down, gated_by = inside.pop("down_proj", None), _gated_by(act)
        known = isinstance(mlp, GeluProjections) or _names(mlp) <= _OF_MLP
        if not known or inside or gated_by is None or down is None or len(gate_up) not in (1, 2):
            return None
        return cls(gate_up, gated_by, down) if all(map(multiplies, (*gate_up, down))) else None


@dataclass(frozen=True, slots=True)
class LayerParts:
    """Attention, and an MLP that is known or a module; each is added to what came in."""

    attention: AttentionParts
    attention_norms: BlockNorms
    mlp: GatedParts | nn.Module
    mlp_norms: BlockNorms

    @classmethod
    def of(cls, layer: Any, config: Any, place: int) -> Self | None:
        """None for a layer that has something else in it. That it computes nothing else is for a trial to show."""
        inside = _children(layer)
        if not inside.keys() >= _BLOCKS or not _names(layer) <= _OF_LAYERS:
            return None
        norms = {name: module for name, module in inside.items() if name not in _BLOCKS}
        names: tuple[tuple[str | None, str | None], ...]
        match sorted(norms):
            case ["input_layernorm", "post_attention_layernorm"]:
                names = ("input_layernorm", None), ("post_attention_layernorm", None)
            case ["post_attention_layernorm", "post_feedforward_layernorm"]:
                names = (None, "post_attention_layernorm"), (None, "post_feedforward_layernorm")
            case [_, _, "post_feedforward_layernorm", "pre_feedforward_layernorm"]:
                before, behind = "pre_feedforward_layernorm", "post_feedforward_layernorm"
                names = ("input_layernorm", "post_attention_layernorm"), (before, behind)
            case _:
                return None
        if not all(_is_norm(norm, config.hidden_size) for norm in norms.values()):
            return None
        attention = AttentionParts.of(inside["self_attn"], config, place)
        if attention is None:
            return None
        first, second = (BlockNorms(*(norms.get(name) for name in each)) for each in names)  # type: ignore[arg-type]
        return cls(attention, first, GatedParts.of(inside["mlp"]) or inside["mlp"], second)

    def most_rows(self) -> int:
        """Of a step that a program does."""
        mlp = self.mlp
        known = (*mlp.gate_up, mlp.down) if isinstance(mlp, GatedParts) else ()
        return min(map(most_rows_of, (*self.attention.qkv, self.attention.out, *known)))


def multiplies(linear: nn.Module) -> bool:
    """Whether a program can do this product of few rows."""
    if type(linear) in (nn.Linear, HalfLinear):
        return most_rows_of(linear) > 0 and drafts(linear.weight)  # type: ignore[arg-type]
    if not isinstance(linear, QuantizedLinear) or linear.columns is None:
        return False
    parts = linear.columns.whole.parts
    forms = {part.form if isinstance(part, Blocks) else None for part in parts}
    return len(forms) == 1 and None not in forms and linear.columns.start % lanes() == 0


def most_rows_of(linear: nn.Module) -> int:
    """Of a product; 0 where rows are multiplied faster in another way."""
    if isinstance(linear, HalfLinear):
        return min(MOST_ROWS, linear.few)
    fp32 = not isinstance(linear, nn.Linear) or linear.weight.dtype == torch.float32
    return MOST_ROWS if fp32 else 0


def _names(module: nn.Module) -> set[str]:
    """What the code of its `forward` names."""
    forward = unwrap(type(module).forward)
    return set(forward.__code__.co_names) if isinstance(forward, FunctionType) else {""}


def _turns(attention: Any) -> bool:
    """Whether it looks at positions: some layers say so, and some do if and only if they slide."""
    if "is_sliding" in _names(attention) and attention.sliding_window is not None:
        return bool(attention.is_sliding)
    return bool(getattr(attention, "use_rope", True))


def _children(module: nn.Module) -> dict[str, nn.Module]:
    """But for what does nothing where nobody trains."""
    return {name: child for name, child in module.named_children() if not isinstance(child, nn.Dropout)}


def _is_norm(module: nn.Module, *widths: int) -> bool:
    return isinstance(module, RootNorm) and module.width in widths


@torch.inference_mode()
def _gated_by(act: Any) -> Gated | None:
    if act is None:
        return None
    sample = torch.linspace(-4.0, 4.0, 64)
    found = act(sample)
    if torch.equal(found, silu(sample)):
        return "silu"
    return "gelu" if torch.equal(found, gelu(sample, approximate="tanh")) else None
