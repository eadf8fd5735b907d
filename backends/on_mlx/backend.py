"""The MLX backend: Apple's GPUs, and CPUs elsewhere, through mlx-lm's model classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
from mlx.nn.layers.base import Module
from mlx.utils import tree_map, tree_reduce

from backends.base import LoadRequest, cache_capacity, check_model, in_words
from backends.measuring import TILE, Extent, Product, Timed, experts_to_time, measure_shape
from backends.on_mlx.config import refuse_dtype
from backends.on_mlx.model import MX, Slice, empty_model, read_slice, slice_of, write_activation
from backends.on_mlx.shard import MlxShard
from together.cluster_types import Device, DeviceProfile
from together.errors import BadSetting
from together.models.spec import ModelSpec, read_config, read_runnable, read_shape
from together.types import BLOCK, DTYPE_BYTES, Activation, Dtype, LayerRange

_KEPT_FOR_REUSE = 128 * 2**20  # bytes of freed buffers; MLX would keep as much as the machine has

__all__ = ["is_out_of_memory", "load", "measure", "probe"]

_ALLOCATION_FAILED = (
    "malloc] Unable to allocate",
    "kIOGPUCommandBufferCallbackErrorOutOfMemory",
    "malloc] Attempting to allocate",
)


def probe() -> tuple[Device, ...]:
    """One device: the GPU of an Apple machine with its share of the unified memory, or this machine's CPU."""
    memory = psutil.virtual_memory()
    if not mx.metal.is_available():
        processor = str(mx.device_info(mx.Device(mx.cpu)).get("device_name", "CPU"))
        return (Device("mlx", "cpu", processor, memory.total, memory.available),)
    info = mx.device_info(mx.Device(mx.gpu))
    usable = int(info["max_recommended_working_set_size"])
    return (Device("mlx", "gpu", str(info["device_name"]), usable, min(usable, memory.available)),)


def is_out_of_memory(error: BaseException) -> bool:
    """MLX raises a plain RuntimeError: only its text tells it from others."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _ALLOCATION_FAILED)


def load(request: LoadRequest) -> MlxShard:
    """Read the tensors of the range; the memory they leave is the KV cache's, in whole blocks."""
    spec = read_runnable(request.folder)
    check_model(spec, request)
    capacity = cache_capacity(spec, request)
    use_device(request.device, request.memory_bytes)
    refuse_dtype(spec, request.dtype, request.device)
    with in_words(spec.name, "mlx-lm"):
        parts = read_slice(request, spec)
    return MlxShard(spec, request.layers, request.dtype, capacity, parts)


def measure(folder: Path, device: str, dtype: Dtype) -> DeviceProfile:
    """Time random weights of the shape in config.json: needs nothing else of the model."""
    use_device(device, 0)
    return measure_model(folder, dtype)


def use_device(name: str, memory_bytes: int) -> None:
    """Make `name` this thread's device, and set MLX's own limits. Raises BadSetting where there is no such device."""
    kinds = {"cpu": mx.cpu, "gpu": mx.gpu}
    if name not in kinds or not mx.is_available(kinds[name]):
        raise BadSetting("MLX has no device {name!r} here; choose {device}", name=name, device=probe()[0].name)
    mx.set_default_device(kinds[name])
    mx.set_cache_limit(_KEPT_FOR_REUSE)
    if name == "cpu":
        mx.disable_compile()  # it would call a C++ compiler, which few machines have
    elif mx.metal.is_available():
        usable = int(mx.device_info()["max_recommended_working_set_size"])
        mx.set_wired_limit(min(memory_bytes, usable))  # or macOS compresses idle weights, and the next answer is late


_BROAD = 8192  # the side of the square matrix that shows memory bandwidth
_MANY = {"cpu": (64, 1024), "gpu": (1024, 4096)}  # the rows, and the side of the matrix, that show FLOP/s


def measure_model(folder: Path, dtype: Dtype) -> DeviceProfile:
    """On this thread's default device. Raises what reading the model's description raises, and NotEnoughMemory."""
    config, spec = read_config(folder), replace(read_shape(folder), tied=False)
    refuse_dtype(spec, dtype, mx.default_device().type.name)
    if config.get("num_experts"):
        config["num_experts"] = experts_to_time(config["num_experts"], config["num_experts_per_tok"])
    return measure_shape(_MlxTimed(config, spec, dtype), spec, dtype)


@dataclass(frozen=True, slots=True)
class _MlxTimed(Timed[Slice]):
    config: dict[str, Any]
    spec: ModelSpec
    dtype: Dtype

    def layer_params(self) -> int:
        weights = self._empty(1, self.spec.vocab_size).model.layers[0].parameters()
        return int(tree_reduce(lambda total, array: total + array.size, weights, 0))

    def models(self, size: Extent) -> list[Slice]:
        model = self._empty(size.layers, size.vocabulary)
        model.model.pop("embed_tokens", None)  # where the range is the whole model
        tile, dtype = mx.random.normal((TILE,)), MX[self.dtype]
        model.update(tree_map(lambda weight: _tiled(tile, weight.shape, dtype), model.parameters()))
        mx.eval(model.parameters())
        whole = slice_of(model, self.spec)
        middle = replace(whole, norm=None, head=None)
        return [replace(middle, layers=()), middle, replace(whole, layers=())]

    def shard(self, model: Slice, spec: ModelSpec, layers: LayerRange) -> MlxShard:
        return MlxShard(spec, layers, self.dtype, 2 * BLOCK, model)

    def states(self, tokens: int) -> Activation:
        states = mx.random.normal((1, tokens, self.spec.hidden_size))
        return write_activation(states.astype(MX[self.dtype]), self.dtype)

    def products(self) -> tuple[Product, Product]:
        rows, side = _MANY[mx.default_device().type.name]
        reading, multiplying = self._product(1, _BROAD), self._product(rows, side)
        return Product(reading, _BROAD**2 * DTYPE_BYTES[self.dtype]), Product(multiplying, 2 * rows * side**2)

    def _empty(self, layers: int, vocabulary: int) -> Module:
        """The model's last layers alone."""
        total = self.spec.layers
        return empty_model(self.config | {"vocab_size": vocabulary}, self.spec, LayerRange(total - layers, total))

    def _product(self, rows: int, side: int) -> Callable[[], None]:
        matrix, left = mx.ones((side, side), MX[self.dtype]), mx.ones((rows, side), MX[self.dtype])
        mx.eval(matrix, left)
        return lambda: mx.eval(left @ matrix)


def _tiled(tile: mx.array, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """MLX's own random numbers would take as long as everything else."""
    count, scaled = prod(shape), (tile * shape[-1] ** -0.5).astype(dtype)
    repeated = mx.broadcast_to(scaled, (-(-count // TILE), TILE))
    return repeated.reshape(-1)[:count].reshape(shape)
