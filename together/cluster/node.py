"""A node's process: it binds a block of ports, advertises itself, serves, and leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc.aio

from together.cluster import identity
from together.cluster.agent import Agent, MemoryGrants
from together.cluster.discovery import Discovery, Hint
from together.cluster.profiling import default_backend, find_devices
from together.cluster_types import Device, Endpoint, NodeStatus
from together.errors import TogetherError
from together.processes import stop_with_parent
from together.ring import rpc
from together.ring.rpc import Broadcast
from together.settings import Settings, parse_bytes
from together.types import missing_ranges

log = logging.getLogger(__name__)

ADVERTISE_EVERY = 2.0  # seconds, at most: records are for finding, Watch has the truth
INTRODUCE_EVERY = 10.0
REPEAT_FOR = 10.0  # seconds for which a new address is repeated: the network may still be coming up
REPEAT_EVERY = 1.0


async def run_node(
    settings: Settings,
    peers: tuple[Endpoint, ...] = (),
    with_parent: bool = False,
    started: Callable[[NodeStatus], None] = lambda status: None,
    stop: asyncio.Event | None = None,
    moved: Callable[[NodeStatus], None] = lambda status: None,
) -> None:
    """Run a node until `stop` is set or, `with_parent`, our input is closed. Raises TogetherError if it cannot.

    `moved` is called when this machine's addresses change.
    """
    stop = stop or asyncio.Event()
    if with_parent:
        stop_with_parent(stop)
    node_id, lock = identity.claim_node_id(settings.home_path)
    try:
        devices = await find_devices(settings.backend or default_backend(), settings.home_path)
        where = identity.Whereabouts(settings.host)  # raises for a name without an address before ports are tried
        agent, server = await _open(settings, node_id, devices, where)
        moves = _follow(where, agent, moved)
        try:
            started(agent.status())
            await _serve(agent, where, moves, Discovery(settings, agent.changed.notify), peers, stop)
        finally:
            await agent.close()
            await server.stop(0.2)
    finally:
        lock.release()


def _follow(where: identity.Whereabouts, agent: Agent, moved: Callable[[NodeStatus], None]) -> Broadcast:
    """Let the node move with its machine; the broadcast is notified after each move."""
    moves = Broadcast()

    def move() -> None:
        agent.move(where.endpoint.addresses)
        moved(agent.status())
        moves.notify()

    where.moved = move
    return moves


async def _open(
    settings: Settings, node_id: str, devices: tuple[Device, ...], where: identity.Whereabouts
) -> tuple[Agent, grpc.aio.Server]:
    """Serve at the first port of a free block; holding it is holding the block."""
    name = identity.node_name(settings)
    limits = {device.key: device.free_bytes for device in devices}
    if settings.memory:
        limits[devices[0].key] = parse_bytes(settings.memory)
    me = identity.Identity(node_id, name, identity.machine_id(settings.home_path), where.endpoint)
    agent = Agent(settings, me, MemoryGrants(name, devices, limits))
    server = rpc.make_server(agent.handlers())
    where.bound(rpc.bind(server, settings.host, identity.port_blocks(settings.node_port)))
    agent.identity = replace(me, endpoint=where.endpoint)
    await server.start()
    return agent, server


async def _serve(
    agent: Agent,
    where: identity.Whereabouts,
    moves: Broadcast,
    discovery: Discovery,
    peers: tuple[Endpoint, ...],
    stop: asyncio.Event,
) -> None:
    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(agent.keep_leases()),
        asyncio.create_task(where.follow()),
        asyncio.create_task(_advertise(agent, moves, discovery)),
        asyncio.create_task(_introduce(agent, moves, peers)),
    ]
    stopped: asyncio.Task[Any] = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((stopped, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()  # raises: none of them returns
    finally:
        for task in (stopped, *tasks):
            task.cancel()
        await asyncio.gather(stopped, *tasks, return_exceptions=True)
        await discovery.close()


async def _advertise(agent: Agent, moves: Broadcast, discovery: Discovery) -> None:
    """Keep the zeroconf record near the truth."""
    await discovery.start()
    clock = asyncio.get_running_loop().time
    published: Hint | None = None
    repeated = 0.0  # until when, in event loop time
    while True:
        seen, moved = agent.changed.version, moves.version
        hint = make_hint(agent.status(), agent.settings.cluster, list(discovery.hints.values()))
        if published is not None and hint.endpoint != published.endpoint:
            repeated = clock() + REPEAT_FOR
            await discovery.advertise(hint)  # first: binding to other addresses publishes the record that is known then
            await discovery.rebind()
        if hint != published or clock() < repeated:
            await discovery.advertise(hint)
            published = hint
        await moves.wait(moved, ADVERTISE_EVERY)
        if clock() > repeated:
            await agent.changed.wait(seen, timeout=60.0)


def make_hint(status: NodeStatus, cluster: str, others: list[Hint]) -> Hint:
    """A node's record, with the model that it holds layers of and the layers of it that no known node holds."""
    plain = Hint(status.id, cluster, status.endpoint, status.protocol, status.devices[0].description, status.free_bytes)
    if not status.stages:
        return plain
    model, total = status.stages[0].model, status.stages[0].total_layers
    held = tuple(sorted(stage.layers for stage in status.stages if stage.model == model))
    known = [other for other in others if other.model == model and other.id != status.id]
    elsewhere = [layers for other in known for layers in other.held]
    return replace(plain, model=model, layers=total, held=held, free=missing_ranges(total, [*held, *elsewhere]))


async def _introduce(agent: Agent, moves: Broadcast, peers: tuple[Endpoint, ...]) -> None:
    """Tell peers, and the heads that watched us, where we are, so that we are found without multicast.

    They forget it, so it is repeated, and more often for a while after a move.
    """
    clock = asyncio.get_running_loop().time
    repeated = 0.0
    while True:
        moved = moves.version
        others = [head for head in agent.heads() if head not in peers]
        answered = await asyncio.gather(
            *(_meet(agent, peer, logging.WARNING) for peer in peers),
            *(_meet(agent, head, logging.INFO) for head in others),
        )
        agent.heard(other for other, heard in zip(others, answered[len(peers) :], strict=True) if heard)
        if await moves.wait(moved, REPEAT_EVERY if clock() < repeated else INTRODUCE_EVERY) != moved:
            repeated = clock() + REPEAT_FOR


async def _meet(agent: Agent, other: Endpoint, level: int) -> bool:
    """Introduce this node. Returns whether it was heard."""
    try:
        async with rpc.open_channel(await rpc.fastest(other), other.port) as channel:
            peer = f"{next(iter(other.addresses), 'nowhere')}:{other.port}"
            await rpc.call(channel, rpc.MEET, agent.identity.endpoint, f"peer {peer}", timeout=3.0)
    except TogetherError as error:
        log.log(level, "%s; trying again", error)
        return False
    return True
