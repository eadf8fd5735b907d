"""Work on models that takes long: one after another of each kind, with progress, paused and gone on with."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeVar

from together.errors import BadSetting, TogetherError
from together.ring.rpc import Broadcast
from together.sentences import NOTHING, Sentence, say, verbatim
from together.weights.part import Progress, Waiting

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST = 64  # that are kept, the oldest ended ones go first
STOPS_WITHIN = 5.0  # seconds that work on a thread is waited for
WINDOW = 5.0  # seconds by which the speed is told


class JobKind(StrEnum):
    """What is done with a model."""

    DOWNLOAD = "download"
    QUANTIZE = "quantize"  # into the cache, in a form
    CONVERT = "convert"  # into a folder in MLX's format


class JobState(StrEnum):
    """Where a job is."""

    WAITING = "waiting"  # for another one of its kind
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"


OPEN = (JobState.WAITING, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class ModelJob:
    """Work on one model, as it is now. `speed` is bytes a second; `left` seconds, None where nobody knows."""

    id: str
    kind: JobKind
    model: str
    form: str = ""
    state: JobState = JobState.WAITING
    done: int = 0
    total: int = 0
    speed: float = 0.0
    left: float | None = None
    sentence: Sentence = NOTHING  # what it waits for, what came of it, or why it failed


@dataclass(slots=True)
class JobReport:
    """What a running job tells; from any thread."""

    loop: asyncio.AbstractEventLoop
    take: Callable[[int, int], None]
    say: Callable[[str], None]

    def progress(self, done: int, total: int) -> None:
        self._on_loop(self.take, done, total)

    def waiting(self, whom: str) -> None:
        self._on_loop(self.say, whom)

    def _on_loop(self, call: Callable[..., None], *values: object) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(call, *values)


Work = Callable[[JobReport], Awaitable[Sentence]]  # returns what came of it; cancelling leaves what can go on


@dataclass(slots=True, eq=False)
class _Running:
    job: ModelJob
    work: Work
    task: asyncio.Task[None] | None = None
    samples: deque[tuple[float, int]] = field(default_factory=deque)


@dataclass(slots=True)
class ModelJobs:
    """Those of one head; `changed` wakes who watches. Ended ones stay until they are put away."""

    clock: Callable[[], float] = time.monotonic
    changed: Broadcast = field(default_factory=Broadcast)
    ended: Callable[[], None] = lambda: None  # models may have come
    _all: dict[str, _Running] = field(default_factory=dict)
    _turns: dict[JobKind, asyncio.Lock] = field(default_factory=lambda: {kind: asyncio.Lock() for kind in JobKind})

    def shown(self) -> tuple[ModelJob, ...]:
        return tuple(each.job for each in self._all.values())

    def start(self, kind: JobKind, model: str, form: str, work: Work) -> ModelJob:
        """Raises BadSetting for what is being done already. What ended or was paused is begun again in its place."""
        key = (kind, model, form)
        same = [each for each in self._all.values() if (each.job.kind, each.job.model, each.job.form) == key]
        if any(each.job.state in OPEN for each in same):
            raise BadSetting("that is being done with {model} already; wait for it, or pause it", model=model)
        for each in same:
            del self._all[each.job.id]
        ended = [each for each in self._all.values() if each.job.state is JobState.DONE]
        for old in ended[: max(len(ended) - MOST, 0)]:
            del self._all[old.job.id]
        made = _Running(ModelJob(secrets.token_hex(6), kind, model, form), work)
        self._all[made.job.id] = made
        self._begin(made)
        return made.job

    async def pause(self, job: str) -> ModelJob:
        """What is here stays. Raises BadSetting for one that is not there."""
        each = self._get(job)
        if each.job.state in OPEN:
            await _cancelled(each)
            self._show(each, state=JobState.PAUSED, speed=0.0, left=None, sentence=NOTHING)
        return each.job

    def resume(self, job: str) -> ModelJob:
        """Also one that failed. Raises BadSetting for one that is not there."""
        each = self._get(job)
        if each.job.state in (JobState.PAUSED, JobState.FAILED):
            self._begin(each)
        return each.job

    async def put_away(self, job: str) -> ModelJob:
        """Give it up, or take an ended one from the list. Raises BadSetting for one that is not there."""
        each = self._get(job)
        await _cancelled(each)
        self._all.pop(job, None)
        self.changed.notify()
        self.ended()
        return each.job

    async def close(self) -> None:
        await asyncio.gather(*map(_cancelled, self._all.values()))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _get(self, job: str) -> _Running:
        if job not in self._all:
            raise BadSetting("there is no such job any more; look at the list again")
        return self._all[job]

    def _begin(self, each: _Running) -> None:
        each.samples.clear()
        self._show(each, state=JobState.WAITING, sentence=NOTHING)
        each.task = asyncio.create_task(self._run(each))

    async def _run(self, each: _Running) -> None:
        try:
            async with self._turns[each.job.kind]:
                self._show(each, state=JobState.RUNNING)
                said = await each.work(self._report(each))
        except TogetherError as error:
            self._show(each, state=JobState.FAILED, speed=0.0, left=None, sentence=error.sentence)
        except Exception:  # a bug of ours, or of the machine: the list says so
            log.exception("a job for %s failed", each.job.model)
            bug = say("job_failed", model=each.job.model)
            self._show(each, state=JobState.FAILED, speed=0.0, left=None, sentence=bug)
        else:
            self._show(each, state=JobState.DONE, speed=0.0, left=None, sentence=said)
        self.ended()

    def _report(self, each: _Running) -> JobReport:
        return JobReport(
            asyncio.get_running_loop(),
            lambda done, total: self._progress(each, done, total),
            lambda whom: self._wait(each, whom),
        )

    def _progress(self, each: _Running, done: int, total: int) -> None:
        """The speed is that of the last seconds: a resumed download begins with what was here."""
        if each.job.state is not JobState.RUNNING:
            return
        now = self.clock()
        each.samples.append((now, done))
        while len(each.samples) > 2 and now - each.samples[0][0] > WINDOW:
            each.samples.popleft()
        since, before = each.samples[0]
        speed = (done - before) / (now - since) if now > since else 0.0
        left = (total - done) / speed if speed > 0 else None
        self._show(each, done=done, total=total, speed=speed, left=left)

    def _wait(self, each: _Running, whom: str) -> None:
        if each.job.state is JobState.RUNNING:
            self._show(each, sentence=say("job_waits", whom=verbatim(whom)) if whom else NOTHING)

    def _show(self, each: _Running, **changes: object) -> None:
        each.job = replace(each.job, **changes)  # type: ignore[arg-type]  # of its fields
        self.changed.notify()


async def _cancelled(each: _Running) -> None:
    if each.task is not None:
        each.task.cancel()
        await asyncio.gather(each.task, return_exceptions=True)


async def on_thread(work: Callable[[Progress, Callable[[], bool], Waiting], T], report: JobReport) -> T:
    """Run blocking work, which asks whether to stop, on a thread; it is asked to when this task is cancelled."""
    stop = threading.Event()
    running = asyncio.create_task(asyncio.to_thread(work, report.progress, stop.is_set, report.waiting))
    try:
        return await asyncio.shield(running)
    finally:
        stop.set()
        await asyncio.wait([running], timeout=STOPS_WITHIN)
