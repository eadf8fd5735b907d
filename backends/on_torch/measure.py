"""torch's part of measuring: transformers' own model of the shape, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backends.measuring import TILE, Extent, Product, Timed, experts_to_time, measure_shape
from backends.on_torch.linear import register_experts, speed_up
from backends.on_torch.model import build, drop_absent, model_class, range_config
from backends.on_torch.shard import TORCH, TorchShard, write_activation
from together.cluster_types import DeviceProfile
from together.models.names import EMBED
from together.models.spec import ModelSpec, read_shape
from together.types import BLOCK, Activation, Dtype, LayerRange

_MEMORY_SIDE = 8192  # a matrix of 256 MiB: more than most caches hold


@torch.inference_mode()
def measure_model(folder: Path, device: torch.device, dtype: Dtype) -> DeviceProfile:
    """Raises what reading the model's description raises, and NotEnoughMemory."""
    spec = read_shape(folder)
    model_class(spec.family)  # what is imported from here on would not count as overhead
    register_experts()
    return measure_shape(_TorchTimed(folder, spec, device, dtype), spec, dtype)


@dataclass(frozen=True, slots=True)
class _TorchTimed(Timed[Any]):
    folder: Path
    spec: ModelSpec
    device: torch.device
    dtype: Dtype

    def layer_params(self) -> int:
        shapes = _shapes(self.spec, self._config(1))
        return sum(shape.numel() for name, shape in shapes.items() if ".layers." in name)

    def models(self, size: Extent) -> list[Any]:
        config = self._config(size.layers)
        config.vocab_size = size.vocabulary
        state = _made_up_state(_shapes(self.spec, config), TORCH[self.dtype])
        model = build(self.spec, config, state, self.dtype, self.device)
        drop_absent(model, first=False, last=True)
        model = speed_up(model.to(self.device))
        layers, norm, none = model.model.layers, model.model.norm, nn.ModuleList()
        return [_with(model, *parts) for parts in ((none, nn.Identity()), (layers, nn.Identity()), (none, norm))]

    def shard(self, model: Any, spec: ModelSpec, layers: LayerRange) -> TorchShard:
        return TorchShard(spec, layers, self.dtype, self.device, 2 * BLOCK, model)

    def states(self, tokens: int) -> Activation:
        return write_activation(torch.randn(tokens, self.spec.hidden_size).to(TORCH[self.dtype]), self.dtype)

    def products(self) -> tuple[Product, Product]:
        """A matrix times a vector, and a linear layer with many rows, as in a prefill."""
        matrix = torch.ones(_MEMORY_SIDE, _MEMORY_SIDE, device=self.device)
        vector, side = matrix[0].clone(), 1024 if self.device.type == "cpu" else 4096
        options: dict[str, Any] = {"device": self.device, "dtype": TORCH[self.dtype]}
        layer, rows = (
            speed_up(nn.Sequential(nn.Linear(side, side, bias=False, **options))),
            torch.ones(side, side, **options),
        )
        return (
            Product(self._finished(lambda: matrix @ vector), matrix.nbytes),
            Product(self._finished(lambda: layer(rows)), 2 * side**3),
        )

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else Timed.free_bytes(self)

    def overhead_bytes(self, resident: int, free: int) -> int:
        """Of an NVIDIA device: what its libraries took besides torch's tensors. A probe sees the rest."""
        if self.device.type != "cuda":
            return resident
        return max(free - self.free_bytes() - torch.cuda.memory_reserved(self.device), 0)

    def _config(self, layers: int) -> Any:
        """The model's last layers alone."""
        total = self.spec.layers
        config = range_config(self.folder, self.spec.family, LayerRange(total - layers, total), tied=False)
        config.pad_token_id = None  # it may lie behind a shorter vocabulary
        if getattr(config, "num_experts", 0):
            config.num_experts = experts_to_time(config.num_experts, config.num_experts_per_tok)
        return config

    def _finished(self, run: Callable[[], object]) -> Callable[[], None]:
        def action() -> None:
            run()
            if self.device.type != "cpu":
                torch.accelerator.synchronize()

        return action


def _with(model: Any, layers: nn.ModuleList, norm: nn.Module) -> Any:
    """The same model with other layers and another norm; all else is shared."""
    outer, inner = copy(model), copy(model.model)
    inner._modules = inner._modules | {"layers": layers, "norm": norm}
    outer._modules = outer._modules | {"model": inner}
    return outer


def _shapes(spec: ModelSpec, config: Any) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in model_class(spec.family)(config).state_dict().items()}


def _made_up_state(shapes: dict[str, torch.Size], dtype: torch.dtype) -> dict[str, Tensor]:
    """Random weights; routers of experts send each token elsewhere, as real ones do."""
    tile = torch.randn(TILE, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros((), dtype=dtype)
    return {
        name: nothing.expand(shape) if name == EMBED else _tiled(tile, shape, dtype) for name, shape in shapes.items()
    }


def _tiled(tile: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    scaled: Tensor = (tile * shape[-1] ** -0.5).to(dtype)
    count = shape.numel()
    return scaled.repeat(-(-count // TILE))[:count].reshape(shape)
