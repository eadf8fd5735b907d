"""What a device does at one model's shape: random weights, timed warm. Knows no checkpoint and no ring.

Steps of real shards are timed: without a layer, with some, and without a layer but with the end of the model. What
differs is the layers' and the head's share. Layers differ from one another in memory, so that no cache holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from backends.measuring import Extent, experts_to_time, extent, fastest, resident_bytes
from backends.on_torch import cache
from backends.on_torch.linear import register_experts, speed_up
from backends.on_torch.model import TORCH, build, drop_absent, model_class, range_config, write_activation
from backends.on_torch.shard import TorchShard
from together.cluster_types import DeviceProfile
from together.models.files import EMBED
from together.models.spec import ModelSpec, read_shape
from together.types import BLOCK, DTYPE_BYTES, Activation, Batch, Dtype, LayerRange, Row, SampleRequest, Sampling

_PROMPT = 8  # tokens that are cached before a timed one
_MEMORY_SIDE = 8192  # a matrix of 256 MiB: more than most caches hold
_TILE = 2**20  # random numbers that are made once and repeated
_VARIETY = 16  # hidden states that are gone through
_STEPS_SECONDS, _SPEEDS_SECONDS = 2.0, 0.6


@torch.inference_mode()
def measure_model(folder: Path, device: torch.device, dtype: Dtype) -> DeviceProfile:
    """Raises what reading the model's description raises, and NotEnoughMemory."""
    spec = read_shape(folder)
    model_class(spec.family)
    cache.register()
    register_experts()
    resident, free = resident_bytes(), _free_bytes(device)
    pieces = _pieces(folder, spec, device, dtype, free)
    none, some, end = fastest(*(piece.step for piece in pieces), seconds=_STEPS_SECONDS)
    overhead = _context_bytes(device, free) if device.type == "cuda" else resident
    layers, rows = len(pieces[1].layers), pieces[2].model.config.vocab_size
    del pieces
    read, multiply = fastest(_reading(device), _multiplying(device, TORCH[dtype]), seconds=_SPEEDS_SECONDS)
    return DeviceProfile(
        ms_per_layer=max(1e3 * (some - none) / layers, 1e-6),  # noise must not make a layer free
        ms_per_stage=1e3 * none,
        ms_per_head=max(1e3 * (end - none) * spec.vocab_size / rows, 0.0),
        memory_bytes_per_s=4 * _MEMORY_SIDE**2 / read,
        matrix_flops_per_s=2 * _matrix_side(device) ** 3 / multiply,
        overhead_bytes=overhead,
    )


@dataclass(slots=True)
class _Piece:
    """A shard that decodes one sequence; its model is shared, and shows only this piece's parts while it steps."""

    shard: TorchShard
    model: Any
    layers: nn.ModuleList
    norm: nn.Module
    states: Iterator[Activation]  # of one token each, endless: experts go by what they are
    sample: SampleRequest | None

    def step(self) -> None:
        """Ends when the device is done: what a step gives is on the CPU."""
        self.run(Row(1, _PROMPT, (0,), self.sample), next(self.states))

    def run(self, row: Row, states: Activation) -> None:
        self.model.model.layers, self.model.model.norm = self.layers, self.norm
        self.shard.step(Batch((row,)), states)


def _pieces(folder: Path, spec: ModelSpec, device: torch.device, dtype: Dtype, free: int) -> tuple[_Piece, ...]:
    """Of one model: no layers, all its layers, no layers but norm and head. Each holds a prompt already."""
    model, size = _made_up_model(folder, spec, device, dtype, free)
    layers, norm = model.model.layers, model.model.norm
    plans = ((nn.ModuleList(), nn.Identity(), False), (layers, nn.Identity(), False), (nn.ModuleList(), norm, True))
    pieces = []
    for parts, ending, last in plans:
        shape = replace(spec, layers=size.layers + (1 if last else 2), windows=(None,) * (size.layers + 2))
        shard = TorchShard(shape, LayerRange(1, size.layers + 1), dtype, device, 2 * BLOCK, model)
        sample = SampleRequest((0,), Sampling(temperature=0.0), 1) if last else None
        piece = _Piece(shard, model, parts, ending, cycle(_states(1, spec, dtype) for _ in range(_VARIETY)), sample)
        piece.run(Row(1, 0, (0,) * _PROMPT), _states(_PROMPT, spec, dtype))
        pieces.append(piece)
    return tuple(pieces)


