"""The living cluster as a planner's problem: measured devices and links, free memory, and where the layers may go.

Nodes measure themselves and keep what they measured; links are timed by real messages and kept here for a while.
"""

from __future__ import annotations

import asyncio
import logging
import math
import shlex
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import combinations

from together.cluster.membership import Membership
from together.cluster.profiling import measure_link
from together.cluster.promises import Promises
from together.cluster_types import (
    UNKNOWN_PROFILE,
    Device,
    DeviceProfile,
    HeadCost,
    LinkOrder,
    LinkSpeed,
    MeasureOrder,
    NodeState,
    NodeStatus,
)
from together.errors import BadPlan, NotServing, TogetherError, Unreachable
from together.models.spec import ModelSpec
from together.planning.memory import cache_tokens, model_size, process_bytes, quantized_sizes, workspace_bytes
from together.planning.problem import Link, NodeProfile, Problem, Sizing
from together.ring import rpc
from together.sentences import Sentence, say
from together.types import DTYPE_BYTES, Dtype, StagePlan
from together.view import MemoryLimit
from together.wording import MOST, cut

log = logging.getLogger(__name__)

THIS_MACHINE = "this machine"  # the head in plans, where no node runs on its machine
MEASURE_WITHIN = 300.0  # seconds; nodes of one machine measure one after another
HURRY = 1.5  # seconds; what was measured before is answered at once
REACH_WITHIN = 30.0
LINK_LIFE = 600.0  # seconds that a link's speed is believed
CUT_LIFE = 60.0  # seconds that a link which was found cut is not tried again
LESS_MEMORY = 0.9  # how much plans use of what a device ran out of memory with
SHORTAGE_LIFE = 600.0  # seconds; what took the memory then, another program perhaps, may be gone


class Speeds(Enum):
    """Where a survey takes the speeds of devices and links from."""

    MEASURE = "measure"  # wait for nodes that have to measure first
    KNOWN = "known"  # what a node said last, else what it says at once, else the slowest of the others
    NONE = "none"  # measure nothing: all speeds are 0 and all hops free

    @property
    def at_once(self) -> Speeds:
        """The same for a ring that waits for its new plan."""
        return Speeds.KNOWN if self is Speeds.MEASURE else self


@dataclass(frozen=True, slots=True)
class Placement:
    """A device that layers can be placed on, under the name that plans call it by."""

    name: str
    device: Device
    node: str = ""  # node id; empty in a program that runs its partitions without nodes
    machine: str = ""  # the node's


@dataclass(frozen=True, slots=True)
class Survey:
    """A problem of the living nodes, the placements that its names stand for, and why others are not in it."""

    problem: Problem
    placements: dict[str, Placement]
    skipped: tuple[Sentence, ...] = ()


@dataclass(frozen=True, slots=True)
class _Shortage:
    """A stage of `asked` bytes ran out of memory, at event loop time `at`; plans use `usable` bytes from then on."""

    node: str  # its name
    run: str  # of the node
    asked: int
    usable: int
    cause: str | Sentence
    at: float

    @property
    def seconds(self) -> float:
        """Until it no longer counts."""
        return max(self.at + SHORTAGE_LIFE - _now(), 0.0)

    def shown(self, node: str, device: str) -> MemoryLimit:
        text = say(
            "memory_limit",
            node=self.node,
            sizes=(self.asked, self.usable),
            device=device,
            cause=self.cause,
            minutes=math.ceil(self.seconds / 60),
            quoted=shlex.quote(self.node),
        )
        return MemoryLimit(node, self.node, device, self.usable, self.seconds, text)


