"""Work on models: one after another of each kind, paused and gone on with, given up, told with its speed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from tests.support.cluster import until
from together.errors import BadSetting, BrokenModel
from together.head.jobs import JobKind, JobReport, JobState, ModelJob, ModelJobs, on_thread
from together.sentences import Sentence, verbatim
from together.weights.part import Progress, Waiting

DOWNLOAD, QUANTIZE = JobKind.DOWNLOAD, JobKind.QUANTIZE


def state(jobs: ModelJobs, job: ModelJob) -> JobState:
    return next(each.state for each in jobs.shown() if each.id == job.id)


async def endless(_: JobReport) -> Sentence:
    await asyncio.Event().wait()
    raise AssertionError


async def at_once(_: JobReport) -> Sentence:
    return verbatim("done")


async def test_one_of_a_kind_at_a_time_and_kinds_beside_each_other() -> None:
    jobs = ModelJobs()
    first, second = (jobs.start(DOWNLOAD, name, "", endless) for name in ("a", "b"))
    other = jobs.start(QUANTIZE, "a", "4", endless)
    await until(lambda: state(jobs, other) is JobState.RUNNING)
    assert (state(jobs, first), state(jobs, second)) == (JobState.RUNNING, JobState.WAITING)
    with pytest.raises(BadSetting, match="that is being done with a already"):
        jobs.start(DOWNLOAD, "a", "", endless)
    await jobs.pause(first.id)
    await until(lambda: state(jobs, second) is JobState.RUNNING)
    assert state(jobs, first) is JobState.PAUSED
    jobs.resume(first.id)
    assert state(jobs, first) is JobState.WAITING
    await jobs.put_away(second.id)
    await until(lambda: state(jobs, first) is JobState.RUNNING)
    with pytest.raises(BadSetting, match="there is no such job any more"):
        await jobs.pause(second.id)
    await jobs.close()


async def test_what_failed_says_why_and_is_begun_again_in_its_place() -> None:
    jobs, tries = ModelJobs(), 0

    async def work(_: JobReport) -> Sentence:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise BrokenModel("{file} is broken", file="x")
        if tries == 2:
            raise RuntimeError
        return verbatim("done")

    came: list[int] = []
    jobs.ended = lambda: came.append(tries)
    job = jobs.start(DOWNLOAD, "a", "", work)
    await until(lambda: state(jobs, job) is JobState.FAILED)
    assert str(jobs.shown()[0].sentence) == "x is broken"
    jobs.resume(job.id)
    await until(lambda: tries == 2 and state(jobs, job) is JobState.FAILED)
    assert "failed because of a bug; see the log" in str(jobs.shown()[0].sentence)
    again = jobs.start(DOWNLOAD, "a", "", work)
    await until(lambda: state(jobs, again) is JobState.DONE)
    assert [each.id for each in jobs.shown()] == [again.id]
    assert came == [1, 2, 3]


async def test_the_speed_is_that_of_the_last_seconds() -> None:
    now = [0.0]
    jobs, going = ModelJobs(clock=lambda: now[0]), asyncio.Event()

    async def work(report: JobReport) -> Sentence:
        for second, done in ((0, 5000), (1, 5100), (2, 5300), (30, 5300), (31, 5400)):
            now[0] = float(second)
            report.take(done, 6000)
        report.say("the hub")
        await going.wait()
        return verbatim("done")

    job = jobs.start(DOWNLOAD, "a", "", work)
    await until(lambda: jobs.shown()[0].done == 5400)
    (told,) = jobs.shown()
    assert (told.speed, told.left, str(told.sentence)) == (100.0, 6.0, "it waits for the hub")
    going.set()
    await until(lambda: state(jobs, job) is JobState.DONE)
    assert jobs.shown()[0].speed == 0


async def test_work_on_a_thread_stops_when_it_is_asked_to() -> None:
    jobs, stopped = ModelJobs(), threading.Event()

    def block(progress: Progress, stop: Callable[[], bool], _: Waiting) -> None:
        progress(1, 2)
        while not stop():
            pass
        stopped.set()

    async def work(report: JobReport) -> Sentence:
        await on_thread(block, report)
        return verbatim("done")

    job = jobs.start(DOWNLOAD, "a", "", work)
    await until(lambda: jobs.shown()[0].total == 2)
    await jobs.pause(job.id)
    assert stopped.is_set()
    assert state(jobs, job) is JobState.PAUSED
