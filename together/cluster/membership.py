"""A head's view of the nodes: which are there, in what state, and a channel to each.

zeroconf records, addresses given by hand and introductions are only places to look; what counts is what a node says
over Watch. Any message from a node counts as life; silence for `node_timeout` means it is lost. A node that says
itself that it is at another address now, and answers there, was never lost.

A node that another app started for itself is not in this view, unless a person gave its address.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import grpc.aio

from together.checkout import own_time, own_version
from together.cluster.discovery import Addressed, Discovery, Hint, Introductions, Tell, log_it
from together.cluster.identity import node_name
from together.cluster_types import Caller, Endpoint, NodeState, NodeStatus, RingName, unique_names
from together.errors import Locked, NotAllowed, TogetherError, Unreachable
from together.ring import rpc, wire
from together.ring.doors import find_door
from together.ring.rpc import Broadcast
from together.sentences import Sentence, say
from together.settings import Settings
from together.trust.credentials import ALONE, Credentials
from together.wording import MOST, cut

log = logging.getLogger(__name__)

RETRY = 1.0  # seconds between attempts to reach a node
SOON = 0.3  # the same, while this machine's own network changes
MOST_LEFT = 1000  # nodes whose names are remembered after they left
REMEMBER_LOST = 150.0  # seconds a lost node stays in the table: longer than a load waits for it
PIECES = 4  # of a node's silence


@dataclass(slots=True)
class Member:
    """One node as it calls itself, and the open channel to it; `lost_at` is None while it lives.

    `channel` is None while the node is being reached again from this machine's new address.
    """

    status: NodeStatus
    channel: grpc.aio.Channel | None
    address: str
    follower: Endpoint  # by whose task it is watched
    lost_at: float | None = None
    silent: bool = False  # lost without a word: its machine may be out of reach, and live


async def _nothing() -> None:
    """For a head that does not follow its own addresses."""


@dataclass(slots=True)
class Membership:
    """Follows every node it hears of. `changed` is notified of every change."""

    settings: Settings
    head: str
    peers: tuple[Endpoint, ...] = ()
    own: Callable[[], Collection[Endpoint]] = tuple  # where the nodes that this head started listen
    where: Callable[[], Endpoint | None] = lambda: None  # where this head listens
    look: Callable[[], Awaitable[None]] = _nothing  # at this machine's addresses; calls `reach_again` for others
    moved: Callable[[str], None] = lambda node: None  # called with a node that has other addresses
    page: int = 0  # the port of this head's page
    tell: Tell = log_it
    credentials: Credentials = ALONE
    changed: Broadcast = field(default_factory=Broadcast)
    _members: dict[str, Member] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)  # of the members, by id
    _left: dict[str, str] = field(default_factory=dict)  # what those that left were called
    _given: set[str] = field(default_factory=set)  # ids of nodes that answered at an address given by hand
    _followers: dict[Endpoint, asyncio.Task[None]] = field(default_factory=dict)
    _strangers: Mapping[str, Endpoint] = field(default_factory=dict)
    _rebind: bool = False
    _rejoin: bool = False
    _met: Introductions = field(init=False)
    _addressed: Addressed = field(init=False)

    def __post_init__(self) -> None:
        self._met = Introductions(self.changed)
        self._addressed = Addressed(self.peers, RETRY, self.tell)

    async def run(self) -> None:
        """Follow nodes until cancelled."""
        discovery = Discovery(self.settings, self.changed.notify, self.tell, self.credentials)
        self._strangers = discovery.locked
        await discovery.start()
        try:
            while True:
                seen = self.changed.version
                self._follow_all(
                    {
                        *self.peers,
                        *self.own(),
                        *self._introduced(),
                        *self._met.current(),
                        *(hint.endpoint for hint in discovery.hints.values() if self._may_use(hint)),
                    }
                )
                self._forget_lost()
                if self._rejoin or self._rebind:
                    await (discovery.ask_again() if self._rejoin else discovery.rebind())
                    self._rejoin = self._rebind = False
                await self.changed.wait(seen, timeout=5.0)
        finally:
            for follower in self._followers.values():
                follower.cancel()
            await asyncio.gather(*self._followers.values(), return_exceptions=True)
            await discovery.close()

    def nodes(self) -> tuple[NodeStatus, ...]:
        """All nodes, lost ones as FAILED, in a stable order; no two have one name."""
        return tuple(sorted(map(self._shown, self._members.values()), key=lambda node: (node.name, node.id)))

    def reached(self) -> tuple[NodeStatus, ...]:
        """All nodes, each with the address first that it is reached by: the one that answered first."""
        used = [(node, self._members[node.id].address) for node in self.nodes()]
        return tuple(replace(node, endpoint=node.endpoint.beginning_with(address)) for node, address in used)

    def locked(self) -> tuple[Sentence, ...]:
        """Machines that say they are here and do not share this one's join code; none of them is used."""
        return tuple(say("node_locked", address=str(stranger)) for stranger in self._strangers.values())

    def living(self) -> tuple[NodeStatus, ...]:
        return tuple(node for node in self.nodes() if self.alive(node.id))

    def alive(self, node: str) -> bool:
        return node in self._members and self._members[node].lost_at is None

    def status(self, node: str) -> NodeStatus | None:
        return self._shown(self._members[node]) if node in self._members else None

    def name_of(self, node: str) -> str:
        """What a node is called, also one that has left; its id where it was never here."""
        return self._names.get(node) or self._left.get(node, node)

    def here(self) -> Endpoint:
        """Where this head listens."""
        here = self.where()
        assert here is not None, "the head listens before it loads anything"
        return here

    def endpoints(self) -> frozenset[Endpoint]:
        """Where the living machines are, this one among them."""
        return frozenset((*(node.endpoint for node in self.living()), self.here()))

    def is_silent(self, node: str) -> bool:
        """Whether it was lost without a goodbye, so that it may still be there."""
        member = self._members.get(node)
        return member is not None and member.lost_at is not None and member.silent

    def address(self, node: str) -> str:
        """The address that this head reaches the node at."""
        return self._members[node].address

    async def call(self, node: str, method: rpc.Unary, request: object, timeout: float = 10.0) -> Any:
        """One call to a node. Raises what the node raised, or Unreachable.

        It is repeated where the way to the node changes meanwhile: every call may come twice.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            channel, name = await self._channel(node, deadline)
            left = max(0.1, deadline - asyncio.get_running_loop().time())
            try:
                return await rpc.call(channel, method, request, f"node {name}", left)
            except Unreachable:
                member = self._members.get(node)
                if member is None or member.channel is channel or member.lost_at is not None:
                    raise

    async def _channel(self, node: str, deadline: float) -> tuple[grpc.aio.Channel, str]:
        """The channel to a node and its name. Raises Unreachable when it has none before `deadline`."""
        while True:
            member = self._members.get(node)
            left = deadline - asyncio.get_running_loop().time()
            if member is None or member.lost_at is not None or left <= 0:
                raise Unreachable("node {name} is not there any more", name=self.name_of(node))
            if member.channel is not None:
                return member.channel, self._names[node]
            await self.changed.wait(self.changed.version, timeout=left)

    async def meet(self, node: Endpoint, peer: rpc.Peer) -> None:
        """A node that this head watched before has moved, and says where it is."""
        self._met.add(node, "this head", peer)

    def reach_again(self) -> None:
        """This machine has other addresses, so connections from the old ones are dead: open them again.

        A node counts as living until that takes longer than it may be silent.
        """
        for endpoint in tuple(self._followers):
            self._restart(endpoint)
        self._rebind = True
        self.changed.notify()

    def rejoin(self) -> None:
        """This machine has another join code: all connections end, and members of the old one are lost at once."""
        self.credentials.renew()
        self._rejoin = True
        self._lose([node for node in self._members if self.alive(node)], str(say("rejoined")))
        self.reach_again()

    def _restart(self, endpoint: Endpoint) -> None:
        self._followers[endpoint].cancel()
        for member in self._members.values():
            if member.follower == endpoint and member.lost_at is None:
                member.channel = None
        self._followers[endpoint] = asyncio.create_task(self._follow(endpoint, self.settings.node_timeout))

    async def renew(self) -> None:
        """Renew the leases of this head's stages everywhere; a node that does not answer is lost by its Watch."""
        caller = self._caller()
        mine = [node.id for node in self.living() if any(stage.head == self.head for stage in node.stages)]
        await tell((self.call(node, rpc.RENEW, caller) for node in mine), "a lease was not renewed")

    async def end_strays(self, held: Mapping[str, Collection[int]]) -> None:
        """Unload stages of this head that are in no slot of `held`, by ring: their node was out of reach as they ended.

        A lease is renewed for the whole head, so it would keep them for ever.
        """
        mine = [(n.id, stage) for n in self.living() for stage in n.stages if stage.head == self.head]
        strays = [(node, stage) for node, stage in mine if stage.slot not in held.get(stage.ring, ())]
        names = [(node, RingName(stage.ring, self.head, (stage.slot,))) for node, stage in strays]
        await tell((self.call(node, rpc.UNLOAD, name) for node, name in names), "a stray was not ended")

    def _caller(self) -> Caller:
        name, program = node_name(self.settings), (own_version(), wire.OLDEST, own_time())
        return Caller(self.head, self.settings.cluster, wire.PROTOCOL, self.where(), name, self.page, *program)

    def _introduced(self) -> set[Endpoint]:
        return {peer for node in self.living() for peer in node.peers}

    def _follow_all(self, wanted: set[Endpoint]) -> None:
        for endpoint in [known for known in self._followers if known not in wanted]:
            if not self._watched(endpoint):  # a node that still answers is followed although its record is gone
                self._followers.pop(endpoint).cancel()
        for endpoint in wanted - self._followers.keys():
            self._followers[endpoint] = asyncio.create_task(self._follow(endpoint))

    def _watched(self, endpoint: Endpoint) -> list[str]:
        """Living nodes that the follower of `endpoint` answers for."""
        members = self._members.items()
        return [node for node, member in members if member.follower == endpoint and member.lost_at is None]

    async def _follow(self, endpoint: Endpoint, patience: float = 0.0) -> None:
        """Watch the node there until cancelled. For `patience` seconds an unreachable node is not lost."""
        clock = asyncio.get_running_loop().time
        until = clock() + patience
        while True:
            try:
                await self._watch_until_it_leaves(endpoint)
                self._forget(self._watched(endpoint))
            except TimeoutError:
                cause = str(say("node_silent", seconds=self.settings.node_timeout))
                self._lose(self._watched(endpoint), cause, silent=True)
            except (grpc.aio.AioRpcError, TogetherError) as error:
                await self._failed(endpoint, error, hurt=clock() > until)
            await asyncio.sleep(RETRY if clock() > until else SOON)

    async def _failed(self, endpoint: Endpoint, error: grpc.aio.AioRpcError | TogetherError, *, hurt: bool) -> None:
        """The node was unreachable, or refused. If this machine moved, this task is cancelled here."""
        await self.look()
        await asyncio.sleep(0)
        said = rpc.error_of(error, f"port {endpoint.port}") if isinstance(error, grpc.aio.AioRpcError) else error
        log.debug("%s", said)
        cause = said.sentence
        if isinstance(said, Locked):
            self._addressed.refused(endpoint, said.sentence)
        elif isinstance(said, Unreachable):
            self._addressed.silent(endpoint)
            cause = say("node_cut")  # what gRPC says of it helps nobody
        elif said is not error:
            self._addressed.refused(endpoint, said.sentence)
        if hurt:
            self._lose(self._watched(endpoint), str(cause))

    async def _watch_until_it_leaves(self, endpoint: Endpoint) -> None:
        """Returns when the node ends the stream, or when another of its addresses is followed."""
        door = await find_door(endpoint, self.credentials, by_hand=endpoint in self.peers)
        address = door.address
        async with door.open() as channel, aclosing(self._watch(channel)) as stream:
            while (status := await self._next(stream)) is not None:
                if door.name not in ("", status.id):
                    raise NotAllowed("the member at {address} speaks in another node's name", address=str(door))
                status = replace(status, name=cut(status.name, MOST), version=cut(status.version, MOST))
                if endpoint in self.peers:
                    self._given.add(status.id)
                ours = self._may_use(status)
                others = [node for node in self._watched(endpoint) if node != status.id or not ours]
                self._lose(others, str(say("node_replaced")))
                self._addressed.answered(endpoint)
                if ours and not self._update(status, channel, address, endpoint):
                    return

    async def _next(self, stream: AsyncGenerator[NodeStatus, None]) -> NodeStatus | None:
        """The next sign of life, None at the stream's end. Raises TimeoutError after `node_timeout` without any.

        It waits in pieces: if this process was suspended, only one piece elapses, and its nodes are not lost.
        """

        async def step() -> NodeStatus | None:
            return await anext(stream, None)

        waiting = asyncio.create_task(step())
        try:
            for _ in range(PIECES):
                if (await asyncio.wait({waiting}, timeout=self.settings.node_timeout / PIECES))[0]:
                    return waiting.result()
            raise TimeoutError
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def _watch(self, channel: grpc.aio.Channel) -> AsyncGenerator[NodeStatus, None]:
        stub: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(rpc.WATCH)
        stream = stub(wire.CALLER.encode(self._caller()))
        async for data in stream:
            yield wire.NODE_STATUS.decode(data)

    def _update(self, status: NodeStatus, channel: grpc.aio.Channel, address: str, follower: Endpoint) -> bool:
        known = self._members.get(status.id)
        other = known is not None and known.lost_at is None and known.follower != follower
        if known is not None and other and not _left(known.address, address, status):
            return False
        self._members[status.id] = Member(status, channel, address, follower)
        self._name_all()
        if known is not None and other and known.follower in self._followers:
            self._restart(known.follower)  # so that calls on their way there take the new one
        if known is not None and known.status.endpoint != status.endpoint:
            self.moved(status.id)
        if known is None or known.lost_at is not None or known.channel is not channel or is_news(known.status, status):
            self.changed.notify()
        return True

    def _lose(self, nodes: list[str], cause: str, *, silent: bool = False) -> None:
        """Lost nodes stay in the table for a while, with the cause."""
        for member in (self._members[node] for node in nodes if self.alive(node)):
            member.lost_at = asyncio.get_running_loop().time()
            member.silent = silent or member.channel is None
            lost = str(say("node_lost", cause=cause))
            member.status = replace(member.status, state=NodeState.FAILED, cause=lost, free_bytes=0)
            self.changed.notify()

    def _forget(self, nodes: list[str]) -> None:
        """Nodes that said goodbye leave the table at once."""
        for node in nodes:
            self._drop(node)

    def _forget_lost(self) -> None:
        now = asyncio.get_running_loop().time()
        for node, member in list(self._members.items()):
            if member.lost_at is not None and now - member.lost_at > REMEMBER_LOST:
                self._drop(node)

    def _drop(self, node: str) -> None:
        self._left.pop(node, None)
        self._left[node] = self._names[node]
        if len(self._left) > MOST_LEFT:
            del self._left[next(iter(self._left))]  # the one that left first
        del self._members[node]
        self._name_all()
        self.changed.notify()

    def _name_all(self) -> None:
        self._names = unique_names({node: member.status.name for node, member in self._members.items()})

    def _shown(self, member: Member) -> NodeStatus:
        return replace(member.status, name=self._names[member.status.id])

    def _may_use(self, node: NodeStatus | Hint) -> bool:
        return node.owner in ("", self.head) or node.id in self._given


async def tell(calls: Iterable[Awaitable[Any]], trouble: str) -> None:
    """Make all calls; those that fail are logged as `trouble`."""
    for answer in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(answer, BaseException):
            log.info("%s: %s", trouble, answer)


def is_news(old: NodeStatus, new: NodeStatus) -> bool:
    """Whether anybody waits for it: how hard a machine works is different in every beat, and looked at now and then."""
    return replace(new, strain=old.strain) != old


def _left(old: str, new: str, status: NodeStatus) -> bool:
    """Whether the node says that it has the new address, and no longer the old one."""
    return new in status.endpoint.addresses and old not in status.endpoint.addresses
