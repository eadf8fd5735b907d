"""The loop around the scheduler: schedule, push, commit; and a stream of tokens for each request. Knows no text.

The ring is a `RingPort`; that frames cross machines is the port's business.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from statistics import median

from together.engine.port import RingPort
from together.engine.scheduler import Event, Limits, Scheduler, Sequence
from together.errors import BadRequest, NotServing, RingBroken, TogetherError
from together.requests import FinishReason, GenerateRequest, Timings
from together.sampling import validate
from together.types import Frame, StageTiming

STEP_TIMEOUT = 120.0  # seconds
KEPT_STEPS = 256  # decode steps whose times are kept


class Engine:
    """Many requests through one ring. All methods belong to the event loop that runs `run`."""

    def __init__(
        self,
        ring: RingPort,
        eos: frozenset[int],
        max_waiting: int = 256,
        step_timeout: float = STEP_TIMEOUT,
        vocabulary: int | None = None,
    ) -> None:
        """`step_timeout` in seconds; `vocabulary`, if given, bounds the ids of prompts and biases."""
        limits = Limits(ring.stages, ring.capacity, ring.block, ring.context, ring.chunk)
        self._ring = ring
        self._scheduler = Scheduler(limits, eos, max_waiting)
        self._step_timeout = step_timeout
        self._vocabulary = vocabulary
        self._streams: dict[Sequence, TokenStream] = {}
        self._pushed: deque[_Pushed] = deque()  # unanswered frames, oldest first
        self._progress = 0.0  # when a frame was last answered, or left with none before it
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._ended: TogetherError | None = None  # why it takes no requests any more
        self.times = StepTimes()

    @property
    def running(self) -> int:
        """Sequences in the ring's caches."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for room."""
        return len(self._scheduler.waiting)

    def submit(self, request: GenerateRequest) -> TokenStream:
        """Queue a request. Raises BadRequest, ContextTooLong, QueueFull, or why the engine ended."""
        if self._ended is not None:
            raise self._ended.with_traceback(None)
        _check(request, self._vocabulary)
        stream = TokenStream(self, self._scheduler.submit(request))
        self._streams[stream.sequence] = stream
        self._changed.set()
        return stream

    async def run(self) -> None:
        """Serve until `close` (returns) or until the ring breaks (raises RingBroken, as do all open requests)."""
        ended: TogetherError = NotServing("the model was unloaded; load it again, then ask again")
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work()) for work in (self._send, self._receive, self._watch)]
                await self._closing.wait()
                for task in tasks:
                    task.cancel()
        except* RingBroken as group_error:
            ended = _first(group_error)
        except* Exception:
            ended = TogetherError("the engine stopped by an error of its own; see the log, then load the model again")
            raise
        finally:
            self._end(ended)
        if isinstance(ended, RingBroken):
            raise ended

    def close(self) -> None:
        """Make `run` return; open requests end with NotServing."""
        self._closing.set()
        self._end(NotServing("the model is being unloaded; ask again when another is loaded"))

    def cancel(self, stream: TokenStream) -> None:
        """Forget a stream's sequence; the ring drops it with the next frame. Harmless after its end."""
        if self._streams.pop(stream.sequence, None) is not None:
            self._scheduler.cancel(stream.sequence)
            self._changed.set()

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        while True:
            frame = self._scheduler.schedule()
            if frame is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._note_push(frame)
            await self._ring.push(frame)

    async def _receive(self) -> None:
        while True:
            answer = await self._ring.receive()
            events = self._scheduler.commit(answer)
            self._note_answer(answer)
            for event in events:
                self._deliver(event)
            self._changed.set()

    async def _watch(self) -> None:
        """A ring that answers nothing for too long is broken, whatever its links say."""
        while True:
            await asyncio.sleep(min(1.0, self._step_timeout / 4))
            if self._pushed and time.perf_counter() - self._progress > self._step_timeout:
                raise RingBroken(f"no answer from the ring for {self._step_timeout:g} s; load the model again")

    def _note_push(self, frame: Frame) -> None:
        now = time.perf_counter()
        if not self._pushed:
            self._progress = now
        rows = frame.batch.rows
        self._pushed.append(_Pushed(now, all(len(row.token_ids) == 1 for row in rows) and bool(rows)))
        for row in rows:
            if row.position == 0:
                self._streams[self._scheduler.running[row.sequence]].note_start(now)

    def _note_answer(self, answer: Frame) -> None:
        self._progress = time.perf_counter()
        pushed = self._pushed.popleft()
        self.times.stages = answer.timings
        if pushed.decodes:
            self.times.add((self._progress - pushed.at) * 1000.0, answer.timings)

    def _deliver(self, event: Event) -> None:
        stream = self._streams[event.sequence]
        if event.finish is not None or event.error is not None:
            del self._streams[event.sequence]
        stream.take(event)

    def _end(self, error: TogetherError) -> None:
        if self._ended is None:
            self._ended = error
        for sequence, stream in self._streams.items():
            stream.take(Event(sequence, error=self._ended))
        self._streams.clear()


