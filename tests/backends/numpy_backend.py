"""A third backend, as an example: the Llama family in fp32 on numpy. It is what a backend needs, and no more.

What depends on no framework stands in `backends.base` and `backends.ledger`; here are weights, arithmetic and cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from backends.base import LoadRequest, ShardShape, cache_capacity, check_model
from backends.layer_caches import SequenceCaches
from backends.ledger import Ledger, LedgerShard, Logits, positions, starts, token_ids
from backends.measuring import fastest, resident_bytes
from tests.support.widen import widened
from together.cluster_types import Device, DeviceProfile
from together.errors import UnsupportedModel
from together.models.layout import needs
from together.models.names import EMBED, HEAD, NORM
from together.models.needed import needed_tensors
from together.models.reading import read_into
from together.models.spec import ModelSpec, read_config, read_runnable, read_shape
from together.types import BLOCK, PLAIN, Activation, Batch, Dtype, LayerRange, PackedAs, Row, SampleRequest, Sampling

STORED: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "U32": np.dtype("<u4"), "U8": np.dtype("u1")}
Array = NDArray[np.float32]
Weights = Mapping[str, Array]  # by the names of the checkpoint


def probe() -> tuple[Device, ...]:
    memory = psutil.virtual_memory()
    return (Device("numpy", "cpu", "numpy", memory.total, memory.available),)


def load(request: LoadRequest) -> NumpyShard:
    """Read the tensors of the range. Raises UnsupportedModel, BrokenModel or NotEnoughMemory."""
    spec = read_runnable(request.folder)
    check_model(spec, request)
    if (spec.family, request.dtype) != ("llama", "fp32"):
        raise UnsupportedModel(f"the numpy example runs llama in fp32, not {spec.family} in {request.dtype}")
    needed = needed_tensors(request.folder, request.layers, request.home)
    capacity, weights = cache_capacity(spec, request, "numpy"), {}
    for tensor in needed.tensors:
        weights[tensor.name] = values = np.empty(tensor.shape, STORED[tensor.dtype])
        read_into(tensor, values.reshape(-1).data.cast("B"))
    request.progress(1.0)
    return NumpyShard(spec, request.layers, capacity, read_config(request.folder), widened(weights, needed.packed))


def measure(folder: Path, device: str, dtype: Dtype, packed: PackedAs = PLAIN) -> DeviceProfile:
    """By steps of shards with random weights: what differs is the layers' and the head's share."""
    config, spec, overhead = read_config(folder), replace(read_shape(folder), tied=False), resident_bytes()
    made, shapes = np.random.default_rng(0), needs(config | {"num_hidden_layers": 2}, head=True).items()
    weights = {name: made.standard_normal(shape, np.float32) * shape[-1] ** -0.5 for name, shape in shapes}
    ask = SampleRequest((0,), Sampling(temperature=0.0), 1)
    ranges = ((LayerRange(0, 1), 3, None), (LayerRange(0, 2), 3, None), (LayerRange(0, 1), 1, ask))
    steps = []
    for layers, total, sample in ranges:
        shard = NumpyShard(spec.excerpt(0, total - 1, total), layers, BLOCK, config, weights)
        steps.append(lambda shard=shard, sample=sample: shard.step(Batch((Row(1, 0, (0,), sample),)), None))
    matrix = np.ones((512, 512), np.float32)
    one, two, end, read, multiply = fastest(*steps, lambda: matrix.sum(), lambda: matrix @ matrix, seconds=1.0)
    layer = max(two - one, 1e-9)
    return DeviceProfile(
        ms_per_layer=1e3 * layer,
        ms_per_stage=1e3 * max(one - layer, 0.0),
        ms_per_head=1e3 * max(end - one, 0.0),
        memory_bytes_per_s=matrix.nbytes / read,
        matrix_flops_per_s=2 * 512**3 / multiply,
        overhead_bytes=overhead,
    )


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError)


@dataclass(slots=True)
class KeysAndValues:
    """One sequence in one layer, `[kv_heads, tokens, head_dim]` twice."""

    keys: Array
    values: Array

    def extend(self, position: int, keys: Array, values: Array) -> None:
        self.keys = np.concatenate((self.keys[:, :position], keys), axis=1)
        self.values = np.concatenate((self.values[:, :position], values), axis=1)

    def truncate(self, length: int) -> None:
        self.keys, self.values = self.keys[:, :length], self.values[:, :length]

    def copy(self, length: int) -> KeysAndValues:
        return KeysAndValues(self.keys[:, :length].copy(), self.values[:, :length].copy())


class NumpyShard(LedgerShard[Array]):
    """States are `[tokens, hidden]`, all rows packed."""

    def __init__(
        self, spec: ModelSpec, layers: LayerRange, capacity: int, config: Mapping[str, Any], weights: Weights
    ) -> None:
        self._spec, self._weights, self._epsilon = spec, weights, np.float32(config["rms_norm_eps"])
        self._frequencies = rope_frequencies(config["rope_parameters"], spec.head_dim)
        nothing = np.empty((spec.kv_heads, 0, spec.head_dim), np.float32)
        self._caches = SequenceCaches(
            spec.states[layers.start : layers.stop], lambda _: KeysAndValues(nothing, nothing)
        )
        super().__init__(ShardShape.of(spec, layers, "fp32"), Ledger(self._caches, capacity))

    def close(self) -> None:
        self._caches.sequences.clear()
        self._weights = {}

    def _read(self, hidden: Activation) -> Array:
        return np.frombuffer(hidden.data, np.dtype("<f4")).reshape(hidden.tokens, hidden.width)

    def _join(self, states: Array, parts: Iterable[slice]) -> Array:
        return np.concatenate([states[part] for part in parts])

    def _write(self, rows: tuple[Row, ...], states: Array) -> Activation:
        return Activation("fp32", len(states), self._spec.hidden_size, states.astype("<f4").tobytes())

    def _forward(self, rows: tuple[Row, ...], states: Array | None) -> Array:
        if states is None:
            states = self._weights[EMBED][token_ids(rows)]
        angles = np.array(positions(rows), np.float32)[:, None] * self._frequencies
        for index, layer in enumerate(range(self.layers.start, self.layers.stop)):
            start = f"model.layers.{layer}."
            normed = self._norm(states, f"{start}input_layernorm.weight")
            states = states + self._attention(rows, index, f"{start}self_attn.", normed, angles)
            normed = self._norm(states, f"{start}post_attention_layernorm.weight")
            gate = self._linear(f"{start}mlp.gate_proj", normed)
            inner = gate / (1 + np.exp(-gate)) * self._linear(f"{start}mlp.up_proj", normed)
            states = states + self._linear(f"{start}mlp.down_proj", inner)
        return states

    def _attention(self, rows: tuple[Row, ...], index: int, name: str, states: Array, angles: Array) -> Array:
        """Every row with its own cache; a group of heads shares keys and values."""
        spec, found = self._spec, np.empty((len(states), self._spec.heads * self._spec.head_dim), np.float32)
        queries = turned(self._heads(f"{name}q_proj", states, spec.heads), angles)
        keys = turned(self._heads(f"{name}k_proj", states, spec.kv_heads), angles)
        values = self._heads(f"{name}v_proj", states, spec.kv_heads)
        for row, at in starts(rows):
            here, cache = slice(at, at + len(row.token_ids)), self._caches.of(row.sequence)[index]
            cache.extend(row.position, keys[:, here], values[:, here])
            grouped = queries[:, here].reshape(spec.kv_heads, -1, len(row.token_ids), spec.head_dim)
            scores = grouped @ cache.keys[:, None].swapaxes(-1, -2) * np.float32(spec.head_dim**-0.5)
            count, seen = scores.shape[-2:]
            scores[..., np.triu(np.ones((count, seen), bool), seen - count + 1)] = -np.inf
            shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
            mixed = shares / shares.sum(axis=-1, keepdims=True) @ cache.values[:, None]
            found[here] = mixed.reshape(spec.heads, count, spec.head_dim).swapaxes(0, 1).reshape(count, -1)
        return self._linear(f"{name}o_proj", found)

    def _heads(self, name: str, states: Array, heads: int) -> Array:
        return self._linear(name, states).reshape(len(states), heads, -1).swapaxes(0, 1)

    def _linear(self, name: str, states: Array) -> Array:
        bias = self._weights.get(f"{name}.bias")
        product: Array = states @ self._weights[f"{name}.weight"].T
        return product if bias is None else product + bias

    def _norm(self, states: Array, name: str) -> Array:
        scaled: Array = states / np.sqrt((states**2).mean(axis=-1, keepdims=True) + self._epsilon)
        return scaled * self._weights[name]

    def _logits(self, states: Array, places: list[int]) -> Array:
        head = self._weights[EMBED if self._spec.tied else HEAD]
        logits: Array = self._norm(states[places], NORM) @ head.T
        return logits

    def _to_numpy(self, rows: tuple[Row, ...], logits: Array) -> Logits:
        return logits


def turned(states: Array, angles: Array) -> Array:
    """RoPE: `[heads, tokens, head_dim]` by angles `[tokens, head_dim / 2]`; the halves of a head are the pairs."""
    left, right = np.split(states, 2, axis=-1)
    cosines, sines = np.cos(angles), np.sin(angles)
    return np.concatenate((left * cosines - right * sines, right * cosines + left * sines), axis=-1)


def rope_frequencies(rope: Mapping[str, Any], dim: int) -> Array:
    """Radians per position, `[dim / 2]`; llama3 slows down long waves (Llama 3.1's model card)."""
    plain: Array = np.float32(1.0) / rope["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    if rope["rope_type"] == "default":
        return plain
    if rope["rope_type"] != "llama3":
        raise UnsupportedModel(f"the numpy example has no rope of the kind {rope['rope_type']}")
    turns = rope["original_max_position_embeddings"] * plain / (2 * pi)  # within the original context
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept: Array = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(plain * (kept + (1 - kept) / rope["factor"]), np.float32)
