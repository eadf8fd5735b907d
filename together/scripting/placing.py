"""Places partitions on the devices of this machine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from together.cluster.identity import machine_id, node_name
from together.cluster.local import shared_memory
from together.cluster.profiling import Profiler, default_backend, find_devices
from together.cluster_types import UNKNOWN_PROFILE, Device, DeviceProfile, MeasureOrder, Placement
from together.errors import BadPlan, NotEnoughMemory
from together.head.model import ModelHandle, sizings
from together.head.plan import NEED_SPEEDS
from together.planning.memory import cache_tokens, model_size, stage_memory, workspace_bytes
from together.planning.problem import NodeProfile, Problem, Sizing, Split
from together.planning.report import PlanReport, missing_text
from together.planning.request import PlanRequest, plan_for
from together.settings import Settings, parse_bytes
from together.types import Dtype, LayerRange
from together.wording import layers_text, size_text, sizes_text

MEMORY = "memory"  # the pool of everything that lives in this machine's main memory
UNIFIED = ("mps", "gpu")  # Apple's GPU, in torch's and MLX's words: it shares the CPU's memory
ALSO = {"cuda": "cuda:0", "mps": "gpu", "gpu": "mps"}  # other words for a device, where its own is not there


def pool_of(place: Placement) -> str:
    """Placements of one pool share its memory."""
    return MEMORY if place.device.name in ("cpu", *UNIFIED) else place.device.name


async def take_seats(names: Sequence[str], partitions: int, settings: Settings) -> tuple[Placement, ...]:
    """One per named device, in this order; without names this machine's own choice, `partitions` of them or all.

    Raises BadPlan for a device that is not here.
    """
    settings.home_path.mkdir(parents=True, exist_ok=True)
    backend = settings.backend or await asyncio.to_thread(default_backend)
    found = await find_devices(backend, settings.home_path)
    return choose_seats(names, partitions, found)


def choose_seats(names: Sequence[str], partitions: int, found: Sequence[Device]) -> tuple[Placement, ...]:
    """As `take_seats`, among the devices that were found. A device that has several seats numbers them."""
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
    names = ", ".join(device.name for device in found)
    raise BadPlan(f"target_devices: there is no device {name!r} here for {found[0].backend}; choose among {names}")


def _own_choice(found: Sequence[Device], partitions: int) -> list[Device]:
    """The best ones, several times where there are not enough; the CPU not beside a GPU with the same memory."""
    unified = any(device.name in UNIFIED for device in found)
    useful = [device for device in found if not (unified and device.name == "cpu")]
    return [useful[index % len(useful)] for index in range(partitions or len(useful))]


async def measure_seats(
    seats: Sequence[Placement], opened: ModelHandle, settings: Settings
) -> dict[str, DeviceProfile]:
    """What each seat's device does at the model's shape, by the seat's name; seconds where it is not known yet."""
    devices = {seat.device.name: seat.device for seat in seats}
    machine = await asyncio.to_thread(machine_id, settings.home_path)
    profiler = Profiler(node_name(settings), machine, settings.home_path, tuple(devices.values()))
    profiles = {}
    for device in devices.values():
        order = MeasureOrder(device.backend, device.name, opened.dtype, opened.config)
        profiles[device.name] = await profiler.measure(order)
    return {seat.name: profiles[seat.device.name] for seat in seats}


LOOPBACK_MS = 0.3  # one way between two processes here: `launch.py bench hop`


@dataclass(frozen=True, slots=True)
class PartitionRequest:
    """A strategy without a model: `partitions` 0 is one per device, no `devices` is this machine's own choice."""

    request: PlanRequest
    partitions: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Partition:
    """One stage process to be: its device, its layers (half-open), and the bytes it may take."""

    backend: str
    device: str
    layers: LayerRange
    memory_bytes: int

    def __str__(self) -> str:
        return f"layers {layers_text(self.layers)} on {self.device} ({self.backend}), {size_text(self.memory_bytes)}"


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """A split that fits, what it was sized for, and why it is so, in sentences."""

    model: str
    partitions: tuple[Partition, ...]
    context: int
    users: int
    dtype: Dtype
    why: tuple[str, ...]

    @property
    def ranges(self) -> tuple[LayerRange, ...]:
        return tuple(partition.layers for partition in self.partitions)

    def __str__(self) -> str:
        lines = [f"partition {index}: {partition}" for index, partition in enumerate(self.partitions)]
        return "\n".join([f"{self.model} in {self.dtype}, context {self.context}, users {self.users}", *lines])


