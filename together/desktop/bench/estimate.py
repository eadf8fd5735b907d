"""`bench estimate`: what the planner expects of a model on this machine, and what is measured."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from together.cluster.identity import machine_id
from together.cluster.profiling import Profiler, find_devices
from together.cluster_types import DeviceProfile, HeadCost, MeasureOrder
from together.desktop.bench.rings import BenchRequest, BenchRing, bench_folder, bench_ring
from together.desktop.bench.setups import peak_memory
from together.engine.own import measure_head
from together.models.spec import ModelSpec, read_spec
from together.planning.memory import cache_tokens, model_size, workspace_bytes
from together.planning.problem import Assignment, NodeProfile, Problem, Split
from together.planning.score import score_of
from together.planning.strategies import uniform_ranges


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected and measured: ms per token of one person, tokens per second of `people`, and each stage's peak bytes.

    `message_ms` and `head_ms` are the parts of the expected time that no stage computes. As a profile is the fastest of
    its repetitions, what is measured is the fastest round, by the median of its gaps between tokens.
    """

    name: str
    expected_ms: float
    measured_ms: float
    message_ms: float
    head_ms: float
    people: int
    expected_tok_s: float
    measured_tok_s: float
    expected_bytes: tuple[int, ...]
    measured_bytes: tuple[int, ...]
    ms_ratio: float
    tok_s_ratio: float
    bytes_ratios: tuple[float, ...]


async def bench_estimate(request: BenchRequest, home: Path, people: int = 4) -> Estimate:
    """Profile this machine, plan equal stages of the shape, then run them, for one person and for several at once."""
    folder = await bench_folder(request, home)
    spec = await asyncio.to_thread(read_spec, folder)
    profiler = Profiler("bench", machine_id(home), home, await find_devices(request.backend, home))
    config = (folder / "config.json").read_bytes()
    order = MeasureOrder(request.backend, request.device, request.dtype, config, spec.packed_as())
    profile = await profiler.measure(order)
    problem, split = _plan(spec, request, profile, await measure_head())
    score, crowd = score_of(problem, split), score_of(replace(problem, users=people), split)
    async with bench_ring(request, home, request.prompt + request.new, people) as ring:
        await ring.generate(request.prompt, request.new)
        peaks = tuple(peak_memory(stage.status.pid) for stage in ring.stages)  # of one person, as is expected
        rounds = [(await _rate(ring, request, 1), await _rate(ring, request, people)) for _ in range(request.rounds)]
    alone, all_tok_s = map(max, zip(*rounds, strict=True))
    fixed = workspace_bytes(spec) + profile.overhead_bytes
    sizes, ms = tuple(int(stage.bytes) + fixed for stage in score.stages), 1000 / alone
    ratios = tuple(size / peak for size, peak in zip(sizes, peaks, strict=True))
    return Estimate(
        name=f"{request.stages} stages",
        expected_ms=score.token_ms,
        measured_ms=ms,
        message_ms=profile.ms_per_step,
        head_ms=score.head_ms,
        people=people,
        expected_tok_s=crowd.tokens_per_second,
        measured_tok_s=all_tok_s,
        expected_bytes=sizes,
        measured_bytes=peaks,
        ms_ratio=score.token_ms / ms,
        tok_s_ratio=crowd.tokens_per_second / all_tok_s,
        bytes_ratios=ratios,
    )


async def _rate(ring: BenchRing, request: BenchRequest, people: int) -> float:
    """Tokens per second of all of them."""
    times = await asyncio.gather(*(ring.generate(request.prompt, request.new) for _ in range(people)))
    return sum(1 / median(late - early for early, late in pairwise(each)) for each in times)


def _plan(spec: ModelSpec, request: BenchRequest, profile: DeviceProfile, own: HeadCost) -> tuple[Problem, Split]:
    """Equal stages on one machine, whose processor they share; a message within it is in each stage's own time."""
    names = [f"stage {index}" for index in range(request.stages)]
    like = replace(NodeProfile.of("", profile, 0, 0), free_bytes=None, reserve_bytes=0, max_layers=spec.layers)
    problem = Problem(
        model_size(spec, request.dtype, request.backend),
        tuple(replace(like, name=name, processor="this" if request.stages > 1 else "") for name in names),
        hop_ms=0.0,
        context=cache_tokens(request.prompt + request.new, 1),
        head_step_ms=own.step_ms,
        head_row_ms=own.row_ms,
    )
    shares = zip(names, uniform_ranges(spec.layers, request.stages, spec.joined), strict=True)
    return problem, Split(tuple(Assignment(name, layers) for name, layers in shares))
