"""The checksum backend: a toy model for whole-product tests, whose every token depends on all tokens before it.

It runs on numpy alone, on the CPU, in milliseconds. Its folder looks like any model's: config.json with
`"model_type": "checksum"` and one small tensor per layer. Optional keys of config.json, for tests: `block` (16),
`rewind` (none: everything), `step_ms` per layer, `load_ms`, `fail_at_position` with `fail_at_layer` (0) or with
`most_layers` (a stage of more runs out of memory there), `devour_at_position` (a stage of more than `most_layers` fills
DEVOURED bytes of memory there), `quiet_ids` (tokens that are hardly ever drawn).

Hidden states are whole numbers below 2**24, exact in fp32, so any cut on any machine gives the same bits. With mix =
splitmix64's finalizer, G the golden ratio's 64 bits and everything modulo 2**64, layer i does for position p:

    fold(x)     = Σ x[w] · (2w + 1) · G
    entry[p]    = mix(fold(hidden[p]) + fold(weight of i) + (p + 1) · G)            what the KV cache holds, 8 bytes
    seen        = Σ entry[j] · (2j + 1)  for j = 0 … p                              reads the whole cache, in its order
    hidden[p,w] = (hidden[p,w] + mix(seen + (w + 1) · G) >> 40) modulo 2**24

and the last stage, with values from 0 to 16 (quiet ids get 16 less):

    logit[v]    = (mix(fold(hidden[p]) + fold(norm) + fold(head[v])) >> 42) / 2**18
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from backends.base import LoadRequest, ShardShape
from backends.ledger import Ledger, LedgerShard, Logits, starts, token_ids
from backends.measuring import fastest, resident_bytes
from together.cluster_types import Device, DeviceProfile
from together.errors import BrokenModel, FrameRefused, NotEnoughMemory, UnsupportedModel
from together.models.folder import read_json, title
from together.models.headers import TensorInfo
from together.models.names import EMBED, HEAD, NORM, layer_of
from together.models.reading import read_into, tensors_for
from together.processes import trim_memory
from together.sampling import mix64
from together.types import PLAIN, Activation, Batch, Dtype, LayerRange, PackedAs, Row, SampleRequest, Sampling
from together.wording import quoted

Words = NDArray[np.uint64]

DEVICE = "cpu"
KV_BYTES = 8  # per token and layer
GOLDEN = 0x9E3779B97F4A7C15
DEVOURED = 2**30  # bytes: more than a test's limit, and no harm where there is none
LIMIT = 2**24  # whole numbers below it are exact in fp32


@dataclass(frozen=True, slots=True)
class Toy:
    """What config.json says: the toy's shape, and how it misbehaves."""

    layers: int
    width: int
    vocabulary: int
    context: int
    block: int = 16
    rewind: int | None = None
    step_ms: float = 0.0  # per layer
    fail_at: int | None = None  # a row that covers this position fails the step …
    fail_layer: int = 0  # … on the stage that holds this layer
    most_layers: int | None = None  # a stage of more has no memory for that position
    devour_at: int | None = None  # such a stage fills memory at this position, until the system kills it
    quiet_ids: tuple[int, ...] = ()
    load_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Weights:
    """Folded `keys` [layers]; on the first stage `embed` [vocab, width], on the last the folded `head` [vocab]."""

    keys: Words
    embed: Words | None
    head: Words | None


# --- the contract -----------------------------------------------------------------------------------------------------


def probe() -> tuple[Device, ...]:
    """One device: this machine's CPU and memory."""
    memory = psutil.virtual_memory()
    name = f"checksum toy on {platform.machine()}"
    return (Device("checksum", DEVICE, name, memory.total, memory.available),)


