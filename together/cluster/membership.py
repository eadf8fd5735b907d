"""A head's view of the nodes: who is there, in what state, and a channel to each. Knows no model and no plan.

zeroconf records, addresses given by hand and introductions are only places to look; what counts is what a node says
over Watch. Any message from a node counts as life; silence for `node_timeout` means it is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import grpc.aio

from together.cluster.broadcast import Broadcast
from together.cluster.discovery import Discovery
from together.errors import TogetherError, Unreachable
from together.ring import rpc, wire
from together.settings import Settings
from together.types import Caller, Endpoint, NodeState, NodeStatus, RingName

log = logging.getLogger(__name__)

RETRY = 1.0  # seconds between attempts to reach a node
REMEMBER_LOST = 60.0  # seconds a lost node stays in the table
PIECES = 4  # of a node's silence


@dataclass(slots=True)
class Member:
    """One node and the open channel to it; `lost_at` is None while it lives."""

    status: NodeStatus
    channel: grpc.aio.Channel
    address: str
    lost_at: float | None = None


@dataclass(slots=True)
class Membership:
    """Follows every node it hears of. `changed` is notified on every news."""

    settings: Settings
    head: str
    peers: tuple[Endpoint, ...] = ()
    own: Callable[[], Collection[Endpoint]] = tuple  # where nodes that this head started listen, as they say it
    changed: Broadcast = field(default_factory=Broadcast)
    _members: dict[str, Member] = field(default_factory=dict)
    _followers: dict[Endpoint, asyncio.Task[None]] = field(default_factory=dict)

    async def run(self) -> None:
        """Follow nodes until cancelled."""
        discovery = Discovery(self.settings, self.changed.notify)
        await discovery.start()
        try:
            while True:
                seen = self.changed.version
                self._follow_all(
                    {
                        *self.peers,
                        *self.own(),
                        *self._introduced(),
                        *(hint.endpoint for hint in discovery.hints.values()),
                    }
                )
                self._forget_lost()
                await self.changed.wait(seen, timeout=5.0)
        finally:
            for follower in self._followers.values():
                follower.cancel()
            await asyncio.gather(*self._followers.values(), return_exceptions=True)
            await discovery.close()

    def nodes(self) -> tuple[NodeStatus, ...]:
        """All nodes, lost ones as FAILED, in a stable order."""
        return tuple(
            sorted((member.status for member in self._members.values()), key=lambda node: (node.name, node.id))
        )

    def living(self) -> tuple[NodeStatus, ...]:
        return tuple(node for node in self.nodes() if self.alive(node.id))

    def alive(self, node: str) -> bool:
        return node in self._members and self._members[node].lost_at is None

    def status(self, node: str) -> NodeStatus | None:
        return self._members[node].status if node in self._members else None

    def address(self, node: str) -> str:
        """The address that this head reaches the node at."""
        return self._members[node].address

    async def call(self, node: str, method: rpc.Unary, request: object, timeout: float = 10.0) -> Any:
        """One call to a node. Raises what the node raised, or Unreachable."""
        member = self._members.get(node)
        if member is None or member.lost_at is not None:
            raise Unreachable(f"node {member.status.name if member else node} is not there any more")
        return await rpc.call(member.channel, method, request, f"node {member.status.name}", timeout)

    async def renew(self) -> None:
        """Renew the leases of this head's stages everywhere; a node that does not answer is noticed elsewhere."""
        caller = Caller(self.head, self.settings.cluster, wire.PROTOCOL)
        mine = [n.id for n in self.living() if any(stage.head == self.head for stage in n.stages)]
        calls: list[Awaitable[Any]] = [self.call(node, rpc.RENEW_CALL, caller) for node in mine]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException):
                log.warning("a lease was not renewed: %s", answer)

    async def end_strays(self, ring: str, slots: Collection[int] = ()) -> None:
        """Unload this head's stages that are not those slots of `ring`: their node was out of reach when they ended.

        Renewing counts for a head, not for a stage, so they would stay for ever.
        """
        mine = [(n.id, stage) for n in self.living() for stage in n.stages if stage.head == self.head]
        strays = [(node, stage) for node, stage in mine if stage.ring != ring or stage.slot not in slots]
        names = [(node, RingName(stage.ring, self.head, (stage.slot,))) for node, stage in strays]
        calls = [self.call(node, rpc.UNLOAD_CALL, name) for node, name in names]
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, BaseException):
                log.warning("a forgotten stage was not ended: %s", answer)

    def _introduced(self) -> set[Endpoint]:
        return {peer for node in self.living() for peer in node.peers}

    def _follow_all(self, wanted: set[Endpoint]) -> None:
        for endpoint in [known for known in self._followers if known not in wanted]:
            if not self._serves(endpoint):  # a node that still answers is followed although its record is gone
                self._followers.pop(endpoint).cancel()
        for endpoint in wanted - self._followers.keys():
            self._followers[endpoint] = asyncio.create_task(self._follow(endpoint))

    def _serves(self, endpoint: Endpoint) -> bool:
        return any(
            member.lost_at is None
            and member.status.endpoint.port == endpoint.port
            and member.address in endpoint.addresses
            for member in self._members.values()
        )

    async def _follow(self, endpoint: Endpoint) -> None:
        """Watch whoever answers there, for ever."""
        while True:
            watched: list[str] = []  # the node that answered, once it did
            try:
                await self._watch_until_it_leaves(endpoint, watched)
                self._forget(watched)
            except TimeoutError:
                self._lose(watched, f"no sign of life for {self.settings.node_timeout:.0f} s")
            except grpc.aio.AioRpcError as error:
                refused = rpc.error_of(error, f"port {endpoint.port}")
                self._lose(watched, str(refused))
                if not isinstance(refused, Unreachable):
                    log.warning("%s", refused)
            except TogetherError as error:
                self._lose(watched, str(error))
            await asyncio.sleep(RETRY)

    async def _watch_until_it_leaves(self, endpoint: Endpoint, watched: list[str]) -> None:
        """Returns when the node ends the stream, or is followed at another of its addresses already."""
        address = await rpc.fastest(endpoint)
        async with rpc.open_channel(address, endpoint.port) as channel, aclosing(self._watch(channel)) as stream:
            while (status := await self._next(stream)) is not None:
                if watched and watched != [status.id]:
                    self._lose(watched, "another node answers at its address")
                if not self._update(status, channel, address):
                    watched.clear()
                    return
                watched[:] = [status.id]

    async def _next(self, stream: AsyncGenerator[NodeStatus, None]) -> NodeStatus | None:
        """The next sign of life, None at the stream's end. Raises TimeoutError after `node_timeout` without any.

        Silence is counted in pieces, so that a pause of this process itself, for which all nodes seem silent, is one.
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
        stream = stub(wire.CALLER.encode(Caller(self.head, self.settings.cluster, wire.PROTOCOL)))
        async for data in stream:
            yield wire.NODE_STATUS.decode(data)

    def _update(self, status: NodeStatus, channel: grpc.aio.Channel, address: str) -> bool:
        known = self._members.get(status.id)
        if known and known.lost_at is None and known.channel is not channel:
            return False
        news = known is None or known.lost_at is not None or known.status != status
        self._members[status.id] = Member(status, channel, address)
        if news:
            self.changed.notify()
        return True

    def _lose(self, nodes: list[str], cause: str) -> None:
        """Nodes that went silent stay in the table for a while, with the cause."""
        for member in (self._members[node] for node in nodes if self.alive(node)):
            member.lost_at = asyncio.get_running_loop().time()
            member.status = replace(member.status, state=NodeState.FAILED, cause=f"lost: {cause}", free_bytes=0)
            self.changed.notify()

    def _forget(self, nodes: list[str]) -> None:
        """Nodes that said goodbye are gone at once."""
        for node in nodes:
            del self._members[node]
            self.changed.notify()

    def _forget_lost(self) -> None:
        now = asyncio.get_running_loop().time()
        for node, member in list(self._members.items()):
            if member.lost_at is not None and now - member.lost_at > REMEMBER_LOST:
                del self._members[node]
                self.changed.notify()
