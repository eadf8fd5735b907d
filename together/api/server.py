"""The uvicorn server: finds a port, closes slow connections, ends open streams when told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from together.api.access import network_of
from together.api.visitors import is_loopback
from together.errors import Unreachable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request may take to arrive, in seconds; its answer may take any time."""

    idle: float = 30.0  # a new connection without a byte: browsers open some in advance
    headers: float = 15.0  # from the first byte to the end of the headers
    pause: float = 15.0  # without a byte of the body
    body: float = 30.0  # for the whole body, and a second more for every `rate` bytes that came
    rate: int = 1000  # bytes per second; a body that is slower than that all the time does not arrive


USUAL = Patience()


@dataclass(slots=True)
class Awaited:
    """The part of a request that is still to come; times are of the loop's clock."""

    part: Literal["request", "headers", "body"]
    cycle: RequestResponseCycle | None  # tells the bodies of two requests apart
    since: float
    last: float  # the last byte
    size: int = 0

    def deadline(self, patience: Patience) -> float:
        match self.part:
            case "request":
                return self.since + patience.idle
            case "headers":
                return self.since + patience.headers
            case "body":
                return min(self.last + patience.pause, self.since + patience.body + self.size / patience.rate)


class Connection(H11Protocol):
    """Uvicorn's own, which waits forever for headers and for a body. `patience` is its subclass's (`patient`)."""

    patience = USUAL

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._awaited: Awaited | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self._awaited is not None:
            self._awaited.last = self.loop.time()
            self._awaited.size += len(data)
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        """Restart the clock when another part is awaited than before."""
        part, now = self._part(), self.loop.time()
        before = self._awaited
        if part is None:
            self._stop()
        elif before is None or (before.part, before.cycle) != (part, self.cycle):
            self._stop()
            self._awaited = Awaited(part, self.cycle, now, now)
            self._check()

    def _part(self) -> Literal["request", "headers", "body"] | None:
        if self.transport.is_closing():
            return None
        if self.conn.their_state is h11.SEND_BODY:
            return "body"  # also after an early answer
        if self.conn.their_state is not h11.IDLE:
            return None
        if self.conn.trailing_data[0]:
            return "headers"
        return "request" if self.timeout_keep_alive_task is None else None  # uvicorn's own clock between two requests

    def _check(self) -> None:
        assert self._awaited is not None
        awaited, now = self._awaited, self.loop.time()
        if self.flow.read_paused:  # the app is slow to read, not the client to send
            awaited.since = awaited.last = now
        left = awaited.deadline(self.patience) - now
        if left > 0:
            self._timer = self.loop.call_later(left, self._check)
            return
        if awaited.part != "request":
            client = self.client[0] if self.client else "a client"
            waited = now - awaited.since
            logger.warning("closed a connection from %s: no whole %s after %.0f s", client, awaited.part, waited)
        self.transport.abort()

    def _stop(self) -> None:
        self._awaited = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def patient(patience: Patience) -> type[Connection]:
    """The class of connections that wait as long as `patience` says."""
    return type("PatientConnection", (Connection,), {"patience": patience})


PORTS_TRIED = 50
MOST_OPEN = 400  # connections of a door, silent ones among them: a process has 1,024 files, where nobody gives it more
MOST_OF_ONE = 200  # of these, from another machine


class BoundedListener(socket.socket):
    """A listening socket that closes what is too many at once, before TLS or a byte of a request cost anything."""

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self._open: list[tuple[socket.socket, str]] = []

    def accept(self) -> tuple[socket.socket, Any]:
        connection, client = super().accept()
        self._open = [each for each in self._open if each[0].fileno() >= 0]
        network = network_of(client[0])
        if is_one_too_many([other for _, other in self._open], network):
            connection.close()
            raise ConnectionAbortedError("too many connections")  # asyncio accepts the next one
        self._open.append((connection, network))
        return connection, client


def is_one_too_many(others: list[str], network: str) -> bool:
    """Whether a door with these connections, each named by the network of its client, has no room for that one."""
    return len(others) >= MOST_OPEN or (not is_loopback(network) and others.count(network) >= MOST_OF_ONE)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on `port` or the next free one; port 0 is any. Raises Unreachable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last = port if port == 0 else min(port + PORTS_TRIED, 65535)
    cause: OSError | None = None
    for candidate in range(port, last + 1):
        # The protocol is named so that asyncio sets TCP_NODELAY: without it every answer and every token of two packets
        # waited 40 ms for the client's acknowledgement.
        listener = BoundedListener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if os.name != "nt":  # there it would share a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(128)
        except OSError as error:
            cause = error
            listener.close()
            continue
        return listener
    raise Unreachable(
        "no port of {first} to {last} is free on {host}: {reason}; choose another with --port",
        first=port,
        last=last,
        host=host,
        reason=str(cause),
    )


def url_of(listener: socket.socket) -> str:
    """The address to open on this machine: loopback where the socket listens everywhere."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()

    def end(self) -> None:
        self.should_exit = True
        self._ended.set()

    async def main_loop(self) -> None:
        """Look at the clock once a second: uvicorn's own loop wakes an idle app ten times for it."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._ended.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the app around us decides what a signal means

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.close()  # what is streamed sees its client go, and ends by itself
        await super().shutdown(sockets)


@contextlib.asynccontextmanager
async def serving(
    app: FastAPI,
    listener: socket.socket,
    patience: Patience = USUAL,
    tls: ssl.SSLContext | None = None,
    first: bool = True,
) -> AsyncIterator[None]:
    """Serve `app` on `listener` inside this block; leaving it closes every connection within about a second.

    A request that takes longer to arrive than `patience` allows loses its connection. With `tls` by HTTPS; `first` is
    False where another socket of the same app is served around this one.
    """
    config = uvicorn.Config(
        app,
        http=patient(patience),
        ws="none",
        loop="asyncio",
        lifespan="on" if first else "off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=30,
    )
    config.load()
    config.ssl = tls
    server = _Server(config)
    running = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:
            await asyncio.wait({running}, timeout=0.01)
            if running.done():
                running.result()
                raise Unreachable("the web server did not start")
        yield
    finally:
        with _without_cancellations():
            server.end()
            await running


class _NoCancellations(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, asyncio.CancelledError) and "graceful shutdown exceeded" not in str(record.msg)


@contextlib.contextmanager
def _without_cancellations() -> Iterator[None]:
    """Keep requests that were cut off by a stop out of the log, and nothing else."""
    logger, quiet = logging.getLogger("uvicorn.error"), _NoCancellations()
    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)
