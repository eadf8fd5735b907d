"""`bench estimate`: what the planner expects of stages on this machine, beside what real ones take. Knows no node."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from together.cluster.identity import machine_id
from together.cluster.profiling import Profiler, find_devices, measure_link
from together.cluster_types import DeviceProfile, Endpoint, LinkOrder, LinkSpeed, MeasureOrder
from together.desktop.bench.decode import DecodeReport, DecodeRequest, bench_decode
from together.desktop.bench.shapes import random_checkpoint
from together.models.spec import ModelSpec, read_spec
from together.planning.memory import cache_tokens, model_size, workspace_bytes
from together.planning.problem import Assignment, Link, NodeProfile, Problem, Split
from together.planning.score import score_of
from together.planning.strategies import uniform_ranges
from together.ring import rpc
from together.types import DTYPE_BYTES

HOST = "127.0.0.1"
PORTS = range(47_000, 47_100)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected and measured: ms per token, and bytes of each stage's process at its peak."""

    name: str
    expected_ms: float
    measured_ms: float
    expected_bytes: tuple[int, ...]
    measured_bytes: tuple[int, ...]

    @property
    def ms_ratio(self) -> float:
        return self.expected_ms / self.measured_ms

    @property
    def bytes_ratios(self) -> tuple[float, ...]:
        pairs = zip(self.expected_bytes, self.measured_bytes, strict=True)
        return tuple(expected / measured for expected, measured in pairs)


async def bench_estimate(request: DecodeRequest, stages: int, home: Path) -> Estimate:
    """Profile this machine, plan `stages` equal stages of the shape, then run them."""
    folder = await asyncio.to_thread(random_checkpoint, request.shape, request.dtype, home)
    spec = await asyncio.to_thread(read_spec, folder)
    devices = await find_devices(request.backend, home)
    profiler = Profiler("bench", machine_id(home), home, devices)
    config = (folder / "config.json").read_bytes()
    profile = await profiler.measure(MeasureOrder(request.backend, request.device, request.dtype, config))
    speed = await _loopback(spec.hidden_size * DTYPE_BYTES[request.dtype])
    problem, split = plan_of(spec, request, stages, profile, speed)
    score = score_of(problem, split)
    measured = (await bench_decode(request, [str(stages)], home))[0]
    fixed = workspace_bytes(spec) + profile.overhead_bytes
    return _estimate(measured, score.token_ms, [stage.bytes for stage in score.stages], fixed)


def _estimate(measured: DecodeReport, token_ms: float, sizes: list[float], fixed: int) -> Estimate:
    return Estimate(
        measured.name,
        token_ms,
        1000 / measured.decode_tok_s,
        tuple(int(size) + fixed for size in sizes),
        measured.rss_bytes,
    )


def plan_of(
    spec: ModelSpec, request: DecodeRequest, stages: int, profile: DeviceProfile, speed: LinkSpeed
) -> tuple[Problem, Split]:
    """Equal stages on machines that are all like this one; the head is one more process on it."""
    names = [f"stage {index}" for index in range(stages)]
    nodes = [
        NodeProfile(
            name, profile.ms_per_layer, profile.ms_per_stage, ms_per_head=profile.ms_per_head, max_layers=spec.layers
        )
        for name in names
    ]
    nodes.append(NodeProfile("head", 0.0, max_layers=0))
    problem = Problem(
        model_size(spec, request.dtype),
        tuple(nodes),
        tuple(Link(a, b, speed.hop_ms) for a in (*names, "head") for b in names if a != b),
        head="head",
        context=cache_tokens(request.prompt + request.new, 1),
    )
    shares = zip(names, uniform_ranges(spec.layers, stages), strict=True)
    return problem, Split(tuple(Assignment(name, layers) for name, layers in shares))


async def _loopback(size: int) -> LinkSpeed:
    """A link between two processes of this machine, as nodes would time it."""
    server = rpc.make_server({rpc.ECHO: rpc.unary_handler(rpc.ECHO_CALL, rpc.echo)})
    port = rpc.bind(server, HOST, PORTS)
    await server.start()
    try:
        return await measure_link(LinkOrder(Endpoint((HOST,), port), size))
    finally:
        await server.stop(0)
