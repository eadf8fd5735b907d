"""The torch backend: CPUs, NVIDIA's and Apple's GPUs, by transformers' model classes. Knows no ring and no plan."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil
import torch

from backends.base import LoadRequest, Measurement, Shard
from backends.torch_backend_cache import BLOCK
from together.errors import BadPlan, BadSetting, NotEnoughMemory, UnsupportedModel
from together.models.families import require_family
from together.models.spec import ModelSpec, read_spec
from together.types import Device, Dtype

__all__ = ["load", "measure", "probe"]

WORKSPACE = 16 * 2**20  # bytes kept free of KV blocks, for a step's own tensors


def probe() -> tuple[Device, ...]:
    """The CPU, then every GPU that torch can use."""
    memory = psutil.virtual_memory()
    found = [Device("torch", "cpu", _processor(), memory.total, memory.available)]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        found.append(Device("torch", f"cuda:{index}", torch.cuda.get_device_name(index), total, free))
    if torch.backends.mps.is_available():
        usable = torch.mps.recommended_max_memory()
        found.append(Device("torch", "mps", f"{_processor()} GPU", usable, min(usable, memory.available)))
    return tuple(found)


def load(request: LoadRequest) -> Shard:
    """Read the tensors of the range; the memory they leave is the KV cache's, in whole blocks."""
    spec = read_spec(request.folder)
    require_family(spec.name, spec.family)
    if request.layers.stop > spec.layers:
        raise BadPlan(f"{spec.name} has {spec.layers} layers, the plan asks for {request.layers}; plan again")
    if spec.quantization is not None:
        raise UnsupportedModel(f"{spec.name} is quantized ({spec.quantization}); choose it in bf16, fp16 or fp32")
    capacity, device = _capacity(spec, request), _device(request.device)
    # transformers takes seconds to import, and a probe does not need it
    from backends.torch_backend_model import read_model
    from backends.torch_backend_shard import TorchShard

    model = read_model(request.folder, spec, request.layers, request.dtype, device, request.progress)
    return TorchShard(spec, request.layers, request.dtype, device, capacity, model)


def measure(folder: Path, device: str, dtype: Dtype) -> Measurement:
    """Time random weights of the shape in config.json: needs nothing else of the model."""
    from backends.torch_backend_measure import measure_model

    return measure_model(folder, _device(device), dtype)


def _capacity(spec: ModelSpec, request: LoadRequest) -> int:
    """KV tokens in whole blocks. Raises NotEnoughMemory where not even one block is left."""
    weights = spec.stage_bytes(request.layers, request.dtype)
    block_bytes = spec.kv_bytes_per_token(request.layers, request.dtype) * BLOCK
    blocks = (request.memory_bytes - weights - WORKSPACE) // block_bytes
    if blocks < 1:
        raise NotEnoughMemory(
            f"{spec.name}: layers {request.layers} need {_mb(weights + WORKSPACE + block_bytes)} with room for {BLOCK} "
            f"tokens, {_mb(request.memory_bytes)} were granted; grant more, or move layers to another node"
        )
    return blocks * BLOCK


def _device(name: str) -> torch.device:
    names = [device.name for device in probe()]
    if name not in names:
        raise BadSetting(f"torch has no device {name!r} here; choose {' or '.join(names)}")
    return torch.device(name)


def _processor() -> str:
    """The processor's name as its maker gives it, where the system tells."""
    if platform.system() == "Linux":
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(names, platform.machine())
    return platform.processor() or platform.machine()


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
