"""What a device does at one model's shape: random weights, timed warm. Knows no checkpoint and no ring."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from backends.base import Measurement
from backends.torch_backend_frames import TORCH, write_activation
from backends.torch_backend_linear import speed_up
from backends.torch_backend_model import build, drop_absent, model_class, range_config
from backends.torch_backend_shard import TorchShard
from together.models.files import EMBED, HEAD, NORM
from together.models.spec import ModelSpec, read_shape
from together.planning.estimate import BLOCK
from together.types import Batch, Dtype, LayerRange, Row

_PROMPT = 64  # tokens that are cached before a timed one
_MEMORY_SIDE = 8192  # a matrix of 256 MiB: more than any cache holds
_LAYERS = 3  # of the larger of two stages whose difference is the layers' time


@torch.inference_mode()
def measure_model(folder: Path, device: torch.device, dtype: Dtype) -> Measurement:
    """Time stages of one layer and of some, from the middle of the model: what differs is the layers' share."""
    spec = read_shape(folder)
    more = min(_LAYERS, spec.layers)
    one = _stage_ms(folder, spec, 1, device, dtype)
    per_layer = (_stage_ms(folder, spec, more, device, dtype) - one) / (more - 1) if more > 1 else one
    per_layer = max(per_layer, 1e-6)  # noise must not make a layer free
    return Measurement(per_layer, max(one - per_layer, 0.0), _memory_speed(device), _matrix_speed(device, TORCH[dtype]))


def _stage_ms(folder: Path, spec: ModelSpec, layers: int, device: torch.device, dtype: Dtype) -> float:
    """Milliseconds of a step of one token through a stage that has neither embedding nor head."""
    taken = LayerRange(spec.layers - layers, spec.layers)
    config = range_config(folder, spec.family, taken, tied=False)
    model = build(spec, config, _made_up_state(spec, config, TORCH[dtype]), dtype, device)
    drop_absent(model, first=False, last=False)
    middle = replace(spec, layers=layers + 2, windows=(None, *spec.windows[taken.start :], None))
    shard = TorchShard(middle, LayerRange(1, layers + 1), dtype, device, 2 * BLOCK, speed_up(model.to(device)))
    states = write_activation(torch.randn(_PROMPT + 1, spec.hidden_size, dtype=TORCH[dtype]), dtype)
    one = write_activation(torch.randn(1, spec.hidden_size, dtype=TORCH[dtype]), dtype)
    shard.step(Batch((Row(1, 0, (0,) * (_PROMPT + 1)),)), states)
    return 1e3 * _seconds(lambda: shard.step(Batch((Row(1, _PROMPT, (0,)),)), one), device)


def _made_up_state(spec: ModelSpec, config: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights for every parameter; products take the same time whatever their values are."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in model_class(spec.family)(config).state_dict().items()}
    unused = {EMBED, NORM, HEAD}
    nothing = torch.zeros((), dtype=dtype)
    return {
        name: nothing.expand(shape) if name in unused else torch.full(shape, shape[-1] ** -1.0, dtype=dtype)
        for name, shape in shapes.items()
    }


def _memory_speed(device: torch.device) -> float:
    """Bytes per second that a matrix-vector product reads."""
    matrix, vector = torch.ones(_MEMORY_SIDE, _MEMORY_SIDE, device=device), torch.ones(_MEMORY_SIDE, device=device)
    return matrix.nbytes / _seconds(lambda: matrix @ vector, device)


def _matrix_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of a linear layer with many rows, as in a prefill."""
    side = 1024 if device.type == "cpu" else 4096
    layer = speed_up(nn.Sequential(nn.Linear(side, side, bias=False, device=device, dtype=dtype)))
    rows = torch.ones(side, side, device=device, dtype=dtype)
    return 2 * side**3 / _seconds(lambda: layer(rows), device)


def _seconds(run: Callable[[], object], device: torch.device, times: int = 7) -> float:
    """The median of finished runs, after two to warm up."""
    return median([_timed(run, device) for _ in range(times + 2)][2:])


def _timed(run: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    run()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - began
