"""What `bench decode` measures in turn: stages of ours, transformers, llama.cpp. Each runs one request alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from backends.base import Computing
from together.desktop.bench.llama_cpp import BenchLine, LlamaCpp
from together.desktop.bench.llama_gguf import random_gguf
from together.desktop.bench.reads import cores, step_bytes
from together.desktop.bench.rings import BenchRequest, bench_folder, bench_ring
from together.desktop.bench.shapes import random_checkpoint
from together.errors import LoadFailed
from together.models.spec import read_spec
from together.processes import end, spawn


@dataclass(frozen=True, slots=True)
class Run:
    """One request alone: its first token ends the prefill, the others are decode."""

    prefill_tok_s: float
    decode_tok_s: float
    ttft_s: float
    step_ms: float = 0.0
    stage_ms: tuple[float, ...] = ()
    computing: tuple[Computing, ...] = ()  # of its processes


@dataclass(frozen=True, slots=True)
class SetUp:
    """What is measured: `run` takes the tokens of a prompt and of its answer; `step_bytes` is what one token reads."""

    name: str
    run: Callable[[int, int], Awaitable[Run]]
    pids: tuple[int, ...]
    step_bytes: int
    weight_bytes: tuple[int, ...] = ()
    warms_itself: bool = False

    async def warm_up(self) -> None:
        """Touch all weights: while the others ran, they may have left caches, even memory."""
        if not self.warms_itself:
            await self.run(8, 3)


@asynccontextmanager
async def our_stages(request: BenchRequest, home: Path) -> AsyncIterator[SetUp]:
    async with bench_ring(request, home, request.prompt + request.new) as ring:

        async def run(prompt: int, new: int) -> Run:
            ring.engine.times.clear()
            measured = ring.engine.times.decodes
            prefill, decode = await ring.timed(prompt, new)
            computing = tuple(stage.computing for stage in ring.stages)
            return Run(prefill, decode, prompt / prefill, measured.step_ms, measured.stage_ms, computing)

        stages = [stage.status for stage in ring.stages]
        weights = tuple(ring.spec.stage_weights(stage.layers).nbytes(request.dtype) for stage in stages)
        read = step_bytes(ring.spec, request.dtype, _context(request))
        yield SetUp(f"{request.stages} stages", run, tuple(stage.pid for stage in stages), read, weights)


@asynccontextmanager
async def transformers(request: BenchRequest, home: Path) -> AsyncIterator[SetUp]:
    """Its own `generate` in a child process, with plain weights."""
    folder = await asyncio.to_thread(random_checkpoint, request.shape, request.dtype, home)
    process = await spawn("backends.on_torch.reference", str(folder), request.device, request.dtype)

    async def run(prompt: int, new: int) -> Run:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{prompt} {new}\n".encode())
        line = await process.stdout.readline()
        if not line:
            raise LoadFailed("the transformers process ended; run it alone to see why")
        found = json.loads(line)
        return Run(computing=(Computing(found.pop("threads"), ("linear",)),), **found)

    try:
        yield SetUp(
            "transformers", run, (process.pid,), step_bytes(read_spec(folder), request.dtype, _context(request))
        )
    finally:
        await end(process)


@asynccontextmanager
async def llama_cpp(request: BenchRequest, folder: Path, home: Path) -> AsyncIterator[SetUp]:
    """Its programs: one process for one stage, else its RPC over as many servers; as many bits a weight as ours."""
    made = await asyncio.to_thread(llama_of, request, folder, home)
    spec = await asyncio.to_thread(read_spec, await bench_folder(request, home))
    async with made.ready() as programs:

        async def run(prompt: int, new: int) -> Run:
            before, after = await programs.bench(prompt, 0, 0), await programs.bench(0, new, prompt)
            return Run(before.tok_s, after.tok_s, prompt / before.tok_s, computing=(_computing(after),))

        read = step_bytes(spec, request.dtype, _context(request))  # of its own file it is the same
        yield SetUp(made.name, run, programs.pids, read, warms_itself=True)


def llama_of(request: BenchRequest, folder: Path, home: Path) -> LlamaCpp:
    """Its programs on a file of the same shape, with as many threads as there are cores. Raises BadSetting."""
    model = random_gguf(request.shape, request.dtype, request.form, home)
    return LlamaCpp(folder, model, cores(), request.stages if request.stages > 1 else 0)


def _computing(line: BenchLine) -> Computing:
    return Computing(line.n_threads, (f"{line.model_type}, {line.backends}, build {line.build_commit}",))


def _context(request: BenchRequest) -> int:
    """The tokens before a new one, in the middle of the answer."""
    return request.prompt + request.new // 2


def peak_memory(pid: int) -> int:
    """Peak resident bytes where the system tells (Linux, Windows), else the present ones."""
    status = Path(f"/proc/{pid}/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    info = psutil.Process(pid).memory_info()
    return int(getattr(info, "peak_wset", info.rss))