def measure(folder: Path, device: str, dtype: Dtype, packed: PackedAs = PLAIN) -> DeviceProfile:
    """Time made-up weights of the folder's shape; `step_ms` counts. Raises UnsupportedModel or BrokenModel."""
    toy = _read_toy(folder, device, dtype)
    overhead = resident_bytes()
    steps = (_step(toy, 1), _step(toy, 5), _step(toy, 1, last=True))
    vector, matrix = np.ones(2**22), np.ones((256, 256), np.float32)
    one, five, end, read, multiply = fastest(*steps, lambda: vector.sum(), lambda: matrix @ matrix, seconds=0.0)
    per_layer = max(1e3 * (five - one) / 4, 1e-3)
    return DeviceProfile(
        ms_per_layer=per_layer,
        ms_per_stage=max(1e3 * one - per_layer, 1e-3),
        ms_per_head=max(1e3 * (end - one), 1e-3),
        memory_bytes_per_s=vector.nbytes / read,
        matrix_flops_per_s=2 * 256**3 / multiply,
        overhead_bytes=overhead,
    )


def load(request: LoadRequest) -> ChecksumShard:
    """Read the tensors of the range. Raises UnsupportedModel, BrokenModel or NotEnoughMemory."""
    toy = _read_toy(request.folder, request.device, request.dtype)
    name, layers = title(request.folder), request.layers
    if layers.stop > toy.layers:
        raise BrokenModel(
            "{model} has {layers} layers, the plan asks for {asked}; plan again",
            model=name,
            layers=toy.layers,
            asked=str(layers),
        )
    tensors = tensors_for(request.folder, layers, toy.layers, request.home)
    capacity = _capacity(request, sum(tensor.nbytes for tensor in tensors), toy.block)
    for tenth in range(10):
        request.progress(tenth / 10)
        time.sleep(toy.load_ms / 10_000)
    weights = _weights(name, tensors, layers, toy)
    request.progress(1.0)
    return ChecksumShard(layers, weights, toy, capacity)


def is_out_of_memory(error: BaseException) -> bool:
    """numpy raises MemoryError."""
    return isinstance(error, MemoryError)


def _capacity(request: LoadRequest, weights: int, block: int) -> int:
    """KV tokens that the weights leave room for, in whole blocks."""
    block_bytes = KV_BYTES * len(request.layers) * block
    blocks = (request.memory_bytes - weights) // block_bytes
    if blocks < 1:
        raise NotEnoughMemory(
            "{model} needs {needed} bytes here for weights and {block} tokens of KV cache, {granted} were granted; "
            "grant more, or move layers to another node",
            model=title(request.folder),
            needed=weights + block_bytes,
            block=block,
            granted=request.memory_bytes,
        )
    return blocks * block


# --- the shard --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Entries:
    """The KV cache: per sequence `[layers, tokens]`; the CacheStore behind the ledger."""

    layers: int
    held: dict[int, Words] = field(default_factory=dict)

    def of(self, sequence: int) -> Words:
        return self.held.get(sequence, np.empty((self.layers, 0), np.uint64))

    def append(self, sequence: int, fresh: Words) -> None:
        self.held[sequence] = np.concatenate((self.of(sequence), fresh), axis=1)

    def commit(self, sequence: int) -> None:
        """Nothing is written before the last layer ran."""

    def truncate(self, sequence: int, length: int) -> None:
        self.held[sequence] = self.held[sequence][:, :length]

    def fork(self, source: int, target: int, length: int) -> None:
        self.held[target] = self.held[source][:, :length].copy()

    def drop(self, sequence: int) -> None:
        self.held.pop(sequence, None)

    def trim(self) -> None:
        trim_memory()


