"""What a model weighs and how it is built, for any checkpoint, also of a family that does not run here.

From config.json and safetensors headers alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.models.config import TOY, text_config
from together.models.families import BY_NAME
from together.models.family import MAX_LAYERS
from together.models.headers import TensorInfo
from together.models.layout import layer_params
from together.models.matrices import PLAIN, Matrices
from together.models.names import is_computed, is_tower_part
from together.models.quantization import quantization_of
from together.models.spec import ModelSpec, shape_of
from together.models.values import MOST_SHOWN
from together.types import DTYPE_BYTES
from together.wording import cut

_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d{1,6})\.")
_OTHER = re.compile(
    r"(?:^|[._])(?:vision|visual|audio|encoder|mtp)"
)  # towers next to the decoder count their own layers
_ENDS = {
    "embed": re.compile(r"(?:^|\.)(?:embed_tokens|wte|tok_embeddings|embed_in|word_embeddings)\."),
    "opening": re.compile(r"(?:^|\.)(?:embed_tokens_per_layer|per_layer_model_projection|per_layer_projection_norm)\."),
    "norm": re.compile(r"(?:^|\.)(?:norm|ln_f|final_layer_?norm)\."),
    "head": re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\."),
}
_EXPERTS = (".experts.", ".switch_mlp.")
_QUANTIZED_EXTRAS = re.compile(r"(?:scales?|biases|qzeros|zeros|g_idx|scale_inv|absmax|quant_map)$")
_NONE = Matrices({})
_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "vocab_size": ("vocab_size",),
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "context": ("max_position_embeddings", "n_positions", "max_sequence_length"),
    "inner_size": ("intermediate_size", "moe_intermediate_size", "n_inner"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "experts_per_token": ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k"),
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes and parameters of one part of a model. `active` is what one token uses: of experts, the chosen ones."""

    bytes: int = 0
    active_bytes: int = 0
    params: int = 0
    active_params: int = 0

    def __add__(self, more: Sizes) -> Sizes:
        return Sizes(*(getattr(self, key) + getattr(more, key) for key in self.__slots__))


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that files say of a model; None is unknown. Bytes are as stored. `layers` has an entry per layer."""

    layers: tuple[Sizes, ...]
    embed: Sizes
    norm: Sizes
    head: Sizes  # empty where tied
    other: Sizes  # what no decoder layer has: vision towers, draft layers
    family: str
    hidden_size: int | None
    inner_size: int | None
    vocab_size: int | None
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    context: int | None
    dtype: str  # of most elements: fp32, bf16, fp16, or as safetensors writes it
    tied: bool
    quantization: str | None
    experts: int | None
    experts_per_token: int | None
    kv_bytes_per_token_per_layer: int | None
    scaled: bool = False  # matrices in 8-bit floats, which are held in 16 bits
    joined: tuple[int, ...] = ()  # as in ModelSpec
    state_width: int | None = None  # as in ModelSpec
    opening: Sizes = Sizes()  # what only a first stage has, beside the embedding

    @property
    def parts(self) -> tuple[Sizes, ...]:
        return (self.embed, self.opening, *self.layers, self.norm, self.head, self.other)


def summarize(
    config: dict[str, Any],
    tensors: Iterable[TensorInfo],
    spec: ModelSpec | None,
    matrices: Matrices = _NONE,
) -> Summary:
    """Add up a model. `spec` and `matrices`, where the family runs here, know better what a config leaves out."""
    kept = [tensor for tensor in tensors if not is_computed(tensor.name)]
    numbers = _numbers(config)
    if spec is not None:
        numbers |= {key: getattr(spec, key) for key in ("layers", "kv_heads", "head_dim", "context", "inner_size")}
    quantization = _quantization(config, spec, kept)
    sees = spec is not None and spec.eyes is not None
    tower = [tensor for tensor in kept if sees and is_tower_part(tensor.name)]
    others = [tensor for tensor in kept if not (sees and is_tower_part(tensor.name))]
    parts = _parts(others, numbers, _elements(matrices), _bits(config) if quantization else None)
    eyes = sum(_parts(tower, numbers, {}, None).values(), Sizes())
    for layer in [key for key in parts if spec is not None and isinstance(key, int) and key >= spec.layers]:
        parts["other"] = parts.get("other", Sizes()) + parts.pop(layer)  # draft layers that no text runs through
    head = parts.get("head", Sizes())
    last = max((key for key in parts if isinstance(key, int)), default=-1)
    layers = max(last + 1, numbers["layers"] or 0)
    if layers > MAX_LAYERS:
        raise BrokenModel(
            "its files count {layers} layers, and no model has more than {most}; get it again",
            layers=layers,
            most=MAX_LAYERS,
        )
    dtype = _dtype(kept)
    return Summary(
        layers=tuple(parts.get(layer, Sizes()) for layer in range(layers)),
        embed=parts.get("embed", Sizes()),
        norm=parts.get("norm", Sizes()),
        head=head,
        opening=parts.get("opening", Sizes()) + eyes,
        other=parts.get("other", Sizes()),
        family=cut(str(config.get("model_type")), MOST_SHOWN),
        dtype=dtype,
        tied=head.bytes == 0,
        quantization=quantization,
        kv_bytes_per_token_per_layer=_kv_bytes(config, numbers, dtype),
        scaled=spec is not None and spec.scaled,
        joined=() if spec is None else spec.joined,
        state_width=None if spec is None else spec.state_width,
        **{key: number for key, number in numbers.items() if key != "layers"},
    )


def summarize_config(name: str, config: dict[str, Any]) -> Summary:
    """A model of which nothing is there but its config.json, by the tensors that its family asks for.

    Bytes are those of its dtype, or of the bits that a quantization names. Raises UnsupportedModel or BrokenModel.
    """
    spec, effective = shape_of(name, config)
    if spec.family == TOY:
        raise UnsupportedModel("{model} is a toy whose config.json says no sizes; give its whole folder", model=name)
    width: float = DTYPE_BYTES[spec.dtype]
    if bits := _bits(config):
        width = bits / 8
    layers = [layer_params(effective, layer) for layer in range(spec.layers)]
    ends = spec.vocab_size * spec.hidden_size
    end = Sizes(ends * DTYPE_BYTES[spec.dtype], ends * DTYPE_BYTES[spec.dtype], ends, ends)
    family = BY_NAME[spec.family]
    opening = sum(prod(shape) for _, shape in chain(family.opening(effective), family.tower(effective)))
    empty = summarize(config, (), spec)
    return replace(
        empty,
        layers=tuple(Sizes(round(all_ * width), round(used * width), all_, used) for all_, used in layers),
        embed=end,
        opening=Sizes(*(opening * DTYPE_BYTES[spec.dtype],) * 2, opening, opening),
        head=Sizes() if spec.tied else end,
        tied=spec.tied,
        dtype=spec.dtype,
        kv_bytes_per_token_per_layer=spec.kv_elements_per_token_per_layer * DTYPE_BYTES[spec.dtype],
    )


def _quantization(config: dict[str, Any], spec: ModelSpec | None, tensors: list[TensorInfo]) -> str | None:
    """What it is called: by the tensors where they are known, else by the configuration."""
    if spec is None or not tensors:
        return quantization_of(config)
    packed = [*map(str, spec.packings), *([f"fp8, held in {spec.dtype}"] if spec.scaled else [])]
    return "; ".join(packed) or spec.quantization


def _numbers(config: dict[str, Any]) -> dict[str, int | None]:
    """What the config counts, under whatever name; a model of several kinds has its words in `text_config`."""
    known = {**config, **text_config(config)}
    found = {key: next((known[n] for n in names if _is_count(known.get(n))), None) for key, names in _KEYS.items()}
    heads, hidden = found["heads"], found["hidden_size"]
    if heads and found["kv_heads"] is None:
        found["kv_heads"] = heads
    if heads and hidden and found["head_dim"] is None:
        found["head_dim"] = hidden // heads
    return found


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 10**9


def _parts(
    tensors: list[TensorInfo], numbers: dict[str, int | None], packed: dict[str, int], bits: int | None
) -> dict[int | str, Sizes]:
    """Sizes by layer number, or by `embed`, `norm`, `head`, `other`."""
    experts, chosen = numbers["experts"], numbers["experts_per_token"]
    share = min(1.0, chosen / experts) if experts and chosen else 1.0
    sums: dict[int | str, list[float]] = {}
    for tensor in tensors:
        params = packed[tensor.key] if tensor.key in packed else _params(tensor, bits)
        used = share if any(sign in tensor.name for sign in _EXPERTS) else 1.0
        total = sums.setdefault(_part(tensor.name), [0, 0, 0, 0])
        for i, amount in enumerate((tensor.nbytes, tensor.nbytes * used, params, params * used)):
            total[i] += amount
    return {key: Sizes(*map(round, total)) for key, total in sums.items()}


def _elements(matrices: Matrices) -> dict[str, int]:
    """Weights of every part of a quantized matrix, by its name in the file: its scales and the like are none."""
    found = {each.scale.key: 0 for each in matrices.scaled.values()}
    for matrix in (stored for each in matrices.packed.values() for stored in each.stored):
        found |= {tensor.key: 0 for tensor in matrix.tensors[1:]} | {matrix.tensors[0].key: matrix.elements}
    return found


def _part(name: str) -> int | str:
    if _OTHER.search(name):
        return "other"
    layer = _LAYER.search(name)
    if layer:
        return int(layer[1])
    return next((end for end, pattern in _ENDS.items() if pattern.search(name)), "other")


def _params(tensor: TensorInfo, bits: int | None) -> int:
    """Parameters of a tensor; packed integers hold several, and what belongs to packing holds none."""
    if bits is None:
        return tensor.elements
    if _QUANTIZED_EXTRAS.search(tensor.name):
        return 0
    holds_codes = tensor.dtype in ("U32", "I32", "U8", "I8")
    return tensor.nbytes * 8 // bits if holds_codes else tensor.elements


def _bits(config: dict[str, Any]) -> int | None:
    for key in ("quantization_config", "quantization"):
        settings = config.get(key)
        bits = settings.get("bits") if isinstance(settings, dict) else None
        if type(bits) is int and 0 < bits <= 16:
            return bits
    return None


def _dtype(tensors: list[TensorInfo]) -> str:
    elements: Counter[str] = Counter()
    for tensor in tensors:
        elements[tensor.dtype] += tensor.elements
    most = elements.most_common(1)[0][0] if elements else "BF16"
    return PLAIN.get(most, most)


def _kv_bytes(config: dict[str, Any], numbers: dict[str, int | None], dtype: str) -> int | None:
    """KV cache of one token in one layer, in the checkpoint's dtype, or in two bytes where that is packed.

    Unknown where keys and values are compressed.
    """
    heads, size = numbers["kv_heads"], numbers["head_dim"]
    if not heads or not size or "kv_lora_rank" in config:
        return None
    element = next((DTYPE_BYTES[known] for known in PLAIN.values() if known == dtype), 2)
    return 2 * heads * size * element
