"""`bench trust`: what mutual TLS costs, in rounds that alternate with plain connections on the same machine.

A hop is a frame of one token to another process and back; decoding goes through two stage processes; a node's start is
that of its process until it says where it listens.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from together.cluster.local import said_to_parent
from together.cluster_types import Endpoint
from together.desktop.bench.rings import BenchRequest, BenchRing, bench_ring
from together.desktop.bench.small import round_trip_ms
from together.errors import LoadFailed
from together.processes import end, leave_with_parent, lines, spawn
from together.ring import rpc
from together.ring.links import Inlet, Inlets, Outlet
from together.ring.wire import FRAME
from together.trust.credentials import ALONE, Credentials
from together.types import StreamKey

OWN = "127.0.0.1"
OPEN = "0.0.0.0"  # a socket that others may reach: the same machine speaks TLS with it
PORTS = range(47500, 47600)
TOKEN = bytes(4096)  # hidden states of a token of the 1B shape, in bf16
TRIPS = 200  # of each round


@dataclass(frozen=True, slots=True)
class TrustLine:
    """Medians over rounds; `difference` is the median of the rounds' own differences, `ratio` of their ratios."""

    name: str
    plain: float
    tls: float
    difference: float
    ratio: float


def line_of(name: str, rounds: list[tuple[float, float]]) -> TrustLine:
    """From (plain, TLS) of each round."""
    plain, tls = zip(*rounds, strict=True)
    differences, ratios = [b - a for a, b in rounds], [b / a for a, b in rounds]
    return TrustLine(name, median(plain), median(tls), median(differences), median(ratios))


async def bench_trust(request: BenchRequest, home: Path) -> list[TrustLine]:
    """A hop in ms, decoding in tokens/s, a node's start in s. Raises BadSetting or LoadFailed."""
    with tempfile.TemporaryDirectory() as folder:
        hops = await _hops(Path(folder), request.rounds)
        decoded = await _decoded(request, home, Path(folder))
        starts = await _starts(Path(folder), request.rounds)
    return [line_of("hop, ms", hops), line_of("decode, tokens/s", decoded), line_of("start of a node, s", starts)]


# --- a hop ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _inlet(host: str, credentials: Credentials, sender: int) -> AsyncIterator[tuple[Endpoint, Inlet]]:
    inlets, inlet = Inlets(), Inlet("hop")
    inlet.expect(0, sender, credentials.name)
    inlets.add(inlet)
    server = rpc.make_server({rpc.PUSH: inlets.handler()})
    port = rpc.bind(server, host, PORTS, credentials)
    await server.start()
    try:
        yield Endpoint((OWN,), port, credentials.name), inlet
    finally:
        await server.stop(0)


@asynccontextmanager
async def _echoing(host: str, folder: Path) -> AsyncIterator[tuple[Inlet, Outlet]]:
    """The ends of a link to another process and back."""
    credentials = _credentials(host, folder)
    async with _inlet(host, credentials, 0) as (own, inlet):
        echo = await spawn("together.desktop.bench.trust", host, str(folder), str(own.port))
        try:
            assert echo.stdout is not None
            there = Endpoint((OWN,), int(await echo.stdout.readline()), credentials.name)
            yield inlet, await Outlet.open(there, StreamKey("hop", 0, -1), credentials)
        finally:
            await end(echo)


def _credentials(host: str, folder: Path) -> Credentials:
    return Credentials.of(folder, "bench") if host == OPEN else ALONE


async def _hops(folder: Path, rounds: int) -> list[tuple[float, float]]:
    found = []
    async with _echoing(OWN, folder) as plain, _echoing(OPEN, folder) as tls:
        for turn in range(rounds + 1):  # the first one warms up
            times = [await _trips(link, turn) for link in (plain, tls)]
            found.append((times[0], times[1]))
    return found[1:]


async def _trips(link: tuple[Inlet, Outlet], turn: int) -> float:
    steps = range(turn * TRIPS, (turn + 1) * TRIPS)
    return median([await round_trip_ms(*link, step, TOKEN) / 2 for step in steps])


async def _echo(host: str, folder: Path, head_port: int) -> None:
    """The other process."""
    credentials = _credentials(host, folder)
    async with _inlet(host, credentials, -1) as (own, inlet):
        outlet = await Outlet.open(Endpoint((OWN,), head_port, credentials.name), StreamKey("hop", 0, 0), credentials)
        print(own.port, flush=True)
        leave_with_parent()
        while (arrival := await inlet.next()).data is not None:
            await outlet.send(FRAME.encode(FRAME.decode(arrival.data)))


# --- decoding ---------------------------------------------------------------------------------------------------------


async def _decoded(request: BenchRequest, home: Path, folder: Path) -> list[tuple[float, float]]:
    context = 2 * (request.prompt + request.new)
    async with AsyncExitStack() as stack:
        rings = [
            await stack.enter_async_context(bench_ring(request, home, context, credentials=_credentials(host, folder)))
            for host in (OWN, OPEN)
        ]
        found = []
        for _ in range(request.rounds + 1):
            speeds = [await _speed(ring, request) for ring in rings]
            found.append((speeds[0], speeds[1]))
    return found[1:]


async def _speed(ring: BenchRing, request: BenchRequest) -> float:
    return (await ring.timed(request.prompt, request.new))[1]


# --- a node's start ---------------------------------------------------------------------------------------------------


async def _starts(folder: Path, rounds: int) -> list[tuple[float, float]]:
    found = []
    for _ in range(rounds + 1):
        times = [await _start(host, folder) for host in (OWN, OPEN)]
        found.append((times[0], times[1]))
    return found[1:]


async def _start(host: str, folder: Path) -> float:
    own = {"TOGETHER_HOME": str(folder), "TOGETHER_CLAIMS": str(folder / "claims"), "TOGETHER_CLUSTER": folder.name}
    began = time.perf_counter()
    node = await spawn("together", "node", "--with-parent", "--host", host, "--backend", "checksum", environment=own)
    try:
        assert node.stdout is not None
        async for line in lines(node.stdout):
            if isinstance(said_to_parent(line.decode(errors="replace")), Endpoint):
                return time.perf_counter() - began
    finally:
        await end(node)
    raise LoadFailed("a node ended while it started; run the benchmark again")


if __name__ == "__main__":
    asyncio.run(_echo(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
