"""A TCP proxy on loopback that behaves like a bad network: slow, late, silent or cut. Knows no protocol above TCP.

    async with proxy(node.port, delay_ms=100, bytes_per_s=125_000) as link:
        ...  # connect to link.port instead
        link.freeze()  # nothing arrives any more, and nobody is told; thaw() lets everything held back arrive
        link.cut()     # every connection is reset and new ones are refused, until heal()

`delay_ms` is one way, so a round trip has it twice; `bytes_per_s` holds for each direction, over all connections
together. Both may be changed at any time. `heard` gets all bytes of both directions, as somebody who listens would.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

CHUNK = 4096  # bytes read at a time: small beside what a slow link carries in a moment
BUFFER = 2**16  # of each socket, or the kernel would take megabytes at once and a slow link would look fast


@dataclass(slots=True)
class Direction:
    """One way of the link: when it is free again, and what went over it."""

    free_at: float = 0.0
    sent: int = 0


@dataclass(slots=True)
class Proxy:
    """What `proxy` gives: the port to connect to, and what to do to those who did."""

    host: str
    target_port: int
    delay_ms: float = 0.0
    bytes_per_s: float | None = None
    port: int = 0
    heard: bytearray | None = None
    accepted: int = 0  # connections so far
    there: Direction = field(default_factory=Direction)
    back: Direction = field(default_factory=Direction)
    _thawed: asyncio.Event = field(default_factory=asyncio.Event)
    _listening: asyncio.Task[None] | None = None
    _cut: asyncio.Task[None] | None = None  # what listened before the last cut
    _connections: dict[asyncio.Task[None], tuple[socket.socket, ...]] = field(default_factory=dict)

    @property
    def connected(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def freeze(self) -> None:
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    def cut(self) -> None:
        """Reset every connection; new ones are refused."""
        if self._listening is not None:
            self._listening.cancel()
            self._cut, self._listening = self._listening, None
        for connection, ends in list(self._connections.items()):
            connection.cancel()
            for end in ends:
                # Lingering for no time closes with a reset.
                with suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def open(self) -> None:
        """Listen now: at a free port, or again at the one before."""
        listener = _listener(self.host, self.port)
        self.port = listener.getsockname()[1]
        self._listening = asyncio.get_running_loop().create_task(self._listen(listener))
        self._listening.add_done_callback(lambda _: listener.close())  # also where it was cut before it began

    def heal(self) -> None:
        """Listen again, as soon as the listener before has given the port back."""
        if self._listening is not None:
            return
        if self._cut is None or self._cut.done():
            self.open()
        else:
            self._listening = asyncio.get_running_loop().create_task(self._listen_after(self._cut))

    async def _listen_after(self, cut: asyncio.Task[None]) -> None:
        await asyncio.gather(cut, return_exceptions=True)
        await self._listen(_listener(self.host, self.port))

    async def close(self) -> None:
        self.cut()
        await asyncio.gather(*self._connections, *([self._cut] if self._cut else []), return_exceptions=True)

    async def _listen(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                client, _ = await loop.sock_accept(listener)
                self.accepted += 1
                server = socket.socket()
                connection = loop.create_task(self._connect(client, server))
                self._connections[connection] = (client, server)
                connection.add_done_callback(self._forget)

    def _forget(self, connection: asyncio.Task[None]) -> None:
        for end in self._connections.pop(connection):
            end.close()  # after the task's end: nothing reads from it any more

    async def _connect(self, client: socket.socket, server: socket.socket) -> None:
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):  # one of the two is gone: both are closed, as if there were no proxy
            await asyncio.get_running_loop().sock_connect(server, (self.host, self.target_port))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry(client, server, self.there))
                tasks.create_task(self._carry(server, client, self.back))

    async def _carry(self, source: socket.socket, target: socket.socket, way: Direction) -> None:
        """Bytes of one direction, until its end; what is on its way does not keep the next from setting out."""
        loop = asyncio.get_running_loop()
        travelling: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._deliver(travelling, target, way))
            while True:
                try:
                    data = await loop.sock_recv(source, CHUNK)
                except OSError:
                    data = b""
                if self.heard is not None:
                    self.heard += data
                left = await self._leave(way, len(data))
                travelling.put_nowait((left + self.delay_ms / 1000, data))
                if not data:
                    return

    async def _leave(self, way: Direction, size: int) -> float:
        """Wait until the link has taken `size` bytes; the time of that."""
        now = asyncio.get_running_loop().time()
        if self.bytes_per_s is None:
            return now
        way.free_at = max(now, way.free_at) + size / self.bytes_per_s
        left = way.free_at
        await asyncio.sleep(left - now)
        return left

    async def _deliver(
        self, travelling: asyncio.Queue[tuple[float, bytes]], target: socket.socket, way: Direction
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await travelling.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            await self._thawed.wait()
            with suppress(OSError):  # whoever is gone hears nothing, and the other direction says so
                await loop.sock_sendall(target, data)
                way.sent += len(data)
            if not data:
                with suppress(OSError):
                    target.shutdown(socket.SHUT_WR)
                return


def _listener(host: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setblocking(False)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)  # inherited by what it accepts
    listener.bind((host, port))
    listener.listen(64)
    return listener


@asynccontextmanager
async def proxy(
    target_port: int,
    *,
    host: str = "127.0.0.1",
    delay_ms: float = 0.0,
    bytes_per_s: float | None = None,
    heard: bytearray | None = None,
) -> AsyncIterator[Proxy]:
    """A link to `target_port`; closed with all its connections at the end."""
    link = Proxy(host, target_port, delay_ms, bytes_per_s, heard=heard)
    link.thaw()
    link.open()
    try:
        yield link
    finally:
        await link.close()
