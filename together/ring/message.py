"""What a message costs the processes of a ring beside what they compute: timed over a real link of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from statistics import median
from time import perf_counter

from backends.measuring import PAUSE
from together.cluster_types import Endpoint
from together.ring import rpc, wire
from together.ring.links import Inlet, Inlets, Outlet
from together.types import DTYPE_BYTES, HEAD, Activation, Batch, Dtype, Frame, Row, StreamKey

HOST = "127.0.0.1"
PORTS = range(46000, 47000)
_RING = "message"
_WARM, _ROUNDS = 5, 40


@asynccontextmanager
async def own_link() -> AsyncIterator[tuple[Outlet, Inlet]]:
    """Both ends of a link from this process to itself. Raises BadSetting where no port is free."""
    inlets, inlet = Inlets(), Inlet(_RING)
    inlet.expect(0, HEAD)
    inlets.add(inlet)
    server = rpc.make_server({rpc.PUSH: inlets.handler()})
    port = rpc.bind(server, HOST, PORTS)
    await server.start()
    try:
        outlet = await Outlet.open(Endpoint((HOST,), port), StreamKey(_RING, 0, HEAD))
        try:
            yield outlet, inlet
        finally:
            await outlet.close()
    finally:
        await server.stop(0.2)


async def message_ms(width: int, dtype: Dtype) -> float:
    """Milliseconds that a stage spends on a message of one token, `width` numbers: the link, its threads, the bytes."""
    state = Activation(dtype, 1, width, bytes(width * DTYPE_BYTES[dtype]))
    data = wire.FRAME.encode(Frame(1, Batch((Row(1, 0, (0,)),)), state))
    times: list[float] = []
    with ThreadPoolExecutor(1) as thread:
        async with own_link() as (outlet, inlet):
            for _ in range(_WARM + _ROUNDS):
                await asyncio.sleep(PAUSE)
                began = perf_counter()
                await outlet.send(data)
                arrival = await inlet.next()
                await asyncio.get_running_loop().run_in_executor(thread, _turned, arrival.data or b"")
                times.append(perf_counter() - began)
    return 1e3 * median(times[_WARM:])


def _turned(data: bytes) -> bytes:
    return wire.FRAME.encode(wire.FRAME.decode(data))
