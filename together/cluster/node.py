"""A node's process: it binds a block of ports, advertises itself, serves, and leaves.

`LocalNodes` are such processes as children of a head, which end with it. A child says where it listens as a line of
JSON on its standard output: multicast may be blocked, or late.
"""

from __future__ import annotations

import asyncio
import json
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
from together.errors import AppError, TogetherError
from together.processes import end, lines, spawn, stop_with_parent
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


# --- nodes of this machine's head -------------------------------------------------------------------------------------


class LocalNodes:
    """Starts and stops `python -m together node` children; the newest one is stopped first."""

    def __init__(self, settings: Settings, news: Callable[[], None]) -> None:
        """`news` is called when one of them says where it listens."""
        self._settings = settings
        self._news = news
        self._listening: dict[asyncio.subprocess.Process, Endpoint] = {}
        self._started = 0
        self._running: list[asyncio.subprocess.Process] = []
        self._readers: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        return sum(process.returncode is None for process in self._running)

    def endpoints(self) -> frozenset[Endpoint]:
        """Of those that are ready and run."""
        return frozenset(at for process, at in self._listening.items() if process.returncode is None)

    async def start(self, parts: int) -> None:
        """Start `parts` nodes, each with 1/parts of this machine's free memory."""
        memory = self._settings.memory or f"{identity.shared_memory(parts)}B"
        await asyncio.gather(*(self._start_one(memory, numbered=parts > 1) for _ in range(parts)))

    async def start_one(self) -> None:
        """One more node, with half of what is free now."""
        await self._start_one(f"{identity.shared_memory(2)}B", numbered=True)

    async def stop_one(self) -> None:
        """Stop the newest node. Raises AppError where none runs."""
        self._running = [process for process in self._running if process.returncode is None]
        if not self._running:
            raise AppError("no node that this app started runs here")
        await end(self._running.pop())

    async def close(self) -> None:
        await asyncio.gather(*(end(process) for process in self._running))
        await asyncio.gather(*self._readers, return_exceptions=True)
        self._running.clear()

    async def _start_one(self, memory: str, numbered: bool) -> None:
        """Nodes of one machine are numbered, so that a user can tell them apart."""
        settings = self._settings
        self._started += 1
        name = f"{identity.node_name(settings)}-{self._started}" if numbered else identity.node_name(settings)
        arguments = ["together", "node", "--with-parent", "--host", settings.host, "--memory", memory, "--name", name]
        if settings.backend:
            arguments += ["--backend", settings.backend]
        process = await spawn(*arguments, environment={"TOGETHER_HOME": str(settings.home_path)} | _shared(settings))
        self._running.append(process)
        reader = asyncio.create_task(self._read(process))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Until it ends: where it listens is kept, what else it says goes to this process's log."""

        async def drain(stream: asyncio.StreamReader | None, level: int) -> None:
            assert stream is not None
            async for line in lines(stream):
                self._hear(process, line.decode(errors="replace"), level)

        await asyncio.gather(drain(process.stdout, logging.DEBUG), drain(process.stderr, logging.WARNING))
        await process.wait()
        self._listening.pop(process, None)

    def _hear(self, process: asyncio.subprocess.Process, line: str, level: int) -> None:
        endpoint = endpoint_said(line)
        if endpoint is None:
            log.log(level, "local node: %s", line)
            return
        self._listening[process] = endpoint
        self._news()


def say_endpoint(endpoint: Endpoint) -> str:
    """The line by which a node tells its parent where it listens."""
    return json.dumps({"addresses": endpoint.addresses, "port": endpoint.port})


def endpoint_said(line: str) -> Endpoint | None:
    """What `say_endpoint` said; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        said = json.loads(line)
        return Endpoint(tuple(said["addresses"]), said["port"])
    except (ValueError, KeyError, TypeError):
        return None


def _shared(settings: Settings) -> dict[str, str]:
    """What a child node must agree on with its head and cannot see on its command line."""
    return {
        "TOGETHER_CLUSTER": settings.cluster,
        "TOGETHER_NODE_PORT": str(settings.node_port),
        "TOGETHER_HEARTBEAT": str(settings.heartbeat),
        "TOGETHER_LEASE": str(settings.lease),
        "TOGETHER_LOG_LEVEL": settings.log_level,
    }
