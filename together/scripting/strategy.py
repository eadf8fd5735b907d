"""How a script wants a model split, and who takes which layers on the devices of this machine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from math import isfinite
from os import PathLike
from pathlib import Path

from together.cluster.claims import MEMORY, UNIFIED, left_over, pool_of
from together.cluster.identity import machine_id, node_name
from together.cluster.profiling import Profiler, default_backend, find_devices
from together.cluster.survey import Placement, Survey
from together.cluster_types import UNKNOWN_PROFILE, Device, DeviceProfile, MeasureOrder
from together.errors import BadPlan, BadSetting, NotEnoughMemory
from together.head.plan import (
    NEED_SPEEDS,
    ModelHandle,
    PlannedModel,
    first_that_fits,
    open_model,
    plan_of,
    plan_on,
    sizings,
)
from together.models.form import asked_form
from together.planning.explain import Infeasible
from together.planning.memory import cache_tokens, model_size, process_bytes, workspace_bytes
from together.planning.problem import Assignment, NodeProfile, Problem, Sizing
from together.planning.request import PlanRequest
from together.planning.strategies import STRATEGIES
from together.scripting.thread import LoopThread
from together.sentences import NOTHING, Sentence, say, template
from together.settings import Settings, load_settings, parse_bytes
from together.types import Dtype, LayerRange
from together.wording import size_text

ALSO = {"cuda": "cuda:0", "mps": "gpu", "gpu": "mps"}  # other words for a device, where its own is not there
_NEEDED = (
    ("custom", "custom_boundaries", "a pair of layers per partition, as [(0, 15), (16, 31)]"),
    ("ratio", "ratio", "a part per partition, as [3, 1]"),
)
LOOPBACK_MS = 0.3  # one way between two processes here: `launch.py bench hop`


@dataclass(frozen=True, slots=True)
class Partition:
    """One stage process to be: its device, its layers (half-open), and the bytes it may take."""

    backend: str
    device: str
    layers: LayerRange
    memory_bytes: int

    def __str__(self) -> str:
        return f"layers {self.layers} on {self.device} ({self.backend}), {size_text(self.memory_bytes)}"


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """A split that fits, what it was sized for, and why it is so, in sentences."""

    model: str
    partitions: tuple[Partition, ...]
    context: int
    users: int
    dtype: Dtype
    why: tuple[str, ...]
    bits_per_weight: float  # as the model stores them, scales included

    @property
    def ranges(self) -> tuple[LayerRange, ...]:
        return tuple(partition.layers for partition in self.partitions)

    def __str__(self) -> str:
        lines = [f"partition {index}: {partition}" for index, partition in enumerate(self.partitions)]
        return "\n".join([f"{self.model} in {self.dtype}, context {self.context}, users {self.users}", *lines])


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStrategy:
    """Who takes which layers. Raises BadPlan or BadSetting for values that contradict one another.

    `num_partitions`: stage processes; "uniform", "ratio" and "custom" take exactly this many, the others at most. Left
    out, it follows from the values below, or is the number of this machine's devices.
    `strategy_type`: "recommend" (best by measured speed and free memory), "uniform", "memory", "compute", "mixed",
    "ratio", or "custom". Speeds are those of a device that one partition has to itself.
    `custom_boundaries`: for "custom", a pair per partition with its first and its last layer, both included, as
    [(0, 15), (16, 31)]; or half-open ranges, as [LayerRange(0, 16), LayerRange(16, 32)].
    `target_devices`: a device per partition as torch names them, as ["cuda:0", "cpu"]; one may stand several times.
    `max_memory_per_partition`: as "4GB". `ratio`: for "ratio", as [3, 1] or "3:1".
    `context`: tokens of a prompt and its answer. `users`: how many such contexts memory is granted for.
    `dtype`: "fp32", "bf16" or "fp16"; left out, the checkpoint's own. `backend`: "torch" or "mlx"; left out, what fits
    this machine. `quantize`: "4", "8" or "mxfp4" for a plain model, which is converted once; `quantize_head`: "no"
    leaves embedding and LM head plain. `exact`: quantized weights are multiplied without int8 activations.
    """

    num_partitions: int | None = None
    strategy_type: str = "recommend"
    custom_boundaries: Sequence[tuple[int, int] | LayerRange] | None = None
    target_devices: Sequence[str] | None = None
    max_memory_per_partition: str | None = None
    ratio: Sequence[float] | str | None = None
    context: int | None = None
    users: int | None = None
    dtype: str | None = None
    backend: str | None = None
    quantize: str | None = None
    quantize_head: str | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        kind = self.strategy_type
        if kind not in STRATEGIES:
            raise BadSetting("there is no strategy_type {kind!r}; choose one of {known}", kind=kind, known=STRATEGIES)
        for name in ("num_partitions", "context", "users"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise BadSetting("{name} must be a whole number, at least 1, not {value}", name=name, value=repr(value))
        if isinstance(self.target_devices, str):
            raise BadSetting("target_devices is a list of names, as [{name!r}]", name=self.target_devices)
        for only, name, what in _NEEDED:
            given = getattr(self, name) is not None
            if kind == only and not given:
                raise BadSetting("strategy_type {kind!r} needs {name}: {what}", kind=kind, name=name, what=what)
            if kind != only and given:
                raise BadSetting(
                    "{name} is for strategy_type {only!r}, not {kind!r}; leave one out", name=name, only=only, kind=kind
                )
        _ = self.request, self.partitions

    @property
    def request(self) -> PlanRequest:
        """Raises BadPlan or BadSetting."""
        size = self.max_memory_per_partition
        return PlanRequest(
            strategy=self.strategy_type,
            users=self.users,
            context=self.context,
            ratio=_parts(self.ratio),
            assignments=tuple(Assignment("", layers) for layers in _ranges(self.custom_boundaries)),
            max_bytes=None if size is None else parse_bytes(size),
            form=asked_form(self.quantize, self.quantize_head),
        )

    @property
    def partitions(self) -> int:
        """How many are asked for; 0 where nothing says it. Raises BadPlan where two values disagree."""
        counts = {
            "num_partitions": self.num_partitions or 0,
            "custom_boundaries": len(self.custom_boundaries or ()),
            "target_devices": len(self.target_devices or ()),
            "ratio": len(_parts(self.ratio)),
        }
        given = {name: count for name, count in counts.items() if count}
        if len(set(given.values())) > 1:
            said = tuple(template("{name} for {count}", name=name, count=count) for name, count in given.items())
            raise BadPlan(
                "the strategy asks for different numbers of partitions: {said}; give one per partition", said=said
            )
        return next(iter(given.values()), 0)

    def plan(self, model: str | PathLike[str]) -> PartitionPlan:
        """The split of a model by this strategy, without loading anything.

        `model` is a folder, a name that this machine knows, or org/name on the hub (its headers are read there). Raises
        BadPlan (gap, overlap, unknown device, too many partitions), NotEnoughMemory, or what opening a model raises.
        """
        with closing(LoopThread()) as thread:
            return thread.run(lambda: open_and_place(model, self, settings_of(self)))[1]

    def ranges(self, model: str | PathLike[str]) -> tuple[LayerRange, ...]:
        """The layers of each partition, half-open. Raises as `plan` does."""
        return self.plan(model).ranges


def settings_of(strategy: PartitionStrategy) -> Settings:
    """The app's settings (TOGETHER_* variables count) with what the strategy says of dtype, backend and exactness."""
    return load_settings(dtype=strategy.dtype, backend=strategy.backend, exact=strategy.exact or None)