def _states(tokens: int, spec: ModelSpec, dtype: Dtype) -> Activation:
    return write_activation(torch.randn(tokens, spec.hidden_size).to(TORCH[dtype]), dtype)


def _made_up_model(folder: Path, spec: ModelSpec, device: torch.device, dtype: Dtype, free: int) -> tuple[Any, Extent]:
    """The last layers of the model, its norm and its head, with random weights."""
    config = _config(folder, spec, 1)
    layer_bytes = sum(shape.numel() for name, shape in _shapes(spec, config).items() if ".layers." in name)
    width = DTYPE_BYTES[dtype]
    size = extent(spec.name, spec.layers, layer_bytes * width, spec.vocab_size, spec.hidden_size * width, free)
    config = _config(folder, spec, size.layers)
    config.vocab_size = size.vocabulary
    model = build(spec, config, _made_up_state(_shapes(spec, config), TORCH[dtype]), dtype, device)
    drop_absent(model, first=False, last=True)
    return speed_up(model.to(device)), size


def _config(folder: Path, spec: ModelSpec, layers: int) -> Any:
    config = range_config(folder, spec.family, LayerRange(spec.layers - layers, spec.layers), tied=False)
    config.pad_token_id = None  # it may lie behind a shorter vocabulary
    if getattr(config, "num_experts", 0):
        config.num_experts = experts_to_time(config.num_experts, config.num_experts_per_tok)
    return config


def _shapes(spec: ModelSpec, config: Any) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in model_class(spec.family)(config).state_dict().items()}


def _made_up_state(shapes: dict[str, torch.Size], dtype: torch.dtype) -> dict[str, Tensor]:
    """Random weights that keep states of order 1; routers of experts send each token elsewhere, as real ones do."""
    tile = torch.randn(_TILE, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros((), dtype=dtype)
    return {
        name: nothing.expand(shape) if name == EMBED else _tiled(tile, shape, dtype) for name, shape in shapes.items()
    }


def _tiled(tile: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    scaled: Tensor = (tile * shape[-1] ** -0.5).to(dtype)
    count = shape.numel()
    return scaled.repeat(-(-count // _TILE))[:count].reshape(shape)


def _reading(device: torch.device) -> Callable[[], None]:
    """A matrix-vector product: bound by reading the matrix."""
    matrix, vector = torch.ones(_MEMORY_SIDE, _MEMORY_SIDE, device=device), torch.ones(_MEMORY_SIDE, device=device)
    return _finished(lambda: matrix @ vector, device)


def _multiplying(device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """A linear layer with many rows, as in a prefill."""
    side = _matrix_side(device)
    layer = speed_up(nn.Sequential(nn.Linear(side, side, bias=False, device=device, dtype=dtype)))
    rows = torch.ones(side, side, device=device, dtype=dtype)
    return _finished(lambda: layer(rows), device)


def _matrix_side(device: torch.device) -> int:
    return 1024 if device.type == "cpu" else 4096


def _finished(run: Callable[[], object], device: torch.device) -> Callable[[], None]:
    def action() -> None:
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize()

    return action


def _free_bytes(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


def _context_bytes(device: torch.device, free: int) -> int:
    """Of an NVIDIA device: what its libraries took since `free`, beside torch's tensors. A probe sees the rest."""
    return max(free - _free_bytes(device) - torch.cuda.memory_reserved(device), 0)
