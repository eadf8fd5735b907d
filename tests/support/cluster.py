"""Real node processes and heads in this process, on loopback, each cluster with its own home, name and ports.

Knows no test. Whatever is started here is stopped by the context manager that started it.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any

import grpc.aio
import psutil

from tests.support.checksum import expected_text
from tests.support.patience import PATIENCE
from together.cluster.local import said_to_parent
from together.cluster_types import Caller, Endpoint, NodeStatus
from together.head.head import Head
from together.planning.request import PlanRequest, parse_layers
from together.requests import ChatRequest, Message
from together.ring import rpc, wire
from together.settings import Settings, load_settings
from together.text.tokenizer import TextModel
from together.types import Sampling

CHECKOUT = Path(__file__).resolve().parents[2]
GREEDY = Sampling(temperature=0.0)


def by_hand(layers: str) -> PlanRequest:
    """A split given as `--layers` takes it."""
    return PlanRequest(strategy="custom", assignments=parse_layers(layers))


# --- settings ---------------------------------------------------------------------------------------------------------


def cluster_settings(home: Path, **overrides: object) -> Settings:
    """Settings of a cluster of its own; the memory is far more than the toy needs."""
    values: dict[str, object] = {
        "home": str(home),
        "claims": str(home / "claims"),
        "cluster": f"test-{secrets.token_hex(4)}",
        "node_port": free_port_block(),
        "backend": "checksum",
        "memory": "1GB",
        "strategy": "uniform",
        "context": 512,
        "users": 2,
        "heartbeat": 0.3,
        "node_timeout": 2.0,
        "load_timeout": PATIENCE,
        "step_timeout": 10 * PATIENCE,  # a ring mends itself long before, or the test fails
    }
    return load_settings({}, **(values | overrides))


def free_port_block() -> int:
    """A port with 64 free ones below it for heads and 64 from it on for nodes; far from defaults and ephemeral ones."""
    while True:
        first = random.randrange(20_000, 31_000, 128)
        if all(map(_is_free, range(first, first + 128))):
            return first + 64


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def environment(settings: Settings) -> dict[str, str]:
    """This process's environment with `settings` instead of whatever TOGETHER_* it has."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("TOGETHER_")}
    default = Settings()
    for item in fields(settings):
        value = getattr(settings, item.name)
        if value != getattr(default, item.name):
            plain[f"TOGETHER_{item.name.upper()}"] = str(value)
    return plain


