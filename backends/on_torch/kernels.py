"""Which kernel a quantized matrix gets: candidates by device and precision, and the fastest by a short trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from backends.on_torch.blocks import Blocks
from backends.on_torch.choices import confirmed, costs, one_thread, recalled
from backends.on_torch.experts import EachExpert, Experts, ExpertStacks
from backends.on_torch.int4 import Int4
from backends.on_torch.nbits import NBits, NBitsStack
from backends.on_torch.packed import Packed, made_up
from backends.on_torch.quantized import Columns, Kernel, MatrixProduct, QuantizedLinear, Tiles
from backends.on_torch.shared import SharedProduct
from backends.on_torch.stacked import Readable, Stacked
from together.processes import return_large_memory, trim_memory
from together.types import Packing

Make = Callable[[Packed], Kernel]
_PART = 2**27  # bits of codes: a part is there twice while its kernel is made, and planning counts PACKING_BYTES
_STACK = 2**29  # the same of experts, so that a layer has few sessions
_LARGE = 2**20  # bytes
_TRIAL = 2**21  # weights
_SECONDS = 0.2
_CLEARLY = 0.5  # of the cost of an earlier candidate: a busy machine must not decide


@dataclass(frozen=True, slots=True)
class Precision:
    """What a model computes in, and where. `exact`: activations stay in `dtype`. `home` keeps which kernels do."""

    dtype: torch.dtype
    device: torch.device
    exact: bool
    home: Path | None = None


def quantized_linears(
    matrices: Sequence[Readable], biases: Sequence[Tensor | None], precision: Precision
) -> list[QuantizedLinear]:
    """Layers with the same input, packed alike, as one product. Raises what reading raises."""
    product = _product(Stacked(matrices), precision)
    outputs = [matrix.shape[0] for matrix in matrices]
    shared = SharedProduct(lambda input: product(input).split(outputs, dim=-1))
    ends = [Columns(product, *end) for end in pairwise(accumulate(outputs, initial=0))]
    return [
        QuantizedLinear(partial(shared.part, place), bias, product.kernel, columns)
        for place, (bias, columns) in enumerate(zip(biases, ends, strict=True))
    ]


def _product(matrix: Readable, precision: Precision) -> MatrixProduct:
    """Bring the matrix, part by part, into the fastest form."""
    outputs, inputs = matrix.shape
    packing = matrix.packing
    make = fastest_kernel(packing, inputs, precision)
    step = max(1, _PART // packing.bits // inputs)
    return_large_memory(_LARGE)  # what parts are read into, and the states of long prompts
    parts = [make(matrix.read(at, min(at + step, outputs))) for at in range(0, outputs, step)]
    trim_memory()
    return MatrixProduct(parts)


def quantized_experts(matrix: Readable, precision: Precision) -> Experts:
    """All experts' matrices `[experts, outputs, inputs]`, in the form that is fastest. Raises what reading raises."""
    experts, outputs, inputs = matrix.shape
    packing = matrix.packing
    if precision.device.type != "cpu" or not NBits.takes(packing, inputs, exact=precision.exact):
        return EachExpert(matrix.read(0, experts))
    step = max(1, _STACK // packing.bits // inputs // outputs)
    starts = range(0, experts, step)
    stacks = [NBitsStack(matrix.read(at, min(at + step, experts)), exact=precision.exact) for at in starts]
    trim_memory()
    return ExpertStacks(stacks, step)


@cache
def fastest_kernel(packing: Packing, inputs: int, precision: Precision) -> Make:
    """By a short trial, once on a machine where it can be kept, else once in a process."""
    candidates = {called(make): make for make in kernels_for(packing, inputs, precision)}
    if Blocks.__name__ in candidates or NBits.__name__ in candidates:
        del candidates[Tiles.__name__]  # ten times slower: trying them leaves too few turns to the others
    names = list(candidates)
    if len(names) == 1:
        return candidates[names[0]]
    trial = partial(confirmed, partial(_tried, candidates, packing, inputs, precision), names[0])
    key = f"{packing}, {inputs} inputs, {precision.dtype}{', exact' if precision.exact else ''}"
    return candidates[recalled(precision.home, key, names, trial)]


def called(make: Make) -> str:
    """The kernel's name."""
    kernel = make.func if isinstance(make, partial) else make
    return kernel.__name__


def _tried(candidates: Mapping[str, Make], packing: Packing, inputs: int, precision: Precision) -> str:
    """An earlier candidate stays unless another is clearly faster."""
    sample = made_up(packing, (max(1, _TRIAL // inputs), inputs), precision.dtype, precision.device)
    with one_thread():
        kernels = [make(sample) for make in candidates.values()]
        found = costs(kernels, inputs, precision.dtype, seconds=_SECONDS)
    best = 0
    for index, cost in enumerate(found):
        best = index if cost < _CLEARLY * found[best] else best
    return list(candidates)[best]


def kernels_for(packing: Packing, inputs: int, precision: Precision) -> list[Make]:
    """Those that are here and keep to the precision; the last one always is."""
    found: list[Make] = []
    if precision.device.type == "cpu":
        if Blocks.takes(packing, exact=precision.exact):
            found.append(partial(Blocks, exact=precision.exact))
        if NBits.takes(packing, inputs, exact=precision.exact):
            found.append(partial(NBits, exact=precision.exact))
        if Int4.takes(packing, inputs) and (precision.dtype == torch.bfloat16 or not precision.exact):
            found.append(Int4)
    return [*found, Tiles]
