"""The loop around the scheduler: schedule, push, commit; and a stream of tokens for each request."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import chain

from together.engine.progress import places_in, progress_of
from together.engine.scheduler import Scheduler
from together.engine.sequence import RingPort, Sequence, TokenEvent
from together.engine.stats import SHORT, EngineStats, Pushed, StepTimes
from together.engine.streams import TokenStream
from together.errors import BadRequest, NotServing, QueueFull, RingBroken, TogetherError
from together.picture import Picture
from together.requests import GenerateRequest, Owner
from together.sampling import validate
from together.sentences import say
from together.types import Frame

STEP_TIMEOUT = 120.0  # seconds
LOOKING = 5  # times as long may a step take that looks at pictures: a minute for a large one on two old cores
MOST_PIXELS = 2**28  # bytes of the pictures of open requests


class Engine:
    """Many requests through one ring. All methods belong to the event loop that runs `serve`."""

    def __init__(
        self,
        ring: RingPort,
        eos: frozenset[int],
        max_waiting: int = 256,
        step_timeout: float = STEP_TIMEOUT,
        vocabulary: int | None = None,
        token_bytes: int = 0,
    ) -> None:
        """`step_timeout` in seconds; `vocabulary`, the width of the logits, bounds the ids of requests if known.

        `token_bytes` is the size of one token's hidden state on a link, for measurements.
        """
        self.vocabulary = vocabulary
        self.times = StepTimes()
        self.shares: Callable[[], tuple[int, ...]] = tuple  # of each stage's processors, now: as in Frame
        self._ring = ring
        self._scheduler = Scheduler(ring.limits, eos, max_waiting)
        self._step_timeout = step_timeout
        self._streams: dict[Sequence, TokenStream] = {}
        self._followed: dict[Sequence, TokenStream] = {}  # those without a token whose readers hear of their place
        self._token_bytes = token_bytes
        self._pushed: deque[Pushed] = deque()  # unanswered frames, oldest first
        self._progress = 0.0  # when a frame was last answered, or left with none before it
        self._changed = asyncio.Event()
        self._asked = asyncio.Event()  # a frame is unanswered
        self._stopping = asyncio.Event()  # the loop ends: closed, or paused with nothing in flight
        self._pausing = False
        self._ended: TogetherError | None = None  # why it takes no more requests

    @property
    def running(self) -> int:
        """Sequences in the ring's caches."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for room."""
        return len(self._scheduler.waiting)

    @property
    def context(self) -> int:
        """Tokens that a prompt must stay below."""
        return self._scheduler.limits.longest

    @property
    def rewinds(self) -> bool:
        """Whether caches can go back to any token."""
        return self._scheduler.limits.rewind is None

    def use_ends(self, eos: frozenset[int]) -> None:
        """End texts at these token ids from now on."""
        self._scheduler.eos = eos

    def stats(self) -> EngineStats:
        """What runs, what happened so far, and what steps cost."""
        scheduler, times = self._scheduler, self.times
        return EngineStats(
            **asdict(scheduler.counters),
            running=self.running,
            waiting=self.waiting,
            used_tokens=sum(sequence.sent for sequence in scheduler.running.values()),
            cached_tokens=sum(prefix.sent for prefix in scheduler.prefixes.held.values()),
            cached=len(scheduler.prefixes.held),
            capacity=scheduler.limits.capacity,
            steps=times.steps,
            step_ms=times.decodes.step_ms,
            stage_ms=times.decodes.stage_ms,
            link_ms=times.decodes.link_ms,
            link_bytes=times.link_bytes,
            stage_sequences=tuple(timing.sequences for timing in times.stages),
        )

    def drop_cache(self) -> None:
        """Free the prefixes that are cached for later requests; stages follow with the next frame."""
        self._scheduler.prefixes.clear()
        self._changed.set()

    def be_lean(self, lean: bool) -> None:
        """Keep no prefixes, and let stages give the system what they free; or keep them again."""
        if lean != self._scheduler.prefixes.lean:
            self._scheduler.prefixes.be_lean(lean)
            self._changed.set()

    def forget(self, owner: Owner | None) -> int:
        """Free those of one owner, or of all; how many these were."""
        self._changed.set()
        return self._scheduler.prefixes.forget(owner)

    def submit(self, request: GenerateRequest, ready: asyncio.Event | None = None) -> TokenStream:
        """Queue a request; `ready` is set whenever its stream has news, so that one reader can watch several streams.

        Raises BadRequest, ContextTooLong, QueueFull, or why the engine ended.
        """
        self._check_open()
        _check(request, self.vocabulary)
        self.check_pictures(0, request.pictures)
        stream = TokenStream(self.cancel, self._scheduler.submit(request), ready or asyncio.Event())
        self._streams[stream.sequence] = stream
        if request.followed:
            self._followed[stream.sequence] = stream
        self._changed.set()
        return stream

    def check_room(self, count: int = 1) -> None:
        """Raises QueueFull if `count` more requests do not fit, or why the engine ended."""
        self._check_open()
        self._scheduler.check_room(count)

    def check_pictures(self, size: int, given: tuple[Picture, ...] = ()) -> None:
        """Raises QueueFull where `size` more bytes, and those `given`, do not fit beside the pictures of open requests.

        They are kept for replays, the same ones once.
        """
        pictures = chain(given, *(stream.request.pictures for stream in self._streams))
        held = {picture.key: len(picture.pixels) for picture in pictures}
        if (size or given) and size + sum(held.values()) > MOST_PIXELS:
            raise QueueFull("pictures of other requests take all room; ask again in a moment")

    def _check_open(self) -> None:
        if self._ended is not None:
            raise self._ended.with_traceback(None)

    @property
    def silence(self) -> float:
        """Seconds since the ring last answered while a frame is in flight; 0 while none is."""
        return time.perf_counter() - self._progress if self._pushed else 0.0

    @property
    def usual_step(self) -> float:
        """Seconds that a decode step takes; 0 before the first ones."""
        return self.times.decodes.step_ms / 1e3

    async def serve(self, ring: RingPort | None = None) -> None:
        """Serve over `ring`, by default the current one, until `close` or `pause`. Raises RingBroken.

        Open requests then wait for the next ring, which replays their tokens. A bug in the engine ends them.
        """
        self._move_to(ring or self._ring)
        broken: RingBroken | None = None
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work()) for work in (self._send, self._receive, self._watch)]
                await self._stopping.wait()
                for task in tasks:
                    task.cancel()
        except* RingBroken as errors:
            broken = _first(errors)
        except* Exception:
            self._end(TogetherError(say("engine_failed")))
            raise
        if broken is not None:
            raise broken

    def _move_to(self, ring: RingPort) -> None:
        self._pausing = False
        if self._ended is None:
            self._stopping.clear()
        if ring is not self._ring:
            self._ring = ring
            self._pushed.clear()
            self._asked.clear()
            self.times.clear()
            for stream in self._streams.values():
                stream.clock.lost(time.perf_counter())
            for event in self._scheduler.move(ring.limits):
                self._deliver(event)

    def pause(self) -> None:
        """Make `serve` return as soon as nothing is in flight; requests are still taken, and wait."""
        self._pausing = True
        self._rest()

    def _rest(self) -> None:
        if self._pausing and not self._pushed:
            self._stopping.set()

    def drop(self, error: TogetherError) -> None:
        """End all open requests with `error`; new ones are still taken."""
        for stream in tuple(self._streams.values()):
            self._scheduler.cancel(stream.sequence)
            self._deliver(TokenEvent(stream.sequence, error=error))
        self._changed.set()

    def close(self, error: TogetherError | None = None) -> None:
        """Make `serve` return, and end open and later requests with `error`, by default with NotServing."""
        self._stopping.set()
        self._end(error or NotServing(say("unloaded")))

    def cancel(self, stream: TokenStream) -> None:
        """Forget a stream's sequence; the ring drops it with the next frame. Harmless after its end."""
        self._followed.pop(stream.sequence, None)
        if self._streams.pop(stream.sequence, None) is not None:
            self._scheduler.cancel(stream.sequence)
            self._changed.set()

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        while self._ended is None:
            frame = None if self._pausing else self._scheduler.schedule()
            if self._followed and not self._pausing:
                self._tell(looked=frame is not None or self._scheduler.unanswered <= self._ring.limits.stages)
            if frame is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            if shares := self.shares():
                frame = replace(frame, shares=shares)
            self._note_push(frame)
            await self._ring.push(frame)

    async def _receive(self) -> None:
        while True:
            answer = await self._ring.receive()
            events = self._scheduler.commit(answer, self._note_answer(answer))
            self._changed.set()  # first, so that the next frame leaves before anybody makes text of this answer
            for event in events:
                self._deliver(event)
            self._rest()

    async def _watch(self) -> None:
        """A ring that answers nothing for too long is broken; time that this machine slept is not the ring's."""
        pause = min(1.0, self._step_timeout / 4)
        while True:
            await self._asked.wait()  # an idle model wakes nobody
            began = time.perf_counter()
            await asyncio.sleep(pause)
            self._progress += max(time.perf_counter() - began - 2 * pause, 0.0)
            limit = self._step_timeout * (LOOKING if any(frame.looks for frame in self._pushed) else 1)
            if self.silence > limit:
                raise RingBroken("no answer from the ring for {seconds:g} s; load the model again", seconds=limit)

    def _note_push(self, frame: Frame) -> None:
        now = time.perf_counter()
        if not self._pushed:
            self._progress = now
        rows, loads = frame.batch.rows, []
        hop_bytes = self._token_bytes * (self._ring.limits.stages - 1)  # of one token, over all links
        for row in rows:
            stream = self._streams[self._scheduler.running[row.sequence]]
            stream.clock.reused_tokens = stream.reused
            stream.clock.pushed(now)
            loads.append((stream.clock, len(row.token_ids) * hop_bytes))
        decodes = bool(rows) and all(len(row.token_ids) == 1 for row in rows)
        alone = decodes and len(rows) == 1 and rows[0].position < SHORT and not self._pushed
        looks = any(row.pictures for row in rows)
        self._pushed.append(Pushed(now, decodes, alone, tuple(loads), looks, whole=not frame.shares))
        self._asked.set()

    def _note_answer(self, answer: Frame) -> float:
        """Milliseconds since its frame was pushed; 0 for an answer to nothing, which the scheduler refuses."""
        if not self._pushed:
            return 0.0
        before, now = self._progress, time.perf_counter()
        self._progress, pushed = now, self._pushed.popleft()
        self._asked.clear() if not self._pushed else None
        self.times.used(now - before, answer.timings)
        self.times.answered(pushed, answer.timings, now, last=not self._pushed)
        for clock, link_bytes in pushed.clocks:
            clock.answered(pushed, answer.timings, now)
            clock.link_bytes += link_bytes
        return (now - pushed.at) * 1e3

    def _deliver(self, event: TokenEvent) -> None:
        stream = self._streams.get(event.sequence)
        self._followed.pop(event.sequence, None)
        if stream is None:  # the engine was closed meanwhile
            return
        if event.finish is not None or event.error is not None:
            del self._streams[event.sequence]
        stream.take(event)

    def _tell(self, *, looked: bool) -> None:
        """Say where they are; until the scheduler `looked` for their next rows, a new one only seems to wait."""
        if not looked:
            return
        places, chunk = places_in(self._scheduler), self._scheduler.limits.chunk
        for sequence, stream in self._followed.items():
            stream.tell(progress_of(sequence, places, chunk))

    def _end(self, error: TogetherError) -> None:
        if self._ended is None:
            self._ended = error
        for sequence, stream in self._streams.items():
            stream.take(TokenEvent(sequence, error=self._ended))
        self._streams.clear()
        self._followed.clear()


def _check(request: GenerateRequest, vocabulary: int | None) -> None:
    """Refuse what would fail on a stage: a failed step hurts every request in it. Raises BadRequest."""
    if not request.prompt:
        raise BadRequest("the prompt is empty; write something", "messages")
    if vocabulary is not None and max(request.prompt) >= vocabulary:
        text = "the prompt has token {token}, the model knows 0 to {last}"
        raise BadRequest(text, "messages", token=max(request.prompt), last=vocabulary - 1)
    least = 0 if request.score_from else 1
    if request.max_tokens is not None and request.max_tokens < least:
        raise BadRequest("max_tokens is {count}; ask for at least 1", "max_tokens", count=request.max_tokens)
    validate(request.sampling, vocabulary)


def _first(group: BaseExceptionGroup[RingBroken]) -> RingBroken:
    """The first of the errors that ended the loop; the others follow from it."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
