"""What a model asks of machines: bytes to hold, bytes to read and operations for a token. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from together.errors import BadSetting, UnsupportedModel
from together.models.summary import Sizes, Summary
from together.planning.cluster_file import MOST_LAYERS
from together.planning.memory import workspace_of
from together.planning.problem import ModelSize, Smaller

BITS = (2, 3, 4, 5, 6, 8, 16)
SCALE_BITS = 0.5  # of a quantized weight: its share of the scales, one in 16 bits for 32 weights
STATE_ELEMENT = 2  # bytes of each element that travels between stages


@dataclass(frozen=True, slots=True)
class Demand:
    """A model's sizes for the planner, and what one token reads and computes in a layer, on average.

    `read_bytes` of a layer with experts are those of the chosen ones; `bits` where the weights are not as published.
    """

    name: str
    size: ModelSize
    read_bytes: float
    layer_flops: float
    state_width: int  # elements that one token sends from stage to stage
    workspace_bytes: float
    bits: int | None = None
    smaller: tuple[Smaller, ...] = ()  # as in Problem

    @property
    def state_bytes(self) -> int:
        """What one token sends from stage to stage."""
        return STATE_ELEMENT * self.state_width

    @property
    def quantized(self) -> bool:
        return self.bits is not None and self.bits < 16

    @property
    def weight_bytes(self) -> float:
        return self.size.weight_bytes


def demand_of(name: str, summary: Summary, bits: int | None = None) -> Demand:
    """What a summarized model demands, with its layers in `bits` for each weight; None: as published.

    Embedding and LM head stay as published. Raises UnsupportedModel for a model whose files do not say enough, and
    BadSetting for bits that there are not.
    """
    if bits is not None and bits not in BITS:
        raise BadSetting("weights of {bits} bits are not known; choose one of {known}", bits=bits, known=BITS)
    kv, hidden, layers = summary.kv_bytes_per_token_per_layer, summary.hidden_size, summary.layers
    if not kv or not hidden or not layers or not all(layer.params for layer in layers):
        raise UnsupportedModel(
            "the files of {model} do not say what its layers and their KV cache take ({family}); choose another model",
            model=name,
            family=summary.family,
        )
    if len(layers) > MOST_LAYERS:
        raise UnsupportedModel(
            "{model} has {layers} layers, and plans are for at most {most}",
            model=name,
            layers=len(layers),
            most=MOST_LAYERS,
        )
    size = _size(summary, bits)
    params = sum(layer.params for layer in layers)
    active = sum(layer.active_params for layer in layers)
    read = sum(size.layer_bytes) * active / params / len(layers)
    work = workspace_of(hidden, summary.inner_size or 4 * hidden, summary.vocab_size or 0)
    now = 0 if summary.quantization is not None else bits or 16  # what is packed already is not packed anew
    smaller = tuple(Smaller(fewer, _size(summary, fewer), "--bits") for fewer in (8, 4) if fewer < now)
    width = summary.state_width or hidden
    return Demand(name, size, read, 2 * active / len(layers), width, work, bits, smaller)


def _size(summary: Summary, bits: int | None) -> ModelSize:
    held = 16 if summary.scaled and bits is None else bits
    return ModelSize(
        tuple(float(_bytes(layer, held)) for layer in summary.layers),
        float(summary.embed.bytes + summary.opening.bytes),
        float(summary.norm.bytes + (summary.embed if summary.tied else summary.head).bytes),
        float(summary.kv_bytes_per_token_per_layer or 0),
        float(summary.embed.bytes if summary.tied else 0),
        joined=summary.joined,
    )


def _bytes(layer: Sizes, bits: int | None) -> float:
    if bits is None:
        return layer.bytes
    return round(layer.params * (bits if bits == 16 else bits + SCALE_BITS) / 8)
