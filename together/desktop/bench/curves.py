"""`bench curves`: speed over context, over users at once and over stages, as a file that `bench plot` draws."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil

from together.cluster.profiling import find_devices
from together.desktop.bench.rings import PROMPT, BenchRequest, BenchRing, bench_ring
from together.errors import BadSetting
from together.jsonfile import decode_json
from together.models.form import form_title
from together.wording import reason_of


@dataclass(frozen=True, slots=True)
class Point:
    """Tokens per second at one place: of the answers, and of the prompts, of all users together."""

    at: int
    decode_tok_s: float
    prefill_tok_s: float


@dataclass(frozen=True, slots=True)
class Curves:
    """All points, medians over the rounds, and what they were measured on, for the caption.

    `others` is the share of all processors that other programs used meanwhile, 0 to 1.
    """

    shape: str
    weights: str
    backend: str
    machine: str
    date: str
    new: int
    rounds: int
    others: float
    context: tuple[Point, ...]
    users: tuple[Point, ...]
    stages: tuple[Point, ...]

    @property
    def caption(self) -> tuple[str, ...]:
        """A line of what it is, and one of how it was measured."""
        busy = f"other programs used {self.others:.0%} of the processors meanwhile"
        return (
            f"{self.shape}, {self.weights}, random weights, {self.backend}; {self.machine}",
            f"medians of {self.rounds} rounds, {self.new} new tokens each, {self.date}; {busy}",
        )


@dataclass(frozen=True, slots=True)
class Places:
    """Tokens of context, users at once, and stages, each in rising order; the fewest stages hold the others."""

    context: tuple[int, ...]
    users: tuple[int, ...]
    stages: tuple[int, ...]

    @classmethod
    def parse(cls, context: str, users: str, stages: str) -> Places:
        """From texts as `128,512,2048`. Raises BadSetting."""
        return cls(_numbers("--context", context), _numbers("--users", users), _numbers("--stages", stages))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    found = tuple(sorted({int(part) for part in parts if part.isascii() and part.isdecimal()}))
    if not found or found[0] < 1 or not all(part.isdecimal() for part in parts):
        raise BadSetting("{option} takes numbers from 1 on, as 1,2,4, not {text!r}", option=option, text=text)
    return found


async def bench_curves(request: BenchRequest, places: Places, home: Path) -> Curves:
    """Raises BadSetting or LoadFailed."""
    devices = {device.name: device for device in await find_devices(request.backend, home)}
    if request.device not in devices:
        message = "{backend} has no device {device!r} here; choose one of {devices}"
        raise BadSetting(message, backend=request.backend, device=request.device, devices=tuple(devices))
    longest, most = max(places.context), max(places.users)
    own, by_stages = _Used(), list[Point]()
    context, users = tuple[Point, ...](), tuple[Point, ...]()
    for count in places.stages:
        spots = [_Spot(count, request.prompt, 1)]
        if count == places.stages[0]:
            spots += [_Spot(length, length, 1) for length in places.context]
            spots += [_Spot(several, PROMPT, several) for several in places.users]
        async with bench_ring(replace(request, stages=count), home, longest + request.new, most) as ring:
            own.begin(stage.status.pid for stage in ring.stages)
            found = await _points(ring, request, spots)
            own.end()
        by_stages.append(found[0])
        if len(found) > 1:
            context, users = found[1 : 1 + len(places.context)], found[1 + len(places.context) :]
    return Curves(
        request.shape,
        form_title(request.form) if request.form else str(request.dtype),
        f"{request.backend} on {request.device}",
        f"{devices[request.device].description}, {os.cpu_count()} cores",
        time.strftime("%B %Y"),
        request.new,
        request.rounds,
        own.others,
        context,
        users,
        tuple(by_stages),
    )


def read_curves(file: Path) -> Curves:
    """Raises BadSetting for a file that is none."""
    try:
        return decode_json(file.read_bytes(), Curves)
    except (OSError, ValueError) as error:
        message = "{file} is no file of bench curves: {error}"
        raise BadSetting(message, file=str(file), error=reason_of(error)) from None


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a point lies on its axis; tokens of each prompt, and how many users."""

    at: int
    prompt: int
    users: int


async def _points(ring: BenchRing, request: BenchRequest, spots: list[_Spot]) -> tuple[Point, ...]:
    """All in turn in every round, so that a slow moment of the machine hits all of them."""
    await ring.generate(PROMPT, request.new)  # touches all weights
    rounds = []
    for _ in range(request.rounds):
        rounds.append([await _speeds(ring, spot.prompt, request.new, spot.users) for spot in spots])
    points = []
    for spot, speeds in zip(spots, zip(*rounds, strict=True), strict=True):
        decode, prefill = (median(each) for each in zip(*speeds, strict=True))
        points.append(Point(spot.at, decode, prefill))
    return tuple(points)


async def _speeds(ring: BenchRing, prompt: int, new: int, users: int) -> tuple[float, float]:
    """The prompts end when the last one has its first token; answers go by each one's median gap after that."""
    began = time.perf_counter()
    times = await asyncio.gather(*(ring.generate(prompt, new) for _ in range(users)))
    first = max(each[0] for each in times)
    gaps = [[late - early for early, late in pairwise(each) if late > first] for each in times]
    return sum(1 / median(each) for each in gaps), users * prompt / (first - began)


class _Used:
    """What all processors and ours were busy with, between `begin` and `end`, in seconds."""

    def __init__(self) -> None:
        self._all = self._ours = self._passed = 0.0
        self._processes: list[psutil.Process] = []

    def begin(self, pids: Iterable[int]) -> None:
        self._processes = [psutil.Process(), *map(psutil.Process, pids)]
        self._count(-1)

    def end(self) -> None:
        self._count(1)

    def _count(self, sign: int) -> None:
        times = psutil.cpu_times()
        self._all += sign * (sum(times) - times.idle - getattr(times, "iowait", 0.0))
        self._ours += sign * sum(sum(each.cpu_times()[:2]) for each in self._processes)
        self._passed += sign * time.perf_counter() * (os.cpu_count() or 1)

    @property
    def others(self) -> float:
        return min(max((self._all - self._ours) / max(self._passed, 1e-9), 0.0), 1.0)
