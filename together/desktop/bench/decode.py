"""`bench decode`: prefill and decode speed of real stage processes; `bench estimate`: what the planner expects of them.

Compared set-ups run in turn, so a slow moment of the machine hits all of them; figures are medians over the rounds.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

import psutil

from together.cluster.identity import machine_id
from together.cluster.profiling import Profiler, find_devices, measure_link
from together.cluster_types import DeviceProfile, Endpoint, LinkOrder, LinkSpeed, MeasureOrder
from together.desktop.bench.ring import BenchModel, BenchRing, bench_ring
from together.desktop.bench.shapes import random_checkpoint
from together.errors import BadSetting, LoadFailed
from together.models.spec import ModelSpec, read_spec
from together.planning.memory import cache_tokens, model_size, workspace_bytes
from together.planning.problem import Assignment, Link, NodeProfile, Problem, Split
from together.planning.score import score_of
from together.planning.strategies import uniform_ranges
from together.processes import end, spawn
from together.ring import rpc
from together.types import DTYPE_BYTES

WARM_PROMPT, WARM_TOKENS = 8, 3  # touches all weights: while the others ran, they may have left caches, even memory
HOST = "127.0.0.1"
PORTS = range(47_000, 47_100)


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """What is measured; `prompt` and `new` in tokens."""

    model: BenchModel
    prompt: int
    new: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Run:
    """One request alone: its first token ends the prefill, the others are decode."""

    prefill_tok_s: float
    decode_tok_s: float
    ttft_s: float
    step_ms: float = 0.0
    stage_ms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodeReport:
    """Medians over the rounds. `stage_ms` and `hop_ms` are of a decode step; `rss_bytes` is each process's peak."""

    name: str
    prefill_tok_s: float
    decode_tok_s: float
    ttft_s: float
    stage_ms: tuple[float, ...]
    hop_ms: float
    rss_bytes: tuple[int, ...]
    weight_bytes: tuple[int, ...]


class DecodeSubject(Protocol):
    """A set-up that is measured."""

    @property
    def name(self) -> str: ...

    async def run(self, prompt: int, new: int) -> Run: ...

    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Peak memory and weights of each process, in bytes."""


async def bench_decode(request: DecodeRequest, setups: list[str], home: Path) -> list[DecodeReport]:
    """`setups` are numbers of stages, or "transformers"; one report each, measured in alternation.

    Raises BadSetting for other words, before anything starts.
    """
    for setup in setups:
        if setup != "transformers" and (not setup.isdecimal() or int(setup) < 1):
            raise BadSetting(f"cannot compare with {setup!r}; give a number of stages, or transformers")
    async with AsyncExitStack() as stack:
        subjects = [await stack.enter_async_context(_subject(setup, request, home)) for setup in setups]
        runs: list[list[Run]] = [[] for _ in subjects]
        for _ in range(request.rounds):
            for subject, done in zip(subjects, runs, strict=True):
                await subject.run(WARM_PROMPT, WARM_TOKENS)
                done.append(await subject.run(request.prompt, request.new))
        return [_report(subject, done) for subject, done in zip(subjects, runs, strict=True)]


def _subject(setup: str, request: DecodeRequest, home: Path) -> AbstractAsyncContextManager[DecodeSubject]:
    return _reference(request.model, home) if setup == "transformers" else _stages(int(setup), request, home)


def _report(subject: DecodeSubject, runs: list[Run]) -> DecodeReport:
    stage_ms = tuple(median(times) for times in zip(*(run.stage_ms for run in runs), strict=True))
    rss, weights = subject.sizes()
    return DecodeReport(
        subject.name,
        median(run.prefill_tok_s for run in runs),
        median(run.decode_tok_s for run in runs),
        median(run.ttft_s for run in runs),
        stage_ms,
        (median(run.step_ms for run in runs) - sum(stage_ms)) / (len(stage_ms) + 1),
        rss,
        weights,
    )


@dataclass(frozen=True, slots=True)
class _Stages:
    """An engine over stage processes."""

    name: str
    ring: BenchRing
    model: BenchModel

    async def run(self, prompt: int, new: int) -> Run:
        measured = self.ring.engine.times
        measured.clear()
        began = time.perf_counter()
        times = await self.ring.generate(prompt, new)
        first, last = times[0] - began, times[-1] - began
        return Run(prompt / first, (new - 1) / (last - first), first, measured.step_ms, measured.stage_ms)

    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        stages = [stage.status for stage in self.ring.stages]
        weights = tuple(self.ring.spec.stage_bytes(stage.layers, self.model.dtype) for stage in stages)
        return tuple(peak_memory(stage.pid) for stage in stages), weights


@asynccontextmanager
async def _stages(count: int, request: DecodeRequest, home: Path) -> AsyncIterator[DecodeSubject]:
    async with bench_ring(request.model, home, count, request.prompt + request.new) as ring:
        yield _Stages(f"{count} stages", ring, request.model)


@dataclass(frozen=True, slots=True)
class _Reference:
    """transformers' own `generate` in a child process."""

    name: str
    process: asyncio.subprocess.Process

    async def run(self, prompt: int, new: int) -> Run:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{prompt} {new}\n".encode())
        line = await self.process.stdout.readline()
        if not line:
            raise LoadFailed("the transformers process ended; run it alone to see why")
        return Run(**json.loads(line))

    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (peak_memory(self.process.pid),), ()


