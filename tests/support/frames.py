"""Frames answered by hand, for tests of the scheduler's policies."""

from __future__ import annotations

from together.engine.scheduler import Scheduler
from together.engine.sequence import Sequence, TokenEvent
from together.requests import GenerateRequest
from together.types import Frame, Limits, RowResult, Sampled, Sampling, StageTiming

EOS = 99


def scheduler(
    stages: int = 2,
    capacity: int = 4096,
    block: int = 16,
    context: int = 2048,
    chunk: int = 64,
    max_waiting: int = 100,
    rewind: int | None = None,
    shares: bool = False,
) -> Scheduler:
    return Scheduler(Limits(stages, capacity, block, context, chunk, rewind, shares), frozenset((EOS,)), max_waiting)


def request(length: int, max_tokens: int | None = 1000, start: int = 1, ignore_eos: bool = False) -> GenerateRequest:
    return GenerateRequest(
        tuple(range(start, start + length)), Sampling(0.0), max_tokens=max_tokens, ignore_eos=ignore_eos
    )


def answered(
    frame: Frame, token: int = 7, refuse: tuple[int, ...] = (), stage_ms: tuple[float, ...] | None = None
) -> Frame:
    """The ring's answer: `token` for every row that samples; a refusal for the sequences in `refuse`."""
    results = tuple(
        RowResult(row.sequence, row.position, refusal="cache full")
        if row.sequence in refuse
        else RowResult(row.sequence, row.position, (Sampled(token),) if row.sample else ())
        for row in frame.batch.rows
    )
    timings = tuple(StageTiming(ms, 0.0) for ms in stage_ms or ())
    return Frame(frame.step, frame.batch, results=results, timings=timings)


def next_frame(found: Scheduler) -> Frame:
    frame = found.schedule()
    assert frame is not None
    return frame


def step(found: Scheduler, token: int = 7) -> tuple[TokenEvent, ...]:
    """One frame there and back."""
    return found.commit(answered(next_frame(found), token))


def run(found: Scheduler, token: int = 7) -> list[Frame]:
    """All frames until nothing is left to do."""
    frames = []
    while (frame := found.schedule()) is not None:
        frames.append(frame)
        found.commit(answered(frame, token))
    return frames


def rows(frame: Frame) -> list[tuple[int, int, int, bool]]:
    """(sequence, position, tokens, samples) of each row."""
    return [(row.sequence, row.position, len(row.token_ids), row.sample is not None) for row in frame.batch.rows]


def start_decoding(found: Scheduler, *lengths: int, max_tokens: int | None = 1000) -> list[Sequence]:
    """Sequences whose prompts are in the caches and whose first token is known; they share no prefix."""
    sequences = [found.submit(request(length, max_tokens, 1 + 1000 * i)) for i, length in enumerate(lengths)]
    frames: list[Frame] = []
    while not all(sequence.decoding for sequence in sequences):
        while frame := found.schedule():
            frames.append(frame)
        found.commit(answered(frames.pop(0)))
    for frame in frames:
        found.commit(answered(frame))
    return sequences