async def place(opened: ModelHandle, wanted: PartitionRequest, settings: Settings) -> PartitionPlan:
    """The split of a model by a strategy, for the first sizing that fits. Raises BadInput or NotEnoughMemory."""
    layers = opened.spec.layers
    if wanted.partitions > layers:
        raise BadPlan(
            f"{opened.ref.name} has {layers} layers, too few for {wanted.partitions} partitions; ask for less"
        )
    seats = await take_seats(wanted.devices, wanted.partitions, settings)
    profiles = {seat.name: UNKNOWN_PROFILE for seat in seats}
    if wanted.request.strategy in NEED_SPEEDS and len(seats) > 1:
        profiles = await measure_seats(seats, opened, settings)
    refused = ""
    for sizing in sizings(opened, wanted.request, settings):
        found = await asyncio.to_thread(split_seats, opened, wanted, sizing, seats, profiles, settings)
        if isinstance(found, PartitionPlan):
            return found
        refused = refused or found
    raise NotEnoughMemory(refused)


def split_seats(
    opened: ModelHandle,
    wanted: PartitionRequest,
    sizing: Sizing,
    seats: Sequence[Placement],
    profiles: Mapping[str, DeviceProfile],
    settings: Settings,
) -> PartitionPlan | str:
    """A plan for one sizing, or the sentence of what is missing. Raises BadPlan."""
    pools = {pool_of(seat): _pool_bytes(seat, settings) for seat in seats}
    problem = _problem(opened, wanted, sizing, seats, profiles, pools)
    answer = plan_for(replace(wanted.request, users=None, context=None), problem)
    if not isinstance(answer, PlanReport):
        return missing_text(answer)
    over = _overfull(answer.split, problem, seats, pools) or _incomplete(answer.split, wanted, seats)
    return over or _plan(opened, sizing, seats, answer)


def _pool_bytes(seat: Placement, settings: Settings) -> int:
    if pool_of(seat) != MEMORY:
        return seat.device.free_bytes
    return parse_bytes(settings.memory) if settings.memory else shared_memory(1)


def _problem(
    opened: ModelHandle,
    wanted: PartitionRequest,
    sizing: Sizing,
    seats: Sequence[Placement],
    profiles: Mapping[str, DeviceProfile],
    pools: Mapping[str, int],
) -> Problem:
    """Rules that weigh memory see equal parts of a shared pool; for others its sum is looked at afterwards."""
    weighs = wanted.request.strategy in ("memory", *NEED_SPEEDS)
    parts = Counter(pool_of(seat) for seat in seats)
    workspace = workspace_bytes(opened.spec)
    nodes = tuple(
        NodeProfile.of(
            seat.name,
            profiles[seat.name],
            pools[pool_of(seat)] / (parts[pool_of(seat)] if weighs else 1),
            workspace,
        )
        for seat in seats
    )
    size = model_size(opened.spec, sizing.dtype)
    context = cache_tokens(sizing.context, 1)
    return Problem(size, nodes, hop_ms=LOOPBACK_MS, users=sizing.users, context=context)


def _overfull(split: Split, problem: Problem, seats: Sequence[Placement], pools: Mapping[str, int]) -> str:
    """The sentence for a memory that cannot hold all partitions in it; empty where there is none."""
    pools_of = {seat.name: pool_of(seat) for seat in seats}
    needs: Counter[str] = Counter()
    for share in split.shares:
        need = problem.stage_bytes(share.layers) + problem.node(share.node).reserve_bytes
        needs[pools_of[share.node]] += int(need)
    for pool, need in needs.items():
        if need > pools[pool]:
            where = "this machine's memory" if pool == MEMORY else pool
            needed, have = sizes_text(need, pools[pool])
            return (
                f"the partitions in {where} need {needed} together with a context of {problem.context}, "
                f"they may use {have}; lower context or users, or give them fewer layers"
            )
    return ""


def _incomplete(split: Split, wanted: PartitionRequest, seats: Sequence[Placement]) -> str:
    """Equal parts are asked for by number: who holds nothing is said, not left out."""
    empty = [seat.name for seat in seats if seat.name not in split.nodes]
    if wanted.request.strategy != "uniform" or not empty:
        return ""
    return f"{' and '.join(empty)} cannot hold a single layer; free memory there, or ask for fewer partitions"


def _plan(opened: ModelHandle, sizing: Sizing, seats: Sequence[Placement], answer: PlanReport) -> PartitionPlan:
    by_name = {seat.name: seat.device for seat in seats}
    partitions = []
    for share in answer.split.shares:
        memory = stage_memory(opened.spec, share.layers, sizing.dtype, sizing.context, sizing.users)
        device = by_name[share.node]
        partitions.append(Partition(device.backend, device.name, share.layers, memory))
    return PartitionPlan(
        opened.ref.name, tuple(partitions), sizing.context, sizing.users, sizing.dtype, tuple(answer.why)
    )