# --- nodes ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Node:
    """A node's process; `lines` is what it said on both streams."""

    process: subprocess.Popen[str]
    host: str
    lines: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint((self.host,), self.port)

    def stages(self) -> list[psutil.Process]:
        """Its stage processes, living. One that still is a copy of its node would stop the node with it."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    found += [child] if "together.ring.stage" in child.cmdline() else []
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Close its input, as its parent's end would; kill what does not leave."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def wait_ready(self) -> None:
        """Until it says where it listens. Fails with what it said instead."""
        deadline = time.monotonic() + PATIENCE
        while not (said := [at for line in self.lines if isinstance(at := said_to_parent(line), Endpoint)]):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the node did not start: {self.lines}")
            time.sleep(0.02)
        self.port = said[0].port


def start_node(settings: Settings, *peers: Endpoint, within: tuple[str, ...] = ()) -> Node:
    """A node's process; returns before it is ready. `within` is a command that runs the command after it elsewhere."""
    arguments = [f"--peer={peer.addresses[0]}:{peer.port}" for peer in peers]
    process = subprocess.Popen(
        [*within, sys.executable, "-m", "together", "node", "--with-parent", *arguments],
        cwd=CHECKOUT,
        env=environment(settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    node = Node(process, settings.host)
    for stream in (process.stdout, process.stderr):
        threading.Thread(target=_drain, args=(stream, node.lines), daemon=True).start()
    return node


def _drain(stream: IO[str], lines: list[str]) -> None:
    with stream:
        lines.extend(stream)


@contextmanager
def running_nodes(settings: Settings, *names: str) -> Iterator[list[Node]]:
    """One ready node per name, started together; nodes that a test has ended already are fine."""
    nodes = [start_node(replace(settings, name=name)) for name in names]
    try:
        for node in nodes:
            node.wait_ready()
        yield nodes
    finally:
        for node in nodes:
            with suppress(ProcessLookupError):
                node.thaw()
            node.process.stdin.close() if node.process.stdin else None
        for node in nodes:
            node.stop()


@contextmanager
def running_node(settings: Settings, *peers: Endpoint) -> Iterator[Node]:
    """One ready node."""
    node = start_node(settings, *peers)
    try:
        node.wait_ready()
        yield node
    finally:
        with suppress(ProcessLookupError):
            node.thaw()
        node.stop()


# --- heads ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running_head(settings: Settings, *nodes: Node) -> AsyncIterator[Head]:
    """A head that has seen `nodes`; it is told where they are, so that it need not wait for multicast."""
    head = Head(settings, tuple(node.endpoint for node in nodes))
    await head.start()
    try:
        await until(lambda: len(head.view().nodes) >= len(nodes))
        head.machines._settled = bool(nodes)  # all are here: no first plan waits for machines that may come
        yield head
    finally:
        await head.stop()


@asynccontextmanager
async def running_cluster(home: Path, *names: str, **overrides: object) -> AsyncIterator[tuple[Head, list[Node]]]:
    """Nodes of these names and a head that has seen them."""
    settings = cluster_settings(home, **overrides)
    with running_nodes(settings, *names) as nodes:
        async with running_head(settings, *nodes) as head:
            yield head, nodes


@asynccontextmanager
async def fresh_head(home: Path, settings: Settings, nodes: list[Node]) -> AsyncIterator[Head]:
    """A head that remembers nothing, of nodes that tests share; leaves them thawed and without stages."""
    try:
        async with running_head(replace(settings, home=str(home)), *nodes) as head:
            yield head
    finally:
        for node in nodes:
            node.thaw()
    await until(lambda: not any(node.stages() for node in nodes))


async def ask(head: Head, text: str = "hello", tokens: int = 12, sampling: Sampling = GREEDY) -> str:
    """The head's whole answer to one message."""
    request = ChatRequest((Message("user", text),), sampling, tokens)
    return "".join([piece.text async for piece in head.chat(request)])


def right_answer(folder: Path, text: str = "hello", tokens: int = 12, sampling: Sampling = GREEDY) -> str:
    """What `ask` must return, by the toy's definition. Worked out once for equal toys: a template takes a process."""
    files = [path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()]
    key = (*files, text, tokens, repr(sampling))
    if key not in _answers:
        _answers[key] = expected_text(folder, prompt_of(folder, text), tokens, sampling)
    return _answers[key]


def prompt_of(folder: Path, text: str) -> tuple[int, ...]:
    """The prompt of one message, rendered once for equal words."""
    key = (*((folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")), text)
    if key not in _prompts:
        _prompts[key] = TextModel.open(folder).prompt_ids((Message("user", text),))
    return _prompts[key]


_answers: dict[tuple[object, ...], str] = {}
_prompts: dict[tuple[object, ...], tuple[int, ...]] = {}


async def until(true: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Polls state of others; fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # what is waited for is state of others, not an event
            await asyncio.sleep(0.02)


# --- a node's service, without a head ---------------------------------------------------------------------------------


async def call(node: Node, method: rpc.Unary, request: object, timeout: float = PATIENCE) -> Any:
    """One call to a node, on a channel of its own."""
    async with rpc.open_channel(node.host, node.port) as channel:
        return await rpc.call(channel, method, request, "node", timeout)


async def watch(node: Node, caller: Caller) -> AsyncIterator[NodeStatus]:
    """What a node tells a head."""
    async with rpc.open_channel(node.host, node.port) as channel:
        stub: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(rpc.WATCH)
        async for data in stub(wire.CALLER.encode(caller)):
            yield wire.NODE_STATUS.decode(data)


async def status_of(node: Node, settings: Settings) -> NodeStatus:
    """A node's state now."""
    stream = watch(node, Caller("test", settings.cluster, wire.PROTOCOL))
    async for status in stream:
        await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
        return status
    raise AssertionError("the node told nothing")
