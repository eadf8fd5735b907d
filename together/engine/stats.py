"""Where the time of requests and steps goes: stages, links, the head itself. Knows no scheduler and no ring."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from statistics import median

from together.engine.sequence import Counters
from together.requests import Timings
from together.types import Frame, StageTiming

KEPT_STEPS = 256  # decode steps whose times are kept


@dataclass(frozen=True, slots=True)
class Pushed:
    """A frame on its way: when it left, what it carries, and the requests it works for."""

    at: float
    decodes: bool  # decode rows only
    link_bytes: int  # over all links
    clocks: tuple[tuple[RequestClock, int], ...]  # and how many of its tokens are that request's


@dataclass(slots=True)
class RequestClock:
    """One request's time, second by second: every moment is counted once, however many of its frames travel at once.

    While frames are on their way, the time between two answers is shared out as the answered frame's own round was.
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
        """A frame with a row of this request leaves."""
        if self._started is None:
            self._started = self._counted = now
        if self._flying == 0:
            self._overhead += now - self._counted
            self._counted = now
        self._flying += 1

    def answered(self, frame: Pushed, timings: tuple[StageTiming, ...], now: float) -> None:
        """It is back: what it took since the last answer, in the proportions of its whole round."""
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
        """What was on its way does not come back: the ring broke."""
        if self._started is not None and self._flying:
            self._waiting += now - self._counted
            self._counted, self._flying = now, 0

    def grown(self, tokens: int) -> None:
        self._first = self._first or (time.perf_counter() if tokens else None)
        self.tokens += tokens

    def end(self) -> None:
        """Nothing is counted any more."""
        if self._ended is None:
            self._ended = time.perf_counter()
            left = self._ended - self._counted if self._started is not None else 0.0
            if self._flying == 0:
                self._overhead += left
            else:
                self._waiting += left  # for an answer that is not needed any more

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


@dataclass(slots=True)
class StepTimes:
    """How long the last decode steps took. Steps with prompts are left out: their time depends on the prompt."""

    stages: tuple[StageTiming, ...] = ()  # of the last answer of any kind
    steps: int = 0  # answers of any kind
    link_bytes: int = 0  # of all of them
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_STEPS))
    _stages: deque[tuple[StageTiming, ...]] = field(default_factory=lambda: deque(maxlen=KEPT_STEPS))

    def answered(self, frame: Pushed, timings: tuple[StageTiming, ...], now: float) -> None:
        self.stages = timings
        self.steps += 1
        self.link_bytes += frame.link_bytes
        if frame.decodes:
            self._steps.append((now - frame.at) * 1e3)
            self._stages.append(timings)

    def clear(self) -> None:
        """Begin anew, as before something that is measured by itself."""
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
        """Median of what a decode step spends between the stages' queues, over all of its links."""
        spent = [sum(timing.compute_ms + timing.wait_ms for timing in timings) for timings in self._stages]
        return median(step - own for step, own in zip(self._steps, spent, strict=True)) if spent else 0.0


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


def hidden_bytes(frame: Frame, token_bytes: int, stages: int) -> int:
    """Bytes of hidden states that a frame takes over the links between stages; token ids and results are nothing."""
    return frame.batch.tokens * token_bytes * (stages - 1)
