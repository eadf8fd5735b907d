"""`bench hop`: what one hop costs, through the links that stages use, to another process and back. Knows no model.

One way is half of the way there and back, so two clocks never have to agree.
"""

from __future__ import annotations

import asyncio
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import lz4.frame
import numpy as np

from together.cluster_types import Endpoint
from together.desktop.bench.shapes import encode
from together.errors import TogetherError
from together.processes import end, spawn
from together.ring import rpc, wire
from together.ring.links import Inlet, Inlets, Outlet
from together.types import Activation, Batch, Dtype, Frame, StreamKey

WIDTH = 8192
ROWS = (1, 4, 16, 32, 64)
HOST = "127.0.0.1"
PORTS = range(47000, 47500)
WARM_UP = 5


@dataclass(frozen=True, slots=True)
class Hop:
    """One line of the table; times in milliseconds, one way; MB/s of uncompressed bytes over the total."""

    shape: tuple[int, int]
    dtype: Dtype
    codec: str
    bytes: int
    sent_bytes: int
    transmission_ms: float  # encoding the frame, the link, decoding it
    compression_ms: float  # there and back again
    total_ms: float
    mb_per_s: float


@dataclass(frozen=True, slots=True)
class _Codec:
    name: str
    pack: Callable[[bytes], bytes]
    unpack: Callable[[bytes], bytes]


_CODECS = (
    _Codec("raw", lambda data: data, lambda data: data),
    _Codec("zlib", lambda data: zlib.compress(data, 1), zlib.decompress),
    _Codec("lz4", lz4.frame.compress, lz4.frame.decompress),
)


class _Wire:
    """A link to the echoing process and one back."""

    def __init__(self, inlet: Inlet, outlet: Outlet) -> None:
        self._inlet = inlet
        self._outlet = outlet
        self._step = 0

    async def round_trip_ms(self, data: bytes) -> float:
        """Any bytes travel as the payload of a frame, as an activation does."""
        began = time.perf_counter()
        self._step += 1
        payload = Activation("fp32", 1, len(data) // 4, data) if len(data) % 4 == 0 else _padded(data)
        await self._outlet.send(wire.encode_frame(Frame(self._step, Batch(), payload)))
        arrival = await self._inlet.next()
        if arrival.data is None:
            raise TogetherError("the other end of the hop is gone")
        wire.decode_frame(arrival.data)
        return (time.perf_counter() - began) * 1e3


def _padded(data: bytes) -> Activation:
    data += bytes(-len(data) % 4)
    return Activation("fp32", 1, len(data) // 4, data)


async def bench_hop(repeats: int = 40) -> list[Hop]:
    """Every shape, dtype and codec; medians of `repeats` round trips after a warm-up."""
    inlets = Inlets()
    inlet = Inlet("hop")
    inlet.expect(0, 0)
    inlets.add(inlet)
    server = rpc.make_server({rpc.PUSH: inlets.handler()})
    port = rpc.bind(server, HOST, PORTS)
    await server.start()
    echo = await spawn("together.desktop.bench.hop", str(port))
    try:
        assert echo.stdout is not None
        outlet = await Outlet.open(Endpoint((HOST,), int(await echo.stdout.readline())), StreamKey("hop", 0, -1))
        link = _Wire(inlet, outlet)
        return [
            await _measure(link, rows, dtype, codec, repeats) for dtype in _DTYPES for rows in ROWS for codec in _CODECS
        ]
    finally:
        await end(echo)
        await server.stop(0)


_DTYPES: tuple[Dtype, ...] = ("bf16", "fp32")


async def _measure(link: _Wire, rows: int, dtype: Dtype, codec: _Codec, repeats: int) -> Hop:
    values = np.random.default_rng(rows).normal(size=rows * WIDTH).astype(np.float32)
    data = encode(values, dtype)
    packing: list[float] = []
    travelling: list[float] = []
    packed = data
    for turn in range(WARM_UP + repeats):
        began = time.perf_counter()
        packed = codec.pack(data)
        codec.unpack(packed)
        packed_ms = (time.perf_counter() - began) * 1e3 if codec.name != "raw" else 0.0
        travelled_ms = await link.round_trip_ms(packed) / 2
        if turn >= WARM_UP:
            packing.append(packed_ms)
            travelling.append(travelled_ms)
    total = median(packing) + median(travelling)
    rate = len(data) / 1e6 / (total / 1e3)
    return Hop(
        (rows, WIDTH), dtype, codec.name, len(data), len(packed), median(travelling), median(packing), total, rate
    )


async def _echo(head_port: int) -> None:
    """The other process: every frame is decoded, encoded and sent back, as a stage without layers would do."""
    inlets = Inlets()
    inlet = Inlet("hop")
    inlet.expect(0, -1)
    inlets.add(inlet)
    server = rpc.make_server({rpc.PUSH: inlets.handler()})
    port = rpc.bind(server, HOST, PORTS)
    await server.start()
    outlet = await Outlet.open(Endpoint((HOST,), head_port), StreamKey("hop", 0, 0))
    print(port, flush=True)
    while (arrival := await inlet.next()).data is not None:
        await outlet.send(wire.encode_frame(wire.decode_frame(arrival.data)))


if __name__ == "__main__":
    asyncio.run(_echo(int(sys.argv[1])))
