"""`bench decode`: prefill and decode speed of real stage processes on loopback, driven by the engine. Knows no node.

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

from together.desktop.bench.shapes import random_checkpoint
from together.engine.engine import Engine
from together.errors import BadSetting, LoadFailed
from together.head.loopback import LocalRing, Place, local_engine
from together.models.spec import read_spec
from together.planning.strategies import uniform_ranges
from together.processes import end, spawn
from together.requests import GenerateRequest
from together.types import Dtype, Sampling

WARM_PROMPT, WARM_TOKENS = 8, 3


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """What is measured; `prompt` and `new` in tokens."""

    shape: str
    dtype: Dtype
    backend: str
    device: str
    prompt: int
    new: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Run:
    """One round of one set-up; times in seconds."""

    prefill_tok_s: float
    decode_tok_s: float
    ttft_s: float


@dataclass(frozen=True, slots=True)
class DecodeReport:
    """Medians over the rounds. `stage_ms` and `hop_ms` are of a decode step; `rss_bytes` is each stage's peak."""

    name: str
    prefill_tok_s: float
    decode_tok_s: float
    ttft_s: float
    stage_ms: tuple[float, ...] = ()
    hop_ms: float = 0.0
    rss_bytes: tuple[int, ...] = ()
    weight_bytes: tuple[int, ...] = ()


class DecodeSubject(Protocol):
    """A set-up that can do a round, and say at the end what else it knows."""

    async def warm(self) -> None:
        """Touch all weights: what was idle while the others ran may have left caches, even memory."""

    async def run(self) -> Run: ...

    def report(self, runs: list[Run]) -> DecodeReport: ...


async def bench_decode(request: DecodeRequest, setups: list[str], home: Path) -> list[DecodeReport]:
    """`setups` are numbers of stages, or "transformers"; one report each, measured in alternation."""
    _check(setups)
    folder = await asyncio.to_thread(random_checkpoint, request.shape, request.dtype, home)
    async with AsyncExitStack() as stack:
        subjects = [await stack.enter_async_context(_subject(setup, request, folder, home)) for setup in setups]
        runs: list[list[Run]] = [[] for _ in subjects]
        for _ in range(request.rounds):
            for subject, done in zip(subjects, runs, strict=True):
                await subject.warm()
                done.append(await subject.run())
        return [subject.report(done) for subject, done in zip(subjects, runs, strict=True)]


def _check(setups: list[str]) -> None:
    """Before anything is started."""
    for setup in setups:
        if setup != "transformers" and (not setup.isdecimal() or int(setup) < 1):
            raise BadSetting(f"cannot compare with {setup!r}; give a number of stages, or transformers")


def _subject(
    setup: str, request: DecodeRequest, folder: Path, home: Path
) -> AbstractAsyncContextManager[DecodeSubject]:
    if setup == "transformers":
        return _reference(request, folder)
    return _ring(int(setup), request, folder, home)


class _Ring:
    """Stage processes joined to a ring, and an engine over it."""

    def __init__(self, engine: Engine, ring: LocalRing, request: DecodeRequest) -> None:
        self._engine = engine
        self._stages = ring.stages
        self._request = request
        self._spec = ring.spec
        self._step_ms: list[float] = []
        self._stage_ms: list[tuple[float, ...]] = []
        self._turn = 0

    async def warm(self) -> None:
        await self._generate(WARM_PROMPT, WARM_TOKENS)

    async def run(self) -> Run:
        """One request alone: its first token ends the prefill, the others are decode."""
        self._engine.times.clear()
        first, total = await self._generate(self._request.prompt, self._request.new)
        self._step_ms.append(self._engine.times.step_ms)
        self._stage_ms.append(self._engine.times.stage_ms)
        return Run(self._request.prompt / first, (self._request.new - 1) / (total - first), first)

    async def _generate(self, length: int, new: int) -> tuple[float, float]:
        """Seconds to the first token, and to the last."""
        self._turn += 1  # another first token each time, so that nothing could be reused
        prompt = tuple((self._turn * 7919 + i * 31) % self._spec.vocab_size for i in range(length))
        began = time.perf_counter()
        first = 0.0
        ask = GenerateRequest(prompt, Sampling(temperature=0.0), new, ignore_eos=True)
        async for _ in self._engine.submit(ask):
            first = first or time.perf_counter() - began
        return first, time.perf_counter() - began

    def report(self, runs: list[Run]) -> DecodeReport:
        stage_ms = tuple(median(times) for times in zip(*self._stage_ms, strict=True))
        hops = len(self._stages) + 1
        dtype = self._request.dtype
        return DecodeReport(
            f"{len(self._stages)} stages",
            *_medians(runs),
            stage_ms=stage_ms,
            hop_ms=(median(self._step_ms) - sum(stage_ms)) / hops,
            rss_bytes=tuple(peak_memory(stage.status.pid) for stage in self._stages),
            weight_bytes=tuple(self._spec.stage_bytes(stage.status.layers, dtype) for stage in self._stages),
        )


@asynccontextmanager
async def _ring(count: int, request: DecodeRequest, folder: Path, home: Path) -> AsyncIterator[DecodeSubject]:
    places = equal_places(folder, request.backend, request.device, count)
    async with local_engine(folder, home, places, request.dtype, request.prompt + request.new) as (engine, ring):
        yield _Ring(engine, ring, request)


def equal_places(folder: Path, backend: str, device: str, count: int) -> tuple[Place, ...]:
    """`count` stages of equal size on one device."""
    return tuple(Place(backend, device, layers) for layers in uniform_ranges(read_spec(folder).layers, count))


class _Reference:
    """transformers' own `generate` in a child process."""

    def __init__(self, process: asyncio.subprocess.Process, request: DecodeRequest) -> None:
        self._process = process
        self._request = request
        self._rss = 0

    async def warm(self) -> None:
        await self._ask(WARM_PROMPT, WARM_TOKENS)

    async def run(self) -> Run:
        run = Run(**await self._ask(self._request.prompt, self._request.new))
        self._rss = peak_memory(self._process.pid)
        return run

    async def _ask(self, prompt: int, new: int) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{prompt} {new}\n".encode())
        line = await self._process.stdout.readline()
        if not line:
            raise LoadFailed("the transformers process ended; run it alone to see why")
        answer: dict[str, float] = json.loads(line)
        return answer

    def report(self, runs: list[Run]) -> DecodeReport:
        return DecodeReport("transformers", *_medians(runs), rss_bytes=(self._rss,))


@asynccontextmanager
async def _reference(request: DecodeRequest, folder: Path) -> AsyncIterator[DecodeSubject]:
    process = await spawn("backends.on_torch.reference", str(folder), request.device, request.dtype)
    try:
        yield _Reference(process, request)
    finally:
        await end(process)


def _medians(runs: list[Run]) -> tuple[float, float, float]:
    return (
        median(run.prefill_tok_s for run in runs),
        median(run.decode_tok_s for run in runs),
        median(run.ttft_s for run in runs),
    )


def peak_memory(pid: int) -> int:
    """Peak resident bytes where the system tells (Linux, Windows), else the present ones."""
    status = Path(f"/proc/{pid}/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    info = psutil.Process(pid).memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def as_json(reports: list[DecodeReport]) -> dict[str, object]:
    """The first report's keys at the top, the others under `compare` with the first's decode speed over theirs."""
    first, *others = reports
    compare = [asdict(other) | {"decode_ratio": first.decode_tok_s / other.decode_tok_s} for other in others]
    return asdict(first) | ({"compare": compare} if compare else {})
