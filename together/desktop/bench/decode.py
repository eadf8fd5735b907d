"""`bench decode`: prefill and decode speed of real stage processes; `bench estimate`: what the planner expects of them.

Compared set-ups run in turn, so a slow moment of the machine hits all of them; figures are medians over the rounds.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import psutil

from together.cluster.identity import machine_id
from together.cluster.profiling import Profiler, find_devices, measure_link
from together.cluster_types import DeviceProfile, Endpoint, LinkOrder, MeasureOrder
from together.desktop.bench.engine import BenchRequest, bench_ring
from together.desktop.bench.shapes import random_checkpoint
from together.desktop.bench.small import HOST, listening
from together.errors import BadSetting, LoadFailed
from together.models.spec import ModelSpec, read_spec
from together.planning.memory import cache_tokens, model_size, workspace_bytes
from together.planning.problem import Assignment, NodeProfile, Problem, Split
from together.planning.score import score_of
from together.planning.strategies import uniform_ranges
from together.processes import end, spawn
from together.ring import rpc
from together.types import DTYPE_BYTES

WARM_PROMPT, WARM_TOKENS = 8, 3  # touches all weights: while the others ran, they may have left caches, even memory


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


@dataclass(frozen=True, slots=True)
class SetUp:
    """What is measured: `run` takes the tokens of a prompt and of its answer."""

    name: str
    run: Callable[[int, int], Awaitable[Run]]
    pids: tuple[int, ...]
    weight_bytes: tuple[int, ...] = ()

    def report(self, runs: list[Run]) -> DecodeReport:
        stage_ms = tuple(median(times) for times in zip(*(run.stage_ms for run in runs), strict=True))
        return DecodeReport(
            self.name,
            median(run.prefill_tok_s for run in runs),
            median(run.decode_tok_s for run in runs),
            median(run.ttft_s for run in runs),
            stage_ms,
            (median(run.step_ms for run in runs) - sum(stage_ms)) / (len(stage_ms) + 1),
            tuple(map(peak_memory, self.pids)),
            self.weight_bytes,
        )


async def bench_decode(request: BenchRequest, names: list[str], home: Path) -> list[DecodeReport]:
    """`names` are numbers of stages, or "transformers"; one report each, measured in alternation.

    Raises BadSetting for other words, before anything starts.
    """
    for name in names:
        if name != "transformers" and (not name.isdecimal() or int(name) < 1):
            raise BadSetting("cannot compare with {name!r}; give a number of stages, or transformers", name=name)
    async with AsyncExitStack() as stack:
        runs: list[tuple[SetUp, list[Run]]] = []
        for name in names:
            reference = name == "transformers"
            setup = _reference(request, home) if reference else _stages(replace(request, stages=int(name)), home)
            runs.append((await stack.enter_async_context(setup), []))
        for _ in range(request.rounds):
            for subject, done in runs:
                await subject.run(WARM_PROMPT, WARM_TOKENS)
                done.append(await subject.run(request.prompt, request.new))
        return [subject.report(done) for subject, done in runs]


@asynccontextmanager
async def _stages(request: BenchRequest, home: Path) -> AsyncIterator[SetUp]:
    async with bench_ring(request, home, request.prompt + request.new) as ring:

        async def run(prompt: int, new: int) -> Run:
            measured = ring.engine.times
            measured.clear()
            began = time.perf_counter()
            times = await ring.generate(prompt, new)
            first, last = times[0] - began, times[-1] - began
            return Run(prompt / first, (new - 1) / (last - first), first, measured.step_ms, measured.stage_ms)

        stages = [stage.status for stage in ring.stages]
        weights = tuple(ring.spec.stage_bytes(stage.layers, request.dtype) for stage in stages)
        yield SetUp(f"{request.stages} stages", run, tuple(stage.pid for stage in stages), weights)


@asynccontextmanager
async def _reference(request: BenchRequest, home: Path) -> AsyncIterator[SetUp]:
    """transformers' own `generate` in a child process."""
    folder = await asyncio.to_thread(random_checkpoint, request.shape, request.dtype, home)
    process = await spawn("backends.on_torch.reference", str(folder), request.device, request.dtype)

    async def run(prompt: int, new: int) -> Run:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{prompt} {new}\n".encode())
        line = await process.stdout.readline()
        if not line:
            raise LoadFailed("the transformers process ended; run it alone to see why")
        return Run(**json.loads(line))

    try:
        yield SetUp("transformers", run, (process.pid,))
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
    ms_ratio: float
    bytes_ratios: tuple[float, ...]


async def bench_estimate(request: BenchRequest, home: Path) -> Estimate:
    """Profile this machine, plan equal stages of the shape, then run them."""
    folder = await asyncio.to_thread(random_checkpoint, request.shape, request.dtype, home)
    spec = await asyncio.to_thread(read_spec, folder)
    profiler = Profiler("bench", machine_id(home), home, await find_devices(request.backend, home))
    config = (folder / "config.json").read_bytes()
    profile = await profiler.measure(MeasureOrder(request.backend, request.device, request.dtype, config))
    async with listening(rpc.unary({rpc.ECHO: rpc.echo})) as port:
        link = await measure_link(LinkOrder(Endpoint((HOST,), port), spec.hidden_size * DTYPE_BYTES[request.dtype]))
    score = score_of(*_plan(spec, request, profile, link.hop_ms))
    (measured,) = await bench_decode(request, [str(request.stages)], home)
    fixed = workspace_bytes(spec) + profile.overhead_bytes
    sizes, ms = tuple(int(stage.bytes) + fixed for stage in score.stages), 1000 / measured.decode_tok_s
    ratios = tuple(size / peak for size, peak in zip(sizes, measured.rss_bytes, strict=True))
    return Estimate(measured.name, score.token_ms, ms, sizes, measured.rss_bytes, score.token_ms / ms, ratios)


def _plan(spec: ModelSpec, request: BenchRequest, profile: DeviceProfile, hop_ms: float) -> tuple[Problem, Split]:
    """Equal stages on machines that are all like this one; the head is one more process on it."""
    names = [f"stage {index}" for index in range(request.stages)]
    costs = profile.ms_per_layer, profile.ms_per_stage
    nodes = [NodeProfile(name, *costs, ms_per_head=profile.ms_per_head, max_layers=spec.layers) for name in names]
    problem = Problem(
        model_size(spec, request.dtype),
        (*nodes, NodeProfile("head", 0.0, max_layers=0)),
        hop_ms=hop_ms,
        head="head",
        context=cache_tokens(request.prompt + request.new, 1),
    )
    shares = zip(names, uniform_ranges(spec.layers, request.stages), strict=True)
    return problem, Split(tuple(Assignment(name, layers) for name, layers in shares))
