"""One machine's agent: it grants memory, starts and ends stages, and reports its whole state to heads."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
from filelock import FileLock

from together.checkout import Release, own_release, own_version
from together.cluster.awake import Awake
from together.cluster.discovery import Introductions
from together.cluster.grants import MemoryGrants, StageName
from together.cluster.identity import PORTS, Identity
from together.cluster.life import LifeGauge
from together.cluster.profiling import Profiler, measure_link
from together.cluster.spare import Spares
from together.cluster.strain import StrainGauge
from together.cluster.supervisor import StageProcess
from together.cluster_types import (
    Caller,
    Endpoint,
    Holding,
    LinkOrder,
    LinkSpeed,
    MachineLife,
    NodeState,
    NodeStatus,
    RingName,
    StageOrder,
    StageState,
    StageStatus,
    Strain,
    address_text,
)
from together.errors import BadSetting, LoadFailed, NotAllowed, TogetherError
from together.ring import rpc, wire
from together.ring.rpc import Broadcast
from together.ring.stage import Launch
from together.sentences import say, template
from together.settings import Settings
from together.trust.credentials import ALONE, Credentials
from together.types import ModelRef
from together.weights.fetch import Fetch
from together.weights.part import Converting, Progress, Waiting
from together.weights.room import CacheRoom, LatelyGone, cache_limit
from together.weights.serve import StoreService
from together.weights.transfer import Suppliers
from together.wording import MOST, cut

log = logging.getLogger(__name__)

MOST_STAGES = PORTS - 1  # each has a port of the node's block
MOST_OF_HEAD = 12  # of these, so that no head takes all of them
MOST_HEADS = 16  # that are told where this node is
SPARE_AFTER = 3  # heartbeats that all stages serve: what is loaded and freed at once needs no spare
SPARE_LIFE = 5  # heartbeats that one stays without stages: a stage that is lost comes back soon
HEAD_LIFE = 600.0  # seconds that a head which does not answer is still told


@dataclass(frozen=True, slots=True)
class Watcher:
    """A head that watches this node, as a person knows it: its machine's name, and where its page is, if anywhere."""

    name: str
    page: str = ""
    release: Release | None = None  # of its program; None: it does not say


