"""The machines of a cluster, as its head sees them: found, measured, and told where the head is. Knows no plan."""

from __future__ import annotations

import asyncio

from together.cluster.identity import Whereabouts, machine_id
from together.cluster.local import LocalNodes
from together.cluster.membership import Membership
from together.cluster.survey import HEAD, Surveyor
from together.head.tries import wait_for_nodes
from together.ring import rpc
from together.ring.links import Inlets
from together.settings import Settings
from together.types import Endpoint, Holding, ModelRef, Source
from together.weights.find import find_units
from together.weights.serve import StoreService

HEAD_PORTS = 64  # tried above the first node block's start, for answers from last stages
SETTLE = 1.0  # seconds to hear of other machines before the first plan


class Machines:
    """Those of one head. `listen` before anything else, `close` at the end; `where` is set between the two."""

    def __init__(self, settings: Settings, head: str, peers: tuple[Endpoint, ...] = ()) -> None:
        """`head` is the head's id, `peers` are nodes that need not be found."""
        self._settings = settings
        self.membership = Membership(settings, head, peers)
        self.local = LocalNodes(settings, self.membership.changed.notify)
        self.membership.own = self.local.endpoints
        self.inlets = Inlets()
        self.surveyor = Surveyor(self.membership, machine_id(settings.home_path))
        self.membership.moved = self.surveyor.moved
        self.where: Whereabouts
        self.store = StoreService(settings.home_path)
        echo = rpc.unary_handler(rpc.ECHO_CALL, rpc.echo)  # nodes time their way to this head
        meet = rpc.unary_handler(rpc.MEET_CALL, self.membership.meet)
        handlers = {rpc.PUSH: self.inlets.handler(), rpc.ECHO: echo, rpc.MEET: meet, **self.store.handlers()}
        self._server = rpc.make_server(handlers)
        self._settled = False

    async def listen(self) -> None:
        """Take calls and answers of nodes. Raises BadSetting for a host without an address, or if no port is free."""
        where = Whereabouts(
            self._settings.host, self._moved
        )  # a name without an address is said before ports are tried
        first = self._settings.node_port - HEAD_PORTS
        port = rpc.bind(self._server, self._settings.host, range(first, first + HEAD_PORTS))
        await self._server.start()
        where.bound(port)
        self.where = where
        self.membership.where, self.membership.look = lambda: where.endpoint, where.look

    async def close(self) -> None:
        """End the local nodes, listen no more."""
        await self.local.close()
        await self._server.stop(0.2)

    def _moved(self) -> None:
        """This machine has other addresses: every link is opened anew, the ring's by its service."""
        self.surveyor.moved(HEAD)
        self.membership.reach_again()

    async def settle(self, least: int) -> None:
        """Wait for the nodes that are surely coming, `least` at most; the first time also a moment for others."""
        await wait_for_nodes(self.membership, self.local, least)
        if not self._settled:
            self._settled = True
            await asyncio.sleep(SETTLE)

    async def sources(self, model: ModelRef) -> tuple[Source, ...]:
        """Who has which units of the model: this machine, and every node that says so."""
        nodes = self.membership.living()
        own = await asyncio.to_thread(find_units, model, self._settings.home_path)
        calls = [self.membership.call(node.id, rpc.FIND_CALL, model) for node in nodes]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found = [Source(self.where.endpoint, tuple(sorted(own.units)))] if own.units else []
        for node, answer in zip(nodes, answers, strict=True):
            if isinstance(answer, Holding) and answer.units:
                found.append(Source(node.endpoint, answer.units))
        return tuple(found)
