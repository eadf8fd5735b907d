"""The torch backend: CPUs, NVIDIA's and Apple's GPUs, by transformers' model classes."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from backends.base import LoadRequest, Shard, cache_capacity, check_model, fitted, in_words
from backends.on_torch.devices import cpu
from backends.on_torch.processor import processor
from together.cluster_types import Device, DeviceProfile
from together.errors import BadSetting
from together.models.spec import read_runnable
from together.types import PLAIN, Dtype, PackedAs

__all__ = ["is_out_of_memory", "load", "measure", "probe"]

_ALLOCATION_FAILED = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
)


def probe() -> tuple[Device, ...]:
    """The CPU, then every GPU that torch can use."""
    memory = psutil.virtual_memory()
    found = [cpu()]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        found.append(Device("torch", f"cuda:{index}", torch.cuda.get_device_name(index), total, free))
    if torch.backends.mps.is_available():
        usable = torch.mps.recommended_max_memory()
        found.append(Device("torch", "mps", f"{processor()} GPU", usable, min(usable, memory.available)))
    return tuple(found)


def load(request: LoadRequest) -> Shard:
    """Read the tensors of the range; the memory they leave is the KV cache's, in whole blocks."""
    spec = read_runnable(request.folder)
    check_model(spec, request)
    capacity, device = cache_capacity(spec, request, "torch"), _device(request.device)
    # transformers takes seconds to import, and a probe does not need it
    from backends.on_torch.model import read_model, read_vision
    from backends.on_torch.shard import TorchShard
    from backends.on_torch.token_trial import allow_token_steps
    from backends.on_torch.trial import threads_for

    with in_words(spec.name, "transformers"):
        model, vision = read_model(request, spec, device), read_vision(request, spec, device)
    shape = fitted(spec, request), request.layers, request.dtype
    if device.type == "cpu":
        allow_token_steps(model, *shape)
    threads = threads_for(*shape, model, request.home, exact=request.exact) if device.type == "cpu" else None
    return TorchShard(*shape, device, capacity, model, threads, vision)


def measure(folder: Path, device: str, dtype: Dtype, packed: PackedAs = PLAIN) -> DeviceProfile:
    """Time random weights of the shape in config.json: needs nothing else of the model."""
    from backends.on_torch.measure import measure_model

    return measure_model(folder, _device(device), dtype, packed)


def is_out_of_memory(error: BaseException) -> bool:
    """CPUs' and Apple's allocators raise a plain RuntimeError: only its text tells it from others."""
    said = str(error) if isinstance(error, RuntimeError) else ""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in said for sign in _ALLOCATION_FAILED)


def _device(name: str) -> torch.device:
    names = [device.name for device in probe()]
    if name not in names:
        raise BadSetting("torch has no device {name!r} here; choose one of {devices}", name=name, devices=tuple(names))
    return torch.device(name)
