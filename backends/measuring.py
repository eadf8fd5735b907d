"""How a backend times itself at one model's shape: random weights, steps of real shards, each action's fastest turn.

Imports no framework.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from time import perf_counter, sleep, time
from typing import Any, Generic, TypeVar

import psutil

from backends.base import Shard, StepOutput, with_inputs
from together.cluster_types import DeviceProfile
from together.errors import NotEnoughMemory
from together.models.spec import ModelSpec
from together.models.state import LayerState, Nothing, Recurrent
from together.types import BLOCK, DTYPE_BYTES, Activation, Batch, Dtype, LayerRange, Row, SampleRequest, Sampling

Model = TypeVar("Model")

LEAST_TURNS = 3
AGREED = 1.05  # an action's two fastest turns so near each other were disturbed by nobody
PATIENCE = 3  # times as long is gone on where they are not
SPAN_BYTES = 512 * 2**20  # layers are timed in a circle of this size: a pass over it finds nothing in a cache
HEAD_BYTES = 2**30  # a larger LM head is timed by a part of it
SHARE = 4  # no more than this part of the free memory is taken, where that is enough for one layer
TILE = 2**20  # random numbers that are made once and repeated: making all of them would take the most time
_PROMPT = 8  # tokens that are cached before a timed one
ROWS = 4  # of the steps that show what several users share
PAUSE = 2e-3  # seconds: between two steps a stage waits for its next message, and the processor forgets and sleeps
_VARIETY = 16  # hidden states that are gone through: experts go by what they are
QUIET = 0.1  # of all processors' time: what others may use without being felt
LIFE = 600.0  # seconds that figures of a disturbed device are believed
_STEPS_SECONDS, _SPEEDS_SECONDS = 3.0, 0.6
_WITHOUT_ORDER = 16  # last layers of a model that has no period, or a longer one
SPARE_EXPERTS = 4  # times those that a token uses: enough to go round, and not all of a large model's


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a model is timed: whole layers, and rows of the LM head."""

    layers: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product to be timed, and the bytes that it reads or the operations that it makes."""

    run: Callable[[], object]
    amount: int


class Timed(ABC, Generic[Model]):
    """A framework's part of measuring: made-up models of one shape on one device, and two matrix products."""

    @abstractmethod
    def layer_bytes(self) -> int:
        """Of the last `period` layers as they are timed the mean, with no more experts than `experts_to_time` says."""

    @abstractmethod
    def models(self, size: Extent) -> Sequence[Model]:
        """Three that share the last layers of the model, its norm and its head, with random weights.

        No layers; all of them; no layers, but norm and head. The weights keep states of order 1, and layers differ from
        one another in memory, so that no cache holds them.
        """

    @abstractmethod
    def shard(self, model: Model, spec: ModelSpec, layers: LayerRange) -> Shard:
        """A shard that runs one of the models, with `room` for tokens."""

    @abstractmethod
    def states(self, tokens: int) -> Activation:
        """Random hidden states."""

    @abstractmethod
    def products(self) -> tuple[Product, Product]:
        """One bound by reading its matrix, and one by multiplying."""

    def free_bytes(self) -> int:
        return int(psutil.virtual_memory().available)

    def overhead_bytes(self, resident: int, free: int) -> int:
        """What a stage takes besides its tensors; `resident` and `free` are from before the models were made."""
        return resident


