"""The checksum backend: a toy model for whole-product tests, whose every token depends on all tokens before it.

Knows no framework: numpy alone, on the CPU, in milliseconds. Its folder looks like any model's: config.json with
`"model_type": "checksum"` and one small tensor per layer. Keys of config.json for tests only, all optional:
`block` (16), `rewind` (none: everything), `step_ms` per layer, `load_ms`, `fail_at_position` with `fail_at_layer` (0),
or, with it, `most_layers` (a stage of more runs out of memory there), `devour_at_position` (a stage of more than
`most_layers` fills DEVOURED bytes of memory there), `quiet_ids` (tokens that are hardly ever said).
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from backends.base import LoadRequest
from backends.measuring import resident_bytes
from backends.on_checksum.shard import KV_BYTES, Behaviour, ChecksumShard, Weights, fold
from together.cluster_types import Device, DeviceProfile
from together.errors import BrokenModel, NotEnoughMemory, UnsupportedModel
from together.models.files import EMBED, HEAD, NORM, layer_of, read_into, read_json, tensors_for
from together.models.folder import title
from together.models.headers import TensorInfo
from together.types import Batch, Dtype, LayerRange, Row, SampleRequest, Sampling
from together.wording import quoted

DEVICE = "cpu"


@dataclass(frozen=True, slots=True)
class ToyConfig:
    """What config.json says, and how long loading takes."""

    layers: int
    behaviour: Behaviour
    load_ms: float = 0.0


# --- the contract -----------------------------------------------------------------------------------------------------


def probe() -> tuple[Device, ...]:
    """One device: this machine's CPU and memory."""
    memory = psutil.virtual_memory()
    name = f"checksum toy on {platform.machine()}"
    return (Device("checksum", DEVICE, name, memory.total, memory.available),)


def measure(folder: Path, device: str, dtype: Dtype) -> DeviceProfile:
    """Time made-up weights of the folder's shape; `step_ms` counts. Raises UnsupportedModel or BrokenModel."""
    config = _read_config(folder, device, dtype)
    overhead = resident_bytes()
    one, five, end = _step_ms(config, 1), _step_ms(config, 5), _step_ms(config, 1, last=True)
    per_layer = max((five - one) / 4, 1e-3)
    return DeviceProfile(
        ms_per_layer=per_layer,
        ms_per_stage=max(one - per_layer, 1e-3),
        ms_per_head=max(end - one, 1e-3),
        memory_bytes_per_s=_copy_speed(),
        matrix_flops_per_s=_matrix_speed(),
        overhead_bytes=overhead,
    )


def load(request: LoadRequest) -> ChecksumShard:
    """Read the tensors of the range. Raises UnsupportedModel, BrokenModel or NotEnoughMemory."""
    config = _read_config(request.folder, request.device, request.dtype)
    name, layers = title(request.folder), request.layers
    if layers.stop > config.layers:
        raise BrokenModel(f"{name} has {config.layers} layers, the plan asks for {layers}; plan again")
    tensors = tensors_for(request.folder, layers, config.layers, request.home)
    capacity = _capacity(request, sum(tensor.nbytes for tensor in tensors), config.behaviour.block)
    for tenth in range(10):
        request.progress(tenth / 10)
        time.sleep(config.load_ms / 10_000)
    weights = _weights(name, tensors, layers, config)
    request.progress(1.0)
    return ChecksumShard(layers, weights, config.behaviour, capacity)


def is_out_of_memory(error: BaseException) -> bool:
    """numpy raises MemoryError."""
    return isinstance(error, MemoryError)


def _capacity(request: LoadRequest, weights: int, block: int) -> int:
    """KV tokens that fit beside the weights, in whole blocks."""
    block_bytes = KV_BYTES * len(request.layers) * block
    blocks = (request.memory_bytes - weights) // block_bytes
    if blocks < 1:
        raise NotEnoughMemory(
            f"layers {request.layers} of {title(request.folder)} need {weights + block_bytes} bytes for weights and "
            f"{block} tokens of KV cache, {request.memory_bytes} were granted; grant more or choose fewer layers"
        )
    return blocks * block


