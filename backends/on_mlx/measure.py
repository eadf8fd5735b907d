"""MLX's part of measuring: mlx-lm's own modules of the shape, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_map_with_path, tree_reduce

from backends.made_up import Filling, word_tile
from backends.measuring import TILE, Extent, Product, Timed, experts_to_time, measure_shape, period, room
from backends.on_mlx.config import refuse_dtype, runs_packed
from backends.on_mlx.layer_inputs import closed
from backends.on_mlx.model import Slice, bits_of, empty_model, slice_of, write_activation
from backends.on_mlx.packed import can_pack, pack_modules
from backends.on_mlx.shard import MlxShard
from backends.on_mlx.tensors import MX
from together.cluster_types import DeviceProfile
from together.models.families import BY_NAME
from together.models.spec import ModelSpec, read_config, read_shape
from together.types import DTYPE_BYTES, Activation, Dtype, LayerRange, PackedAs, Packing

_BROAD = 8192  # the side of the square matrix that shows memory bandwidth
_MANY = {"cpu": (64, 1024), "gpu": (1024, 4096)}  # the rows, and the side of the matrix, that show FLOP/s


def measure_model(folder: Path, dtype: Dtype, packed: PackedAs) -> DeviceProfile:
    """On this thread's default device. Raises what reading the model's description raises, and NotEnoughMemory."""
    config, spec = read_config(folder), replace(read_shape(folder), tied=False, trained=None)
    refuse_dtype(config, spec, dtype, mx.default_device().type.name)
    experts = BY_NAME[spec.family].experts
    if experts and config[experts]:
        config[experts] = experts_to_time(config[experts], config["num_experts_per_tok"])
    return measure_shape(_MlxTimed(config, spec, dtype, packed), spec, dtype)


@dataclass(frozen=True, slots=True)
class _MlxTimed(Timed[Slice]):
    config: dict[str, Any]
    spec: ModelSpec
    dtype: Dtype
    packed: PackedAs

    def layer_bytes(self) -> int:
        every = period(self.spec.states)
        layers = self._model(self.spec.tail(every), self.spec.vocab_size).model.layers[-every:]
        weights = [layer.parameters() for layer in layers]
        return int(tree_reduce(lambda total, array: total + array.nbytes, weights, 0)) // every

    def models(self, size: Extent) -> list[Slice]:
        model = self._model(size.layers, size.vocabulary)
        mx.eval(model.parameters())
        whole = slice_of(model, self.config, self.spec)
        middle = replace(whole, norm=None, head=None)
        return [replace(middle, layers=()), middle, replace(whole, layers=())]

    def shard(self, model: Slice, spec: ModelSpec, layers: LayerRange) -> MlxShard:
        return MlxShard(spec, layers, self.dtype, room(spec, layers, self.dtype), model)

    def states(self, tokens: int) -> Activation:
        states = mx.random.normal((1, tokens, self.spec.hidden_size))
        return write_activation(bits_of(states.astype(MX[self.dtype]), self.dtype), self.dtype)

    def products(self) -> tuple[Product, Product]:
        rows, side = _MANY[mx.default_device().type.name]
        reading, multiplying = self._product(1, _BROAD), self._product(rows, side)
        return Product(reading, _BROAD**2 * DTYPE_BYTES[self.dtype]), Product(multiplying, 2 * rows * side**2)

    def _model(self, layers: int, vocabulary: int) -> Module:
        """The model's last layers alone, with random weights that are not computed yet."""
        total = self.spec.layers
        model = empty_model(self.config | {"vocab_size": vocabulary}, self.spec, LayerRange(total - layers, total))
        model.model.pop("embed_tokens", None)  # where the range is the whole model
        closed(model)
        packings = self._packings(model)
        pack_modules(model, packings, MX[self.dtype])
        tile = mx.random.normal((TILE,))
        words = {packing: mx.array(word_tile(packing)) for packing in set(packings.values())}

        def filled(path: str, array: mx.array) -> mx.array:
            module, _, part = path.rpartition(".")
            packing = packings.get(module)
            if packing is None or part == "bias":
                return _repeated((tile * array.shape[-1] ** -0.5).astype(MX[self.dtype]), array.shape)
            return _repeated(words[packing], array.shape) if part == "weight" else self._even(packing, part, array)

        model.update(tree_map_with_path(filled, model.parameters()))
        return model

    def _packings(self, model: Module) -> dict[str, Packing]:
        """By the paths of modules: all matrices of layers, and the head, whose rows are whole groups."""
        leaves = cast(list[tuple[str, Any]], tree_flatten(model.leaf_modules(), is_leaf=Module.is_module))
        inputs = {path: leaf.weight.shape[-1] for path, leaf in leaves if can_pack(leaf)}
        wanted = {path: self.packed.head if path == "lm_head" else self.packed.layers for path in inputs}
        whole = {path: each for path, each in wanted.items() if each is not None and inputs[path] % each.group == 0}
        return {path: each for path, each in whole.items() if runs_packed(each)}

    def _even(self, packing: Packing, part: str, array: mx.array) -> mx.array:
        """Scales or biases that are alike for all groups."""
        filling = Filling.of(packing, self.spec.hidden_size)
        kind = MX[self.dtype] if packing.mode == "affine" else mx.uint8
        return mx.full(array.shape, filling.scale if part == "scales" else filling.bias, kind)

    def _product(self, rows: int, side: int) -> Callable[[], None]:
        matrix, left = mx.ones((side, side), MX[self.dtype]), mx.ones((rows, side), MX[self.dtype])
        mx.eval(matrix, left)
        return lambda: mx.eval(left @ matrix)


def _repeated(tile: mx.array, shape: tuple[int, ...]) -> mx.array:
    """MLX's own random numbers would take as long as everything else."""
    count = prod(shape)
    repeated = mx.broadcast_to(tile, (-(-count // tile.size), tile.size))
    return repeated.reshape(-1)[:count].reshape(shape)
