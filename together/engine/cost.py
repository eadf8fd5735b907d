"""The cost of steps, measured on those that came back, and what follows from it: prefill along decodes, lanes.

Pure: stages time their own part of every frame, and the engine times the whole round.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import log2
from statistics import median

from together.types import StageTiming

STRETCH = 2.3  # how much longer the gaps between a request's tokens may get while others' prompts are computed
LEAST = 8  # tokens of a prompt that always travel along decodes, or it would never end
PAYS = 0.85  # more frames at once must cut the gap at least to this
KEPT = 5  # samples per size, of which the median counts

StageMs = tuple[float, ...]


@dataclass(slots=True)
class Curve:
    """Each stage's time by the tokens of a step, piecewise linear between sizes that were seen. Milliseconds."""

    _seen: dict[int, deque[tuple[int, StageMs]]] = field(default_factory=dict)
    _points: list[tuple[float, StageMs]] = field(default_factory=list)  # medians, by rising size

    def add(self, tokens: int, stage_ms: StageMs) -> None:
        self._seen.setdefault(_bucket(tokens), deque(maxlen=KEPT)).append((tokens, stage_ms))
        self._points = [_middle(self._seen[bucket]) for bucket in sorted(self._seen)]

    def covers(self, tokens: int) -> bool:
        """Whether steps of about this size were seen, or smaller and larger ones."""
        return bool(self._points) and self._points[0][0] <= tokens <= self._points[-1][0] * 1.25

    def at(self, tokens: int) -> StageMs | None:
        """None before the first sample. Guesses beyond what was seen err on the slow side."""
        below = next((point for point in reversed(self._points) if point[0] <= tokens), None)
        above = next((point for point in self._points if point[0] >= tokens), None)
        if below is None:
            return above[1] if above else None
        slowest = tuple(ms * tokens / below[0] for ms in below[1])  # no step costs more than in proportion
        if above is None or above[0] == below[0]:
            return slowest if above is None else below[1]
        part = (tokens - below[0]) / (above[0] - below[0])
        between = (low + (high - low) * part for low, high in zip(below[1], above[1], strict=True))
        return tuple(min(both) for both in zip(between, slowest, strict=True))


@dataclass(frozen=True, slots=True)
class Pace:
    """While others decode: frames at once, and tokens of prompts in each."""

    frames: int
    tokens: int


@dataclass(slots=True)
class StepCost:
    """The measured cost of steps in one ring."""

    stages: int
    _alone: Curve = field(default_factory=Curve)  # of frames that had the ring to themselves
    _crowding: deque[float] = field(default_factory=lambda: deque(maxlen=4 * KEPT))  # slowdown of those not alone
    _network: deque[float] = field(default_factory=lambda: deque(maxlen=4 * KEPT))

    def observe(self, tokens: int, timings: tuple[StageTiming, ...], alone: bool, round_ms: float) -> None:
        """Note a frame of `tokens` that came back; `alone`: no other one was in flight meanwhile."""
        stage_ms = tuple(timing.compute_ms for timing in timings)
        if alone:
            self._alone.add(tokens, stage_ms)
            self._network.append(max(0.0, round_ms - sum(timing.compute_ms + timing.wait_ms for timing in timings)))
        elif self._alone.covers(tokens):
            expected = self._alone.at(tokens)
            self._crowding.append(max(1.0, sum(stage_ms) / max(1e-6, sum(expected or stage_ms))))

    def gap_ms(self, frames: int, tokens: int) -> float | None:
        """The time between two frames of one lane while `frames` of this size travel at once; None while unknown."""
        expected = self._alone.at(tokens)
        if expected is None:
            return None
        network = median(self._network) if self._network else 0.0
        if frames == 1:
            return sum(expected) + network
        crowding = median(self._crowding) if self._crowding else 1.0  # 1: only trying tells
        return max(sum(expected) * crowding + network, frames * max(expected) * crowding)

    def lanes(self, rows: int) -> int:
        """The number of groups to split decode rows into: one, unless smaller steps are clearly faster."""
        best, shortest = 1, self.gap_ms(1, rows)
        for count in range(2, min(self.stages, rows) + 1):
            gap = self.gap_ms(count, _share(rows, count))
            if gap is not None and shortest is not None and gap <= PAYS * shortest:
                best, shortest = count, gap
        return best

    def pace(self, rows: int, lanes: int, chunk: int) -> Pace:
        """What prompts may add to `rows` that decode in `lanes`, so that the gaps of these stay in bounds."""
        part = _share(rows, lanes)
        usual = self.gap_ms(lanes, part)
        best, quickest = Pace(lanes, LEAST), 0.0
        for frames in sorted({lanes, self.stages}) if usual is not None else ():
            for tokens in _sizes(chunk - part):
                gap = self.gap_ms(frames, part + tokens)
                assert gap is not None, "known for one size, known for all"
                if usual is not None and gap <= STRETCH * usual:
                    if frames * tokens / max(gap, 1e-6) * PAYS > quickest:
                        best, quickest = Pace(frames, tokens), frames * tokens / max(gap, 1e-6)
                    break
        return best


def _share(rows: int, lanes: int) -> int:
    return -(-rows // lanes)


def _sizes(most: int) -> Iterator[int]:
    """Sizes of a prompt's part, falling from `most`, about a fifth apart."""
    size = most
    while size > LEAST:
        yield size
        size -= max(1, size // 6)
    yield LEAST


def _bucket(tokens: int) -> int:
    """Small steps by themselves, larger ones two to an octave."""
    return tokens if tokens <= 8 else 3 + round(2 * log2(tokens))


def _middle(samples: deque[tuple[int, StageMs]]) -> tuple[float, StageMs]:
    columns = zip(*(stage_ms for _, stage_ms in samples), strict=True)
    return median(tokens for tokens, _ in samples), tuple(median(column) for column in columns)