# --- the folder -------------------------------------------------------------------------------------------------------


def _read_config(folder: Path, device: str, dtype: Dtype) -> ToyConfig:
    config = read_json(folder, "config.json")
    if config.get("model_type") != "checksum":
        kind = config.get("model_type")
        raise UnsupportedModel(f"the checksum backend runs only its toy, {title(folder)} is {quoted(kind)}")
    if (device, dtype) != (DEVICE, "fp32"):
        raise UnsupportedModel(f"the checksum toy runs on cpu in fp32, not on {device} in {dtype}; change the plan")
    behaviour = Behaviour(
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
    )
    return ToyConfig(_whole(folder, config, "num_hidden_layers"), behaviour, float(config.get("load_ms", 0)))


def _whole(folder: Path, config: dict[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if type(value) is not int or value < 1:
        raise BrokenModel(f"config.json of {title(folder)} has {key} = {quoted(value)}; make this toy again")
    return value


def _weights(name: str, tensors: tuple[TensorInfo, ...], layers: LayerRange, config: ToyConfig) -> Weights:
    width, vocabulary = config.behaviour.width, config.behaviour.vocabulary
    values = {tensor.name: _read(tensor) for tensor in tensors}
    shapes = {EMBED: (vocabulary, width), HEAD: (vocabulary, width)}
    for key, value in values.items():
        if value.shape != shapes.get(key, (width,)):
            raise BrokenModel(f"{name}: {key} has the shape {value.shape}; make this toy again")
    by_layer = {layer_of(key): value for key, value in values.items()}
    wanted = [*range(layers.start, layers.stop), *([NORM, HEAD] if layers.stop == config.layers else [])]
    missing = [key for key in wanted if key not in by_layer and key not in values]
    if missing or (layers.start == 0 and EMBED not in values):
        raise BrokenModel(f"{name} has no tensors for {missing or EMBED}; make this toy again")
    return Weights(
        keys=np.array([fold(by_layer[layer]) for layer in range(layers.start, layers.stop)]),
        embed=values.get(EMBED) if layers.start == 0 else None,
        head=fold(values[HEAD]) + fold(values[NORM]) if layers.stop == config.layers else None,
    )


def _read(tensor: TensorInfo) -> NDArray[np.uint64]:
    """A tensor of whole numbers in F32. Raises BrokenModel for another dtype."""
    if tensor.dtype != "F32":
        raise BrokenModel(f"{tensor.name} is {tensor.dtype}, the checksum toy is F32; make this toy again")
    values = np.empty(tensor.shape, np.dtype("<f4"))
    read_into(tensor, values.data.cast("B"))
    return values.astype(np.uint64)


# --- measuring --------------------------------------------------------------------------------------------------------


def _step_ms(config: ToyConfig, layers: int, *, last: bool = False) -> float:
    """The fastest step of one token through `layers` layers of made-up weights, in ms; `last` draws as well."""
    behaviour = replace(config.behaviour, fail_at=None, devour_at=None, rewind=None, context=64)
    embed = np.ones((behaviour.vocabulary, behaviour.width), np.uint64)
    head = np.arange(behaviour.vocabulary, dtype=np.uint64) if last else None
    weights = Weights(np.arange(layers, dtype=np.uint64), embed, head)
    sample = SampleRequest((0,), Sampling(temperature=0.0), 1) if last else None
    shard = ChecksumShard(LayerRange(0, layers), weights, behaviour, capacity=64 * behaviour.block)
    times = []
    for position in range(6):
        start = time.perf_counter()
        shard.step(Batch((Row(0, position, (0,), sample),)), None)
        times.append((time.perf_counter() - start) * 1000)
    return min(times[1:])


def _copy_speed() -> float:
    """Bytes read per second."""
    source = np.ones(2**22)
    start = time.perf_counter()
    source.sum()
    return source.nbytes / (time.perf_counter() - start)


def _matrix_speed() -> float:
    """FLOP/s of a float32 matrix product."""
    matrix = np.ones((256, 256), np.float32)
    start = time.perf_counter()
    matrix @ matrix
    return 2 * 256**3 / (time.perf_counter() - start)
