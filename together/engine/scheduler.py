"""Continuous batching: chooses the rows of the next frame and turns answers into events.

Pure: no ring, no clock, no text. Three rules keep the head's books equal to the stages': a frame's forks come before
its drops and those before its rows, stages take frames in order, and a sequence counts with all of its known tokens.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from together.engine.books import Books
from together.engine.cost import StepCost
from together.engine.prefixes import Match, Prefix, Prefixes, best_match
from together.engine.sequence import WORTH, Counters, InFlightStep, ScheduledRow, Sequence, TokenEvent, broken
from together.errors import ContextTooLong, QueueFull, RingBroken
from together.requests import GenerateRequest
from together.types import Batch, Frame, Limits, Row, RowResult, Sampled

HEADROOM = 256  # tokens of its answer that must fit before a sequence enters
ATTEMPTS = 3  # restarts of a refused sequence without a new token in between


@dataclass(slots=True)
class Scheduler:
    """The sequences of one ring: `running` by cache id, `waiting` in order of arrival."""

    limits: Limits
    eos: frozenset[int]
    max_waiting: int
    waiting: list[Sequence] = field(default_factory=list)
    running: dict[int, Sequence] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    books: Books = field(init=False)
    prefixes: Prefixes = field(init=False)
    cost: StepCost = field(init=False)
    _flights: deque[InFlightStep] = field(default_factory=deque)
    _arrivals: int = 0
    _steps: int = 0

    def __post_init__(self) -> None:
        self.books, self.cost = Books(self.limits), StepCost(self.limits.stages)
        self.prefixes = Prefixes(self.books)

    # --- requests ---------------------------------------------------------------------------------------------------

    def submit(self, request: GenerateRequest) -> Sequence:
        """Queue a request. Raises ContextTooLong or QueueFull."""
        length = len(request.prompt)
        if length >= self.limits.longest:
            raise ContextTooLong(length, self.limits.longest)
        self.check_room()
        end = self.limits.longest if request.max_tokens is None else length + request.max_tokens
        self._arrivals += 1
        self.counters.requests += 1
        self.counters.prompt_tokens += length
        sequence = Sequence(self._arrivals, request, min(end, self.limits.longest), list(request.prompt))
        self.waiting.append(sequence)
        return sequence

    def check_room(self, count: int = 1) -> None:
        """Raises QueueFull if `count` more requests do not fit into the queue."""
        if len(self.waiting) + count > self.max_waiting:
            raise QueueFull("{count} requests are waiting already; ask again in a moment", count=len(self.waiting))

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is; what is cached of it stays as a prefix. Harmless after its end."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        elif self.running.get(sequence.id) is sequence:
            self._retire(sequence)

    def replay(self) -> None:
        """A new epoch: nothing is in flight, no cache is trusted, every live sequence starts again, oldest first."""
        self.prefixes.forget_orders(flight.orders for flight in self._flights)
        self._flights.clear()
        for sequence in tuple(self.running.values()):
            self._preempt(sequence)
        self.prefixes.clear()
        self.cost = StepCost(self.limits.stages)

    def move(self, limits: Limits) -> tuple[TokenEvent, ...]:
        """Replay everything on another ring. Returns the end of sequences that are too long for it."""
        self.replay()
        self.limits, self.books = limits, Books(limits)
        self.prefixes.books = self.books
        self.cost = StepCost(limits.stages)
        ended = [sequence for sequence in self.waiting if len(sequence.tokens) >= limits.longest]
        for sequence in self.waiting:
            sequence.end = min(sequence.end, limits.longest)
        self.waiting = [sequence for sequence in self.waiting if sequence not in ended]
        return tuple(
            TokenEvent(sequence, error=ContextTooLong(len(sequence.tokens), limits.longest)) for sequence in ended
        )

    # --- schedule ---------------------------------------------------------------------------------------------------

    @property
    def unanswered(self) -> int:
        """Frames in flight."""
        return len(self._flights)

    def schedule(self) -> Frame | None:
        """The next frame, or None until an answer or a request comes."""
        if len(self._flights) > self.limits.stages:
            return None
        self._make_room()
        self._begin_with_others()
        self._admit()
        self._keep_stable()
        decodes = self._decode_parts()
        parts = (*decodes, *self._prefill_parts(len(decodes)))
        if not parts and not self.prefixes.drops and not self.prefixes.trims:  # forks alone wait for rows
            return None
        self._steps += 1
        orders = self.prefixes.take_orders()
        self._fly(InFlightStep(self._steps, parts, len(decodes), orders, alone=True))
        return Frame(self._steps, Batch(tuple(part.row for part in parts), orders))

    def _fly(self, flight: InFlightStep) -> None:
        others = [other for other in self._flights if other.parts]
        if others and flight.parts:
            for both in (flight, *others):
                both.alone = False
        self._flights.append(flight)

    def _decode_parts(self) -> tuple[ScheduledRow, ...]:
        """The next lane's rows; with one lane all of them: a step costs about the same for one row as for many."""
        outstanding = [flight.decodes for flight in self._flights if flight.decodes]
        ready = [sequence for sequence in self.running.values() if sequence.decoding and not sequence.waits_for]
        lanes = self._lanes(sum(outstanding) + len(ready))
        if len(outstanding) >= lanes:
            return ()
        share = -(-(sum(outstanding) + len(ready)) // lanes)
        ready.sort(key=lambda sequence: sequence.last_step)  # where they are too many for one frame, they take turns
        return tuple(self._part(sequence, 1) for sequence in ready[: min(share, self.limits.chunk)])

    def _lanes(self, rows: int) -> int:
        return self.cost.lanes(rows) if rows > 1 and self.limits.stages > 1 else 1

    def _prefill_parts(self, decodes: int) -> Iterator[ScheduledRow]:
        """Chunks of prompts and replays, oldest first."""
        ready = [sequence for sequence in self.running.values() if not sequence.waits_for and not sequence.decoding]
        ready = [sequence for sequence in ready if sequence.unsent > 0 and not self._stands(sequence)]
        budget = self._prefill_budget(decodes) if ready else 0
        looks = False  # one at a time: their pictures are in the frame
        for sequence in sorted(ready, key=lambda sequence: sequence.arrival):
            if budget > 0 and not (looks and sequence.request.pictures):
                looks = looks or bool(sequence.request.pictures)
                length = min(budget, sequence.unsent)
                if self.limits.rewind is not None and sequence.stable > sequence.sent:
                    length = min(length, sequence.stable - sequence.sent)
                budget -= length
                self.counters.prefilled_tokens += length
                yield self._part(sequence, length)

    def _prefill_budget(self, decodes: int) -> int:
        """Whole chunks while nothing decodes; otherwise as much as measured costs allow without stalling decodes."""
        decoding = decodes + sum(self._live_decodes(flight) for flight in self._flights)
        room = self.limits.chunk - decodes
        if decoding == 0:
            return room
        pace = self.cost.pace(decoding, self._lanes(decoding), self.limits.chunk)
        if decodes or len(self._flights) < pace.frames:
            return min(room, pace.tokens)
        return 0

    def _live_decodes(self, flight: InFlightStep) -> int:
        """Decode rows whose sequences still run."""
        return sum(self.running.get(part.row.sequence) is part.sequence for part in flight.parts[: flight.decodes])

    def _part(self, sequence: Sequence, length: int) -> ScheduledRow:
        """The next `length` tokens; the last stage samples only where they reach the end of what is known.

        A text that is only scored samples nothing.
        """
        start, stop = sequence.sent, sequence.sent + length
        sequence.sent, sequence.last_step, sequence.reserved = stop, self._steps, 0
        self.books.write(sequence.id, start, stop)
        sequence.rewind_floor = max(sequence.rewind_floor, self.limits.rewind_floor(stop))
        return ScheduledRow(sequence.row(start, stop), sequence)

    # --- room -------------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Every known token needs room: first prefixes go, then the newest sequence is preempted."""
        while not self._evict_for(0):
            self._preempt(max(self.running.values(), key=lambda sequence: sequence.arrival))

    def _evict_for(self, tokens: int, keep: int = -1) -> bool:
        """Evict prefixes, except `keep`, until `tokens` more fit; False if they still do not."""
        while self.books.held(self.running.values()) + tokens > self.limits.capacity:
            if not self.prefixes.evict(keep):
                return False
        return True

    def _admit(self) -> None:
        """First come, first served: no sequence overtakes one that does not fit yet."""
        while self.waiting:
            sequence = self.waiting[0]
            wanted = min(len(sequence.tokens) + HEADROOM, sequence.end)
            room = self.limits.capacity - self.books.held_by(self.running.values())
            if self.limits.blocks(wanted) - self.books.shared(wanted) > room:
                return  # whatever it shared: no need to look for that
            match = self._match(sequence)
            shared = self._shared(match) if match and isinstance(match.source, Sequence) else 0
            if self.limits.blocks(wanted) - shared > room or not self._start(sequence, match):
                return
            self.waiting.pop(0)

    def _stands(self, sequence: Sequence) -> bool:
        """Whether it is where a copy of it is to be kept."""
        return self.limits.rewind is not None and 0 < sequence.sent == sequence.stable

    def _keep_stable(self) -> None:
        """Copy what stands at its stable tokens: a next turn begins there, and caches cannot go back to it.

        One for which prefixes had to go stands until the stages know; one that has no room goes on without.
        """
        for sequence in tuple(self.running.values()):
            if not self._stands(sequence) or sequence.waits_for:
                continue
            length, tokens = sequence.sent, sequence.keys[: sequence.sent]
            wanted = self.limits.blocks(length) - self.books.shared(length)
            alike = self.prefixes.alike(sequence.owner, tokens)
            if alike is not None:
                self.prefixes.keep(alike)
                sequence.kept, sequence.copy = length, alike.id
            elif self.prefixes.lean or self.books.held_by(self.running.values()) + wanted > self.limits.capacity:
                sequence.kept = length  # without: not even if all prefixes went
            elif self._evict_for(wanted) and self._room_to_fork(length):
                sequence.kept, sequence.copy = length, self.prefixes.new_id()
                self.prefixes.fork(sequence.id, sequence.copy, length)
                self.prefixes.keep(Prefix(sequence.copy, tokens, sequence.rewind_floor, sequence.owner))

    # --- starting and leaving ---------------------------------------------------------------------------------------

    def _start(self, sequence: Sequence, match: Match | None) -> bool:
        """Start in the ring, evicting prefixes if needed. False: orders must go to the stages first."""
        keep = match.source.id if match else -1
        if match and match.whole:
            self._adopt(sequence, match)
        elif not self._evict_for(self.limits.blocks(len(sequence.tokens)) - self._shared(match), keep):
            assert match, "without prefixes there is room for whoever is admitted"
            self._adopt(sequence, match)
        elif match and match.ready and not self._room_to_fork(match.length):
            return False
        else:
            sequence.id, sequence.sent, sequence.rewind_floor = self.prefixes.new_id(), 0, 0
            self.running[sequence.id] = sequence
            self._begin(sequence, match)
        return True

    def _adopt(self, sequence: Sequence, match: Match) -> None:
        """Continue in a prefix's own caches; the first row's position truncates them."""
        prefix = self.prefixes.held.pop(match.source.id)
        sequence.id, sequence.sent = prefix.id, match.length
        sequence.rewind_floor, sequence.reserved = prefix.rewind_floor, prefix.sent
        self.running[prefix.id] = sequence
        self._evict_for(0)
        self._count_reuse(sequence)

    def _begin(self, sequence: Sequence, match: Match | None) -> None:
        """Start with a copy of the match, from the first token without one, or later if it is not ready."""
        sequence.source, sequence.waits_for, sequence.origin = None, 0, -1
        if match and match.ready:
            self.prefixes.fork(match.source.id, sequence.id, match.length)
            sequence.sent, sequence.origin = match.length, match.source.id
            sequence.rewind_floor = match.source.rewind_floor
        elif match:
            assert isinstance(match.source, Sequence), "a prefix has all of its tokens"
            sequence.source, sequence.waits_for = match.source, match.length
            return
        self._count_reuse(sequence)

    def _begin_with_others(self) -> None:
        """Start the sequences that waited for a common prefix which another one was computing."""
        for sequence in sorted(self.running.values(), key=lambda sequence: sequence.arrival):
            if sequence.waits_for and not self._still_waits(sequence):
                match = self._match(sequence)
                if match is None or not match.ready or self._room_to_fork(match.length):
                    self._begin(sequence, match)

    def _still_waits(self, sequence: Sequence) -> bool:
        source = sequence.source
        return source is not None and self.running.get(source.id) is source and source.sent < sequence.waits_for

    def _room_to_fork(self, length: int) -> bool:
        wanted = self.limits.blocks(length) - self.books.shared(length)
        return self.books.held_now + wanted <= self.limits.capacity

    def _shared(self, match: Match | None) -> int:
        """Tokens that who starts with a copy of the match takes no room for."""
        return self.books.shared(match.length) if match and match.ready else 0

    def _count_reuse(self, sequence: Sequence) -> None:
        self.counters.reused_tokens += sequence.sent
        sequence.begin()

    def _match(self, sequence: Sequence) -> Match | None:
        """Caches to start with; none is trusted after a refusal."""
        return None if sequence.attempts else best_match(sequence, self.prefixes, self.running.values())

    def _retire(self, sequence: Sequence) -> None:
        """Keep its caches as a prefix for others, if they are long enough and their length is known exactly."""
        del self.running[sequence.id]
        if sequence.sent >= max(WORTH, sequence.reserved):
            tokens = sequence.keys[: sequence.sent]
            self.prefixes.keep(Prefix(sequence.id, tokens, sequence.rewind_floor, sequence.owner))
            if sequence.copy in self.prefixes.held:  # where the next turn most likely begins: it goes last
                self.prefixes.keep(self.prefixes.held[sequence.copy])
        elif sequence.sent:
            self.prefixes.drop(sequence.id)

    def _preempt(self, sequence: Sequence) -> None:
        """It keeps its text and its place in the queue; its caches go."""
        del self.running[sequence.id]
        if sequence.sent:
            self.prefixes.drop(sequence.id)
        sequence.sent = sequence.read = sequence.began = sequence.reserved = sequence.waits_for = sequence.kept = 0
        sequence.source, sequence.origin, sequence.copy = None, -1, -1
        self.counters.preempted += 1
        insort(self.waiting, sequence, key=lambda waiting: waiting.arrival)

    # --- commit -----------------------------------------------------------------------------------------------------

    def commit(self, answer: Frame, round_ms: float = 0.0) -> tuple[TokenEvent, ...]:
        """Take the answer to the oldest frame, `round_ms` after it was pushed.

        Raises RingBroken if it reports a failure or does not fit the frame.
        """
        if answer.failure is not None:  # first, because an unreadable frame has no step
            raise broken(answer.failure)
        if not self._flights or answer.step != self._flights[0].step:
            due = self._flights[0].step if self._flights else "nothing"
            raise RingBroken(
                "the ring answered step {step} while {due} was due; load the model again", step=answer.step, due=due
            )
        flight = self._flights.popleft()
        if flight.parts and len(answer.timings) == self.limits.stages:
            self.cost.observe(flight.tokens, answer.timings, flight.alone, round_ms)
        results = {result.sequence: result for result in answer.results}
        events = (self._take(part, results.get(part.row.sequence)) for part in flight.parts)
        return tuple(event for event in events if event is not None)

    def _take(self, part: ScheduledRow, result: RowResult | None) -> TokenEvent | None:
        row, sequence = part.row, part.sequence
        if self.running.get(row.sequence) is not sequence:  # cancelled, preempted or refused since
            return None
        if result is None or (result.refusal is None and not _is_whole(row, result)):
            raise RingBroken("the ring gave no result for sequence {id}; load the model again", id=row.sequence)
        if result.refusal is not None:
            return self._refused(sequence, result.refusal)
        scores, sequence.read = result.scores, row.position + len(row.token_ids)
        sequence.attempts = 0 if result.sampled or scores else sequence.attempts
        sequence.scores += len(scores)
        self.counters.scored_tokens += len(scores)
        if result.sampled:
            return self._grown(sequence, result.sampled[0], scores)
        if sequence.read == sequence.end:
            self._retire(sequence)
            return TokenEvent(sequence, finish="length", scores=scores)
        return TokenEvent(sequence, scores=scores) if scores else None

    def _grown(self, sequence: Sequence, sampled: Sampled, scores: tuple[float, ...]) -> TokenEvent:
        token_id = sampled.token_id
        scored = (sampled,) if sequence.request.top_logprobs >= 0 else ()
        self.counters.generated_tokens += 1
        if token_id in self.eos and not sequence.request.ignore_eos:
            self._retire(sequence)
            return TokenEvent(sequence, finish="stop", scores=scores)
        sequence.tokens.append(token_id)
        if len(sequence.tokens) < sequence.end:
            return TokenEvent(sequence, (token_id,), sampled=scored, scores=scores)
        self._retire(sequence)
        return TokenEvent(sequence, (token_id,), "length", sampled=scored, scores=scores)

    def _refused(self, sequence: Sequence, reason: str) -> TokenEvent | None:
        """A stage holds other tokens than the head believes: start again from the first token, up to ATTEMPTS times."""
        sequence.attempts += 1
        self.prefixes.discard(sequence.origin)  # it may be as wrong
        self._preempt(sequence)
        if sequence.attempts <= ATTEMPTS:
            return None
        self.waiting.remove(sequence)
        error = RingBroken(
            "the ring refused this request {attempts} times ({reason}); load the model again",
            cause=reason,
            attempts=sequence.attempts,
            reason=reason,
        )
        return TokenEvent(sequence, error=error)


def _is_whole(row: Row, result: RowResult) -> bool:
    ask = row.sample
    return ask is None or (len(result.sampled), len(result.scores)) == (len(ask.offsets), len(ask.score))
