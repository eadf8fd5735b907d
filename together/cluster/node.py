"""A node's process: it binds a block of ports, advertises itself, serves, and leaves.

`LocalNodes` are such processes as children of a head, which end with it. A child says where it listens as a line of
JSON on its standard output: multicast may be blocked, or late.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import grpc.aio

from together.cluster import identity
from together.cluster.agent import Agent
from together.cluster.discovery import Addressed, Discovery, Hint, Tell, log_it
from together.cluster.grants import MemoryGrants
from together.cluster.profiling import default_backend, find_devices
from together.cluster.supervisor import signal_name
from together.cluster_types import Endpoint, NodeStatus
from together.errors import AppError, TogetherError, Unreachable
from together.models.units import missing_ranges
from together.processes import FILED, end, lines, spawn, stop_with_parent
from together.ring import rpc
from together.ring.rpc import Broadcast
from together.sentences import NOTHING, Sentence, say
from together.settings import Settings

log = logging.getLogger(__name__)

ADVERTISE_EVERY = 2.0  # seconds, at most: records are for finding, Watch has the truth
INTRODUCE_EVERY = 10.0
REPEAT_FOR = 10.0  # seconds for which a new address is repeated: the network may still be coming up
REPEAT_EVERY = 1.0


Story = Callable[[Agent], Coroutine[Any, Any, None]]


async def tell_nobody(agent: Agent) -> None:
    """The story of a node that no person looks at."""
    await asyncio.Event().wait()


async def run_node(
    settings: Settings,
    peers: tuple[Endpoint, ...] = (),
    with_parent: bool = False,
    story: Story = tell_nobody,
    stop: asyncio.Event | None = None,
    tell: Tell = log_it,
) -> None:
    """Run a node until `stop` is set or, `with_parent`, our input is closed. Raises TogetherError if it cannot.

    `story` runs as long as the node: it says what goes on there; `tell` gets what happens outside.
    """
    stop = stop or asyncio.Event()
    if with_parent:
        stop_with_parent(stop)
    node_id, lock = identity.claim_node_id(settings.home_path)
    try:
        devices = await find_devices(settings.backend or default_backend(), settings.home_path)
        where = identity.Whereabouts(settings.host)  # raises for a name without an address before ports are tried
        async with MemoryGrants.of(settings, identity.node_name(settings), devices) as grants:
            agent, server = await _open(settings, node_id, grants, where)
            discovery = Discovery(settings, agent.changed.notify, tell)
            jobs = (story(agent), *_jobs(agent, where, discovery, peers, tell))
            try:
                await _run_until(stop, jobs)
            finally:
                await discovery.close()
                await agent.close()
                await server.stop(0.2)
    finally:
        lock.release()


def _follow(where: identity.Whereabouts, agent: Agent) -> Broadcast:
    """Let the node move with its machine; the broadcast is notified after each move."""
    moves = Broadcast()

    def move() -> None:
        agent.move(where.endpoint.addresses)
        moves.notify()

    where.moved = move
    return moves


async def _open(
    settings: Settings, node_id: str, grants: MemoryGrants, where: identity.Whereabouts
) -> tuple[Agent, grpc.aio.Server]:
    """Serve at the first port of a free block; holding it is holding the block."""
    me = identity.Identity(node_id, grants.node_name, identity.machine_id(settings.home_path), where.endpoint)
    agent = Agent(settings, me, grants)
    server = rpc.make_server(agent.handlers())
    where.bound(rpc.bind(server, settings.host, identity.port_blocks(settings.node_port)))
    agent.identity = replace(me, endpoint=where.endpoint)
    await server.start()
    return agent, server


def _jobs(
    agent: Agent, where: identity.Whereabouts, discovery: Discovery, peers: tuple[Endpoint, ...], tell: Tell
) -> tuple[Coroutine[Any, Any, None], ...]:
    moves = _follow(where, agent)
    return (
        agent.keep_leases(),
        agent.grants.follow(agent.changed.notify),
        where.follow(),
        _advertise(agent, moves, discovery),
        _introduce(agent, moves, peers, Addressed(peers, INTRODUCE_EVERY, tell)),
    )


async def _run_until(stop: asyncio.Event, jobs: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run jobs that never return until `stop` is set. Raises what one of them raises."""
    stopped: asyncio.Task[Any] = asyncio.create_task(stop.wait())
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        await asyncio.wait((stopped, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in (stopped, *tasks):
            task.cancel()
        await asyncio.gather(stopped, *tasks, return_exceptions=True)


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
    plain = Hint(
        id=status.id,
        cluster=cluster,
        endpoint=status.endpoint,
        protocol=status.protocol,
        device=status.devices[0].description,
        free_memory=status.free_bytes,
        owner=status.owner,
    )
    if not status.stages:
        return plain
    model, total = status.stages[0].model, status.stages[0].total_layers
    held = tuple(sorted(stage.layers for stage in status.stages if stage.model == model))
    known = [other for other in others if other.model == model and other.id != status.id]
    elsewhere = [layers for other in known for layers in other.held]
    return replace(plain, model=model, layers=total, held=held, free=missing_ranges(total, [*held, *elsewhere]))


async def _introduce(agent: Agent, moves: Broadcast, peers: tuple[Endpoint, ...], addressed: Addressed) -> None:
    """Tell peers, and the heads that watched us, where we are, so that we are found without multicast.

    They forget it, so it is repeated, and more often for a while after a move.
    """
    clock = asyncio.get_running_loop().time
    repeated = 0.0
    while True:
        moved = moves.version
        others = [head for head in agent.heads() if head not in peers]
        answered = await asyncio.gather(
            *(_meet(agent, peer, addressed) for peer in peers), *(_meet(agent, head, None) for head in others)
        )
        agent.heard(other for other, heard in zip(others, answered[len(peers) :], strict=True) if heard)
        if await moves.wait(moved, REPEAT_EVERY if clock() < repeated else INTRODUCE_EVERY) != moved:
            repeated = clock() + REPEAT_FOR


async def _meet(agent: Agent, other: Endpoint, addressed: Addressed | None) -> bool:
    """Introduce this node. Returns whether it was heard; `addressed` learns that, too."""
    try:
        async with rpc.open_channel(await rpc.fastest(other), other.port) as channel:
            await rpc.call(channel, rpc.MEET, agent.identity.endpoint, str(other), timeout=3.0)
    except TogetherError as error:
        log.info("%s; trying again", error)
        if addressed is not None:
            addressed.silent(other) if isinstance(error, Unreachable) else addressed.refused(other, error.sentence)
        return False
    if addressed is not None:
        addressed.answered(other)
    return True


# --- nodes of this machine's head -------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class LocalNode:
    """One of them. `at` is where it listens, once it has said so; `trouble` is why it cannot run, in its own words."""

    name: str
    process: asyncio.subprocess.Process
    at: Endpoint | None = None
    trouble: str = ""
    unwanted: bool = False  # it was told to end

    @property
    def runs(self) -> bool:
        return self.process.returncode is None

    def ended(self) -> Sentence:
        """What a person is to hear of its end; nothing where it was told to."""
        if self.unwanted:
            return NOTHING
        if self.trouble:
            return say("local_node_failed", node=self.name, error=self.trouble)
        code = self.process.returncode
        if code is not None and code < 0:
            return say("local_node_killed", node=self.name, signal=signal_name(-code))
        return say("local_node_ended", node=self.name, exit=str(code))


class LocalNodes:
    """Starts and stops `python -m together node` children; the newest one is stopped first."""

    def __init__(self, settings: Settings, owner: str, news: Callable[[], None], tell: Tell = log_it) -> None:
        """`owner` is the head's id; `news` is called when one of them says where it listens."""
        self._settings = settings
        self._owner = owner
        self._news = news
        self._tell = tell
        self._started = 0
        self._nodes: list[LocalNode] = []
        self._readers: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        return sum(node.runs for node in self._nodes)

    def endpoints(self) -> frozenset[Endpoint]:
        """Of those that are ready and run."""
        return frozenset(node.at for node in self._nodes if node.at and node.runs)

    async def start(self, parts: int) -> None:
        """Start `parts` nodes, which share this machine's memory with all others on it."""
        await asyncio.gather(*(self._start_one(numbered=parts > 1) for _ in range(parts)))

    async def start_one(self) -> None:
        """One more node; the others offer less from then on."""
        await self._start_one(numbered=True)

    async def stop_one(self, at: Endpoint | None = None) -> None:
        """Stop the node that listens there, or the newest one. Raises AppError where there is none."""
        running = [node for node in self._nodes if node.runs and not node.unwanted and at in (None, node.at)]
        if not running:
            raise AppError("no node that this app started runs here")
        await self._end(running[-1])

    async def close(self) -> None:
        await asyncio.gather(*map(self._end, self._nodes))
        await asyncio.gather(*self._readers, return_exceptions=True)
        self._nodes.clear()

    async def _end(self, node: LocalNode) -> None:
        node.unwanted = True
        await end(node.process)

    async def _start_one(self, numbered: bool) -> None:
        """Nodes of one machine are numbered, so that a user can tell them apart."""
        settings = self._settings
        self._started += 1
        name = f"{identity.node_name(settings)}-{self._started}" if numbered else identity.node_name(settings)
        arguments = ["together", "node", "--with-parent", "--host", settings.host, "--name", name]
        if settings.backend:
            arguments += ["--backend", settings.backend]
        if settings.memory:
            arguments += ["--memory", settings.memory]
        if settings.cache:
            arguments += ["--cache", settings.cache]
        own = {"TOGETHER_HOME": str(settings.home_path), "TOGETHER_OWNER": self._owner}
        process = await spawn(*arguments, environment=own | _shared(settings))
        node = LocalNode(name, process)
        self._nodes.append(node)
        reader = asyncio.create_task(self._read(node))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)

    async def _read(self, node: LocalNode) -> None:
        """Until it ends: where it listens is kept, what else it says goes to this process's log."""

        async def drain(stream: asyncio.StreamReader | None, level: int) -> None:
            assert stream is not None
            async for line in lines(stream):
                self._hear(node, line.decode(errors="replace"), level)

        await asyncio.gather(drain(node.process.stdout, logging.DEBUG), drain(node.process.stderr, logging.WARNING))
        await node.process.wait()
        self._nodes.remove(node) if node in self._nodes else None
        if ended := node.ended():
            self._tell(ended)

    def _hear(self, node: LocalNode, line: str, level: int) -> None:
        match said_to_parent(line):
            case Endpoint() as endpoint:
                node.at = endpoint
                self._news()
            case str(trouble):
                node.trouble = trouble
            case Noted(noted_at, name, text):
                named = {"name": f"{node.name} {name}", "levelname": logging.getLevelName(noted_at)}
                logging.getLogger(FILED).handle(logging.makeLogRecord({"levelno": noted_at, "msg": text, **named}))
            case None:
                log.log(level, "%s: %s", node.name, line)


@dataclass(frozen=True, slots=True)
class Noted:
    """A record of a child's log: its level, its logger and its text."""

    level: int
    name: str
    text: str


def say_to_parent(news: Endpoint | str | Noted) -> str:
    """The line by which a node tells its parent where it listens, why it cannot run, or what it notes."""
    match news:
        case str():
            return json.dumps({"trouble": news})
        case Noted():
            return json.dumps(asdict(news))
        case Endpoint():
            return json.dumps({"addresses": news.addresses, "port": news.port})


def said_to_parent(line: str) -> Endpoint | str | Noted | None:
    """What `say_to_parent` said; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        said = json.loads(line)
        if "level" in said:
            return Noted(**said)
        return str(said["trouble"]) if "trouble" in said else Endpoint(tuple(said["addresses"]), said["port"])
    except (ValueError, KeyError, TypeError):
        return None


def _shared(settings: Settings) -> dict[str, str]:
    """What a child node must agree on with its head and cannot see on its command line."""
    return {
        "TOGETHER_CLUSTER": settings.cluster,
        "TOGETHER_CLAIMS": settings.claims,
        "TOGETHER_NODE_PORT": str(settings.node_port),
        "TOGETHER_HEARTBEAT": str(settings.heartbeat),
        "TOGETHER_LEASE": str(settings.lease),
        # What is worth a warning there is told here, in sentences.
        "TOGETHER_LOG_LEVEL": "ERROR" if settings.log_level.upper() == "WARNING" else settings.log_level,
    }
