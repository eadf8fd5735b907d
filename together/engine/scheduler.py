"""Decides which rows travel in the next frame, and what an answer means. Knows no ring, no clock, no text.

One lane with continuous batching: `schedule()` gives the next frame or None, `commit(answer)` gives the events.
A sequence owns its known tokens, prompt and answer; `sent` of them are in the caches or on their way. When all are
sent, the token sampled at the end is outstanding and the sequence is in no new frame, so no other flag is needed.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from together.errors import ContextTooLong, QueueFull, RingBroken, TogetherError
from together.requests import FinishReason, GenerateRequest
from together.types import Batch, Failure, Frame, Orders, Row, RowResult, SampleRequest

HEADROOM = 256  # tokens of its answer that must fit before a sequence enters
ATTEMPTS = 3  # how often a refused sequence starts again without having gained a token in between


@dataclass(frozen=True, slots=True)
class Limits:
    """What the ring can take; tokens, except `stages`."""

    stages: int
    capacity: int  # KV tokens over all sequences, in whole blocks
    block: int  # tokens per KV block
    context: int  # prompt and answer of one sequence
    chunk: int  # most tokens in one frame

    @property
    def longest(self) -> int:
        """Tokens that one sequence can have when it is alone."""
        return min(self.context, self.capacity // self.block * self.block)

    def blocks(self, tokens: int) -> int:
        """Tokens that a stage sets aside for a sequence of `tokens`: whole blocks."""
        return -(-tokens // self.block) * self.block


@dataclass(eq=False, slots=True)
class Sequence:
    """One request's tokens and state. The scheduler alone changes it."""

    arrival: int  # order of arrival: the largest is the newest
    request: GenerateRequest
    end: int  # known tokens at which it ends by length
    tokens: list[int]  # prompt and answer
    id: int = -1  # its name in the caches; every start takes a new one, so late results of an old start match nothing
    sent: int = 0  # tokens in the caches or on their way
    turn: int = 0  # the step that carried its last row
    attempts: int = 0  # refusals since its last new token

    @property
    def unsent(self) -> int:
        return len(self.tokens) - self.sent

    @property
    def decoding(self) -> bool:
        """All but the newest token are in the caches."""
        return self.unsent == 1 and self.sent > 0


@dataclass(frozen=True, slots=True)
class Event:
    """What an answer brought one sequence: tokens to show, and how it ended if it did."""

    sequence: Sequence
    token_ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    error: TogetherError | None = None


@dataclass(frozen=True, slots=True)
class _Flight:
    """A frame that waits for its answer."""

    step: int
    rows: tuple[Row, ...]
    decodes: bool  # carries rows of the lane