def measure_shape(timed: Timed[Any], spec: ModelSpec, dtype: Dtype) -> DeviceProfile:
    """Time steps of three shards; what differs is the layers' and the head's share.

    Raises NotEnoughMemory where not even one layer fits.
    """
    resident, free = resident_bytes(), timed.free_bytes()
    row_bytes = spec.hidden_size * DTYPE_BYTES[dtype]  # of a packed head less, and it is timed by a part all the same
    layer_bytes, every = timed.layer_bytes(), period(spec.states)
    size = extent(spec.name, spec.layers, layer_bytes, spec.vocab_size, row_bytes, free, every=every)
    size = replace(size, layers=spec.tail(size.layers))
    check_tail(spec, size, size.layers * layer_bytes + size.vocabulary * row_bytes, free)
    shards = _shards(timed, spec, size)
    steps = [_decoding(timed, shard, rows, spec, last=shard is shards[-1]) for rows in (1, ROWS) for shard in shards]
    one, many = batched(fastest(*steps, seconds=_STEPS_SECONDS, pause=PAUSE))
    del steps
    overhead = timed.overhead_bytes(resident, free)
    while shards:
        shards.pop().close()
    reading, multiplying = timed.products()
    read, multiply = fastest(reading.run, multiplying.run, seconds=_SPEEDS_SECONDS)
    layers, head = size.layers, spec.vocab_size / size.vocabulary
    return DeviceProfile(
        ms_per_layer=1e3 * one.layers / layers,
        ms_per_stage=1e3 * one.stage,
        ms_per_head=1e3 * one.end * head,
        memory_bytes_per_s=reading.amount / read,
        matrix_flops_per_s=multiplying.amount / multiply,
        overhead_bytes=overhead,
        shared=shared_part(one.of_all(spec.layers / layers, head), many.of_all(spec.layers / layers, head), ROWS),
    )


def check_tail(spec: ModelSpec, size: Extent, needed: int, free: int) -> None:
    """Layers that read one another's are timed together, whatever that takes. Raises NotEnoughMemory."""
    if spec.joined and needed > free:
        raise NotEnoughMemory(
            "{model} cannot be measured here: its last {count} layers, which cannot be parted, and the LM head need "
            "{sizes:sizes 0} and {sizes:sizes 1} are free; close other programs or unload what is loaded",
            model=spec.name,
            count=size.layers,
            sizes=(needed, free),
        )


@dataclass(frozen=True, slots=True)
class StepParts:
    """Seconds of a step: without layers, of the timed layers, of the timed part of the head."""

    stage: float
    layers: float
    end: float

    @classmethod
    def of(cls, none: float, some: float, end: float) -> StepParts:
        """Of the steps of three shards. Noise must not make a layer free."""
        return cls(none, max(some - none, 1e-9), max(end - none, 0.0))

    def of_all(self, layers: float, head: float) -> float:
        """Of a whole model that has so many times the layers and the head."""
        return self.stage + self.layers * layers + self.end * head


def batched(times: Sequence[float]) -> tuple[StepParts, StepParts]:
    """From the seconds of three shards with one row and of the same with several."""
    return StepParts.of(*times[:3]), StepParts.of(*times[3:])


def shared_part(one: float, many: float, rows: int) -> float:
    """The part of a step that its rows share, 0 to 1, where it takes `one` with one row and `many` with `rows`."""
    return min(max(1 - (many / one - 1) / (rows - 1), 0.0), 1.0)


def _shards(timed: Timed[Any], spec: ModelSpec, size: Extent) -> list[Shard]:
    """One for each model, in the middle of a larger one or at its end. Each holds prompts already."""
    shards = []
    counts = (0, size.layers, 0)  # a shard has a cache for each
    for model, count, after in zip(timed.models(size), counts, (1, 1, 0), strict=True):
        shape = spec.excerpt(spec.layers - size.layers, count, size.layers + 1 + after)
        shard = timed.shard(model, shape, LayerRange(1, size.layers + 1))
        prompts = tuple(Row(sequence, 0, (0,) * _PROMPT) for sequence in range(1, ROWS + 1))
        given = with_inputs(timed.states(ROWS * _PROMPT), shape.inputs_behind(1))
        require_all(shard.step(Batch(prompts), given))
        shards.append(shard)
    return shards


def _decoding(timed: Timed[Any], shard: Shard, rows: int, spec: ModelSpec, *, last: bool) -> Callable[[], object]:
    """One step of a token of each row, which the last stage draws: it ends when the device is done.

    It is repeated at one position. A shard that cannot go back begins anew, which takes it as long.
    """
    width = spec.layer_inputs * (len(shard.layers) + (not last))
    states = cycle([with_inputs(timed.states(rows), width) for _ in range(_VARIETY)])
    ask = SampleRequest((0,), Sampling(temperature=0.0), 1) if last else None
    position = 0 if shard.rewind == 0 else _PROMPT
    batch = Batch(tuple(Row(sequence, position, (0,), ask) for sequence in range(1, rows + 1)))
    return lambda: require_all(shard.step(batch, next(states)))


