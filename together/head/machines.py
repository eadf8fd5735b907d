"""What a head asks of each machine: which models it has, and whether its neighbours in a ring reach each other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import pairwise

from together.cluster.identity import Whereabouts, machine_id
from together.cluster.membership import Membership
from together.cluster.node import LocalNodes
from together.cluster.survey import THIS_MACHINE, Surveyor
from together.cluster_types import Endpoint, Holding, LinkOrder, Source
from together.errors import TogetherError
from together.ring import rpc
from together.ring.links import Inlets
from together.settings import Settings
from together.types import ModelRef
from together.weights.find import StoreService, find_units

log = logging.getLogger(__name__)

LINK_WITHIN = 3.0  # seconds for two neighbours to reach each other


async def cut_pairs(nodes: Sequence[str], membership: Membership, where: Whereabouts) -> dict[int, tuple[str, str]]:
    """Pairs, by their place in the ring, whose first node lives and does not reach the next one.

    `nodes` are in ring order; the last one's next is the head, which is at `where`.
    """
    pairs = list(pairwise([*nodes, THIS_MACHINE]))
    reached = await asyncio.gather(*(_reaches(node, other, membership, where) for node, other in pairs))
    return {i: pair for i, pair in enumerate(pairs) if not reached[i] and membership.alive(pair[0])}


async def _reaches(node: str, other: str, membership: Membership, where: Whereabouts) -> bool:
    """Whether one node gets an answer of another, or of this head."""
    following = membership.status(other)
    if other != THIS_MACHINE and following is None:
        return True  # it is gone altogether, which is another trouble
    target = following.endpoint if following else where.endpoint
    try:
        await membership.call(node, rpc.REACH, LinkOrder(target, 0), timeout=LINK_WITHIN)
    except TogetherError as error:
        log.info("%s", error)
        await where.look()
        following = membership.status(other)
        moved = target != (following.endpoint if following else where.endpoint)
        return moved and await _reaches(node, other, membership, where)  # at its new address
    return True


HEAD_PORTS = 64  # tried above the first node block's start, for answers from last stages
SETTLE = 1.0  # seconds to hear of other machines before the first plan
NODES_WITHIN = 300.0  # seconds for the nodes that this head started, as long as they run
OTHERS_WITHIN = 1.0  # seconds to hear of other machines


async def wait_for_nodes(membership: Membership, local: LocalNodes, least: int) -> None:
    """Wait for `least` nodes if this head started that many and they still run, else for any node."""
    clock, changed = asyncio.get_running_loop().time, membership.changed
    began = clock()
    while len(membership.living()) < max(1, min(least, local.count)):
        if clock() - began > (NODES_WITHIN if local.count else OTHERS_WITHIN):
            return
        await changed.wait(changed.version, timeout=0.5)


class Machines:
    """Those of one head. `listen` before anything else, `close` at the end; `where` is set between the two."""

    def __init__(self, settings: Settings, head: str, peers: tuple[Endpoint, ...] = ()) -> None:
        """`head` is the head's id, `peers` are nodes that need not be found."""
        self.settings = settings
        self.membership = Membership(settings, head, peers)
        self.local = LocalNodes(settings, self.membership.changed.notify)
        self.membership.own = self.local.endpoints
        self.inlets = Inlets()
        self.surveyor = Surveyor(self.membership, machine_id(settings.home_path))
        self.membership.moved = self.surveyor.moved
        self.where: Whereabouts
        self.store = StoreService(settings.home_path)
        calls = rpc.unary({rpc.ECHO: rpc.echo, rpc.MEET: self.membership.meet})  # nodes time their way by Echo
        handlers = {rpc.PUSH: self.inlets.handler(), **calls, **self.store.handlers()}
        self._server = rpc.make_server(handlers)
        self._settled = False

    async def listen(self) -> None:
        """Take calls and answers of nodes. Raises BadSetting for a host without an address, or if no port is free."""
        where = Whereabouts(self.settings.host, self._moved)  # refuses a host without an address before ports are tried
        first = self.settings.node_port - HEAD_PORTS
        port = rpc.bind(self._server, self.settings.host, range(first, first + HEAD_PORTS))
        await self._server.start()
        where.bound(port)
        self.where = where
        self.membership.where, self.membership.look = lambda: where.endpoint, where.look

    async def close(self) -> None:
        """End the local nodes, listen no more."""
        await self.local.close()
        await self._server.stop(0.2)

    def _moved(self) -> None:
        """This machine has other addresses: every link is opened again, the ring's by its service."""
        self.surveyor.moved(THIS_MACHINE)
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
        own = await asyncio.to_thread(find_units, model, self.settings.home_path)
        calls = [self.membership.call(node.id, rpc.FIND, model) for node in nodes]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found = [Source(self.where.endpoint, tuple(sorted(own.units)))] if own.units else []
        for node, answer in zip(nodes, answers, strict=True):
            if isinstance(answer, Holding) and answer.units:
                found.append(Source(node.endpoint, answer.units))
        return tuple(found)