@dataclass(slots=True)
class MemoryShortages:
    """Devices that ran out of memory, by (node id, device): plans use less of them.

    One ends after SHORTAGE_LIFE, when its node starts again, or by `forget`.
    """

    membership: Membership
    _held: dict[tuple[str, str], _Shortage] = field(default_factory=dict)

    def learn(self, stage: StagePlan, cause: str | Sentence) -> bool:
        """A stage ran out of memory. Returns whether plans use less of its device than before."""
        self._expire()
        place, node = (stage.node, f"{stage.backend}/{stage.device}"), self.membership.status(stage.node)
        usable, known = int(stage.memory_bytes * LESS_MEMORY), self._held.get(place)
        name, run = (node.name, node.run) if node else (stage.node, "")
        least = min(usable, known.usable) if known else usable
        self._held[place] = _Shortage(name, run, stage.memory_bytes, least, cause, _now())
        self.membership.changed.notify()
        return known is None or least < known.usable

    def usable(self, node: str, device: str) -> float:
        """The most bytes of a device that plans may use; infinity where it never ran out."""
        self._expire()
        found = self._held.get((node, device))
        return math.inf if found is None else found.usable

    def forget(self, name: str) -> None:
        """All of a node, by name or id. Raises BadPlan where it has none."""
        self._expire()
        gone = [place for place, found in self._held.items() if name in (found.node, place[0])]
        if not gone:
            known = tuple(sorted({found.node for found in self._held.values()}))
            if name not in {given for node in self.membership.living() for given in (node.name, node.id)}:
                names = tuple(sorted({*known, *(node.name for node in self.membership.living())}))
                raise BadPlan("there is no node {name}; there are: {names}", name=cut(name, MOST), names=names)
            if not known:
                raise BadPlan("plans use all memory of every node already; there is nothing to forget")
            raise BadPlan("plans use all memory of {name} already; they use less of {known}", name=name, known=known)
        for place in gone:
            del self._held[place]
        self.membership.changed.notify()

    def shown(self) -> tuple[MemoryLimit, ...]:
        self._expire()
        return tuple(found.shown(*place) for place, found in sorted(self._held.items(), key=lambda item: item[0]))

    def _expire(self) -> None:
        for place, found in list(self._held.items()):
            status = self.membership.status(place[0])
            if (status is not None and status.run != found.run) or found.seconds == 0:
                del self._held[place]
            elif status is not None:
                self._held[place] = replace(found, node=status.name)  # as it is called now


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(slots=True)
class Surveyor:
    """Asks the nodes; one per head. `machine` is the head's own, and `own_cost` says, or measures, what it adds."""

    membership: Membership
    machine: str
    own_cost: Callable[[bool], Awaitable[HeadCost]] | None = None
    shortages: MemoryShortages = field(init=False)
    drained: set[str] = field(default_factory=set)  # ids of nodes that get no layers
    promises: Promises = field(default_factory=Promises)
    links: dict[tuple[str, str, int], tuple[float, LinkSpeed | None]] = field(default_factory=dict)  # and when
    _cuts: dict[frozenset[str], float] = field(default_factory=dict)  # pairs of node ids → event loop time
    _known: dict[tuple[str, MeasureOrder], DeviceProfile] = field(default_factory=dict)  # by node id, its last answers

    def __post_init__(self) -> None:
        self.shortages = MemoryShortages(self.membership)

    async def survey(
        self, spec: ModelSpec, config: bytes, sizing: Sizing, speeds: Speeds, placements: Sequence[Placement]
    ) -> Survey:
        """The problem of loading the model onto those placements now; `config` is its config.json.

        Raises NotServing where there is no placement.
        """
        if not placements:
            raise NotServing("there is no node to take the layers; start one with: python3 launch.py node")
        if speeds is Speeds.NONE:
            problem = self._problem(spec, sizing, dict.fromkeys(placements, UNKNOWN_PROFILE))
            return Survey(replace(problem, hop_ms=0.0), _by_name(placements))
        order = MeasureOrder("", "", sizing.dtype, config, spec.packed_as(exact=sizing.exact))
        answers = await self._profiles(order, placements, speeds)
        profiles = {place: answer for place, answer in answers.items() if isinstance(answer, DeviceProfile)}
        if speeds is Speeds.KNOWN:
            slowest = max(profiles.values(), key=lambda profile: profile.ms_per_layer, default=UNKNOWN_PROFILE)
            profiles = {place: profiles.get(place, slowest) for place in placements}
        skipped = tuple(
            say("left_out", node=place.name, why=answer.sentence)
            for place, answer in answers.items()
            if isinstance(answer, TogetherError) and place not in profiles
        )
        if not profiles:
            raise NotServing(say("all", sentences=skipped))
        problem = await self._with_own_cost(self._problem(spec, sizing, profiles), speeds)
        size, life = spec.state_width * DTYPE_BYTES[sizing.dtype], math.inf if speeds is Speeds.KNOWN else LINK_LIFE
        links = await self._all_links(list(profiles), size, life)
        return Survey(replace(problem, links=links), _by_name(profiles), skipped)

    def placements(self, without: Collection[str] = ()) -> list[Placement]:
        """Every device of every node that takes layers, this machine's first, then by name; names are unique.

        A node's best device comes first. `without`: ids of nodes that are left out as if they were drained.
        """
        living = (node for node in self.membership.living() if node.id not in without)
        nodes = [node for node in living if node.devices and not self._leaves(node)]
        nodes.sort(key=lambda node: (node.machine != self.machine, node.name, node.id))
        found = []
        for node in nodes:
            devices = _separate(node.devices)
            for device in devices:
                name = node.name if len(devices) == 1 else f"{node.name}/{device.name}"
                found.append(Placement(name, self.promises.left(node, device), node.id, node.machine))
        return found

    def reclaimed(self, placements: Iterable[Placement], kept: Collection[str] = ()) -> list[Placement]:
        """The same for a plan that replaces all rings of this head but `kept`: memory of its stages counts as free."""
        return [
            replace(place, device=replace(place.device, free_bytes=place.device.free_bytes + self._held(place, kept)))
            for place in placements
        ]

    def _held(self, place: Placement, kept: Collection[str]) -> int:
        node = self.membership.status(place.node)
        mine = [stage for stage in (node.stages if node else ()) if stage.head == self.membership.head]
        return sum(stage.memory_bytes for stage in mine if stage.device == place.device.key and stage.ring not in kept)

    def _leaves(self, node: NodeStatus) -> bool:
        return node.state is NodeState.DRAINING or node.id in self.drained

    # --- the problem --------------------------------------------------------------------------------------------------

    def _problem(self, spec: ModelSpec, sizing: Sizing, profiles: dict[Placement, DeviceProfile]) -> Problem:
        own = next((place.name for place in profiles if place.machine == self.machine), None)
        fixed = workspace_bytes(spec)
        nodes = [
            replace(
                NodeProfile.of(place.name, profile, self._usable(place), fixed, process_bytes(place.device.backend)),
                processor=processor,
                size=model_size(spec, sizing.dtype, place.device.backend) if spec.packings else None,
            )
            for (place, profile), processor in zip(profiles.items(), _processors(list(profiles)), strict=True)
        ]
        if own is None:
            nodes.append(NodeProfile(THIS_MACHINE, 0.0, max_layers=0))
        return Problem(
            model=model_size(spec, sizing.dtype),
            nodes=tuple(nodes),
            head=own or THIS_MACHINE,
            users=sizing.users,
            context=cache_tokens(sizing.context, 1),
            smaller=quantized_sizes(spec, sizing.dtype, {place.device.backend for place in profiles}),
        )

    def _usable(self, place: Placement) -> float:
        return min(place.device.free_bytes, self.shortages.usable(place.node, place.device.key))

    async def measured(
        self, config: bytes, dtype: Dtype, size: int
    ) -> tuple[dict[Placement, DeviceProfile], tuple[Link, ...]]:
        """Every device of the living nodes, measured at the shape of that config.json; without those that cannot be.

        Links between these by messages of `size` bytes.
        """
        placements = self.reclaimed(self.placements())
        answers = await self._profiles(MeasureOrder("", "", dtype, config), placements, Speeds.MEASURE)
        found = {place: answer for place, answer in answers.items() if isinstance(answer, DeviceProfile)}
        return found, await self._all_links(list(found), size, LINK_LIFE)

    async def _with_own_cost(self, problem: Problem, speeds: Speeds) -> Problem:
        own = await self.own_cost(speeds is Speeds.MEASURE) if self.own_cost else HeadCost()
        return replace(problem, head_step_ms=own.step_ms, head_row_ms=own.row_ms)

    # --- what is measured ---------------------------------------------------------------------------------------------

    async def _profiles(
        self, shape: MeasureOrder, placements: Sequence[Placement], speeds: Speeds
    ) -> dict[Placement, DeviceProfile | TogetherError]:
        """By the device of each placement, whatever device `shape` names."""

        async def one(place: Placement) -> DeviceProfile | TogetherError:
            order = replace(shape, backend=place.device.backend, device=place.device.name)
            if speeds is Speeds.KNOWN and (last := self._known.get((place.node, order))):
                return last
            within = HURRY if speeds is Speeds.KNOWN else MEASURE_WITHIN
            try:
                found: DeviceProfile = await self.membership.call(place.node, rpc.MEASURE, order, timeout=within)
            except TogetherError as error:
                log.warning("%s was not measured: %s", place.name, error)
                return error
            self._known[place.node, order] = found
            return found

        answers = await asyncio.gather(*(one(place) for place in placements))
        return dict(zip(placements, answers, strict=True))

    async def _all_links(self, placements: list[Placement], size: int, life: float) -> tuple[Link, ...]:
        """Every pair; a pair of two devices of one node is that node's way to itself."""
        pairs = list(combinations(placements, 2))
        hops = await asyncio.gather(*(self._hop(a.node, b.node, size, life) for a, b in pairs))
        links = [Link(a.name, b.name, hop) for (a, b), hop in zip(pairs, hops, strict=True)]
        if not any(place.machine == self.machine for place in placements):
            hops = await asyncio.gather(*(self._hop(THIS_MACHINE, place.node, size, life) for place in placements))
            links += [Link(THIS_MACHINE, place.name, hop) for place, hop in zip(placements, hops, strict=True)]
        return tuple(links)

    async def _hop(self, node: str, other: str, size: int, life: float) -> float | None:
        """Milliseconds for `size` bytes from one node (or THIS_MACHINE) to another; None: they do not reach each other.

        A known speed is believed for `life` seconds, but not for longer than usual that there is none.
        """
        if self.is_cut(node, other):
            return None
        now, key = _now(), (node, other, size)
        known = self.links.get(key)
        if known is None or now - known[0] > (LINK_LIFE if known[1] is None else life):
            try:
                known = (now, await self._measured_link(node, other, size))
            except TogetherError as error:
                log.warning("a link was not measured: %s", error)
                known = (now, None)
            self.links[key] = known
        return known[1].hop_ms if known[1] is not None else None

    async def _measured_link(self, node: str, other: str, size: int) -> LinkSpeed:
        target = self.membership.status(other)
        if target is None:
            raise Unreachable("node {name} is not there any more", name=other)
        if node == THIS_MACHINE:
            address = self.membership.address(other)
            way = replace(target.endpoint, addresses=(address,))
            return await measure_link(LinkOrder(way, size), self.membership.credentials)
        order = LinkOrder(target.endpoint, size)
        speed: LinkSpeed = await self.membership.call(node, rpc.REACH, order, timeout=REACH_WITHIN)
        return speed

    def cut(self, node: str, other: str) -> None:
        """The two (ids; THIS_MACHINE for this head) do not reach each other."""
        self._cuts[frozenset((node, other))] = _now()
        self.forget_links(node)

    def is_cut(self, node: str, other: str) -> bool:
        """Whether the two did not reach each other a moment ago; after a while they may be tried again."""
        at = self._cuts.get(frozenset((node, other)))
        return at is not None and _now() - at < CUT_LIFE

    def moved(self, node: str) -> None:
        """A node (its id; THIS_MACHINE for this head) has other addresses: its links are measured and tried again."""
        self.forget_links(node)
        self._cuts = {pair: at for pair, at in self._cuts.items() if node not in pair}

    def forget_links(self, node: str) -> None:
        """Measure the links to and from a node again when they are needed next."""
        self.links = {key: speed for key, speed in self.links.items() if node not in key[:2]}


def best_of_each(placements: Iterable[Placement]) -> list[Placement]:
    """Each node's best device: a rule that ignores speeds would give a GPU's machine half of its layers on the CPU."""
    best: dict[str, Placement] = {}
    for place in placements:
        best.setdefault(place.node, place)
    return list(best.values())


def _by_name(placements: Iterable[Placement]) -> dict[str, Placement]:
    return {place.name: place for place in placements}


def _processors(placements: list[Placement]) -> list[str]:
    """What each placement's stages share with other nodes of its machine, by its first one's name; empty: nothing."""
    shared = [(place.machine, place.device.name) for place in placements]
    return [placements[shared.index(key)].name if shared.count(key) > 1 else "" for key in shared]


def _separate(devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """Devices with memory of their own: the CPU of a machine with Apple's GPU would count the same memory again."""
    if any(device.name in ("mps", "gpu") for device in devices):
        return tuple(device for device in devices if device.name != "cpu")
    return devices
