"""Requests that never arrive, or arrive slowly, over real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn

from tests.support.cluster import cluster_settings
from together.api.app import build_app
from together.api.server import MOST_OF_ONE, MOST_OPEN, Patience, bind, is_one_too_many, serving
from together.head.head import Head

QUICK = Patience(idle=0.5, headers=0.5, pause=0.5, body=1.5, rate=10_000)
HEADERS = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
SOON = 15  # seconds; a machine that runs tests is busy


@asynccontextmanager
async def listening(folder: Path, patience: Patience = QUICK) -> AsyncIterator[int]:
    """A head's routes on a port of their own."""
    listener = bind("127.0.0.1", 0)
    async with serving(build_app(Head(cluster_settings(folder)), lambda: None), listener, patience):
        yield listener.getsockname()[1]


async def answer_to(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        return await asyncio.wait_for(reader.read(), SOON)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert not any(record.exc_info for record in caplog.records), caplog.text
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("sent", "missing"),
    [
        ([HEADERS], "headers"),
        ([b"G"], "headers"),
        ([HEADERS[:40], *(bytes([byte]) for byte in HEADERS[40:])], "headers"),
        ([HEADERS + b"Content-Length: 100\r\n\r\n"], "body"),
        ([HEADERS + b"Content-Length: 100\r\n\r\n{", *([b" "] * 60)], "body"),
        ([HEADERS + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel"], "body"),
        # answered before its body came, and the body still never ends
        ([b"POST /v1/nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n", *([b" "] * 8)], "body"),
    ],
)
async def test_a_request_that_does_not_arrive_is_closed_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sent: list[bytes], missing: str
) -> None:
    async with listening(tmp_path) as port:
        said = await answer_to(port, *sent, pause=0.05)
        await asyncio.sleep(0.1)
    assert not said or b" 404 " in said.splitlines()[0]
    (line,) = lines(caplog)
    assert line.startswith(f"closed a connection from 127.0.0.1: no whole {missing} after ")


async def test_a_connection_without_a_byte_is_closed_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with listening(tmp_path) as port:
        assert await answer_to(port) == b""
    assert lines(caplog) == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/control/plan"])
async def test_a_client_that_leaves_within_its_body_leaves_no_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    async with listening(tmp_path, Patience()) as port:
        for reset in (False, True):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEADERS.replace(b"/v1/completions", path.encode()) + b'Content-Length: 100\r\n\r\n{"model"')
            await writer.drain()
            await asyncio.sleep(0.1)
            if reset:
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
                )
            writer.close()
            await asyncio.sleep(0.1)
            del reader
    assert lines(caplog) == []


async def test_a_slow_upload_that_goes_on_is_answered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Longer than each of the limits, at a rate above the lowest."""
    patience = Patience(headers=1.0, pause=1.5, body=1.0, rate=1000)
    body = json.dumps({"model": "none", "prompt": "x" * 6000}).encode()
    parts = [body[start : start + 250] for start in range(0, len(body), 250)]
    headers = HEADERS + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with listening(tmp_path, patience) as port:
        said = await answer_to(port, headers, *parts, pause=0.1)
    assert said.startswith(b"HTTP/1.1 503 ")  # it was read: this head serves no model
    assert b"model_not_ready" in said
    assert lines(caplog) == []


async def test_long_answers_and_later_requests_are_not_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Events go on for longer than a request may take; a second request on a connection has its time for itself."""
    async with listening(tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            said = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON)
            await reader.readexactly(int(said.lower().partition(b"content-length: ")[2].split()[0]))
            await asyncio.sleep(0.7)
        writer.write(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        for _ in range(4):
            await asyncio.wait_for(reader.readuntil(b"data: "), SOON)
        writer.close()
    assert lines(caplog) == []


async def test_a_second_request_of_a_connection_that_stalls_is_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sent with the first one, and after it."""
    whole = b"GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with listening(tmp_path) as port:
        for parts in ([whole + whole[:20]], [whole, whole[:20]]):
            said = await answer_to(port, *parts, pause=0.2)
            assert said.count(b"HTTP/1.1 200 ") == 1
    assert [line.split(": ")[1].partition(" after")[0] for line in lines(caplog)] == ["no whole headers"] * 2


async def test_an_idle_server_looks_at_the_clock_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    look, now = uvicorn.Server.on_tick, asyncio.get_running_loop().time

    async def counted(server: uvicorn.Server, counter: int) -> bool:
        looks.append(now())
        return await look(server, counter)

    monkeypatch.setattr(uvicorn.Server, "on_tick", counted)
    async with listening(tmp_path):
        await asyncio.sleep(1.5)
        assert len(looks) <= looks[-1] - looks[0] + 2


# --- more connections than there is room for --------------------------------------------------------------------------


async def test_connections_that_are_too_many_are_closed_at_once_and_leave_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent ones too, and those that never begin TLS: each holds a file of a process that has few."""
    monkeypatch.setattr("together.api.server.MOST_OPEN", 5)
    async with listening(tmp_path, Patience(idle=10 * SOON)) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        assert await answer_to(port) == b""
        for _, writer in held:
            writer.transport.abort()
        health = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        async with asyncio.timeout(SOON):
            while not await answer_to(port, health):
                pass  # they are closed in a moment


def test_one_machine_alone_does_not_take_all_connections() -> None:
    many = ["192.0.2.1"] * MOST_OF_ONE
    assert is_one_too_many(many, "192.0.2.1")
    assert not is_one_too_many(many, "192.0.2.2")
    assert not is_one_too_many(["127.0.0.1"] * MOST_OF_ONE, "127.0.0.1")
    assert is_one_too_many(["127.0.0.1"] * MOST_OPEN, "127.0.0.1")
