"""Where the time of requests and steps goes: stages, links, the head itself."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from statistics import median

from together.engine.sequence import Counters
from together.requests import Timings
from together.types import StageTiming

KEPT_STEPS = 256  # decode steps whose times are kept
KEPT_ALONE = 64  # of those of one short text alone: how it is now
LATELY = 1.0  # seconds
SHORT = 2048  # tokens; attention to more takes longer than plans say


@dataclass(frozen=True, slots=True)
class Pushed:
    """A frame in flight: when it left, what it carries, and the requests it works for."""

    at: float
    decodes: bool  # decode rows only
    alone: bool  # and only one, of a short text, with no other frame before it
    clocks: tuple[tuple[RequestClock, int], ...]  # each with the bytes of its hidden states, over all links
    looks: bool = False  # a stage looks at pictures first
    whole: bool = True  # stages have all of their processors


@dataclass(slots=True)
class RequestClock:
    """Where one request's time goes; every moment counts once, however many of its frames are in flight.

    Between two answers, time is divided in the proportions of the answered frame's own round.
    """

    link_bytes: float = 0.0
    tokens: int = 0
    reused_tokens: int = 0
    _asked: float = field(default_factory=time.perf_counter)
    _started: float | None = None
    _first: float | None = None
    _ended: float | None = None
    _counted: float = 0.0  # until when
    _flying: int = 0
    _compute: list[float] = field(default_factory=list)  # by stage
    _waiting: float = 0.0
    _network: float = 0.0
    _overhead: float = 0.0

    def pushed(self, now: float) -> None:
        """Note that a frame with a row of this request left."""
        if self._started is None:
            self._started = self._counted = now
        if self._flying == 0:
            self._overhead += now - self._counted
            self._counted = now
        self._flying += 1

    def answered(self, frame: Pushed, timings: tuple[StageTiming, ...], now: float) -> None:
        """Divide the time since the last answer in the proportions of this frame's round."""
        if self._ended is not None:
            return
        self._flying -= 1
        compute, waiting = (timing.compute_ms / 1e3 for timing in timings), sum(t.wait_ms for t in timings) / 1e3
        round_s = max(now - frame.at, 1e-9)
        part = (now - max(self._counted, frame.at)) / round_s
        self._counted = now
        self._compute += [0.0] * (len(timings) - len(self._compute))  # another ring may have more stages
        spent = 0.0
        for stage, seconds in enumerate(compute):
            self._compute[stage] += seconds * part
            spent += seconds
        self._waiting += waiting * part
        self._network += max(0.0, round_s - spent - waiting) * part

    def lost(self, now: float) -> None:
        """The ring broke: what is in flight does not come back."""
        if self._started is not None and self._flying:
            self._waiting += now - self._counted
            self._counted, self._flying = now, 0

    def grown(self, tokens: int) -> None:
        self._first = self._first or (time.perf_counter() if tokens else None)
        self.tokens += tokens

    def end(self) -> None:
        """Stop counting."""
        if self._ended is None:
            self._ended = time.perf_counter()
            left = self._ended - self._counted if self._started is not None else 0.0
            if self._flying == 0:
                self._overhead += left
            else:
                self._waiting += left  # for an answer that is no longer needed

    @property
    def timings(self) -> Timings:
        """Until now, or until it ended."""
        now = self._ended or time.perf_counter()
        return Timings(
            queued=(self._started or now) - self._asked,
            first_token=(self._first or now) - self._asked,
            total=now - self._asked,
            compute=tuple(self._compute),
            waiting=self._waiting,
            network=self._network,
            overhead=self._overhead,
            tokens=self.tokens,
            reused_tokens=self.reused_tokens,
            link_bytes=round(self.link_bytes),
        )