def require_all(output: StepOutput) -> None:
    """A refused row takes no time, and would make a layer free."""
    refused = next((result.refusal for result in output.results if result.refusal), None)
    if refused is not None:
        raise AssertionError(f"a row was refused while its step was timed: {refused}")


def room(spec: ModelSpec, layers: LayerRange, dtype: Dtype) -> int:
    """Tokens that a timed shard holds: a block of each of its sequences, and what each counts for beside it."""
    return ROWS * (BLOCK + spec.cache_size(layers, dtype).per_sequence)


def period(states: Sequence[LayerState]) -> int:
    """Layers after which kinds follow one another as before: each takes a time of its own.

    Of a model where they follow in no order so many last ones stand for all.
    """
    kinds = [_kind(state) for state in reversed(states)]
    return min(next(step for step in range(1, len(kinds) + 1) if kinds[step:] == kinds[:-step]), _WITHOUT_ORDER)


def _kind(state: LayerState) -> str:
    """Recurrent, without any state, or attention of whatever kind."""
    return type(state).__name__ if isinstance(state, Recurrent | Nothing) else ""


def extent(
    name: str, layers: int, layer_bytes: int, vocabulary: int, row_bytes: int, free_bytes: int, *, every: int = 1
) -> Extent:
    """What to make up for timing a model of `layers` layers; as often as possible each of `every` that follow.

    Raises NotEnoughMemory where not even one layer fits.
    """
    rows = min(vocabulary, max(HEAD_BYTES // row_bytes, 1))
    needed = layer_bytes + rows * row_bytes
    if needed > free_bytes:
        raise NotEnoughMemory(
            "{model} cannot be measured here: one layer and the LM head need {sizes:sizes 0} and {sizes:sizes 1} are "
            "free; close other programs or unload what is loaded",
            model=name,
            sizes=(needed, free_bytes),
        )
    wanted = -(-max(-(-SPAN_BYTES // layer_bytes), 2) // every) * every
    room = (free_bytes // SHARE - rows * row_bytes) // layer_bytes
    return Extent(max(1, min(layers, wanted, room)), rows)


def experts_to_time(experts: int, used: int) -> int:
    """How many of a layer's experts are made up, where a token uses `used` of them: time goes by those."""
    return min(experts, SPARE_EXPERTS * used)


def fastest(
    *actions: Callable[[], object], seconds: float, clock: Callable[[], float] = perf_counter, pause: float = 0.0
) -> tuple[float, ...]:
    """Seconds that each action takes, warm: its fastest turn, as what others do on the machine only ever adds.

    In turns, so that a slow moment hits all; `seconds` for all together, and longer where no two turns agree. `clock`
    tells the time of each. Before each there is a `pause` in seconds.
    """
    for action in actions:
        action()
    turns: list[tuple[float, ...]] = []
    began = perf_counter()
    while len(turns) < LEAST_TURNS or perf_counter() - began < seconds * (1 if _agree(turns) else PATIENCE):
        turns.append(tuple(_timed(action, clock, pause) for action in actions))
    return tuple(min(times) for times in zip(*turns, strict=True))


def _agree(turns: list[tuple[float, ...]]) -> bool:
    pairs = (sorted(times)[:2] for times in zip(*turns, strict=True))
    return all(second <= AGREED * first for first, second in pairs)


def _timed(action: Callable[[], object], clock: Callable[[], float], pause: float) -> float:
    sleep(pause)
    began = clock()
    action()
    return clock() - began


def resident_bytes() -> int:
    """What this process takes of the machine's memory now."""
    return int(psutil.Process().memory_info().rss)


def watch_others() -> Callable[[], float]:
    """Start to count; the returned call gives the share of all processors that other programs have used since."""
    own = psutil.Process()
    psutil.cpu_percent()  # both are of the time since the last call
    own.cpu_percent()
    return lambda: max(psutil.cpu_percent() - own.cpu_percent() / (psutil.cpu_count() or 1), 0.0) / 100


def lasts(busy: float, at: float) -> bool:
    """Whether figures need not be measured again now: `busy` is what others used then, `at` seconds since 1970."""
    return busy <= QUIET or 0 <= time() - at < LIFE
