"""Matrix products in half precision on CPUs without such instructions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from threading import local
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from backends.on_torch.choices import confirmed, costs, one_thread, recalled
from backends.on_torch.few import most_few
from backends.on_torch.half import multiplied, use_loops
from backends.on_torch.library import library

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
_PART = 2**23  # weights: threads meet at the end of each part, and 32 MiB in fp32 is what packing one takes
_READ = 2**19  # weights read at a time
_LEAST_OUTPUTS = 512  # of a part, so that there is work for every thread
_COLUMNS = 16  # outputs that FBGEMM's inner loop takes at once
_BLOCK = 512  # inputs that FBGEMM keeps together: it rounds up to whole ones
_GROWTH = 1.05  # how much larger rounding may make a matrix
_WORKERS = 2  # parts packed at a time: their memory is what planning counts with (PACKING_BYTES)
_LEAST, _MOST = 2.0**-10, 65504.0  # a part's largest weight: below, what fp16 cuts off would be seen


class Matrix(Protocol):
    """Weights `[outputs, inputs]` that are read by rows, in the dtype in which they are stored."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, start: int, stop: int, room: Bytes) -> Tensor:
        """These rows; they may lie in `room`, which has four bytes for each weight. Called by several threads."""

    def packed(self, start: int, stop: int) -> None:
        """These rows are in place: told in order, by the loading thread."""


@dataclass(frozen=True, slots=True)
class Held:
    """Weights that are in memory."""

    weight: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def read(self, start: int, stop: int, room: Bytes) -> Tensor:
        return self.weight[start:stop]

    def packed(self, start: int, stop: int) -> None:
        """Nothing to do: the model owns these weights."""


class PackedLinear(nn.Module):
    """Takes the place of nn.Linear; its parts follow one another along the outputs."""

    kernel = "packed in fp16"

    def __init__(self, parts: list[Any], outputs: int, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias
        self._parts, self._outputs = parts, outputs

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, input.shape[-1])
        wide = rows.float()
        found = [
            linear(rows, part) if isinstance(part, Tensor) else product(wide, part).to(input.dtype)
            for part in self._parts
        ]
        out = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        if self.bias is not None:
            out += self.bias
        return out.reshape(*input.shape[:-1], self._outputs)


def can_pack() -> bool:
    """Whether this torch has the product for this machine."""
    try:
        pack(torch.zeros(_COLUMNS, _COLUMNS))
    except (AttributeError, RuntimeError):
        return False
    return True


