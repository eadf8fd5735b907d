"""A node's process: it binds a block of ports, advertises itself, serves, and leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any

import grpc.aio

from together.cluster import identity
from together.cluster.agent import Agent
from together.cluster.discovery import Addressed, Discovery, Hint, Tell, log_it
from together.cluster.grants import MemoryGrants
from together.cluster.profiling import default_backend, find_devices
from together.cluster_types import Endpoint, NodeStatus
from together.errors import Locked, TogetherError, Unreachable
from together.models.units import missing_ranges
from together.processes import stop_with_parent
from together.ring import rpc
from together.ring.doors import find_door
from together.ring.rpc import Broadcast
from together.sentences import say
from together.settings import Settings
from together.trust.credentials import Credentials, SecretWatch

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds between looks whether a person joined elsewhere
AGAIN_EVERY = 600.0  # seconds: the time in a record must not grow old
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

    `story` runs as long as the node: it says what goes on there; `tell` gets what happens outside. A node whose join
    code changes ends all that it does and begins anew, as a member of the other cluster.
    """
    stop = stop or asyncio.Event()
    if with_parent:
        stop_with_parent(stop)
    node_id, lock = identity.claim_node_id(settings.home_path)
    credentials = Credentials.of(settings.config_path, node_id)
    try:
        # Raises for a name without an address before ports are tried.
        where = identity.Whereabouts(settings.host, name=node_id)
        async with asyncio.TaskGroup() as group:
            if where.endpoint.id:  # the certificate is made while devices are found
                group.create_task(asyncio.to_thread(lambda: credentials.leaf))
            finding = group.create_task(find_devices(settings.backend or default_backend(), settings.home_path))
        async with MemoryGrants.of(settings, identity.node_name(settings), finding.result()) as grants:
            while not stop.is_set():
                agent, server = await _open(settings, node_id, grants, where, credentials)
                await _live(agent, server, where, peers, story, stop, tell)
                credentials.renew()
    except* TogetherError as errors:
        raise errors.exceptions[0] from None
    finally:
        lock.release()


async def _live(
    agent: Agent,
    server: grpc.aio.Server,
    where: identity.Whereabouts,
    peers: tuple[Endpoint, ...],
    story: Story,
    stop: asyncio.Event,
    tell: Tell,
) -> None:
    """Until `stop` is set, or this machine has another join code."""
    discovery = Discovery(agent.settings, agent.changed.notify, tell, agent.credentials)
    jobs = (story(agent), _until_rejoined(agent, tell), *_jobs(agent, where, discovery, peers, tell))
    try:
        await _run_until(stop, jobs)
    finally:
        await discovery.close()
        await agent.close()
        await server.stop(0.2)


async def _until_rejoined(agent: Agent, tell: Tell) -> None:
    """Returns when this machine has another join code than the one that the node speaks with."""
    assert agent.credentials.file is not None, "a node has the secret"
    watch = SecretWatch(agent.credentials.file)
    while True:
        await asyncio.sleep(LOOK_EVERY)
        if await asyncio.to_thread(watch.changed):
            if agent.identity.endpoint.id:
                break
            agent.credentials.renew()  # on a plain port nobody noticed
    tell(say("rejoined"))


def _follow(where: identity.Whereabouts, agent: Agent) -> Broadcast:
    """Let the node move with its machine; the broadcast is notified after each move."""
    moves = Broadcast()

    def move() -> None:
        agent.move(where.endpoint.addresses)
        moves.notify()

    where.moved = move
    return moves


async def _open(
    settings: Settings, node_id: str, grants: MemoryGrants, where: identity.Whereabouts, credentials: Credentials
) -> tuple[Agent, grpc.aio.Server]:
    """Serve at the first port of a free block; holding it is holding the block."""
    me = identity.Identity(node_id, grants.node_name, identity.machine_id(settings.home_path), where.endpoint)
    agent = Agent(settings, me, grants, credentials)
    server = rpc.make_server(agent.handlers(), rpc.CONTROL_LIMIT)
    where.bound(rpc.bind(server, settings.host, identity.port_blocks(settings.node_port), credentials))
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
    repeated, said = 0.0, clock()  # until when it is repeated, and when it was said, in event loop time
    while True:
        seen, moved = agent.changed.version, moves.version
        hint = make_hint(agent.status(), agent.settings.cluster, list(discovery.hints.values()))
        if published is not None and hint.endpoint != published.endpoint:
            repeated = clock() + REPEAT_FOR
            await discovery.advertise(hint)  # first: binding to other addresses publishes the record that is known then
            await discovery.rebind()
        if hint != published or clock() < repeated or clock() - said > AGAIN_EVERY:
            await discovery.advertise(hint)
            published, said = hint, clock()
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
    heads = Addressed((), INTRODUCE_EVERY, addressed.tell)  # of which only those that have another code by now are told
    while True:
        moved = moves.version
        others = [head for head in agent.heads() if head not in peers]
        answered = await asyncio.gather(
            *(_meet(agent, peer, addressed) for peer in peers), *(_meet(agent, head, heads) for head in others)
        )
        agent.heard(other for other, heard in zip(others, answered[len(peers) :], strict=True) if heard)
        if await moves.wait(moved, REPEAT_EVERY if clock() < repeated else INTRODUCE_EVERY) != moved:
            repeated = clock() + REPEAT_FOR


async def _meet(agent: Agent, other: Endpoint, addressed: Addressed) -> bool:
    """Introduce this node. Returns whether it was heard; `addressed` learns that, too."""
    try:
        door = await find_door(other, agent.credentials, by_hand=addressed.names(other))
        async with door.open() as channel:
            await rpc.call(channel, rpc.MEET, agent.identity.endpoint, str(other), timeout=3.0)
    except TogetherError as error:
        log.info("%s; trying again", error)
        if isinstance(error, Locked) or (addressed.names(other) and not isinstance(error, Unreachable)):
            addressed.refused(other, error.sentence)
        else:
            addressed.silent(other)
        return False
    addressed.answered(other)
    return True
