"""The living cluster as a planner's problem: measured devices and links, free memory, who is where. Knows no search.

Nodes measure themselves and keep what they measured; links are timed by real messages and kept here for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from itertools import combinations

from together.cluster.beliefs import Beliefs
from together.cluster.membership import Membership
from together.cluster.profiling import measure_link
from together.errors import NotServing, TogetherError
from together.models.spec import ModelSpec
from together.planning.memory import cache_tokens, workspace_bytes
from together.planning.problem import Link, ModelSize, NodeProfile, Problem, Sizing
from together.ring import rpc
from together.types import (
    DTYPE_BYTES,
    Device,
    DeviceProfile,
    Dtype,
    Endpoint,
    LinkOrder,
    LinkSpeed,
    MeasureOrder,
    NodeState,
    NodeStatus,
)

log = logging.getLogger(__name__)

HEAD = "this machine"  # in plans, where the head runs no node of its own
MEASURE_WITHIN = 300.0  # seconds; nodes of one machine measure one after another
HURRY = 1.5  # seconds; what was measured before is answered at once
REACH_WITHIN = 30.0
LINK_LIFE = 600.0  # seconds that a link's speed is believed
CUT_LIFE = 60.0  # seconds that a link which was found cut is not tried again
UNKNOWN = DeviceProfile(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)  # for splits that speed does not matter for


@dataclass(frozen=True, slots=True)
class Site:
    """Where a planner's entry is: one device of one node."""

    name: str
    node: NodeStatus
    device: Device


@dataclass(frozen=True, slots=True)
class Survey:
    """A problem of the living nodes, what its names stand for, and who is not in it, with the reason."""

    problem: Problem
    sites: dict[str, Site]
    skipped: tuple[str, ...] = ()