@dataclass(slots=True)
class Scheduler:
    """Holds the sequences. `running` is by cache id, `waiting` in order of arrival."""

    limits: Limits
    eos: frozenset[int]
    max_waiting: int
    waiting: list[Sequence] = field(default_factory=list)
    running: dict[int, Sequence] = field(default_factory=dict)
    _flights: deque[_Flight] = field(default_factory=deque)
    _drops: list[int] = field(default_factory=list)
    _arrivals: int = 0
    _ids: int = 0
    _steps: int = 0

    # --- requests ---------------------------------------------------------------------------------------------------

    def submit(self, request: GenerateRequest) -> Sequence:
        """Queue a request. Raises ContextTooLong or QueueFull."""
        length = len(request.prompt)
        if length >= self.limits.longest:
            raise ContextTooLong(length, self.limits.longest)
        if len(self.waiting) >= self.max_waiting:
            raise QueueFull(f"{len(self.waiting)} requests are waiting already; ask again in a moment")
        end = self.limits.longest if request.max_tokens is None else length + request.max_tokens
        self._arrivals += 1
        sequence = Sequence(self._arrivals, request, min(end, self.limits.longest), list(request.prompt))
        self.waiting.append(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is; its caches are dropped with the next frame. Harmless after its end."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        elif self.running.get(sequence.id) is sequence:
            self._release(sequence)

    def replay(self) -> None:
        """A new epoch: nothing is on its way, no cache is trusted, every live sequence starts again, oldest first."""
        self._flights.clear()
        for sequence in tuple(self.running.values()):
            self._set_back(sequence)

    # --- schedule ---------------------------------------------------------------------------------------------------

    @property
    def unanswered(self) -> int:
        """Frames on their way."""
        return len(self._flights)

    def schedule(self) -> Frame | None:
        """The next frame, or None until an answer or a request comes."""
        if len(self._flights) > self.limits.stages:
            return None
        self._make_room()
        self._admit()
        decodes = self._decode_rows()
        rows = (*decodes, *self._prefill_rows(self.limits.chunk - len(decodes)))
        if not rows and not self._drops:
            return None
        self._steps += 1
        self._flights.append(_Flight(self._steps, rows, bool(decodes)))
        return Frame(self._steps, Batch(rows, self._take_orders()))

    def _make_room(self) -> None:
        """Every known token must have its place; what does not fit is set back, the newest sequence first."""
        while self._used() > self.limits.capacity:
            self._set_back(max(self.running.values(), key=lambda sequence: sequence.arrival))

    def _admit(self) -> None:
        """First come, first served: nobody overtakes a sequence that does not fit yet."""
        used = self._used()
        while self.waiting:
            sequence = self.waiting[0]
            wanted = min(len(sequence.tokens) + HEADROOM, sequence.end)
            if used + self.limits.blocks(wanted) > self.limits.capacity:
                return
            self._start(self.waiting.pop(0))
            used += self.limits.blocks(len(sequence.tokens))

    def _decode_rows(self) -> tuple[Row, ...]:
        """All of the lane in one frame, since a step costs about the same for one row as for many."""
        if any(flight.decodes for flight in self._flights):
            return ()
        ready = [sequence for sequence in self.running.values() if sequence.decoding]
        ready.sort(key=lambda sequence: sequence.turn)  # where they are too many for one frame, they take turns
        return tuple(self._row(sequence, 1) for sequence in ready[: self.limits.chunk])

    def _prefill_rows(self, budget: int) -> Iterator[Row]:
        """Chunks of prompts and replays, oldest first. A bound on what one step may cost would shrink `budget` here."""
        for sequence in sorted(self.running.values(), key=lambda sequence: sequence.arrival):
            if budget > 0 and sequence.unsent > 0 and not sequence.decoding:
                length = min(budget, sequence.unsent)
                budget -= length
                yield self._row(sequence, length)

    def _row(self, sequence: Sequence, length: int) -> Row:
        """The next `length` tokens; the last stage samples only where they reach the end of what is known."""
        start, stop = sequence.sent, sequence.sent + length
        sequence.sent, sequence.turn = stop, self._steps
        sample = None
        if stop == len(sequence.tokens):
            request = sequence.request
            sample = SampleRequest((length - 1,), request.sampling, len(request.prompt))
        return Row(sequence.id, start, tuple(sequence.tokens[start:stop]), sample)

    def _take_orders(self) -> Orders:
        drops, self._drops = tuple(self._drops), []
        return Orders(drops)

    # --- commit -----------------------------------------------------------------------------------------------------

    def commit(self, answer: Frame) -> tuple[Event, ...]:
        """Take the answer to the oldest frame. Raises RingBroken if it reports a failure or does not fit the frame."""
        if answer.failure is not None:  # looked at first: of a frame that could not be read, not even the step is known
            raise _broken(answer.failure)
        if not self._flights or answer.step != self._flights[0].step:
            due = self._flights[0].step if self._flights else "nothing"
            raise RingBroken(f"the ring answered step {answer.step} while {due} was due; load the model again")
        flight = self._flights.popleft()
        results = {result.sequence: result for result in answer.results}
        events = (self._take(row, results.get(row.sequence)) for row in flight.rows)
        return tuple(event for event in events if event is not None)

    def _take(self, row: Row, result: RowResult | None) -> Event | None:
        sequence = self.running.get(row.sequence)
        if sequence is None:  # cancelled, set back or refused since
            return None
        if result is None or (result.refusal is None and row.sample is not None and not result.sampled):
            raise RingBroken(f"the ring gave no result for sequence {row.sequence}; load the model again")
        if result.refusal is not None:
            return self._refused(sequence, result.refusal)
        if row.sample is None:
            return None
        return self._grown(sequence, result.sampled[0].token_id)

    def _grown(self, sequence: Sequence, token_id: int) -> Event:
        sequence.attempts = 0
        if token_id in self.eos and not sequence.request.ignore_eos:
            self._release(sequence)
            return Event(sequence, finish="stop")
        sequence.tokens.append(token_id)
        if len(sequence.tokens) < sequence.end:
            return Event(sequence, (token_id,))
        self._release(sequence)
        return Event(sequence, (token_id,), "length")

    def _refused(self, sequence: Sequence, reason: str) -> Event | None:
        """One stage holds other tokens than the head believes: start again from the first token, but not for ever."""
        sequence.attempts += 1
        if sequence.attempts <= ATTEMPTS:
            self._set_back(sequence)
            return None
        self._release(sequence)
        message = f"the ring refused this request {sequence.attempts} times ({reason}); load the model again"
        return Event(sequence, error=RingBroken(message, cause=reason))

    # --- starting and leaving ---------------------------------------------------------------------------------------

    def _used(self) -> int:
        return sum(self.limits.blocks(len(sequence.tokens)) for sequence in self.running.values())

    def _start(self, sequence: Sequence) -> None:
        """Give it a name in the caches. Here a fork from the longest common prefix would set `sent` above 0."""
        self._ids += 1
        sequence.id, sequence.sent = self._ids, 0
        self.running[sequence.id] = sequence

    def _release(self, sequence: Sequence) -> None:
        """Its caches are dropped with the next frame. Here a finished sequence would stay as a prefix for others."""
        del self.running[sequence.id]
        self._drops.append(sequence.id)

    def _set_back(self, sequence: Sequence) -> None:
        self._release(sequence)
        insort(self.waiting, sequence, key=lambda waiting: waiting.arrival)


def _broken(failure: Failure) -> RingBroken:
    message = f"node {failure.node}: stage {failure.stage} failed ({failure.cause}); load the model again"
    return RingBroken(message, failure.node, failure.cause)
