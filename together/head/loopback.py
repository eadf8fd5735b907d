"""Stage processes on loopback without nodes, and an engine over them: for scripts, benchmarks and tests."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from together.cluster.supervisor import StageProcess
from together.cluster_types import Endpoint, StageOrder, StageState
from together.engine.engine import Engine
from together.errors import LoadFailed, RingBroken
from together.models.rope import is_stretched
from together.models.spec import ModelSpec, read_spec
from together.planning.memory import stage_memory
from together.ring import rpc
from together.ring.client import RingClient, join_ring
from together.ring.links import Inlets
from together.ring.stage import Launch
from together.sentences import template
from together.trust.credentials import ALONE, Credentials
from together.types import DTYPE_BYTES, Dtype, LayerRange, StagePlan

HOST = "127.0.0.1"
OPEN = "0.0.0.0"  # a socket that others may reach, so it speaks TLS
PORTS = (46000, 46999)
LOAD_TIMEOUT = 600.0  # seconds


@dataclass(frozen=True, slots=True)
class Place:
    """One stage of a local ring."""

    backend: str
    device: str
    layers: LayerRange


@dataclass(frozen=True, slots=True)
class LocalRing:
    """The head's end and the processes behind it; the last stage pushes to `own`, where `inlets` take it."""

    spec: ModelSpec
    client: RingClient
    stages: tuple[StageProcess, ...]
    own: Endpoint
    inlets: Inlets


@asynccontextmanager
async def local_engine(
    folder: Path,
    home: Path,
    places: tuple[Place, ...],
    dtype: Dtype,
    context: int,
    users: int = 2,
    eos: frozenset[int] = frozenset(),
    *,
    exact: bool = False,
    credentials: Credentials = ALONE,
) -> AsyncIterator[tuple[Engine, LocalRing]]:
    """An engine that serves over a local ring. A stage that fails ends open requests and the block with RingBroken.

    With `credentials` its links are as those to other machines. Raises LoadFailed.
    """
    async with local_ring(folder, home, places, dtype, context, users, exact=exact, credentials=credentials) as ring:
        token_bytes = ring.spec.state_width * DTYPE_BYTES[dtype]
        engine = Engine(ring.client, eos, vocabulary=ring.spec.vocab_size, token_bytes=token_bytes)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_serve(engine))
                try:
                    yield engine, ring
                finally:
                    engine.close()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None


async def _serve(engine: Engine) -> None:
    try:
        await engine.serve()
    except RingBroken as error:
        engine.close(error)
        raise


@asynccontextmanager
async def local_ring(
    folder: Path,
    home: Path,
    places: tuple[Place, ...],
    dtype: Dtype,
    context: int,
    users: int = 2,
    *,
    exact: bool = False,
    credentials: Credentials = ALONE,
) -> AsyncIterator[LocalRing]:
    """Start, load and join the stages; memory is granted for `users` times `context` tokens. Raises LoadFailed."""
    spec = await asyncio.to_thread(read_spec, folder)
    inlets = Inlets()
    server = rpc.make_server({rpc.PUSH: inlets.handler()})
    host, leaf = (OPEN, credentials.leaf) if credentials.name else (HOST, None)
    own = Endpoint((HOST,), rpc.bind(server, host, range(*PORTS), credentials), credentials.name)
    await server.start()
    changed = asyncio.Event()
    ring = secrets.token_hex(8)
    stages = []
    for index, place in enumerate(places):
        memory = stage_memory(spec, place.layers, dtype, context, users, place.backend)
        stretched = is_stretched(spec.trained, context)
        stage = StagePlan("local", place.backend, place.device, place.layers, memory, stretched)
        order = StageOrder(ring, credentials.name or "local", index, spec.ref(folder), stage, dtype, exact=exact)
        launch = Launch(order, str(folder), str(home), "local", host, PORTS, leaf)
        stages.append(StageProcess(launch, (HOST,), changed.set))
    try:
        await asyncio.gather(*(stage.start() for stage in stages))
        await _until_ready(stages, changed)
        client = await join_ring(
            [stage.status for stage in stages],
            spec.ref(folder),
            epoch=0,
            own=own,
            inlets=inlets,
            context=context,
            hidden_size=spec.state_width,
            dtype=dtype,
            describe=lambda index: template("stage {index}", index=index),
            nodes=[credentials.name] * len(stages),
            credentials=credentials,
        )
        watcher = asyncio.create_task(_watch(stages, changed, client))
        try:
            yield LocalRing(spec, client, tuple(stages), own, inlets)
        finally:
            watcher.cancel()
            await client.close()
    finally:
        await asyncio.gather(*(stage.stop() for stage in stages))
        await server.stop(0)


async def _until_ready(stages: list[StageProcess], changed: asyncio.Event) -> None:
    async with asyncio.timeout(LOAD_TIMEOUT):
        while any(stage.status.state is not StageState.READY for stage in stages):
            for stage in stages:
                if stage.status.state is StageState.FAILED:
                    raise LoadFailed("stage {number}: {why}", number=stage.status.slot, why=stage.status.cause)
            changed.clear()
            await changed.wait()


async def _watch(stages: list[StageProcess], changed: asyncio.Event, client: RingClient) -> None:
    """Break the ring when a stage fails: only the stages' own reports say which one and why."""
    while True:
        changed.clear()
        for index, stage in enumerate(stages):
            if stage.status.state is StageState.FAILED:
                device, why = stage.status.device, stage.status.cause
                client.fail(RingBroken("stage {number} on {device}: {why}", number=index, device=device, why=why))
        await changed.wait()
