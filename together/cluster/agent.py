"""One machine's agent: it grants memory, starts and ends stages, and reports its whole state to heads."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio

from together import __version__
from together.cluster.discovery import Introductions
from together.cluster.identity import Identity
from together.cluster.profiling import Profiler, measure_link
from together.cluster.supervisor import StageProcess
from together.cluster_types import (
    Caller,
    Device,
    Endpoint,
    Holding,
    NodeState,
    NodeStatus,
    RingName,
    StageOrder,
    StageState,
    StageStatus,
)
from together.errors import BadPlan, BadSetting, LoadFailed, NotEnoughMemory, TogetherError
from together.ring import rpc, wire
from together.ring.rpc import Broadcast
from together.ring.stage import Launch
from together.sentences import say
from together.settings import Settings
from together.types import ModelRef
from together.weights.fetch import Fetch
from together.weights.find import StoreService, find_units
from together.weights.part import Progress, Waiting
from together.weights.transfer import Suppliers
from together.wording import layers_text

log = logging.getLogger(__name__)

MOST_HEADS = 16  # that are told where this node is
HEAD_LIFE = 600.0  # seconds that a head which does not answer is still told

StageName = tuple[str, int]  # ring, slot


@dataclass(slots=True)
class MemoryGrants:
    """What each stage was given of each device; `limits` are bytes per device key, fixed when the node starts."""

    node_name: str
    devices: tuple[Device, ...]
    limits: dict[str, int]
    _given: dict[StageName, tuple[str, int]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes of the first device, which plans use."""
        return self.limits[self.devices[0].key]

    def free(self, key: str) -> int:
        return self.limits[key] - sum(size for device, size in self._given.values() if device == key)

    def take(self, order: StageOrder) -> None:
        """Reserve what the order asks for. Raises BadPlan for an unknown device, NotEnoughMemory with both numbers."""
        stage = order.stage
        key = f"{stage.backend}/{stage.device}"
        if key not in self.limits:
            message = "node {name} has no device {device}; it has {known}"
            raise BadPlan(message, name=self.node_name, device=key, known=tuple(self.limits))
        if stage.memory_bytes > self.free(key):
            raise NotEnoughMemory(
                "node {name}: needs {sizes:sizes 0} for layers {layers}, has {sizes:sizes 1} free; lower the context, "
                "give it fewer layers, or unload what it holds",
                name=self.node_name,
                sizes=(stage.memory_bytes, self.free(key)),
                layers=layers_text(stage.layers),
            )
        self._given[order.ring, order.slot] = (key, stage.memory_bytes)

    def give_back(self, name: StageName) -> None:
        self._given.pop(name, None)

    def shown(self) -> tuple[Device, ...]:
        """The devices with the bytes that are free of each now."""
        return tuple(replace(device, free_bytes=self.free(device.key)) for device in self.devices)