@asynccontextmanager
async def _reference(model: BenchModel, home: Path) -> AsyncIterator[DecodeSubject]:
    folder = await asyncio.to_thread(random_checkpoint, model.shape, model.dtype, home)
    process = await spawn("backends.on_torch.reference", str(folder), model.device, model.dtype)
    try:
        yield _Reference("transformers", process)
    finally:
        await end(process)


def peak_memory(pid: int) -> int:
    """Peak resident bytes where the system tells (Linux, Windows), else the present ones."""
    status = Path(f"/proc/{pid}/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    info = psutil.Process(pid).memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def decode_json(reports: list[DecodeReport]) -> dict[str, object]:
    """The first report's keys at the top, the others under `compare` with the first's decode speed over theirs."""
    first, *others = reports
    compare = [asdict(other) | {"decode_ratio": first.decode_tok_s / other.decode_tok_s} for other in others]
    return asdict(first) | ({"compare": compare} if compare else {})


# --- estimate ---------------------------------------------------------------------------------------------------------


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
    model = request.model
    folder = await asyncio.to_thread(random_checkpoint, model.shape, model.dtype, home)
    spec = await asyncio.to_thread(read_spec, folder)
    profiler = Profiler("bench", machine_id(home), home, await find_devices(model.backend, home))
    config = (folder / "config.json").read_bytes()
    profile = await profiler.measure(MeasureOrder(model.backend, model.device, model.dtype, config))
    speed = await _loopback(spec.hidden_size * DTYPE_BYTES[model.dtype])
    score = score_of(*_plan(spec, request, stages, profile, speed))
    measured = (await bench_decode(request, [str(stages)], home))[0]
    fixed = workspace_bytes(spec) + profile.overhead_bytes
    sizes = tuple(int(stage.bytes) + fixed for stage in score.stages)
    return Estimate(measured.name, score.token_ms, 1000 / measured.decode_tok_s, sizes, measured.rss_bytes)


def _plan(
    spec: ModelSpec, request: DecodeRequest, stages: int, profile: DeviceProfile, speed: LinkSpeed
) -> tuple[Problem, Split]:
    """Equal stages on machines that are all like this one; the head is one more process on it."""
    names = [f"stage {index}" for index in range(stages)]
    costs = profile.ms_per_layer, profile.ms_per_stage
    nodes = [NodeProfile(name, *costs, ms_per_head=profile.ms_per_head, max_layers=spec.layers) for name in names]
    problem = Problem(
        model_size(spec, request.model.dtype),
        (*nodes, NodeProfile("head", 0.0, max_layers=0)),
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
