"""`bench decode`: prefill and decode speed of real stage processes, beside other programs.

Compared set-ups run in turn, so a slow moment of the machine hits all of them; figures are medians over the rounds, and
ratios are medians of those within a round.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from backends.base import Computing
from together.desktop.bench.llama_cpp import llama_folder
from together.desktop.bench.reads import MemoryReader
from together.desktop.bench.rings import BenchRequest
from together.desktop.bench.setups import Run, SetUp, llama_cpp, our_stages, peak_memory, transformers
from together.errors import BadSetting


@dataclass(frozen=True, slots=True)
class DecodeReport:
    """Medians over the rounds. `stage_ms` and `hop_ms` are of a decode step; `rss_bytes` is each process's peak.

    Ratios are the first set-up's speed over this one's. `of_reads` is the share of the tokens that plain memory reads
    would allow.
    """

    name: str
    prefill_tok_s: float
    decode_tok_s: float
    ttft_s: float
    stage_ms: tuple[float, ...]
    hop_ms: float
    rss_bytes: tuple[int, ...]
    weight_bytes: tuple[int, ...]
    prefill_ratio: float
    decode_ratio: float
    of_reads: float
    computing: tuple[Computing, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One report each, the first one's stages first; what was read of memory meanwhile."""

    reports: tuple[DecodeReport, ...]
    read_bytes_per_s: float


@dataclass(slots=True)
class Rounds:
    """Speeds of plain memory reads, and the runs of every set-up, by round."""

    setups: list[SetUp]
    reads: list[float]
    runs: list[list[Run]]

    async def measure(self, reader: MemoryReader, prompt: int, new: int) -> None:
        """One more; every other one begins with the last set-up, so that a drift of the machine evens out."""
        self.reads.append(await asyncio.to_thread(reader.bytes_per_s))
        order = list(zip(self.setups, self.runs, strict=True))
        for setup, done in order if len(self.reads) % 2 else reversed(order):
            await setup.warm_up()
            done.append(await setup.run(prompt, new))

    def report(self, place: int) -> DecodeReport:
        setup, runs, first = self.setups[place], self.runs[place], self.runs[0]
        stage_ms = tuple(median(times) for times in zip(*(run.stage_ms for run in runs), strict=True))
        pairs = list(zip(first, runs, strict=True))
        return DecodeReport(
            setup.name,
            median(run.prefill_tok_s for run in runs),
            median(run.decode_tok_s for run in runs),
            median(run.ttft_s for run in runs),
            stage_ms,
            (median(run.step_ms for run in runs) - sum(stage_ms)) / (len(stage_ms) + 1),
            tuple(map(peak_memory, setup.pids)),
            setup.weight_bytes,
            median(ours.prefill_tok_s / run.prefill_tok_s for ours, run in pairs),
            median(ours.decode_tok_s / run.decode_tok_s for ours, run in pairs),
            median(run.decode_tok_s * setup.step_bytes / read for run, read in zip(runs, self.reads, strict=True)),
            runs[-1].computing,
        )


async def bench_decode(request: BenchRequest, names: list[str], home: Path) -> Comparison:
    """`names` are numbers of stages, "transformers", or "llama.cpp=FOLDER"; measured in alternation.

    Raises BadSetting for other words, before anything starts, and TogetherError where a program of llama.cpp fails.
    """
    wanted = [_setup(request, name, home) for name in names]
    async with AsyncExitStack() as stack:
        setups = [await stack.enter_async_context(each) for each in wanted]
        rounds = Rounds(setups, [], [[] for _ in setups])
        reader = MemoryReader()
        for _ in range(request.rounds):
            await rounds.measure(reader, request.prompt, request.new)
        return Comparison(tuple(map(rounds.report, range(len(setups)))), median(rounds.reads))


def _setup(request: BenchRequest, name: str, home: Path) -> AbstractAsyncContextManager[SetUp]:
    if name == "transformers":
        return transformers(request, home)
    if folder := llama_folder(name):
        return llama_cpp(request, folder, home)
    if not name.isdecimal() or int(name) < 1:
        raise BadSetting(
            "cannot compare with {name!r}; give a number of stages, transformers, or llama.cpp=FOLDER", name=name
        )
    return our_stages(replace(request, stages=int(name)), home)


def decode_json(found: Comparison) -> dict[str, object]:
    """The first report's keys at the top, the others under `compare`."""
    first, *others = found.reports
    compare = {"compare": [asdict(other) for other in others]} if others else {}
    return asdict(first) | {"read_bytes_per_s": found.read_bytes_per_s} | compare
