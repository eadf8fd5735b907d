"""Layers with a recurrent state by Mamba-2's rule: what they keep, and which tensors they have. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from together.models.family import FULL, LINEAR, Tensors, start_of
from together.models.state import Recurrent
from together.models.values import Values, bad_value

KINDS = {"mamba": LINEAR, "attention": FULL}  # what publishers call kinds of layers, and transformers does now
GGUF_NUMBERS = {"ssm_a": "A_log", "ssm_d": "D", "ssm_dt.bias": "dt_bias"}  # of such a part, by whole names


def gguf_mamba(part: str) -> dict[str, str]:
    """What GGUF files call its matrices and its norm."""
    names = {"ssm_in": "in_proj", "ssm_conv1d": "conv1d", "ssm_norm": "norm", "ssm_out": "out_proj"}
    return {stored: f"{part}.{name}" for stored, name in names.items()}


@dataclass(frozen=True, slots=True)
class Mamba:
    """Sizes of such layers, whatever config.json calls them; `groups` of heads share their `B` and `C`."""

    heads: int
    head_dim: int
    width: int  # of `B` and `C`
    groups: int
    convolution: int
    biased: bool  # the convolution
    projections_biased: bool

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Of the convolution: all heads' `x`, then `B` and `C`."""
        return self.inner + 2 * self.groups * self.width

    @property
    def state(self) -> Recurrent:
        return Recurrent(self.heads, self.width, self.head_dim, self.channels, self.convolution - 1)

    def tensors(self, layer: int, part: str, hidden: int) -> Tensors:
        """`part` is what the layer calls it; the gate is projected first, then the convolution's inputs, then steps."""
        start = f"{start_of(layer)}{part}."
        for name, shape in {
            "in_proj": (self.inner + self.channels + self.heads, hidden),
            "out_proj": (hidden, self.inner),
        }.items():
            yield f"{start}{name}.weight", shape
            if self.projections_biased:
                yield f"{start}{name}.bias", shape[:1]
        yield f"{start}conv1d.weight", (self.channels, 1, self.convolution)
        if self.biased:
            yield f"{start}conv1d.bias", (self.channels,)
        for name in ("dt_bias", "A_log", "D"):
            yield f"{start}{name}", (self.heads,)
        yield f"{start}norm.weight", (self.inner,)

    def check(self, values: Values, groups: str, convolution: str) -> None:
        """`groups` and `convolution` are what config.json calls them. Raises BrokenModel."""
        if self.heads % self.groups:
            raise bad_value(values.name, groups, self.groups)
        if self.convolution < 2:
            raise bad_value(values.name, convolution, self.convolution)


def step_limits(values: Values) -> tuple[float, float]:
    """What the length of a token's step lies between. Raises BrokenModel.

    JSON has no word for what has no end: transformers writes an object.
    """
    given = values.found.get("time_step_limit")
    if given is None:
        return 0.0, inf
    found = [inf if each == {"__float__": "Infinity"} else each for each in given] if isinstance(given, list) else given
    pair = isinstance(found, list | tuple) and len(found) == 2 and all(type(each) in (int, float) for each in found)
    if not pair or not 0 <= found[0] < found[1]:
        raise bad_value(values.name, "time_step_limit", given)
    return float(found[0]), float(found[1])
