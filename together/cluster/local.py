"""Nodes that a head runs on its own machine, as child processes that end with it. Knows no ring.

A child says where it listens on its standard output, as a line of JSON: multicast may be blocked, or late.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable

import psutil

from together.cluster.identity import node_name
from together.cluster_types import Endpoint
from together.errors import AppError
from together.processes import end, lines, spawn
from together.settings import Settings

log = logging.getLogger(__name__)

LEAST_RESERVE = 2**30  # bytes left to the system and the person's other programs


def shared_memory(parts: int) -> int:
    """Bytes for each of `parts` nodes here: free memory, less a tenth of all (at least 1 GiB), in equal parts."""
    memory = psutil.virtual_memory()
    usable = max(memory.available - max(LEAST_RESERVE, memory.total // 10), 2**28)
    return usable // parts


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
        memory = self._settings.memory or f"{shared_memory(parts)}B"
        await asyncio.gather(*(self._start_one(memory, numbered=parts > 1) for _ in range(parts)))

    async def start_one(self) -> None:
        """One more node, with half of what is free now."""
        await self._start_one(f"{shared_memory(2)}B", numbered=True)

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
        """Nodes of one machine are numbered, so that a person can tell them apart."""
        settings = self._settings
        self._started += 1
        name = f"{node_name(settings)}-{self._started}" if numbered else node_name(settings)
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