def fits(inputs: int) -> bool:
    """Whether packing a matrix with this many inputs hardly makes it larger."""
    return -(-inputs // _BLOCK) * _BLOCK <= _GROWTH * inputs


def pack(weight: Tensor) -> Any:
    """fp32 `[outputs, inputs]` → what `product` takes."""
    return torch.ops.quantized.linear_prepack_fp16.default(weight, None)


def product(rows: Tensor, packed: Any) -> Tensor:
    """fp32 rows `[n, inputs]` times packed weights → fp32 `[n, outputs]`."""
    found: Tensor = torch.ops.quantized.linear_dynamic_fp16.default(rows, packed)
    return found


class Packer:
    """Threads that pack parts, each with room for one: made once, as memory that comes and goes would leave holes."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._pool = ThreadPoolExecutor(min(torch.get_num_threads(), _WORKERS), "pack")
        self._room = local()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def layer(self, matrix: Matrix, bias: Tensor | None) -> PackedLinear:
        """A layer that computes in the packer's dtype. Raises what reading the matrix raises."""
        outputs, inputs = matrix.shape
        step = max(_PART // inputs, _LEAST_OUTPUTS) // _COLUMNS * _COLUMNS
        ends = [(start, min(start + step, outputs)) for start in range(0, outputs, step)]
        parts = []
        for end, part in zip(ends, self._pool.map(lambda end: self._part(matrix, *end), ends), strict=True):
            parts.append(part)
            matrix.packed(*end)
        return PackedLinear(parts, outputs, bias)

    def _part(self, matrix: Matrix, start: int, stop: int) -> Any:
        """Packed, or as it is where fp16 cannot hold it (also where it is no number)."""
        inputs = matrix.shape[1]
        wide, room = self._scratch((stop - start) * inputs)
        wide = wide.reshape(-1, inputs)
        rows = max(_READ // inputs, 1)
        for low in range(start, stop, rows):
            high = min(low + rows, stop)
            _widen(matrix.read(low, high, room), wide[low - start : high - start])
        largest = max(float(wide.max()), -float(wide.min()))
        weight = torch.from_numpy(wide)
        return pack(weight) if largest == 0 or _LEAST <= largest <= _MOST else weight.to(self._dtype)

    def _scratch(self, size: int) -> tuple[Floats, Bytes]:
        """This thread's: `size` fp32 numbers, and room for what is read."""
        wide: Floats | None = getattr(self._room, "wide", None)
        if wide is None or wide.size < size:
            self._room.wide = wide = np.empty(max(size, _PART), np.float32)
            self._room.read = np.empty(4 * _READ, np.uint8)
        return wide[:size], self._room.read


def _widen(weight: Tensor, wide: Floats) -> None:
    """`weight` in fp32, put into `wide`. By numpy: torch would start threads in each worker."""
    if weight.dtype == torch.bfloat16:  # the upper half of fp32
        bits = wide.view(np.uint32)
        bits[...] = weight.view(torch.uint16).numpy()
        bits <<= 16
    else:
        wide[...] = weight.numpy()


EXPERTS = "together_experts"
_TRIAL_SIDE, _TRIAL_SECONDS = 1024, 0.02
_CLEARLY = 0.75  # of the cost of weights as they are: then packing pays
_PLAIN, _PACKED = "plain", "packed"


def speed_up(model: Any, stored: Mapping[str, Matrix] | None = None, home: Path | None = None) -> Any:
    """Give the model's linear layers the faster products where this CPU has them; `home` keeps which ones do.

    `stored`, by parameter name, has the weights that are not in the model yet: those of layers that are to be packed.
    """
    first = next(model.parameters())
    if packs(first.dtype, first.device, home):
        _pack_all(model, stored or {}, first.dtype)
    if first.device.type == "cpu" and first.dtype.itemsize == 2:
        use_loops(model, most_few(first.dtype, home))
    return model


def packs(dtype: torch.dtype, device: torch.device, home: Path | None) -> bool:
    """Whether linear layers are packed here."""
    return device.type == "cpu" and dtype.itemsize == 2 and can_pack() and _packing_pays(dtype, home)


@cache
def _packing_pays(dtype: torch.dtype, home: Path | None) -> bool:
    """By a trial of some milliseconds: no list of chips would be complete."""
    trial = partial(confirmed, partial(_faster_form, dtype, most_few(dtype, home)), _PLAIN)
    return recalled(home, f"linear layers in {dtype}", (_PLAIN, _PACKED), trial) == _PACKED


def _faster_form(dtype: torch.dtype, few: int) -> str:
    weight = torch.randn(_TRIAL_SIDE, _TRIAL_SIDE)
    half, tight = weight.to(dtype), pack(weight)
    tried: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda rows: multiplied(rows, half, few),
        lambda rows: product(rows.float(), tight).to(dtype),
    )
    with one_thread():
        plain, packed = costs(tried, _TRIAL_SIDE, dtype, seconds=_TRIAL_SECONDS)
    return _PACKED if packed < _CLEARLY * plain else _PLAIN


def linear_weights(model: nn.Module) -> set[str]:
    """Names of the parameters that `speed_up` packs where it packs: used by one linear layer and nothing else."""
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    layers = ((name, module) for name, module in model.named_modules() if type(module) is nn.Linear)
    return {f"{name}.weight" for name, layer in layers if uses[id(layer.weight)] == 1 and fits(layer.in_features)}


def _pack_all(model: nn.Module, stored: Mapping[str, Matrix], dtype: torch.dtype) -> None:
    """One layer after the other, so that no more than one is there twice."""
    with Packer(dtype) as packer:
        for name in sorted(linear_weights(model)):
            path = name.removesuffix(".weight")
            layer = model.get_submodule(path)
            matrix = stored.get(name) or Held(layer.weight.detach())  # type: ignore[operator]
            model.set_submodule(path, packer.layer(matrix, layer.bias))  # type: ignore[arg-type]


def register_experts() -> None:
    """Let mixture-of-experts models be loaded with `experts_implementation=EXPERTS`."""
    library("transformers.integrations.moe").ALL_EXPERTS_FUNCTIONS.register(EXPERTS, run_experts)


def run_experts(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Each expert over its tokens: hidden `[tokens, width]`, chosen and weights `[tokens, experts per token]`.

    transformers' own ways either copy the weights of every chosen expert or multiply all rows slowly in half precision.
    """
    out, few = torch.zeros_like(hidden), getattr(module, "few", 0)
    for expert in torch.unique(chosen).tolist():
        tokens, place = torch.where(chosen == expert)
        first, gated = ("gate_up_proj", module._apply_gate) if module.has_gate else ("up_proj", module.act_fn)
        inner = gated(_expert_product(module, first, expert, hidden[tokens], few))
        states = _expert_product(module, "down_proj", expert, inner, few)
        out.index_add_(0, tokens, (states * weights[tokens, place, None]).to(out.dtype))
    return out


def _expert_product(module: Any, name: str, expert: int, rows: Tensor, few: int) -> Tensor:
    """With one expert's weights, which some families store as `[inputs, outputs]`, and with its bias if it has one."""
    weight = getattr(module, name)[expert]
    found = multiplied(rows, weight.T if module.is_transposed else weight, few)
    return found + getattr(module, f"{name}_bias")[expert] if module.has_bias else found
