"""The MLX backend: Apple's GPUs, and CPUs elsewhere, through mlx-lm's model classes. Knows no ring and no plan."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import psutil

from backends.base import LoadRequest, Measurement
from backends.mlx_backend_cache import BLOCK
from backends.mlx_backend_measure import measure_model
from backends.mlx_backend_model import check_dtype, read_slice
from backends.mlx_backend_shard import MlxShard
from together.errors import BadPlan, BadSetting, NotEnoughMemory
from together.models.families import require_family
from together.models.spec import ModelSpec, read_spec
from together.types import Device, Dtype

WORKSPACE = 16 * 2**20  # bytes kept free of KV blocks, for a step's own arrays
_KEPT_FOR_REUSE = 128 * 2**20  # bytes of freed buffers; MLX would keep as much as the machine has

__all__ = ["load", "measure", "probe"]


def probe() -> tuple[Device, ...]:
    """One device: the GPU of an Apple machine with its share of the unified memory, or this machine's CPU."""
    memory = psutil.virtual_memory()
    if not mx.metal.is_available():
        return (Device("mlx", "cpu", "CPU", memory.total, memory.available),)
    info = mx.device_info(mx.Device(mx.gpu))
    usable = int(info["max_recommended_working_set_size"])
    return (Device("mlx", "gpu", str(info["device_name"]), usable, min(usable, memory.available)),)


def load(request: LoadRequest) -> MlxShard:
    """Read the tensors of the range; the memory they leave is the KV cache's, in whole blocks."""
    spec = read_spec(request.folder)
    require_family(spec.name, spec.family)
    if request.layers.stop > spec.layers:
        raise BadPlan(f"{spec.name} has {spec.layers} layers, the plan asks for {request.layers}; plan again")
    capacity = _capacity(spec, request)
    use_device(request.device, request.memory_bytes)
    check_dtype(spec, request.dtype)
    parts = read_slice(request.folder, spec, request.layers, request.dtype, request.progress)
    return MlxShard(spec, request.layers, request.dtype, capacity, parts)


def measure(folder: Path, device: str, dtype: Dtype) -> Measurement:
    """Time random weights of the shape in config.json: needs nothing else of the model."""
    use_device(device, 0)
    return measure_model(folder, dtype)


def use_device(name: str, memory_bytes: int) -> None:
    """Make `name` this thread's device, and set MLX's own limits. Raises BadSetting where there is no such device."""
    kinds = {"cpu": mx.cpu, "gpu": mx.gpu}
    if name not in kinds or not mx.is_available(kinds[name]):
        raise BadSetting(f"MLX has no device {name!r} here; choose {probe()[0].name}")
    mx.set_default_device(kinds[name])
    mx.set_cache_limit(_KEPT_FOR_REUSE)
    if name == "cpu":
        mx.disable_compile()  # it would call a C++ compiler, which few machines have
    elif mx.metal.is_available():
        usable = int(mx.device_info()["max_recommended_working_set_size"])
        mx.set_wired_limit(min(memory_bytes, usable))  # or macOS compresses idle weights, and the next answer is late


def _capacity(spec: ModelSpec, request: LoadRequest) -> int:
    weights = spec.stage_bytes(request.layers, request.dtype)
    block_bytes = spec.kv_bytes_per_token(request.layers, request.dtype) * BLOCK
    least = weights + WORKSPACE + block_bytes
    blocks = (request.memory_bytes - weights - WORKSPACE) // block_bytes
    if blocks < 1:
        raise NotEnoughMemory(
            f"{spec.name}: layers {request.layers} need {_mb(least)} with room for {BLOCK} tokens, "
            f"{_mb(request.memory_bytes)} were granted; grant more, or move layers to another node"
        )
    return blocks * BLOCK


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
