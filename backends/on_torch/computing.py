"""How a model's matrices are multiplied, for a person who compares times."""

from __future__ import annotations

import torch
from torch import nn

from backends.base import Computing

_PLAIN = "linear"


def computing_of(model: nn.Module, device: torch.device) -> Computing:
    """Kernels by the number of their layers; threads only where the processor multiplies."""
    return Computing.of(map(kernel_of, model.modules()), torch.get_num_threads() if device.type == "cpu" else 0)


def kernel_of(module: nn.Module) -> str:
    """What multiplies in this layer, which says so itself where it is none of torch's; empty where nothing does."""
    said = getattr(module, "kernel", "")
    return said if isinstance(said, str) and said else _PLAIN if isinstance(module, nn.Linear) else ""
