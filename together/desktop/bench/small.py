"""`bench hop`, `bench plan` and `bench sampler`: the cost of one hop, one plan, one draw. None needs a model."""

from __future__ import annotations

import asyncio
import random
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from statistics import median

import numpy as np

from together.cluster_types import Endpoint
from together.desktop.bench.shapes import encode
from together.errors import TogetherError
from together.planning.explain import explain, explain_left_out, explain_tolerance
from together.planning.problem import Link, ModelSize, NodeProfile, Problem
from together.planning.recommend import recommend
from together.processes import end, leave_with_parent, spawn
from together.ring import rpc, wire
from together.ring.links import Inlet, Inlets, Outlet
from together.sampling import Draw, sample
from together.types import Activation, Batch, Dtype, Frame, Sampling, StreamKey


def times_ms(work: Callable[[], object], repeats: int) -> list[float]:
    """Milliseconds of each call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1e3)
    return times[1:]


# --- hop: through the links that stages use, to another process and back ----------------------------------------------

WIDTH = 8192
ROWS = (1, 4, 16, 32, 64)
DTYPES: tuple[Dtype, ...] = ("bf16", "fp32")
HOST = "127.0.0.1"
PORTS = range(47000, 47500)
WARM_UP = 5


@dataclass(frozen=True, slots=True)
class Hop:
    """Milliseconds one way, half of there and back, so that no two clocks have to agree; MB/s before compression."""

    shape: tuple[int, int]
    dtype: Dtype
    codec: str
    bytes: int
    sent_bytes: int
    transmission_ms: float  # encoding the frame, the link, decoding it
    compression_ms: float  # there and back again
    total_ms: float
    mb_per_s: float


async def bench_hop(repeats: int) -> list[Hop]:
    """Every shape and dtype, as it is and compressed; medians of `repeats` round trips after a warm-up."""
    async with _inlet(sender=0) as (port, inlet):
        echo = await spawn("together.desktop.bench.small", str(port))
        try:
            assert echo.stdout is not None
            outlet = await Outlet.open(Endpoint((HOST,), int(await echo.stdout.readline())), StreamKey("hop", 0, -1))
            return [
                await _hop(inlet, outlet, rows, dtype, codec, repeats)
                for dtype in DTYPES
                for rows in ROWS
                for codec in ("raw", "zlib")
            ]
        finally:
            await end(echo)


@asynccontextmanager
async def listening(handlers: dict[str, rpc.Handler]) -> AsyncIterator[int]:
    """The port of a server on loopback."""
    server = rpc.make_server(handlers)
    port = rpc.bind(server, HOST, PORTS)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


@asynccontextmanager
async def _inlet(sender: int) -> AsyncIterator[tuple[int, Inlet]]:
    """A port, and its inlet for frames of `sender`."""
    inlets, inlet = Inlets(), Inlet("hop")
    inlet.expect(0, sender)
    inlets.add(inlet)
    async with listening({rpc.PUSH: inlets.handler()}) as port:
        yield port, inlet


async def _hop(inlet: Inlet, outlet: Outlet, rows: int, dtype: Dtype, codec: str, repeats: int) -> Hop:
    data = encode(np.random.default_rng(rows).normal(size=rows * WIDTH).astype(np.float32), dtype)
    packed, packing, travelling = data, [0.0], []
    if codec == "zlib":
        packed = zlib.compress(data, 1)
        packing = times_ms(lambda: zlib.decompress(zlib.compress(data, 1)), repeats)
    for step in range(WARM_UP + repeats):
        travelling.append(await round_trip_ms(inlet, outlet, step, packed) / 2)
    transmission, compression = median(travelling[WARM_UP:]), median(packing)
    total = transmission + compression
    rate = len(data) / 1e6 / (total / 1e3)
    return Hop((rows, WIDTH), dtype, codec, len(data), len(packed), transmission, compression, total, rate)


async def round_trip_ms(inlet: Inlet, outlet: Outlet, step: int, data: bytes) -> float:
    """There and back. Bytes travel as an activation does; compressed ones are filled up to whole numbers."""
    began = time.perf_counter()
    data += bytes(-len(data) % 4)
    await outlet.send(wire.FRAME.encode(Frame(step, Batch(), Activation("fp32", 1, len(data) // 4, data))))
    arrival = await inlet.next()
    if arrival.data is None:
        raise TogetherError("the process at the other end of the hop has ended; run the benchmark again")
    wire.FRAME.decode(arrival.data)
    return (time.perf_counter() - began) * 1e3


async def _echo(head_port: int) -> None:
    """The other process: decode, encode and return every frame, as a stage without layers would."""
    async with _inlet(sender=-1) as (port, inlet):
        outlet = await Outlet.open(Endpoint((HOST,), head_port), StreamKey("hop", 0, 0))
        print(port, flush=True)
        leave_with_parent()
        while (arrival := await inlet.next()).data is not None:
            await outlet.send(wire.FRAME.encode(wire.FRAME.decode(arrival.data)))


# --- plan: made-up clusters, always the same ones ---------------------------------------------------------------------

# Nodes, layers, and how room is counted: in `layers`, in free `bytes`, or in bytes with layers of `mixed` size.
SIZES = ((8, 80, "layers"), (8, 80, "bytes"), (32, 128, "layers"))
LM_HEAD = 4.0  # layers' time, as in a 1B model


@dataclass(frozen=True, slots=True)
class Case:
    """A made-up cluster; `lm_head` in layers' time."""

    nodes: int
    layers: int
    room: str
    users: int
    lm_head: float = 0.0


