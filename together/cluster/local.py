"""Nodes of this machine's head: `python -m together node` processes as its children, which end with it.

A child says where it listens as a line of JSON on its standard output: multicast may be blocked, or late.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass

from together.cluster import identity
from together.cluster.discovery import Tell, log_it
from together.cluster.supervisor import signal_name
from together.cluster_types import Endpoint
from together.errors import AppError
from together.processes import FILED, end, lines, spawn
from together.sentences import NOTHING, Sentence, say
from together.settings import Settings

log = logging.getLogger(__name__)


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
            return json.dumps(asdict(news))


def said_to_parent(line: str) -> Endpoint | str | Noted | None:
    """What `say_to_parent` said; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        said = json.loads(line)
        if "level" in said:
            return Noted(**said)
        return (
            str(said["trouble"]) if "trouble" in said else Endpoint(tuple(said["addresses"]), said["port"], said["id"])
        )
    except (ValueError, KeyError, TypeError):
        return None


def _shared(settings: Settings) -> dict[str, str]:
    """What a child node must agree on with its head and cannot see on its command line."""
    return {
        "TOGETHER_CONFIG": str(settings.config_path),
        "TOGETHER_CLUSTER": settings.cluster,
        "TOGETHER_CLAIMS": settings.claims,
        "TOGETHER_NODE_PORT": str(settings.node_port),
        "TOGETHER_HEARTBEAT": str(settings.heartbeat),
        "TOGETHER_LEASE": str(settings.lease),
        # What is worth a warning there is told here, in sentences.
        "TOGETHER_LOG_LEVEL": "ERROR" if settings.log_level.upper() == "WARNING" else settings.log_level,
    }
