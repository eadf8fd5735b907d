"""How fast this MLX device is at one model's shape, by steps of real shards with random weights. Knows no plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import mlx.core as mx

from backends.base import Measurement
from backends.mlx_backend_frames import MX
from backends.mlx_backend_model import check_dtype, empty_model, slice_of
from backends.mlx_backend_shard import MlxShard
from together.errors import BrokenModel, UnsupportedModel
from together.models.families import FAMILIES
from together.models.files import read_json
from together.models.spec import ModelSpec
from together.planning.estimate import BLOCK
from together.types import DTYPE_BYTES, Activation, Batch, Dtype, LayerRange, Row

_FEW, _MORE = 1, 3  # layers of the two shards whose difference is the cost of a layer
_SECONDS = 0.5  # per measured thing
_SIDE = {"cpu": 2048, "gpu": 8192}  # of the square matrix that shows memory bandwidth and FLOP/s
_ROWS = {"cpu": 64, "gpu": 1024}


def measure_model(folder: Path, dtype: Dtype) -> Measurement:
    """On this thread's default device. Raises what reading the model's description raises."""
    config = read_json(folder, "config.json")
    spec = _shape(folder.name, config, dtype)
    check_dtype(spec, dtype)
    steps = tuple(_Steps(_random_shard(spec, config, dtype, count), spec, dtype) for count in (_FEW, _MORE))
    few, more = _medians(*(step.once for step in steps))
    per_layer = max(more - few, 0.0) / (_MORE - _FEW)
    for step in steps:
        step.shard.close()
    side, rows = (sizes[mx.default_device().type.name] for sizes in (_SIDE, _ROWS))
    matrix = mx.random.normal((side, side)).astype(MX[dtype])
    one, many = _medians(_product(1, matrix), _product(rows, matrix))
    return Measurement(
        ms_per_layer=1000 * per_layer,
        ms_per_stage=1000 * max(few - _FEW * per_layer, 0.0),
        memory_bytes_per_s=side * side * DTYPE_BYTES[dtype] / one,
        matrix_flops_per_s=2 * rows * side * side / many,
    )


class _Steps:
    """A shard in the middle of a model, decoding one sequence."""

    def __init__(self, shard: MlxShard, spec: ModelSpec, dtype: Dtype) -> None:
        self.shard, self._position = shard, 0
        width = spec.hidden_size
        self._hidden = Activation(dtype, 1, width, bytes(width * DTYPE_BYTES[dtype]))

    def once(self) -> None:
        self._position = (self._position + 1) % BLOCK or 1
        position = self._position - 1
        self.shard.step(Batch((Row(0, position, (0,)),)), self._hidden)


def _shape(name: str, config: dict[str, Any], dtype: Dtype) -> ModelSpec:
    """What config.json alone says; sizes of tensors are not known, and not needed."""
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        raise UnsupportedModel(
            f"{name} is of the family {family!r}, which does not run here; choose {', '.join(FAMILIES)}"
        )
    try:
        sizes = {
            key: int(config[key]) for key in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads")
        }
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenModel(f"config.json of {name} lacks a size ({error}); get this model again") from error
    layers, hidden, vocab, heads = sizes.values()
    return ModelSpec(
        name=name,
        family=family,
        layers=layers,
        hidden_size=hidden,
        vocab_size=vocab,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        context=config.get("max_position_embeddings") or 0,
        dtype=dtype,
        tied=False,
        layer_params=(),
        embed_params=0,
        norm_params=0,
        head_params=0,
        windows=(None,) * layers,
        eos=(),
        quantization=None,
        fingerprint="",
    )


def _random_shard(spec: ModelSpec, config: dict[str, Any], dtype: Dtype, count: int) -> MlxShard:
    """`count` layers from the middle of a model that goes on behind them; a sequence fits into one block."""
    start = max(spec.layers // 2, 1)
    layers = LayerRange(start, start + count)
    endless = replace(spec, layers=layers.stop + 1, windows=(None,) * (layers.stop + 1))
    model = empty_model(config, endless, layers)
    model.pop("lm_head", None)
    model.set_dtype(MX[dtype])
    mx.eval(model.parameters())
    return MlxShard(endless, layers, dtype, BLOCK, slice_of(model, endless))


def _product(rows: int, matrix: mx.array) -> Callable[[], None]:
    left = mx.ones((rows, matrix.shape[0]), matrix.dtype)
    return lambda: mx.eval(left @ matrix)


def _medians(*actions: Callable[[], None]) -> tuple[float, ...]:
    """Seconds each action takes, warm, taken in turns so that a slow moment hits all of them."""
    for action in actions:
        action()
    times: list[tuple[float, ...]] = []
    end = perf_counter() + _SECONDS * len(actions)
    while len(times) < 3 or perf_counter() < end:
        times.append(tuple(_seconds(action) for action in actions))
    return tuple(median(column) for column in zip(*times, strict=True))


def _seconds(action: Callable[[], None]) -> float:
    begin = perf_counter()
    action()
    return perf_counter() - begin