CASES = (
    *(Case(*size, users) for size in SIZES for users in (1, 8, 1000)),
    *(Case(*size, 1000, LM_HEAD) for size in SIZES),
    *(Case(8, 80, "mixed", 1000, lm_head) for lm_head in (0.0, LM_HEAD)),
)


@dataclass(frozen=True, slots=True)
class PlanTime(Case):
    """Median milliseconds of the search alone, and with all sentences."""

    search_ms: float = 0.0
    answer_ms: float = 0.0
    machines: int = 0


def bench_plan(repeats: int) -> list[PlanTime]:
    return [_plan(case, repeats) for case in CASES]


def _plan(case: Case, repeats: int) -> PlanTime:
    problem = made_up(case)
    split = recommend(problem)
    assert split is not None, "the made-up clusters hold their model"

    def answer() -> None:
        found = recommend(problem)
        assert found is not None
        explain(problem, found)
        explain_left_out(problem, found)
        explain_tolerance(problem, found)

    search_ms, answer_ms = (median(times_ms(work, repeats)) for work in (partial(recommend, problem), answer))
    return PlanTime(**asdict(case), search_ms=search_ms, answer_ms=answer_ms, machines=len(split.shares))


def made_up(case: Case) -> Problem:
    """Uneven speeds and links; no two or three nodes hold the model alone."""
    nodes, layers, room = case.nodes, case.layers, case.room
    chance = random.Random(nodes * 1000 + layers)
    profiles = []
    for index in range(nodes):
        speed, overhead = chance.uniform(0.5, 8), chance.uniform(0, 2)
        held = chance.randint(layers // nodes + 1, 4 * layers // nodes)
        free = None if room == "layers" else held * 400_000_000 + 2_000_000_000
        count, reserve = (held, 0) if free is None else (None, 500_000_000)
        drawing = speed * case.lm_head * (1 + index % 3 / 4)
        profiles.append(NodeProfile(f"node{index:02}", speed, overhead, count, free, reserve, drawing))
    links = [Link(a.name, b.name, chance.uniform(0.2, 20)) for a, b in combinations(profiles, 2)]
    sizes = tuple(400_000_000 + (layer % 7 * 1_000_000 if room == "mixed" else 0) for layer in range(layers))
    model = ModelSize(sizes, 1_000_000_000, 1_000_000_000)
    return Problem(model, tuple(profiles), tuple(links), head="node00", users=case.users)


# --- sampler: random logits, on one core ------------------------------------------------------------------------------

VOCABULARY = 128256
SEQUENCES = 8
KNOWN = 2000  # tokens of each sequence, half of them prompt
SPREAD = 3.0  # standard deviation of the logits

SETTINGS = {
    "greedy": Sampling(temperature=0.0),
    "top-k, top-p, penalties": Sampling(0.8, 50, 0.9, 0.0, 1.1, 0.5, 0.5),
    "top-k": Sampling(0.8, top_k=50),
    "top-p": Sampling(0.8, top_p=0.9),
    "min-p": Sampling(0.8, min_p=0.05),
    "temperature": Sampling(0.8),
}


@dataclass(frozen=True, slots=True)
class SamplerLine:
    """Milliseconds for all rows: the median and the slowest of the repeats."""

    settings: str
    rows: int
    vocabulary: int
    ms: float
    slowest_ms: float


def bench_sampler(repeats: int) -> list[SamplerLine]:
    """Every kind of settings over the same logits."""
    chance = np.random.default_rng(0)
    logits = (chance.normal(size=(SEQUENCES, VOCABULARY)) * SPREAD).astype(np.float32)
    tokens = chance.integers(0, VOCABULARY, KNOWN).tolist()
    lines = []
    for name, settings in SETTINGS.items():
        draws = [Draw(settings, KNOWN + row, tokens, KNOWN // 2) for row in range(SEQUENCES)]
        times = times_ms(partial(sample, logits, draws), repeats)
        lines.append(SamplerLine(name, SEQUENCES, VOCABULARY, median(times), max(times)))
    return lines


if __name__ == "__main__":
    asyncio.run(_echo(int(sys.argv[1])))
