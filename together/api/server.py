"""Our own uvicorn server: finds a port, takes no signals, ends every open stream when told to stop. Knows no route."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from fastapi import FastAPI

from together.api.connection import USUAL, Patience, patient
from together.errors import Unreachable

PORTS_TRIED = 50


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on `port` or the next free one; port 0 is any. Raises Unreachable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last = port if port == 0 else min(port + PORTS_TRIED, 65535)
    cause: OSError | None = None
    for candidate in range(port, last + 1):
        # The protocol is named so that asyncio sets TCP_NODELAY: without it every answer and every token of two packets
        # waited 40 ms for the client's acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
    raise Unreachable(f"no port of {port} to {last} is free on {host}: {cause}; choose another with --port")


def url_of(listener: socket.socket) -> str:
    """The address to open on this machine: loopback where the socket listens everywhere."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the app around us decides what a signal means

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.close()  # what is streamed sees its client go, and ends by itself
        await super().shutdown(sockets)


@contextlib.asynccontextmanager
async def serving(app: FastAPI, listener: socket.socket, patience: Patience = USUAL) -> AsyncIterator[None]:
    """Serve `app` on `listener` inside this block; leaving it closes every connection within about a second.

    A request that takes longer to arrive than `patience` allows loses its connection.
    """
    config = uvicorn.Config(
        app,
        http=patient(patience),
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=30,
    )
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
            server.should_exit = True
            await running


class _NoCancellations(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, asyncio.CancelledError) and "graceful shutdown exceeded" not in str(record.msg)


@contextlib.contextmanager
def _without_cancellations() -> Iterator[None]:
    """Requests cut off by a stop are no news; anything else still is."""
    logger, quiet = logging.getLogger("uvicorn.error"), _NoCancellations()
    logger.addFilter(quiet)
    try:
        yield
    finally:
        logger.removeFilter(quiet)