@dataclass(slots=True)
class Surveyor:
    """Asks the nodes; one per head. `machine` is the head's own."""

    membership: Membership
    machine: str
    beliefs: Beliefs = field(init=False)  # which devices ran out of memory
    drained: set[str] = field(default_factory=set)  # ids of nodes that get no layers
    _links: dict[tuple[str, str, int], tuple[float, LinkSpeed | None]] = field(default_factory=dict)
    _cuts: dict[frozenset[str], float] = field(default_factory=dict)  # pairs of node ids → event loop time
    _known: dict[tuple[str, MeasureOrder], DeviceProfile] = field(default_factory=dict)  # by node id, its last answers

    def __post_init__(self) -> None:
        self.beliefs = Beliefs(self.membership)

    async def survey(
        self,
        spec: ModelSpec,
        config: bytes,
        sizing: Sizing,
        *,
        measured: bool,
        all_devices: bool = False,
        hurry: bool = False,
        reclaim: bool = True,
    ) -> Survey:
        """The problem of loading the model now. Without `measured` nothing is timed: all speeds are 0, all hops free.

        In a `hurry` who cannot say its speed at once has the one it said last, or counts as slow. Without `reclaim`
        what this head's ring holds counts as taken.

        Without `all_devices` a node is its best device alone: a rule that knows no speeds would give a GPU's machine
        half of its layers on the CPU. Raises NotServing without a node.
        """
        sites = self._sites(all_devices=all_devices)
        if not sites:
            raise NotServing("there is no node to take the layers; start one with: python3 launch.py node")
        if not measured:
            profiles: dict[str, DeviceProfile | TogetherError] = {site.name: UNKNOWN for site in sites}
            problem = replace(self._problem(spec, sizing, sites, profiles, reclaim=reclaim), hop_ms=0.0)
            return Survey(problem, {site.name: site for site in sites})
        profiles = await self._profiles(config, sizing.dtype, sites, hurry)
        if hurry:
            profiles = _with_slow_ones(profiles)
        useful = [site for site in sites if isinstance(profiles[site.name], DeviceProfile)]
        skipped = tuple(f"{name} left out: {why}" for name, why in profiles.items() if isinstance(why, TogetherError))
        if not useful:
            raise NotServing("; ".join(skipped))
        problem = self._problem(spec, sizing, useful, profiles, reclaim=reclaim)
        size = spec.hidden_size * DTYPE_BYTES[sizing.dtype]
        links = await self._all_links(useful, size)
        return Survey(replace(problem, links=links), {site.name: site for site in useful}, skipped)

    @property
    def choices(self) -> int:
        """How many places could take layers: with one there is nothing to choose, and nothing to measure."""
        return len(self._sites(all_devices=True))

    @property
    def places(self) -> dict[tuple[str, str, str], str]:
        """What plans call a place now: (node id, backend, device) → name."""
        sites = self._sites(all_devices=True)
        return {(site.node.id, site.device.backend, site.device.name): site.name for site in sites}

    def _sites(self, *, all_devices: bool) -> list[Site]:
        """This machine's nodes first, then by name; every name is its own."""
        nodes = [node for node in self.membership.living() if node.devices and not self._leaves(node)]
        nodes.sort(key=lambda node: (node.machine != self.machine, node.name, node.id))
        names = [node.name for node in nodes]
        sites = []
        for node in nodes:
            title = node.name if names.count(node.name) == 1 else f"{node.name} ({node.id[:4]})"
            devices = _separate(node.devices)
            for device in devices if all_devices else devices[:1]:
                name = title if len(devices) == 1 else f"{title}/{device.name}"
                sites.append(Site(name, node, device))
        return sites

    def _leaves(self, node: NodeStatus) -> bool:
        return node.state is NodeState.DRAINING or node.id in self.drained

    # --- the problem --------------------------------------------------------------------------------------------------

    def _problem(
        self,
        spec: ModelSpec,
        sizing: Sizing,
        sites: list[Site],
        profiles: dict[str, DeviceProfile | TogetherError],
        *,
        reclaim: bool,
    ) -> Problem:
        own = next((site.name for site in sites if site.node.machine == self.machine), None)
        nodes = [self._node(site, profiles[site.name], workspace_bytes(spec), reclaim) for site in sites]
        nodes = [replace(node, processor=name) for node, name in zip(nodes, _processors(sites), strict=True)]
        if own is None:
            nodes.append(NodeProfile(HEAD, 0.0, max_layers=0))
        return Problem(
            model=model_size(spec, sizing.dtype),
            nodes=tuple(nodes),
            head=own or HEAD,
            users=sizing.users,
            context=cache_tokens(sizing.context, 1),
        )

    def _node(self, site: Site, profile: DeviceProfile | TogetherError, workspace: int, reclaim: bool) -> NodeProfile:
        assert isinstance(profile, DeviceProfile)
        held = (
            stage.memory_bytes
            for stage in site.node.stages
            if reclaim and stage.head == self.membership.head and stage.device == site.device.key
        )
        usable: float = site.device.free_bytes + sum(held)  # what this head's ring holds it can give back
        usable = min(usable, self.beliefs.usable(site.node, site.device.key))
        return NodeProfile(
            site.name,
            profile.ms_per_layer,
            profile.ms_per_stage,
            ms_per_head=profile.ms_per_head,
            free_bytes=usable,
            reserve_bytes=workspace + profile.overhead_bytes,
        )

    # --- what is measured ---------------------------------------------------------------------------------------------

    async def _profiles(
        self, config: bytes, dtype: Dtype, sites: list[Site], hurry: bool
    ) -> dict[str, DeviceProfile | TogetherError]:
        async def one(site: Site) -> DeviceProfile | TogetherError:
            order = MeasureOrder(site.device.backend, site.device.name, dtype, config)
            try:
                found: DeviceProfile = await self.membership.call(
                    site.node.id, rpc.MEASURE_CALL, order, timeout=HURRY if hurry else MEASURE_WITHIN
                )
            except TogetherError as error:
                log.warning("%s was not measured: %s", site.name, error)
                return (self._known.get((site.node.id, order)) if hurry else None) or error
            self._known[site.node.id, order] = found
            return found

        answers = await asyncio.gather(*(one(site) for site in sites))
        return {site.name: answer for site, answer in zip(sites, answers, strict=True)}

    async def _all_links(self, sites: list[Site], size: int) -> tuple[Link, ...]:
        """Every pair; a pair of two devices of one node is that node's way to itself."""
        pairs = list(combinations(sites, 2))
        speeds = await asyncio.gather(*(self._link(a.node, b.node, size) for a, b in pairs))
        links = [Link(a.name, b.name, _hop(speed)) for (a, b), speed in zip(pairs, speeds, strict=True)]
        if not any(site.node.machine == self.machine for site in sites):
            ways = await asyncio.gather(*(self._own_link(site.node, size) for site in sites))
            links += [Link(HEAD, site.name, _hop(way)) for site, way in zip(sites, ways, strict=True)]
        return tuple(links)

    async def _link(self, a: NodeStatus, b: NodeStatus, size: int) -> LinkSpeed | None:
        """None: the two cannot reach each other."""

        async def ask() -> LinkSpeed:
            speed: LinkSpeed = await self.membership.call(
                a.id, rpc.REACH_CALL, LinkOrder(b.endpoint, size), timeout=REACH_WITHIN
            )
            return speed

        return None if self.is_cut(a.id, b.id) else await self._kept((a.id, b.id, size), ask)

    async def _own_link(self, node: NodeStatus, size: int) -> LinkSpeed | None:
        if self.is_cut(HEAD, node.id):
            return None
        address = self.membership.address(node.id)
        target = Endpoint((address,), node.endpoint.port)
        return await self._kept((HEAD, node.id, size), lambda: measure_link(LinkOrder(target, size)))

    def cut(self, node: str, other: str) -> None:
        """The two (ids; HEAD for this head) were found not to reach each other."""
        self._cuts[frozenset((node, other))] = asyncio.get_running_loop().time()
        self.forget_links(node)

    def is_cut(self, node: str, other: str) -> bool:
        """Whether that was found a moment ago; after a while it is worth another try."""
        at = self._cuts.get(frozenset((node, other)))
        return at is not None and asyncio.get_running_loop().time() - at < CUT_LIFE

    def moved(self, node: str) -> None:
        """A node (its id; HEAD for this head) is at other addresses: other links, and none of them was found cut."""
        self.forget_links(node)
        self._cuts = {pair: at for pair, at in self._cuts.items() if node not in pair}

    def forget_links(self, node: str) -> None:
        """What was measured to and from a node is not believed any more."""
        self._links = {key: speed for key, speed in self._links.items() if node not in key[:2]}

    async def _kept(self, key: tuple[str, str, int], ask: Callable[[], Awaitable[LinkSpeed]]) -> LinkSpeed | None:
        now = asyncio.get_running_loop().time()
        known = self._links.get(key)
        if known is None or now - known[0] > LINK_LIFE:
            try:
                known = (now, await ask())
            except TogetherError as error:
                log.warning("a link was not measured: %s", error)
                known = (now, None)
            self._links[key] = known
        return known[1]