class TokenStream(AsyncIterator[tuple[tuple[int, ...], FinishReason | None]]):
    """One request's tokens as they come: (token ids, why it ended or None). End-of-text ids are not among them.

    A reader that is slower than the ring gets several tokens at once and never holds the ring up. Whoever stops reading
    before the end calls `cancel`.
    """

    def __init__(self, engine: Engine, sequence: Sequence) -> None:
        self.sequence = sequence
        self._engine = engine
        self._tokens: list[int] = []
        self._finish: FinishReason | None = None
        self._error: TogetherError | None = None
        self._over = False  # the reader has seen the end
        self._ready = asyncio.Event()
        self._asked = time.perf_counter()
        self._started: float | None = None
        self._first: float | None = None

    @property
    def timings(self) -> Timings:
        """Seconds since the request: until its first row left, until its first token, until now."""
        now = time.perf_counter()
        started, first = self._started or now, self._first or now
        return Timings(started - self._asked, first - self._asked, now - self._asked)

    async def __anext__(self) -> tuple[tuple[int, ...], FinishReason | None]:
        """Raises the error that ended the request, after its last tokens."""
        if self._over:
            raise StopAsyncIteration
        await self._ready.wait()
        if self._error is not None and not self._tokens:
            self._over = True
            raise self._error.with_traceback(None)
        tokens, finish = tuple(self._tokens), self._finish
        self._tokens.clear()
        if finish is not None:
            self._over = True
        elif self._error is None:
            self._ready.clear()
        return tokens, finish

    def cancel(self) -> None:
        """End the request, here and on every stage; a waiting reader sees "cancelled". Harmless after the end."""
        self._engine.cancel(self)
        if self._finish is None and self._error is None:
            self.take(Event(self.sequence, finish="cancelled"))

    async def aclose(self) -> None:
        self.cancel()

    def note_start(self, now: float) -> None:
        if self._started is None:
            self._started = now

    def take(self, event: Event) -> None:
        """The engine's side: tokens, the end or an error."""
        if event.token_ids and self._first is None:
            self._first = time.perf_counter()
        self._tokens.extend(event.token_ids)
        self._finish, self._error = event.finish, event.error
        self._ready.set()


@dataclass(slots=True)
class StepTimes:
    """How long the last decode steps took. Steps with prompts are left out: their time depends on the prompt."""

    stages: tuple[StageTiming, ...] = ()  # of the last answer of any kind
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_STEPS))
    _stages: deque[tuple[StageTiming, ...]] = field(default_factory=lambda: deque(maxlen=KEPT_STEPS))

    def add(self, step_ms: float, stages: tuple[StageTiming, ...]) -> None:
        self._steps.append(step_ms)
        self._stages.append(stages)

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


@dataclass(frozen=True, slots=True)
class _Pushed:
    at: float
    decodes: bool  # decode rows only


def _check(request: GenerateRequest, vocabulary: int | None) -> None:
    """Whatever a stage would stumble over is refused here, since a failed step hurts everybody in it."""
    if not request.prompt:
        raise BadRequest("the prompt is empty; write something", "messages")
    if vocabulary is not None and max(request.prompt) >= vocabulary:
        raise BadRequest(
            f"the prompt has token {max(request.prompt)}, the model knows 0 to {vocabulary - 1}", "messages"
        )
    if request.max_tokens is not None and request.max_tokens < 1:
        raise BadRequest(f"max_tokens is {request.max_tokens}; ask for at least 1", "max_tokens")
    validate(request.sampling, vocabulary)


def _first(group: BaseExceptionGroup[RingBroken]) -> RingBroken:
    """The first of the errors that ended the loop; the others follow from it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
