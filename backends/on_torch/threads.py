"""How many threads a step gets. Those of a small model wait for one another longer than they compute.

A trial times steps; the machine keeps what it found. Knows no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from pathlib import Path

import torch

from backends.measuring import lasts, watch_others
from backends.on_torch.choices import build_name, in_turn, keep, kept_file
from together.jsonfile import recall_json
from together.types import Threads

Step = Callable[[int], object]  # computes a step of so many tokens

FEW = 16  # tokens of the longest step that counts as one of few
PROMPT = 64  # tokens of the step of many that is timed
_LEAST, _SECONDS = 2, 0.15  # turns of each number of threads, and when there are enough of them
_OUT = 2  # times as long as the fastest: no more turns for it
_WORTH = 0.9  # of the time with fewer threads: what more of them must reach
_WORTH_CROWDED = 0.85  # the same where the stages of a ring would take one another's processors


@dataclass(frozen=True, slots=True)
class ThreadTimes:
    """What a trial found: `few` and `many` are seconds of a step, for each of the numbers of threads `counts`."""

    counts: tuple[int, ...]
    few: tuple[float, ...]
    many: tuple[float, ...]
    busy: float  # the share of all processors that other programs used meanwhile, 0 to 1
    at: float  # seconds since 1970

    def __post_init__(self) -> None:
        """Raises ValueError for what no trial finds."""
        if not self.counts or not len(self.counts) == len(self.few) == len(self.many):
            raise ValueError("not a trial of threads")

    def best(self, sharing: int) -> Threads:
        """For a stage whose processor `sharing` stages compute on, itself included."""
        return Threads(self._best(self.few, sharing), self._best(self.many, sharing))

    @property
    def lasts(self) -> bool:
        """Whether no new trial is needed. That a prompt gains nothing from more threads may be a busy moment's mark."""
        doubtful = self.best(sharing=1).many < self.counts[-1]
        return lasts(1.0 if doubtful else self.busy, self.at)

    def _best(self, seconds: tuple[float, ...], sharing: int) -> int:
        chosen, least = self.counts[0], seconds[0]
        for count, taken in zip(self.counts, seconds, strict=True):
            crowded = count * sharing > self.counts[-1]
            if taken < least * (_WORTH_CROWDED if crowded else _WORTH):
                chosen, least = count, taken
        return chosen


@dataclass(frozen=True, slots=True)
class KeptTimes:
    """Of one build, as KeptChoices has it. By shape."""

    build: str
    times: dict[str, ThreadTimes]


class StepThreads:
    """The threads of one shard's steps: as many as torch has, until `choose`. All calls come from one thread."""

    def __init__(self, shape: str, trial: Callable[[], Step], home: Path | None = None) -> None:
        """`shape` names all that times depend on, but for the machine; `trial` makes the step to be timed."""
        self._most = torch.get_num_threads()
        self._shape, self._trial, self._home = shape, trial, home
        self.chosen = Threads(self._most, self._most)
        self._limit = self._most

    def choose(self, sharing: int) -> Threads:
        """The threads that steps get from now on; `sharing` as in ThreadTimes. Raises what a step raises."""
        if self._most > 1:
            torch.set_num_threads(self._most)  # what is kept goes by it
            self.chosen = self._times().best(sharing)
        return self.chosen

    def use(self, tokens: int) -> None:
        """Let the calling thread's next products be computed as a step of so many tokens."""
        torch.set_num_threads(min(self._limit, self.chosen.few if tokens <= FEW else self.chosen.many))

    def limit(self, percent: int) -> None:
        """No step gets more than so much of all threads from now on, and one at least; of a half one, none.

        Two that get a half each must not have more of them than there are.
        """
        self._limit = max(1, ceil(self._most * percent / 100 - 0.5))

    def _times(self) -> ThreadTimes:
        measure = partial(step_times, self._trial, counts_to(self._most))
        return measure() if self._home is None else recalled_times(self._home, self._shape, measure)


def recalled_times(home: Path, shape: str, measure: Callable[[], ThreadTimes]) -> ThreadTimes:
    """What was found for `shape` on this machine before, else what `measure` finds, which is kept."""
    build = build_name()
    file = kept_file(home, build, "threads-")
    with in_turn(file):
        stored = recall_json(file, KeptTimes)
        known = stored.times if stored is not None and stored.build == build else {}
        if shape in known and known[shape].lasts:
            return known[shape]
        found = measure()
        keep(file, KeptTimes(build, known | {shape: found}))
        return found


def step_times(trial: Callable[[], Step], counts: tuple[int, ...]) -> ThreadTimes:
    """Time steps with each number of threads, in turns: a busy moment hits all of them, and the fastest turn counts."""
    step, others = trial(), watch_others()
    few, many = (partial(_timed, step, tokens) for tokens in (1, PROMPT))
    return ThreadTimes(counts, confirmed(few, counts), confirmed(many, counts), others(), time.time())


def confirmed(timed: Callable[[int], float], counts: tuple[int, ...]) -> tuple[float, ...]:
    """The least of the seconds that `timed` says for each number of threads; where more than one win, of two trials.

    One thread waits for no other: a busy moment delays more of them more often, but it may hit the one.
    """
    found = _alternated(timed, counts)
    if min(found) < found[0]:
        found = tuple(map(min, found, _alternated(timed, counts)))
    return found


def _alternated(timed: Callable[[int], float], counts: tuple[int, ...]) -> tuple[float, ...]:
    """In turns, so that a slow moment hits all."""
    timed(counts[0])  # warm
    best, running = dict.fromkeys(counts, inf), counts
    began, turns = time.perf_counter(), 0
    while len(running) > 1 and (turns < _LEAST or time.perf_counter() - began < _SECONDS):
        for count in running:
            best[count] = min(best[count], timed(count))
        turns += 1
        limit = _OUT * min(best.values())
        running = tuple(count for count in counts if turns < _LEAST or best[count] <= limit)
    return tuple(best.values())


def _timed(step: Step, tokens: int, threads: int) -> float:
    torch.set_num_threads(threads)
    step(tokens)  # starts the threads, which in use are there
    began = time.perf_counter()
    step(tokens)
    return time.perf_counter() - began


def counts_to(most: int) -> tuple[int, ...]:
    """1, 2, 4, … and `most`."""
    return (*(2**power for power in range((most - 1).bit_length())), most)
