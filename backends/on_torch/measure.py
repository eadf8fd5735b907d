"""torch's part of measuring: transformers' own model of the shape, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backends.measuring import TILE, Extent, Product, Timed, experts_to_time, measure_shape, period, room
from backends.on_torch.experts import QuantizedExperts, gate_of
from backends.on_torch.fused import fuse
from backends.on_torch.kernels import Precision, quantized_experts
from backends.on_torch.latent import keep_latents
from backends.on_torch.library import uninitialised
from backends.on_torch.linear import register_experts, speed_up
from backends.on_torch.model import build, drop_absent, model_class, range_config, renamed
from backends.on_torch.packed import Packed, made_up, repeated
from backends.on_torch.replaced import is_router, replace_linears
from backends.on_torch.shard import TORCH, TorchShard, write_activation
from backends.on_torch.token_trial import allow_token_steps
from backends.on_torch.trial import fewest_threads, with_parts
from together.cluster_types import DeviceProfile
from together.models.families import BY_NAME
from together.models.matrices import BY_HEAD
from together.models.names import EMBED, EMBED_UNIT, HEAD, LAYER_EMBED, OPENING_UNIT, unit_of
from together.models.spec import ModelSpec, read_shape
from together.planning.held import stored_bits
from together.types import DTYPE_BYTES, Activation, Dtype, LayerRange, PackedAs, Packing

_OPENING = EMBED_UNIT, OPENING_UNIT
_MEMORY_SIDE = 8192  # a matrix of 256 MiB: more than most caches hold


@torch.inference_mode()
def measure_model(folder: Path, device: torch.device, dtype: Dtype, packed: PackedAs) -> DeviceProfile:
    """Raises what reading the model's description raises, and NotEnoughMemory."""
    spec = replace(read_shape(folder), trained=None)
    model_class(spec.family)  # what is imported from here on would not count as overhead
    register_experts()
    return measure_shape(_TorchTimed(folder, spec, device, dtype, packed, torch.get_num_threads()), spec, dtype)


@dataclass(frozen=True, slots=True)
class _TorchTimed(Timed[Any]):
    folder: Path
    spec: ModelSpec
    device: torch.device
    dtype: Dtype
    packed: PackedAs
    threads: int  # that torch has

    def layer_bytes(self) -> int:
        every = period(self.spec.states)
        count = self.spec.tail(every)
        own = {f"model.layers.{layer}" for layer in range(count - every, count)}
        found = _shapes(self.spec, self._config(count))
        shapes = {name: shape for name, shape in found.items() if ".".join(name.split(".")[:3]) in own}
        packings = self._packings(shapes)
        plain = sum(shape.numel() for name, shape in shapes.items() if name not in packings)
        packed = sum(stored_bits(packing) * shapes[name].numel() for name, packing in packings.items())
        return (plain * DTYPE_BYTES[self.dtype] + round(packed / 8)) // every

    def models(self, size: Extent) -> list[Any]:
        config = self._config(size.layers)
        config.vocab_size = size.vocabulary
        shapes = _shapes(self.spec, config)
        packings = self._packings(shapes)
        state = _made_up_state(shapes, TORCH[self.dtype], {EMBED, LAYER_EMBED, *packings})
        model = build(self.spec, config, state, self.dtype, self.device)
        drop_absent(model, first=False, last=True)
        keep_latents(model)
        self._pack(model, packings)
        model = fuse(speed_up(model.to(self.device)))
        if self.device.type == "cpu":
            held = LayerRange(self.spec.layers - size.layers, self.spec.layers)
            allow_token_steps(model, self.spec, held, self.dtype)
            torch.set_num_threads(fewest_threads(self.spec, size.layers, self.layer_bytes(), self.dtype, model))
        layers, norm, none = model.model.layers, model.model.norm, nn.ModuleList()
        return [with_parts(model, *parts) for parts in ((none, nn.Identity()), (layers, nn.Identity()), (none, norm))]

    def shard(self, model: Any, spec: ModelSpec, layers: LayerRange) -> TorchShard:
        return TorchShard(spec, layers, self.dtype, self.device, room(spec, layers, self.dtype), model)

    def states(self, tokens: int) -> Activation:
        return write_activation(torch.randn(tokens, self.spec.hidden_size).to(TORCH[self.dtype]), self.dtype)

    def products(self) -> tuple[Product, Product]:
        """A matrix times a vector, and a linear layer with many rows, as in a prefill; with all threads."""
        torch.set_num_threads(self.threads)
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
        experts = BY_NAME[self.spec.family].experts
        if experts and getattr(config, experts):
            setattr(config, experts, experts_to_time(getattr(config, experts), config.num_experts_per_tok))
        return config

    def _packings(self, shapes: Mapping[str, torch.Size]) -> dict[str, Packing]:
        """By parameter: all matrices of layers but the routers, and the head, whose rows are whole groups."""
        matrices = {
            name: shape[-1] for name, shape in shapes.items() if len(shape) > 1 and unit_of(name) not in _OPENING
        }
        packed = {name: self.packed.head if name == HEAD else self.packed.layers for name in matrices}
        wanted = {name: each for name, each in packed.items() if not (is_router(name) or name.endswith(BY_HEAD))}
        return {name: each for name, each in wanted.items() if each is not None and matrices[name] % each.group == 0}

    def _pack(self, model: Any, packings: Mapping[str, Packing]) -> None:
        precision = Precision(TORCH[self.dtype], self.device, exact=self.packed.exact)
        linears = {
            name: _MadeUp(packing, tuple(model.get_parameter(name).shape), precision)
            for name, packing in packings.items()
            if name.endswith(".weight")
        }
        replace_linears(model, linears, precision)
        for name, packing in packings.items():
            path, _, kind = name.rpartition(".")
            if kind == "down_proj":  # of experts, whose gate and up come with it
                module = model.get_submodule(path)
                count, *sides = module.down_proj.shape
                hidden, inner = reversed(sides) if module.is_transposed else sides
                shapes = (count, (1 + module.has_gate) * inner, hidden), (count, hidden, inner)
                both, down = (quantized_experts(_MadeUp(packing, shape, precision), precision) for shape in shapes)
                model.set_submodule(path, QuantizedExperts(gate_of(module), [both], down))

    def _finished(self, run: Callable[[], object]) -> Callable[[], None]:
        def action() -> None:
            run()
            if self.device.type != "cpu":
                torch.accelerator.synchronize()

        return action


@dataclass(frozen=True, slots=True)
class _MadeUp:
    """A quantized matrix that is there when it is read."""

    packing: Packing
    shape: tuple[int, ...]
    precision: Precision

    def read(self, start: int, stop: int) -> Packed:
        shape = (stop - start, *self.shape[1:])
        return made_up(self.packing, shape, self.precision.dtype, self.precision.device)


def _shapes(spec: ModelSpec, config: Any) -> dict[str, torch.Size]:
    with torch.device("meta"), uninitialised():
        found = {name: tensor.shape for name, tensor in model_class(spec.family)(config).state_dict().items()}
    return renamed(found, {own: usual for usual, own in BY_NAME[spec.family].ends.items()})


def _made_up_state(shapes: dict[str, torch.Size], dtype: torch.dtype, without: Set[str]) -> dict[str, Tensor]:
    """Random weights; routers of experts send each token elsewhere, as real ones do. Those `without` take no memory."""
    tile = torch.randn(TILE, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros((), dtype=dtype)
    return {
        name: nothing.expand(shape) if name in without else _tiled(tile, shape, dtype) for name, shape in shapes.items()
    }


def _tiled(tile: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return repeated((tile * shape[-1] ** -0.5).to(dtype), shape)