@dataclass(slots=True)
class Agent:
    """Serves the Node service; `changed` is notified of every change of the status."""

    settings: Settings
    identity: Identity
    grants: MemoryGrants
    changed: Broadcast = field(default_factory=Broadcast)
    draining: bool = False
    closed: bool = False
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    _stages: dict[StageName, tuple[StageProcess, Suppliers]] = field(default_factory=dict)
    _renewed: dict[str, float] = field(default_factory=dict)  # head → event loop time
    _heads: dict[Endpoint, float] = field(default_factory=dict)  # where heads listen → when they were last heard
    _peers: Introductions = field(init=False)
    _store: StoreService = field(init=False)
    _profiler: Profiler = field(init=False)

    def __post_init__(self) -> None:
        home = self.settings.home_path
        self._peers = Introductions(self.changed)
        self._store = StoreService(home)
        self._profiler = Profiler(self.identity.name, self.identity.machine, home, self.grants.devices)

    def handlers(self) -> dict[str, rpc.Handler]:
        calls: dict[rpc.Unary, Callable[[Any], Awaitable[Any]]] = {
            rpc.LOAD: self.load,
            rpc.UNLOAD: self.unload,
            rpc.RENEW: self.renew,
            rpc.FIND: self.find,
            rpc.MEET: self.meet,
            rpc.MEASURE: self._profiler.measure,
            rpc.REACH: measure_link,
            rpc.ECHO: rpc.echo,
        }
        watch: rpc.Handler = grpc.unary_stream_rpc_method_handler(self._watch)
        return {rpc.WATCH: watch, **rpc.unary(calls), **self._store.handlers()}

    def status(self) -> NodeStatus:
        stages = tuple(stage.status for stage, _ in self._stages.values())
        failed = next((stage for stage in stages if stage.state is StageState.FAILED), None)
        return NodeStatus(
            id=self.identity.id,
            name=self.identity.name,
            machine=self.identity.machine,
            endpoint=self.identity.endpoint,
            protocol=wire.PROTOCOL,
            state=self._state(stages),
            cause=str(say("layers_failed", layers=str(failed.layers), model=failed.model, cause=failed.cause))
            if failed
            else "",
            devices=self.grants.shown(),
            stages=stages,
            ports=self.identity.ports,
            memory_bytes=self.grants.total,
            free_bytes=self.grants.free(self.grants.devices[0].key),
            version=__version__,
            peers=self._peers.current(),
            run=self.run,
        )

    def _state(self, stages: tuple[StageStatus, ...]) -> NodeState:
        """The most urgent state of its stages."""
        if self.draining:
            return NodeState.DRAINING
        states = {stage.state for stage in stages}
        urgent = (state for state in (StageState.FAILED, StageState.LOADING, StageState.READY) if state in states)
        return NodeState(next(urgent, NodeState.IDLE))

    async def load(self, order: StageOrder) -> StageStatus:
        """Grant the memory and answer. In the background the layers are found or fetched, then the stage starts.

        The same order again only says where the model can be fetched from now.
        """
        known = self._stages.get((order.ring, order.slot))
        if known is None:
            return self._start(order).status
        stage, suppliers = known
        suppliers.renew(order.sources)
        return stage.status

    def _start(self, order: StageOrder) -> StageProcess:
        if self.draining:
            raise LoadFailed("node {name} is draining and takes no new layers", name=self.identity.name)
        self.grants.take(order)
        self._touch(order.head)
        first, last = self.identity.ports
        launch = Launch(
            order, "", str(self.settings.home_path), self.identity.name, self.settings.host, (first + 1, last)
        )
        stage = StageProcess(launch, self.identity.endpoint.addresses, self.changed.notify)
        suppliers = Suppliers(order.sources, lambda: self.identity.endpoint)
        self._stages[order.ring, order.slot] = stage, suppliers
        stage.begin(partial(self._prepare, order, suppliers))
        self.changed.notify()
        return stage

    async def _prepare(self, order: StageOrder, suppliers: Suppliers, progress: Progress, waiting: Waiting) -> Path:
        home, name = self.settings.home_path, self.identity.name
        folder = await Fetch(home, name, suppliers, order.model, order.stage.layers, progress, waiting).run()
        self._store.offer(order.model, folder)
        return folder

    async def unload(self, ring: RingName) -> None:
        """End a ring's stages, or those slots, and their processes. Raises BadSetting for another head's ring."""
        names = [name for name in self._stages if name[0] == ring.ring and (not ring.slots or name[1] in ring.slots)]
        if any(self._stages[name][0].status.head != ring.head for name in names):
            message = "ring {ring} on node {name} belongs to another head"
            raise BadSetting(message, ring=ring.ring, name=self.identity.name)
        await self._end(names)

    async def renew(self, caller: Caller) -> None:
        self._check(caller)
        self._touch(caller.head)

    async def find(self, model: ModelRef) -> Holding:
        """What is here of the model; from now on it can be fetched from here."""
        found = await asyncio.to_thread(find_units, model, self.settings.home_path)
        if found.folder is None:
            return Holding()
        self._store.offer(model, found.folder)
        return Holding(str(found.folder), tuple(sorted(found.units)))

    async def meet(self, peer: Endpoint) -> None:
        """Another node introduces itself: heads that watch this one will look for it at that address."""
        self._peers.add(peer, f"node {self.identity.name}")

    def move(self, addresses: tuple[str, ...]) -> None:
        """This machine has other addresses now, and so have its stages."""
        self.identity = replace(self.identity, endpoint=replace(self.identity.endpoint, addresses=addresses))
        for stage, _ in self._stages.values():
            stage.move(addresses)
        self.changed.notify()

    def heads(self) -> tuple[Endpoint, ...]:
        """Where the heads that watched this node listen."""
        return tuple(self._heads)

    def heard(self, heads: Iterable[Endpoint]) -> None:
        """Remember heads that answer; the others are forgotten in time."""
        now = asyncio.get_running_loop().time()
        self._heads |= dict.fromkeys(heads, now)
        latest = sorted(self._heads, key=self._heads.__getitem__)[-MOST_HEADS:]
        self._heads = {head: self._heads[head] for head in latest if self._heads[head] > now - HEAD_LIFE}

    async def keep_leases(self) -> None:
        """End the stages of heads that went silent; runs until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self.settings.heartbeat)
            oldest = clock() - self.settings.lease
            stages = self._stages.items()
            lapsed = [name for name, (s, _) in stages if self._renewed.get(s.status.head, 0.0) < oldest]
            if lapsed:
                log.warning(
                    "the head of %s no longer renews: its layers are freed", sorted({ring for ring, _ in lapsed})
                )
                await self._end(lapsed)
            self._renewed = {head: at for head, at in self._renewed.items() if at >= oldest}

    async def close(self) -> None:
        """End all stages, then every Watch, so that heads see a node that left and not a broken stream."""
        self.draining = True
        await self._end(list(self._stages))
        self.closed = True
        self.changed.notify()

    async def _end(self, names: list[StageName]) -> None:
        await asyncio.gather(*(self._stages[name][0].stop() for name in names))
        for name in names:
            self._stages.pop(name, None)
            self.grants.give_back(name)
        self.changed.notify()

    def _touch(self, head: str) -> None:
        self._renewed[head] = asyncio.get_running_loop().time()

    def _check(self, caller: Caller) -> None:
        if caller.protocol != wire.PROTOCOL:
            raise BadSetting(
                "node {name} speaks protocol {own} and the head {other}; update both to the same version",
                name=self.identity.name,
                own=wire.PROTOCOL,
                other=caller.protocol,
            )
        if caller.cluster != self.settings.cluster:
            message = "node {name} is in cluster {own}, not {other}"
            raise BadSetting(message, name=self.identity.name, own=self.settings.cluster, other=caller.cluster)

    async def _watch(self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        try:
            caller = wire.CALLER.decode(data)
            self._check(caller)
        except TogetherError as error:
            await context.abort(rpc.status_of(error), str(error))
        if caller.endpoint is not None:
            self.heard([caller.endpoint])
        while not self.closed:
            seen = self.changed.version
            yield wire.NODE_STATUS.encode(self.status())
            await self.changed.wait(seen, self.settings.heartbeat)