class DecodeTimes:
    """How long the last decode steps took, in ms."""

    def __init__(self, kept: int) -> None:
        self.count = 0  # since the last `clear`, also those that are not kept
        self._steps: deque[float] = deque(maxlen=kept)
        self._stages: deque[tuple[StageTiming, ...]] = deque(maxlen=kept)

    def add(self, ms: float, timings: tuple[StageTiming, ...]) -> None:
        self.count += 1
        self._steps.append(ms)
        self._stages.append(timings)

    def clear(self) -> None:
        self.count = 0
        self._steps.clear()
        self._stages.clear()

    @property
    def step_ms(self) -> float:
        """Median over the kept decode steps, from push to answer; 0 before the first."""
        return median(self._steps) if self._steps else 0.0

    @property
    def stage_ms(self) -> tuple[float, ...]:
        """Median compute time of each stage over the kept decode steps."""
        return tuple(median(timing.compute_ms for timing in times) for times in zip(*self._stages, strict=False))

    @property
    def link_ms(self) -> float:
        """Median time of a decode step between the stages' queues, over all links."""
        spent = [sum(timing.compute_ms + timing.wait_ms for timing in timings) for timings in self._stages]
        return median(step - own for step, own in zip(self._steps, spent, strict=True)) if spent else 0.0


@dataclass(slots=True)
class StepTimes:
    """What steps took. Steps with prompts do not count as decode steps: their time depends on the prompt."""

    stages: tuple[StageTiming, ...] = ()  # of the last answer of any kind
    steps: int = 0  # answers of any kind
    link_bytes: int = 0  # of all of them
    decodes: DecodeTimes = field(default_factory=lambda: DecodeTimes(KEPT_STEPS))
    alone: DecodeTimes = field(default_factory=lambda: DecodeTimes(KEPT_ALONE))  # of one person's short text
    beside: DecodeTimes = field(default_factory=lambda: DecodeTimes(KEPT_ALONE))  # the same beside another model's
    whole: DecodeTimes = field(default_factory=lambda: DecodeTimes(KEPT_STEPS))  # those that no other model slowed
    use: tuple[float, ...] = ()  # by stage, the part of the time that it computed lately, of that with steps in flight

    def answered(self, frame: Pushed, timings: tuple[StageTiming, ...], now: float, *, last: bool) -> None:
        """`last`: no newer frame is in flight, which would have shared the machines with this one."""
        self.stages = timings
        self.steps += 1
        self.link_bytes += sum(size for _, size in frame.clocks)
        if frame.decodes:
            self.decodes.add((now - frame.at) * 1e3, timings)
        if frame.decodes and frame.whole:
            self.whole.add((now - frame.at) * 1e3, timings)
        if frame.alone and last:
            (self.alone if frame.whole else self.beside).add((now - frame.at) * 1e3, timings)

    def used(self, seconds: float, timings: tuple[StageTiming, ...]) -> None:
        """So long the engine waited for this answer, since the last one or since it had a frame in flight."""
        parts = tuple(min(1.0, timing.compute_ms / 1e3 / max(seconds, 1e-9)) for timing in timings)
        if len(parts) != len(self.use):
            self.use = parts
            return
        weight = min(1.0, seconds / LATELY)
        self.use = tuple(old + (part - old) * weight for old, part in zip(self.use, parts, strict=True))

    def clear(self) -> None:
        """Start over with another ring, or before a measurement."""
        for times in (self.decodes, self.alone, self.beside, self.whole):
            times.clear()
        self.use = ()


@dataclass(slots=True, kw_only=True)
class EngineStats(Counters):
    """The engine at one moment, and what it did since it was made."""

    running: int
    waiting: int
    used_tokens: int  # of running sequences, in the caches or on their way there
    cached_tokens: int  # of prefixes that nobody uses now
    cached: int  # prefixes that nobody uses now
    capacity: int  # tokens
    steps: int
    step_ms: float  # of a decode step, as the following two
    stage_ms: tuple[float, ...]
    link_ms: float
    link_bytes: int
    stage_sequences: tuple[int, ...]  # how many sequences and prefixes each stage held at its last answer
