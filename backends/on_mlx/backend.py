"""The MLX backend: Apple's GPUs, and CPUs elsewhere, through mlx-lm's model classes."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import psutil

from backends.base import LoadRequest, cache_capacity, check_model, fitted, in_words
from backends.on_mlx.config import refuse_dtype
from backends.on_mlx.model import read_slice
from backends.on_mlx.shard import MlxShard
from together.cluster_types import Device, DeviceProfile
from together.errors import BadSetting
from together.models.spec import read_config, read_runnable
from together.types import PLAIN, Dtype, PackedAs

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
    capacity = cache_capacity(spec, request, "mlx")
    use_device(request.device, request.memory_bytes)
    refuse_dtype(read_config(request.folder), spec, request.dtype, request.device)
    with in_words(spec.name, "mlx-lm"):
        parts = read_slice(request, spec)
    return MlxShard(fitted(spec, request), request.layers, request.dtype, capacity, parts)


def measure(folder: Path, device: str, dtype: Dtype, packed: PackedAs = PLAIN) -> DeviceProfile:
    """Time random weights of the shape in config.json: needs nothing else of the model."""
    from backends.on_mlx.measure import measure_model

    use_device(device, 0)
    return measure_model(folder, dtype, packed)


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