class ChecksumShard(LedgerShard[Words]):
    """The contract's Shard; strict, so that a test of the whole product notices what a real model would forgive."""

    def __init__(self, layers: LayerRange, weights: Weights, toy: Toy, capacity: int) -> None:
        self._weights, self._toy = weights, toy
        self._entries = Entries(len(weights.keys))
        last = weights.head is not None
        shape = ShardShape("the checksum toy", layers, last, toy.width, toy.vocabulary, "fp32")
        super().__init__(shape, Ledger(self._entries, capacity, toy.block, toy.rewind))

    def close(self) -> None:
        self._entries.held.clear()
        self._ledger.tokens.clear()

    def _check(self, batch: Batch, hidden: Activation | None) -> None:
        super()._check(batch, hidden)
        context = self._toy.context
        for row in batch.rows:
            count = len(row.token_ids)
            if row.position + count > context:
                raise FrameRefused(
                    "the row of sequence {sequence} has {count} tokens at position {position}, outside the context of "
                    "{context}",
                    sequence=row.sequence,
                    count=count,
                    position=row.position,
                    context=context,
                )

    def _read(self, hidden: Activation) -> Words:
        values = np.frombuffer(hidden.data, "<f4").reshape(hidden.tokens, hidden.width)
        if not ((values >= 0) & (values < LIMIT) & (values == np.floor(values))).all():
            raise FrameRefused("hidden states are not whole numbers below 2**24, as the checksum toy's are")
        return values.astype(np.uint64)

    def _join(self, states: Words, parts: Iterable[slice]) -> Words:
        return np.concatenate([states[part] for part in parts])

    def _forward(self, rows: tuple[Row, ...], states: Words | None) -> Words:
        self._misbehave(rows)
        if states is None:
            assert self._weights.embed is not None
            states = self._weights.embed[np.array(token_ids(rows), np.intp)]
        return np.concatenate([self._run(row, states[at : at + len(row.token_ids)]) for row, at in starts(rows)])

    def _run(self, row: Row, states: Words) -> Words:
        """One row's states after the last layer, `[tokens, width]`."""
        cached, width = self._entries.of(row.sequence), self._toy.width
        assert cached.shape[1] == row.position, "the ledger and its store agree"
        places = np.arange(row.position + len(states), dtype=np.uint64)
        fresh = np.empty((len(self._weights.keys), len(states)), np.uint64)
        for layer, key in enumerate(self._weights.keys):
            fresh[layer] = mix64(fold(states) + key + (places[row.position :] + 1) * GOLDEN)
            everything = np.concatenate((cached[layer], fresh[layer]))
            seen = np.cumsum(everything * (2 * places + 1))[row.position :]
            noise = mix64(seen[:, None] + (np.arange(width, dtype=np.uint64) + 1) * GOLDEN)
            states = (states + (noise >> 40)) % LIMIT
        self._entries.append(row.sequence, fresh)
        return states

    def _write(self, rows: tuple[Row, ...], states: Words) -> Activation:
        return Activation("fp32", len(states), self._toy.width, states.astype("<f4").tobytes())

    def _logits(self, states: Words, places: list[int]) -> Words:
        """In units of 2**-18."""
        assert self._weights.head is not None
        return mix64(fold(states[places])[:, None] + self._weights.head) >> np.uint64(42)

    def _to_numpy(self, rows: tuple[Row, ...], logits: Words) -> Logits:
        values = (logits / 2**18).astype(np.float32)
        values[:, list(self._toy.quiet_ids)] -= 16
        return values

    def _misbehave(self, rows: tuple[Row, ...]) -> None:
        """As config.json orders: be slow, or fail after the ledger let the rows in."""
        toy, layers = self._toy, self._shape.layers
        time.sleep(toy.step_ms * len(self._weights.keys) / 1000)
        large = len(layers) > (toy.most_layers or 0)
        if large and _covered(rows, toy.devour_at):
            np.ones(DEVOURED, np.uint8)
        if not _covered(rows, toy.fail_at):
            return
        if toy.most_layers is not None:
            if large:
                raise MemoryError(f"the checksum toy has no memory for position {toy.fail_at} of {len(layers)} layers")
        elif layers.start <= toy.fail_layer < layers.stop:
            raise RuntimeError(f"the checksum toy was told to fail at position {toy.fail_at}")


def _covered(rows: tuple[Row, ...], position: int | None) -> bool:
    return position is not None and any(row.position <= position < row.position + len(row.token_ids) for row in rows)


def fold(values: Words) -> Words:
    """`[…, width]` → `[…]`: a weighted sum in which every element and its place count."""
    factors = (2 * np.arange(values.shape[-1], dtype=np.uint64) + 1) * GOLDEN
    folded: Words = (values * factors).sum(axis=-1)
    return folded


# --- the folder -------------------------------------------------------------------------------------------------------