@dataclass(slots=True)
class Agent:
    """Serves the Node service; `changed` is notified of every change of the status."""

    settings: Settings
    identity: Identity
    grants: MemoryGrants
    credentials: Credentials = ALONE
    changed: Broadcast = field(default_factory=Broadcast)
    draining: bool = False
    closed: bool = False
    run: str = field(default_factory=lambda: secrets.token_hex(8))
    _stages: dict[StageName, tuple[StageProcess, Suppliers]] = field(default_factory=dict)
    _renewed: dict[str, float] = field(default_factory=dict)  # head → event loop time
    _heads: dict[Endpoint, float] = field(default_factory=dict)  # where heads listen → when they were last heard
    _watchers: list[Watcher] = field(default_factory=list)  # one for each open Watch
    _gauge: StrainGauge = field(default_factory=StrainGauge)
    _strain: Strain = field(default_factory=Strain)
    _lives: LifeGauge = field(default_factory=LifeGauge)
    _life: MachineLife | None = None
    _awake: Awake = field(default_factory=Awake)
    _peers: Introductions = field(init=False)
    _store: StoreService = field(init=False)
    _room: CacheRoom = field(init=False)
    _gone: LatelyGone = field(default_factory=LatelyGone)
    _held: dict[StageName, FileLock] = field(default_factory=dict)  # models of the cache that stages use
    _profiler: Profiler = field(init=False)
    _spares: Spares = field(init=False)
    _settled: float = 0.0  # since when no stage is loaded, in event loop time
    _ran: float = 0.0  # when there was a stage last

    def __post_init__(self) -> None:
        home = self.settings.home_path
        self.grants.pids = lambda: {name: stage.status.pid for name, (stage, _) in self._stages.items()}
        self._spares = Spares(self.grants.free_memory)
        self._peers = Introductions(self.changed)
        self._room = CacheRoom(home, cache_limit(self.settings), self._gone.note)
        self._store = StoreService(home, self._room.convert)
        self._profiler = Profiler(self.identity.name, self.identity.machine, home, self.grants.devices)

    def handlers(self) -> dict[str, rpc.Handler]:
        calls: dict[rpc.Unary, Callable[[Any], Awaitable[Any]]] = {
            rpc.MEASURE: self._profiler.measure,
            rpc.ECHO: rpc.echo,
        }
        of_heads: dict[rpc.Unary, Callable[[Any, rpc.Peer], Awaitable[Any]]] = {
            rpc.LOAD: self.load,
            rpc.UNLOAD: self.unload,
            rpc.RENEW: self.renew,
            rpc.FIND: self.find,
            rpc.MEET: self.meet,
            rpc.REACH: self.reach,
        }
        watch: rpc.Handler = grpc.unary_stream_rpc_method_handler(self._watch)
        return {rpc.WATCH: watch, **rpc.unary(calls), **rpc.unary_by(of_heads), **self._store.handlers()}

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
            version=own_version(),
            made=own_release().made,
            peers=self._peers.current(),
            run=self.run,
            owner=self.settings.owner,
            strain=self._strain,
            let_go=self._gone.shown(),
            life=self._life,
        )

    def _state(self, stages: tuple[StageStatus, ...]) -> NodeState:
        """The most urgent state of its stages."""
        if self.draining:
            return NodeState.DRAINING
        states = {stage.state for stage in stages}
        urgent = (state for state in (StageState.FAILED, StageState.LOADING, StageState.READY) if state in states)
        return NodeState(next(urgent, NodeState.IDLE))

    async def load(self, order: StageOrder, peer: rpc.Peer) -> StageStatus:
        """Grant the memory and answer. In the background the layers are found or fetched, then the stage starts.

        The same order again only says where the model can be fetched from now. Raises NotAllowed for another head's.
        """
        self._require(peer, order.head)
        for source in order.sources:
            peer.require_known(source.endpoint)
        order = replace(order, model=self._as_known_here(order.model, peer))
        name = (order.ring, order.slot)
        if name not in self._stages and self._spares.any and not self.grants.has_room(order):
            await self._spares.close()
        known = self._stages.get(name)
        if known is None:
            return self._start(order).status
        stage, suppliers = known
        self._require(peer, stage.status.head)
        suppliers.renew(order.sources)
        return stage.status

    def _start(self, order: StageOrder) -> StageProcess:
        if self.draining:
            raise LoadFailed("node {name} is draining and takes no new layers", name=self.identity.name)
        own = sum(stage.status.head == order.head for stage, _ in self._stages.values())
        if len(self._stages) >= MOST_STAGES or own >= MOST_OF_HEAD:
            raise LoadFailed(
                "node {name} runs {count} stages, {own} of them this head's, and takes at most {most} and {most_own}; "
                "unload a model",
                name=self.identity.name,
                count=len(self._stages),
                own=own,
                most=MOST_STAGES,
                most_own=MOST_OF_HEAD,
            )
        self.grants.take(order)
        self._touch(order.head)
        first, last = self.identity.ports
        launch = Launch(
            order,
            "",
            str(self.settings.home_path),
            self.identity.name,
            self.settings.host,
            (first + 1, last),
            self.credentials.leaf_if_member(),
        )
        stage = StageProcess(launch, self.identity.endpoint.addresses, self.changed.notify, self._spares.take)
        suppliers = Suppliers(order.sources, lambda: self.identity.endpoint, self.credentials)
        self._stages[order.ring, order.slot] = stage, suppliers
        stage.begin(partial(self._prepare, order, suppliers))
        self.changed.notify()
        return stage

    async def _prepare(
        self, order: StageOrder, suppliers: Suppliers, progress: Progress, waiting: Waiting, converting: Converting
    ) -> Path:
        home, name = self.settings.home_path, self.identity.name
        if (order.ring, order.slot) not in self._held:  # the same order may come again
            self._held[order.ring, order.slot] = await asyncio.to_thread(self._room.hold, order.model.key)
        tell = progress, waiting, converting
        folder = await Fetch(home, name, suppliers, order.model, order.stage.layers, *tell, self._room).run()
        self._store.offer(order.model, folder)
        return folder

    async def unload(self, ring: RingName, peer: rpc.Peer) -> None:
        """End a ring's stages, or those slots, and their processes. Raises BadSetting for another head's ring."""
        self._require(peer, ring.head)
        names = [name for name in self._stages if name[0] == ring.ring and (not ring.slots or name[1] in ring.slots)]
        if any(self._stages[name][0].status.head != ring.head for name in names):
            message = "ring {ring} on node {name} belongs to another head"
            raise BadSetting(message, ring=ring.ring, name=self.identity.name)
        await self._end(names)

    async def renew(self, caller: Caller, peer: rpc.Peer) -> None:
        self._check(caller, peer)
        self._touch(caller.head)

    async def find(self, model: ModelRef, peer: rpc.Peer) -> Holding:
        """What is here of the model; from now on it can be fetched from here."""
        return await asyncio.to_thread(self._store.holds, self._as_known_here(model, peer))

    async def meet(self, node: Endpoint, peer: rpc.Peer) -> None:
        """Another node introduces itself: heads that watch this one will look for it at that address."""
        self._peers.add(node, f"node {self.identity.name}", peer)

    async def reach(self, order: LinkOrder, peer: rpc.Peer) -> LinkSpeed:
        """The link from here to another machine. Raises Unreachable."""
        peer.require_known(order.target)
        return await measure_link(order, self.credentials)

    def move(self, addresses: tuple[str, ...]) -> None:
        """This machine has other addresses now, and so have its stages."""
        self.identity = replace(self.identity, endpoint=replace(self.identity.endpoint, addresses=addresses))
        for stage, _ in self._stages.values():
            stage.move(addresses)
        self.changed.notify()

    def heads(self) -> tuple[Endpoint, ...]:
        """Where the heads that watched this node listen."""
        return tuple(self._heads)

    def watchers(self) -> frozenset[Watcher]:
        """The heads that watch this node now."""
        return frozenset(self._watchers)

    def heard(self, heads: Iterable[Endpoint]) -> None:
        """Remember heads that answer; the others are forgotten in time."""
        now = asyncio.get_running_loop().time()
        self._heads |= dict.fromkeys(heads, now)
        latest = sorted(self._heads, key=self._heads.__getitem__)[-MOST_HEADS:]
        self._heads = {head: self._heads[head] for head in latest if self._heads[head] > now - HEAD_LIFE}

    async def keep_leases(self) -> None:
        """End the stages of heads that went silent, and look how the machine does; runs until cancelled.

        It stays awake while stages work.
        """
        clock, beat = asyncio.get_running_loop().time, self.settings.heartbeat
        while True:
            before = clock()
            await asyncio.sleep(beat)
            slept = clock() - before - beat
            if slept > beat:  # this machine did, so nobody could renew
                self._renewed = {head: at + slept for head, at in self._renewed.items()}
            loaded = (stage.status for stage, _ in self._stages.values())
            self._strain = self._gauge.read(stage.pid for stage in loaded if stage.state is StageState.READY)
            self._life = await self._lives.read(self.identity.endpoint.addresses)
            await self._awake.look(any(stage.working for stage, _ in self._stages.values()))
            oldest = clock() - self.settings.lease
            stages = self._stages.items()
            lapsed = [name for name, (s, _) in stages if self._renewed.get(s.status.head, 0.0) < oldest]
            if lapsed:
                log.info("the head of %s no longer renews: its layers are freed", sorted({ring for ring, _ in lapsed}))
                await self._end(lapsed)
            await self._keep_spares(clock())
            self._renewed = {head: at for head, at in self._renewed.items() if at >= oldest}

    async def _keep_spares(self, now: float) -> None:
        """A spare process for each backend in use, once all stages serve; those that are there outlive a mending.

        None where other programs need the memory.
        """
        states = [stage.status.state for stage, _ in self._stages.values()]
        self._ran = now if states else self._ran
        self._settled = now if not states or set(states) != {StageState.READY} else self._settled
        beat = self.settings.heartbeat
        if now - self._ran > SPARE_LIFE * beat or (self._life is not None and self._life.lacking):
            await self._spares.close()
        elif now - self._settled > SPARE_AFTER * beat:
            await self._spares.keep({stage.launch.order.stage.backend for stage, _ in self._stages.values()})
        else:
            await self._spares.make_room()

    async def close(self) -> None:
        """End all stages, then every Watch, so that heads see a node that left and not a broken stream."""
        self.draining = True
        await asyncio.gather(self._end(list(self._stages)), self._spares.close(), self._awake.close())
        self.closed = True
        self.changed.notify()

    async def _end(self, names: list[StageName]) -> None:
        await asyncio.gather(*(self._stages[name][0].stop() for name in names))
        for name in names:
            self._stages.pop(name, None)
            self.grants.give_back(name)
            if held := self._held.pop(name, None):
                held.release()
        self.changed.notify()

    def _touch(self, head: str) -> None:
        self._renewed[head] = asyncio.get_running_loop().time()

    def _require(self, peer: rpc.Peer, head: str) -> None:
        """Raises NotAllowed for who asks in another's name."""
        if not peer.speaks_for(head):
            raise NotAllowed("node {name} takes orders of a head from that head alone", name=self.identity.name)

    def _as_known_here(self, model: ModelRef, peer: rpc.Peer) -> ModelRef:
        """Without the path where another machine names it: such a model is only looked for among this one's."""
        return model if peer.is_here else replace(model, path="")

    def _check(self, caller: Caller, peer: rpc.Peer) -> None:
        self._require(peer, caller.head)
        if not wire.agrees(caller.protocol, caller.oldest):
            older = caller.protocol < wire.PROTOCOL
            raise BadSetting(
                "node {name} speaks protocol {own} and the head {other} (together {version} and {others}); {which} is "
                "older: bring it up to date there with: python3 launch.py update",
                name=self.identity.name,
                own=wire.PROTOCOL,
                other=caller.protocol,
                version=own_version(),
                others=cut(caller.version, MOST) or "of an earlier version",
                which=template("the head") if older else template("the node"),
            )
        if caller.cluster != self.settings.cluster:
            message = "node {name} is in cluster {own}, not {other}"
            raise BadSetting(message, name=self.identity.name, own=self.settings.cluster, other=caller.cluster)

    async def _watch(self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        try:
            caller = wire.CALLER.decode(data)
            peer = rpc.peer_of(context)
            self._check(caller, peer)
        except TogetherError as error:
            await context.abort(rpc.status_of(error), str(error))
        if caller.endpoint is not None:
            self.heard([caller.endpoint])
        watcher = _watcher_of(caller, peer.address)
        self._watchers.append(watcher)
        try:
            while not self.closed:
                seen = self.changed.version
                yield wire.NODE_STATUS.encode(self.status())
                await self.changed.wait(seen, self.settings.heartbeat)
        finally:
            self._watchers.remove(watcher)


def _watcher_of(caller: Caller, address: str) -> Watcher:
    scheme = "http" if ipaddress.ip_address(address).is_loopback else "https"  # as desktop/front.py has it
    page = f"{scheme}://{address_text(address, caller.page)}" if caller.page else ""
    return Watcher(
        cut(caller.name, MOST), page, Release(cut(caller.version, MOST), caller.made) if caller.version else None
    )