def model_size(spec: ModelSpec, dtype: Dtype) -> ModelSize:
    """A model's sizes in `dtype`, as the planner wants them."""
    width = DTYPE_BYTES[dtype]
    tied = spec.embed_params * width if spec.tied else 0
    return ModelSize(
        layer_bytes=tuple(count * width for count in spec.layer_params),
        embed_bytes=spec.embed_params * width,
        head_bytes=(spec.norm_params + spec.head_params) * width + tied,
        kv_bytes_per_token_per_layer=spec.kv_elements_per_token_per_layer * width,
        tied_bytes=tied,
    )


def _processors(sites: list[Site]) -> list[str]:
    """What each site's stages would share with other nodes of its machine, by its first site; empty: nobody has it."""
    places = [(site.node.machine, site.device.name) for site in sites]
    return [sites[places.index(place)].name if places.count(place) > 1 else "" for place in places]


def _with_slow_ones(profiles: dict[str, DeviceProfile | TogetherError]) -> dict[str, DeviceProfile | TogetherError]:
    """Who did not answer is taken for as slow as the slowest: it may be all there is."""
    known = [profile for profile in profiles.values() if isinstance(profile, DeviceProfile)]
    slowest = max(known, key=lambda profile: profile.ms_per_layer, default=UNKNOWN)
    return {name: profile if isinstance(profile, DeviceProfile) else slowest for name, profile in profiles.items()}


def _separate(devices: tuple[Device, ...]) -> tuple[Device, ...]:
    """Devices with memory of their own: beside Apple's GPU the CPU would count the same memory again."""
    if any(device.name in ("mps", "gpu") for device in devices):
        return tuple(device for device in devices if device.name != "cpu")
    return devices


def _hop(speed: LinkSpeed | None) -> float | None:
    return None if speed is None else speed.hop_ms
