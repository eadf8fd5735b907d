"""What a head asks of each machine: which models it has, and whether its neighbours in a ring reach each other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import grpc
import grpc.aio

from together.cluster.discovery import Tell, log_it
from together.cluster.identity import Whereabouts, machine_id, node_name
from together.cluster.loading import ECHO_WITHIN
from together.cluster.local import LocalNodes
from together.cluster.membership import Membership
from together.cluster.survey import THIS_MACHINE, Surveyor
from together.cluster_types import Blob, Endpoint, Holding, LinkOrder, Source
from together.engine.own import OwnCost
from together.errors import BadSetting, TogetherError
from together.ring import rpc
from together.ring.links import Inlets
from together.settings import Settings
from together.trust.credentials import Credentials, SecretWatch
from together.types import ModelRef
from together.weights.room import CacheRoom, LatelyGone, cache_limit
from together.weights.serve import StoreService

log = logging.getLogger(__name__)

LINK_WITHIN = 3.0  # seconds for two neighbours to reach each other
ECHO_EVERY = 0.3  # seconds between two looks whether they answer meanwhile


async def cut_pairs(nodes: Sequence[str], membership: Membership, where: Whereabouts) -> dict[int, tuple[str, str]]:
    """Pairs, by their place in the ring, whose first node lives and does not reach the next one.

    `nodes` are in ring order; the last one's next is the head, which is at `where`.
    """
    pairs = list(pairwise([*nodes, THIS_MACHINE]))
    reached = await asyncio.gather(*(_reaches(node, other, membership, where) for node, other in pairs))
    return {i: pair for i, pair in enumerate(pairs) if not reached[i] and membership.alive(pair[0])}


async def _reaches(node: str, other: str, membership: Membership, where: Whereabouts) -> bool:
    """Whether one node gets an answer of another, or of this head.

    A machine whose memory is full may stand still for seconds. So only nodes that answer this head all the while say
    anything of the way between them; of others nothing is believed.
    """
    following = membership.status(other)
    if other != THIS_MACHINE and following is None:
        return True  # it is gone altogether, which is another trouble
    target = following.endpoint if following else where.endpoint
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(_gets_answer(node, target, membership))
        ends = [end for end in (node, other) if end != THIS_MACHINE]
        watched = [tasks.create_task(_answers_while(asked, end, membership)) for end in ends]
    if asked.result() or not all(task.result() for task in watched):
        return True
    await where.look()
    following = membership.status(other)
    moved = target != (following.endpoint if following else where.endpoint)
    return moved and await _reaches(node, other, membership, where)  # at its new address


async def _gets_answer(node: str, target: Endpoint, membership: Membership) -> bool:
    try:
        await membership.call(node, rpc.REACH, LinkOrder(target, 0), timeout=LINK_WITHIN)
    except TogetherError as error:
        log.info("%s", error)
        return False
    return True


async def _answers_while(asked: asyncio.Task[bool], node: str, membership: Membership) -> bool:
    """Whether a node answers this head at once, again and again, until another question is done."""
    while True:
        try:
            await membership.call(node, rpc.ECHO, Blob(), timeout=ECHO_WITHIN)
        except TogetherError as error:
            log.info("%s", error)
            return False
        if (await asyncio.wait([asked], timeout=ECHO_EVERY))[0]:
            return True


HEAD_PORTS = 64  # tried above the first node block's start, for answers from last stages
CODE_EVERY = 1.0  # seconds between looks whether a person joined elsewhere
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

    def __init__(
        self, settings: Settings, head: str, peers: tuple[Endpoint, ...] = (), page: int = 0, tell: Tell = log_it
    ) -> None:
        """`head` is the head's id, `peers` are nodes that need not be found, `page` is its page's port."""
        self.settings = settings
        self.credentials = Credentials.of(settings.config_path, head)
        self.membership = Membership(settings, head, peers, page=page, tell=tell, credentials=self.credentials)
        self.local = LocalNodes(settings, head, self.membership.changed.notify, tell)
        self.membership.own = self.local.endpoints
        self.inlets = Inlets()
        self.surveyor = Surveyor(self.membership, machine_id(settings.home_path), OwnCost())
        self.membership.moved = self.surveyor.moved
        self.where: Whereabouts
        home = settings.home_path
        self.gone = LatelyGone()
        self.store = StoreService(home, CacheRoom(home, cache_limit(settings), self.gone.note).convert)
        calls = rpc.unary({rpc.ECHO: rpc.echo}) | rpc.unary_by({rpc.MEET: self.membership.meet})
        no_node: rpc.Handler = grpc.unary_stream_rpc_method_handler(self._refuse_watch)
        self._handlers = {rpc.PUSH: self.inlets.handler(), rpc.WATCH: no_node, **calls, **self.store.handlers()}
        self._server: grpc.aio.Server | None = None
        self._settled = False
        self._listening = 0.0  # since when, in event loop time

    async def listen(self) -> None:
        """Take calls and answers of nodes. Raises BadSetting for a host without an address, or if no port is free."""
        # Refuses a host without an address before ports are tried.
        where = Whereabouts(self.settings.host, self._moved, self.credentials.name)
        first = self.settings.node_port - HEAD_PORTS
        where.bound(await self._open(range(first, first + HEAD_PORTS)))
        self._listening = asyncio.get_running_loop().time()
        self.where = where
        self.membership.where, self.membership.look = lambda: where.endpoint, where.look

    async def _open(self, ports: range) -> int:
        self._server = rpc.make_server(self._handlers)
        port = rpc.bind(self._server, self.settings.host, ports, self.credentials)
        await self._server.start()
        return port

    async def close(self) -> None:
        """End the local nodes, listen no more."""
        await self.local.close()
        if self._server is not None:
            await self._server.stop(0.2)

    async def follow_code(self) -> None:
        """Begin anew with its members when this machine gets another join code; runs until cancelled."""
        assert self.credentials.file is not None, "a head has the secret"
        watch = SecretWatch(self.credentials.file)
        while True:
            await asyncio.sleep(CODE_EVERY)
            try:
                changed = await asyncio.to_thread(watch.changed)
            except TogetherError as error:  # the file cannot be read; what was joined stays joined
                log.warning("%s", error)
                continue
            if changed:
                await self._rejoin()

    async def _rejoin(self) -> None:
        if not self.where.endpoint.id or self._server is None:  # on a plain port nobody notices
            self.credentials.renew()
            return
        self.membership.rejoin()
        await self._server.stop(0)
        port = self.where.endpoint.port
        await self._open(range(port, port + 1))

    def _moved(self) -> None:
        """This machine has other addresses: every link is opened again, the ring's by its service."""
        self.surveyor.moved(THIS_MACHINE)
        self.membership.reach_again()

    async def _refuse_watch(self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        """Another head was given our address for a node's."""
        error = BadSetting(
            "the app on {name} listens there, which is no node; give the address that its node prints",
            name=node_name(self.settings),
        )
        await context.abort(rpc.status_of(error), str(error))
        yield b""

    async def settle(self, least: int) -> None:
        """Wait for the nodes that are surely coming, `least` at most; the first time also a moment for others.

        That passes while this app's own nodes start.
        """
        clock = asyncio.get_running_loop().time
        await wait_for_nodes(self.membership, self.local, least)
        if not self._settled:
            self._settled = True
            await asyncio.sleep(SETTLE - (clock() - self._listening if least else 0.0))

    async def sources(self, model: ModelRef) -> tuple[Source, ...]:
        """Who has which units of the model: this machine, and every node that says so."""
        nodes = self.membership.living()
        own = await asyncio.to_thread(self.store.holds, model)
        calls = [self.membership.call(node.id, rpc.FIND, model) for node in nodes]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found = [Source(self.where.endpoint, own.units)] if own.units else []
        for node, answer in zip(nodes, answers, strict=True):
            if isinstance(answer, Holding) and answer.units:
                found.append(Source(node.endpoint, answer.units))
        return tuple(found)