def _read_toy(folder: Path, device: str, dtype: Dtype) -> Toy:
    config = read_json(folder, "config.json")
    if config.get("model_type") != "checksum":
        kind = config.get("model_type")
        raise UnsupportedModel(
            "the checksum backend runs only its toy, {model} is {kind}", model=title(folder), kind=quoted(kind)
        )
    if (device, dtype) != (DEVICE, "fp32"):
        raise UnsupportedModel(
            "the checksum toy runs on cpu in fp32, not on {device} in {dtype}; change the plan",
            device=device,
            dtype=dtype,
        )
    return Toy(
        layers=_whole(folder, config, "num_hidden_layers"),
        width=_whole(folder, config, "hidden_size"),
        vocabulary=_whole(folder, config, "vocab_size"),
        context=_whole(folder, config, "max_position_embeddings"),
        block=_whole(folder, config, "block", 16),
        rewind=config.get("rewind"),
        step_ms=float(config.get("step_ms", 0)),
        fail_at=config.get("fail_at_position"),
        fail_layer=int(config.get("fail_at_layer", 0)),
        most_layers=config.get("most_layers"),
        devour_at=config.get("devour_at_position"),
        quiet_ids=tuple(config.get("quiet_ids", ())),
        load_ms=float(config.get("load_ms", 0)),
    )


def _whole(folder: Path, config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if type(value) is not int or value < 1:
        raise BrokenModel(
            "config.json of {model} has {key} = {value}; make this toy again",
            model=title(folder),
            key=key,
            value=quoted(value),
        )
    return value


def _weights(name: str, tensors: tuple[TensorInfo, ...], layers: LayerRange, toy: Toy) -> Weights:
    width, vocabulary = toy.width, toy.vocabulary
    values = {tensor.name: _read(tensor) for tensor in tensors}
    shapes = {EMBED: (vocabulary, width), HEAD: (vocabulary, width)}
    for key, value in values.items():
        if value.shape != shapes.get(key, (width,)):
            raise BrokenModel(
                "{model}: {key} has the shape {shape}; make this toy again", model=name, key=key, shape=str(value.shape)
            )
    by_layer = {layer_of(key): value for key, value in values.items()}
    wanted = [*range(layers.start, layers.stop), *([NORM, HEAD] if layers.stop == toy.layers else [])]
    missing = [key for key in wanted if key not in by_layer and key not in values]
    if missing or (layers.start == 0 and EMBED not in values):
        raise BrokenModel(
            "{model} has no tensors for {tensors}; make this toy again", model=name, tensors=str(missing or EMBED)
        )
    return Weights(
        keys=np.array([fold(by_layer[layer]) for layer in range(layers.start, layers.stop)]),
        embed=values.get(EMBED) if layers.start == 0 else None,
        head=fold(values[HEAD]) + fold(values[NORM]) if layers.stop == toy.layers else None,
    )


def _read(tensor: TensorInfo) -> NDArray[np.uint64]:
    """A tensor of whole numbers in F32. Raises BrokenModel for another dtype."""
    if tensor.dtype != "F32":
        raise BrokenModel(
            "{tensor} is {dtype}, the checksum toy is F32; make this toy again", tensor=tensor.name, dtype=tensor.dtype
        )
    values = np.empty(tensor.shape, np.dtype("<f4"))
    read_into(tensor, values.data.cast("B"))
    return values.astype(np.uint64)


# --- measuring --------------------------------------------------------------------------------------------------------


def _step(toy: Toy, layers: int, *, last: bool = False) -> Callable[[], object]:
    """A step of one token through `layers` layers of made-up weights; `last` draws as well."""
    toy = replace(toy, fail_at=None, devour_at=None, rewind=None, context=64)
    embed = np.ones((toy.vocabulary, toy.width), np.uint64)
    head = np.arange(toy.vocabulary, dtype=np.uint64) if last else None
    weights = Weights(np.arange(layers, dtype=np.uint64), embed, head)
    sample = SampleRequest((0,), Sampling(temperature=0.0), 1) if last else None
    shard = ChecksumShard(LayerRange(0, layers), weights, toy, capacity=64 * toy.block)
    return lambda: shard.step(Batch((Row(0, 0, (0,), sample),)), None)