async def open_and_place(
    model: str | PathLike[str], strategy: PartitionStrategy, settings: Settings
) -> tuple[ModelHandle, PartitionPlan]:
    """A model's text side and the split of its layers, for the first sizing that fits.

    Raises BadInput, Unreachable or NotEnoughMemory.
    """
    opened = await open_model(Path(model) if isinstance(model, PathLike) else model, settings, strategy.request.form)
    home = settings.home_path
    request, count, layers = strategy.request, strategy.partitions, opened.spec.layers
    if count > layers:
        raise BadPlan(
            "{model} has {layers} layers, too few for {count} partitions; ask for fewer",
            model=opened.ref.name,
            layers=layers,
            count=count,
        )
    home.mkdir(parents=True, exist_ok=True)
    backend = settings.backend or await asyncio.to_thread(default_backend)
    places = choose_places(strategy.target_devices or (), count, await find_devices(backend, home))
    profiles = dict.fromkeys((place.device for place in places), UNKNOWN_PROFILE)
    if request.strategy in NEED_SPEEDS and len(places) > 1:
        profiler = Profiler(node_name(settings), machine_id(home), home, tuple(profiles))
        for device in profiles:
            packed = opened.spec.packed_as(exact=opened.exact)
            order = MeasureOrder(device.backend, device.name, opened.dtype, opened.config, packed)
            profiles[device] = await profiler.measure(order)

    async def plan_at(sizing: Sizing) -> PlannedModel | Infeasible:
        return await asyncio.to_thread(plan_here, opened, request, sizing, places, profiles, settings)

    found = await first_that_fits(sizings(opened, request, settings), plan_at)
    if isinstance(found, Infeasible):
        raise NotEnoughMemory(found.sentence)
    plan, why = plan_of(found), tuple(map(str, found.answer.why))
    stages = tuple(Partition(item.backend, item.device, item.layers, item.memory_bytes) for item in plan.stages)
    weights = opened.spec.stage_weights(LayerRange(0, layers))
    bits = 8 * weights.nbytes(opened.spec.dtype) / weights.elements
    return opened, PartitionPlan(plan.model.name, stages, plan.context, plan.users, plan.dtype, why, bits)


# --- this machine's devices -------------------------------------------------------------------------------------------


