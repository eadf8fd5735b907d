"""How fast this MLX device is at one model's shape, by steps of real shards with random weights. Knows no plan.

Three shards are timed: without a layer, with some, and without a layer but with the end of the model. What differs is
the layers' and the head's share. Layers differ from one another in memory, so that no cache holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
from mlx.nn.layers.base import Module
from mlx.utils import tree_map, tree_reduce

from backends.measuring import Extent, experts_to_time, extent, fastest, resident_bytes
from backends.on_mlx.model import MX, Slice, check_dtype, empty_model, slice_of, write_activation
from backends.on_mlx.shard import MlxShard
from together.cluster_types import DeviceProfile
from together.models.spec import ModelSpec, read_config, read_shape
from together.types import BLOCK, DTYPE_BYTES, Activation, Batch, Dtype, LayerRange, Row, SampleRequest, Sampling

_PROMPT = 8  # tokens that are cached before a timed one
_TILE = 2**20  # random numbers that are made once and repeated
_VARIETY = 16  # hidden states that are gone through
_SIDE = {"cpu": 8192, "gpu": 8192}  # of the square matrix that shows memory bandwidth
_MANY = {"cpu": (1024, 64), "gpu": (4096, 1024)}  # its side and the rows that show FLOP/s
_STEPS_SECONDS, _SPEEDS_SECONDS = 2.0, 0.6


def measure_model(folder: Path, dtype: Dtype) -> DeviceProfile:
    """On this thread's default device. Raises what reading the model's description raises, and NotEnoughMemory."""
    config, spec = read_config(folder), replace(read_shape(folder), tied=False)
    check_dtype(spec, dtype)
    kind = mx.default_device().type.name
    overhead = resident_bytes()
    pieces, size = _pieces(config, spec, dtype)
    none, some, end = fastest(*(piece.step for piece in pieces), seconds=_STEPS_SECONDS)
    for piece in pieces:
        piece.shard.close()
    del pieces
    (side, rows), broad = _MANY[kind], _SIDE[kind]
    read, multiply = fastest(_product(1, broad, dtype), _product(rows, side, dtype), seconds=_SPEEDS_SECONDS)
    return DeviceProfile(
        ms_per_layer=max(1e3 * (some - none) / size.layers, 1e-6),  # noise must not make a layer free
        ms_per_stage=1e3 * none,
        ms_per_head=max(1e3 * (end - none) * spec.vocab_size / size.vocabulary, 0.0),
        memory_bytes_per_s=broad * broad * DTYPE_BYTES[dtype] / read,
        matrix_flops_per_s=2 * rows * side * side / multiply,
        overhead_bytes=overhead,  # a GPU of this maker has the machine's own memory
    )


@dataclass(slots=True)
class _Piece:
    """A shard that decodes one sequence."""

    shard: MlxShard
    states: Iterator[Activation]  # of one token each, endless: experts go by what they are
    sample: SampleRequest | None

    def step(self) -> None:
        self.shard.step(Batch((Row(1, _PROMPT, (0,), self.sample),)), next(self.states))


def _pieces(config: dict[str, Any], spec: ModelSpec, dtype: Dtype) -> tuple[list[_Piece], Extent]:
    """Of one model: no layers, all its layers, no layers but norm and head. Each holds a prompt already."""
    parts, size = _made_up_model(config, spec, dtype)
    none = replace(parts, layers=(), norm=None, head=None)
    middle = replace(parts, norm=None, head=None)
    end = replace(parts, layers=())
    pieces = []
    for part in (none, middle, end):
        last = part.head is not None
        # Windows are left out: a shard has a cache for each, and the prompt is shorter than any.
        shape = replace(spec, layers=size.layers + (1 if last else 2), windows=(None,) * (1 + len(part.layers)))
        shard = MlxShard(shape, LayerRange(1, size.layers + 1), dtype, 2 * BLOCK, part)
        shard.step(Batch((Row(1, 0, (0,) * _PROMPT),)), _states(_PROMPT, spec, dtype))
        sample = SampleRequest((0,), Sampling(temperature=0.0), 1) if last else None
        pieces.append(_Piece(shard, cycle(_states(1, spec, dtype) for _ in range(_VARIETY)), sample))
    return pieces, size


def _made_up_model(config: dict[str, Any], spec: ModelSpec, dtype: Dtype) -> tuple[Slice, Extent]:
    """The last layers of the model, its norm and its head, with random weights."""
    if config.get("num_experts"):
        config = config | {"num_experts": experts_to_time(config["num_experts"], config["num_experts_per_tok"])}
    width = DTYPE_BYTES[dtype]
    weights = _empty(config, spec, 1).model.layers[0].parameters()
    layer = tree_reduce(lambda total, array: total + array.size, weights, 0)
    free = psutil.virtual_memory().available
    size = extent(spec.name, spec.layers, layer * width, spec.vocab_size, spec.hidden_size * width, free)
    model = _empty(config | {"vocab_size": size.vocabulary}, spec, size.layers)
    model.model.pop("embed_tokens", None)  # where the range is the whole model
    tile = mx.random.normal((_TILE,))
    model.update(tree_map(lambda weight: _tiled(tile, weight.shape, MX[dtype]), model.parameters()))
    mx.eval(model.parameters())
    return slice_of(model, spec), size


def _tiled(tile: mx.array, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Random numbers that keep states of order 1; MLX's own would take as long as everything else."""
    count, scaled = prod(shape), (tile * shape[-1] ** -0.5).astype(dtype)
    repeated = mx.broadcast_to(scaled, (-(-count // _TILE), _TILE))
    return repeated.reshape(-1)[:count].reshape(shape)


def _empty(config: dict[str, Any], spec: ModelSpec, layers: int) -> Module:
    return empty_model(config, spec, LayerRange(spec.layers - layers, spec.layers))


def _states(tokens: int, spec: ModelSpec, dtype: Dtype) -> Activation:
    return write_activation(mx.random.normal((1, tokens, spec.hidden_size)).astype(MX[dtype]), dtype)


def _product(rows: int, side: int, dtype: Dtype) -> Callable[[], None]:
    """A few rows are bound by reading the matrix, many by multiplying."""
    matrix, left = mx.ones((side, side), MX[dtype]), mx.ones((rows, side), MX[dtype])
    mx.eval(matrix, left)
    return lambda: mx.eval(left @ matrix)
