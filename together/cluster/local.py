"""Nodes that a head runs on its own machine, as child processes that end with it. Knows no ring."""

from __future__ import annotations

import asyncio
import logging

import psutil

from together.cluster.identity import node_name
from together.cluster.supervisor import end, lines, spawn
from together.errors import AppError
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

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started = 0
        self._running: list[asyncio.subprocess.Process] = []
        self._readers: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        return sum(process.returncode is None for process in self._running)

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
        reader = asyncio.create_task(_log_output(process))
        self._readers.add(reader)
        reader.add_done_callback(self._readers.discard)


def _shared(settings: Settings) -> dict[str, str]:
    """What a child node must agree on with its head and cannot see on its command line."""
    return {
        "TOGETHER_CLUSTER": settings.cluster,
        "TOGETHER_NODE_PORT": str(settings.node_port),
        "TOGETHER_HEARTBEAT": str(settings.heartbeat),
        "TOGETHER_LEASE": str(settings.lease),
        "TOGETHER_LOG_LEVEL": settings.log_level,
    }


async def _log_output(process: asyncio.subprocess.Process) -> None:
    """Drain both pipes; what a node says goes to this process's log."""

    async def drain(stream: asyncio.StreamReader | None, level: int) -> None:
        assert stream is not None
        async for line in lines(stream):
            log.log(level, "local node: %s", line.decode(errors="replace"))

    await asyncio.gather(drain(process.stdout, logging.DEBUG), drain(process.stderr, logging.WARNING))
    await process.wait()