def choose_places(names: Sequence[str], partitions: int, found: Sequence[Device]) -> tuple[Placement, ...]:
    """One per named device, in this order; without names this machine's own choice, `partitions` of them or all.

    A device that has several numbers them. Raises BadPlan for a device that is not here.
    """
    chosen = [_named(name, found) for name in names] or _own_choice(found, partitions)
    times = Counter(device.name for device in chosen)
    return tuple(
        Placement(device.name if times[device.name] == 1 else f"{device.name} (partition {index})", device)
        for index, device in enumerate(chosen)
    )


def _named(name: str, found: Sequence[Device]) -> Device:
    for word in (name, ALSO.get(name)):
        for device in found:
            if device.name == word:
                return device
    raise BadPlan(
        "target_devices: there is no device {name!r} here for {backend}; choose among {known}",
        name=name,
        backend=found[0].backend,
        known=tuple(device.name for device in found),
    )


def _own_choice(found: Sequence[Device], partitions: int) -> list[Device]:
    """The best devices, repeated if there are too few; no CPU next to a GPU that shares its memory."""
    unified = any(device.name in UNIFIED for device in found)
    useful = [device for device in found if not (unified and device.name == "cpu")]
    return [useful[index % len(useful)] for index in range(partitions or len(useful))]


def plan_here(
    opened: ModelHandle,
    request: PlanRequest,
    sizing: Sizing,
    places: Sequence[Placement],
    profiles: Mapping[Device, DeviceProfile],
    settings: Settings,
) -> PlannedModel | Infeasible:
    """A plan for one sizing, or what is missing. Raises BadPlan.

    Rules that weigh memory see equal parts of a shared memory; for others its sum is looked at afterwards.
    """
    pools = {pool_of(place.device): _pool_bytes(place, settings) for place in places}
    where = [pool_of(place.device) for place in places]
    shared = Counter(where) if request.strategy in ("memory", *NEED_SPEEDS) else Counter(set(pools))
    workspace = workspace_bytes(opened.spec)
    nodes = tuple(
        NodeProfile.of(
            place.name,
            profiles[place.device],
            pools[pool] / shared[pool],
            workspace,
            process_bytes(place.device.backend),
        )
        for place, pool in zip(places, where, strict=True)
    )
    size, context = model_size(opened.spec, sizing.dtype), cache_tokens(sizing.context, 1)
    problem = Problem(size, nodes, hop_ms=LOOPBACK_MS, users=sizing.users, context=context)
    found = plan_on(Survey(problem, {place.name: place for place in places}), opened, request, sizing)
    if isinstance(found, Infeasible):
        return found
    wrong = _overfull(found, pools)
    empty = tuple(place.name for place in places if place.name not in found.answer.split.nodes)
    if not wrong and empty and request.strategy == "uniform":  # equal parts are asked for by number: none is left out
        wrong = say("hold_nothing", places=empty)
    return Infeasible(wrong) if wrong else found


def _pool_bytes(place: Placement, settings: Settings) -> int:
    return left_over(settings) if pool_of(place.device) == MEMORY else place.device.free_bytes


def _overfull(found: PlannedModel, pools: Mapping[str, int]) -> Sentence:
    """Which memory cannot hold all partitions in it, if any."""
    problem, places = found.survey.problem, found.survey.placements
    needs: Counter[str] = Counter()
    for share in found.answer.split.shares:
        node = problem.node(share.node)
        need = problem.stage_bytes(share.layers, node) + node.reserve_bytes
        needs[pool_of(places[share.node].device)] += int(need)
    for pool, need in needs.items():
        if need > pools[pool]:
            return say("memory_together", pool=pool, sizes=(need, pools[pool]), context=problem.context)
    return NOTHING


# --- values of a strategy ---------------------------------------------------------------------------------------------


def _ranges(boundaries: Sequence[tuple[int, int] | LayerRange] | None) -> tuple[LayerRange, ...]:
    if boundaries is not None and not boundaries:
        raise BadPlan("custom_boundaries is empty; give a pair of layers per partition, as [(0, 15), (16, 31)]")
    return tuple(map(_range, boundaries or ()))


def _range(pair: object) -> LayerRange:
    match pair:
        case LayerRange():
            return pair
        case (int(first), int(last)) if 0 <= first <= last:
            return LayerRange(first, last + 1)
    raise BadPlan(
        "custom_boundaries: {pair} is neither a first and a last layer, as (0, 15), nor a LayerRange", pair=repr(pair)
    )


def _parts(ratio: Sequence[float] | str | None) -> tuple[float, ...]:
    if ratio is None:
        return ()
    with suppress(TypeError, ValueError):
        parts = tuple(float(part) for part in (ratio.split(":") if isinstance(ratio, str) else ratio))
        if parts and all(isfinite(part) and part > 0 for part in parts):
            return parts
    raise BadPlan("ratio {ratio} is not numbers above 0, one per partition, as [3, 1] or '3:1'", ratio=repr(ratio))
