"""The scheduler against two made-up stages that keep real ledgers, under arbitrary traffic. Knows no ring.

A "model" whose next token is a hash of all tokens before it, read from what the stages hold: any token that is lost,
repeated, cached under a wrong name or refused shows up as another text.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field, replace
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.ledger import Ledger
from together.engine.books import Books
from together.engine.scheduler import Scheduler
from together.engine.sequence import Sequence
from together.requests import GenerateRequest
from together.types import Frame, Limits, RowResult, Sampled, SampleRequest, Sampling, StageTiming

EOS = 0
VOCABULARY = 50
BLOCK = 4
NOTHING = SampleRequest((), Sampling(), 0)


class NoTensors:
    """The ledger's store: only the books are of interest."""

    def commit(self, sequence: int) -> None: ...

    def truncate(self, sequence: int, length: int) -> None: ...

    def fork(self, source: int, target: int, length: int) -> None: ...

    def drop(self, sequence: int) -> None: ...

    def trim(self) -> None: ...


def next_token(tokens: list[int]) -> int:
    return crc32(bytes(tokens)) % VOCABULARY


def score_of(tokens: list[int], following: int) -> float:
    return float(crc32(bytes([*tokens, following])))


def alone(request: GenerateRequest, end: int) -> list[int]:
    """The answer by definition."""
    tokens = list(request.prompt)
    while len(tokens) < end and (token := next_token(tokens)) != EOS:
        tokens.append(token)
    return tokens


@dataclass
class Ring:
    """Two stages that take frames at once and in order; answers lie ready."""

    stages: list[Ledger]
    answers: deque[Frame] = field(default_factory=deque)

    def push(self, frame: Frame, ms: float, books: Books) -> None:
        for ledger in self.stages:
            _, refused = ledger.begin(frame.batch)
            assert refused == (), "the head's books and the stages' are equal"
            ledger.commit()
            assert ledger.used <= ledger.capacity
            assert ledger.used == books.now.used * BLOCK
        first = self.stages[0]
        results = []
        for row in frame.batch.rows:
            assert first.tokens[row.sequence][row.position :] == list(row.token_ids)
            held, ask = first.tokens[row.sequence], row.sample or NOTHING
            drawn = tuple(Sampled(next_token(held[: row.position + offset + 1])) for offset in ask.offsets)
            scores = tuple(score_of(held[: row.position + each.offset + 1], each.token_id) for each in ask.score)
            results.append(RowResult(row.sequence, row.position, drawn, scores=scores))
        timings = (StageTiming(ms if ms < 1 else ms * frame.batch.tokens, 0.0),) * len(self.stages)
        self.answers.append(Frame(frame.step, frame.batch, results=tuple(results), timings=timings))


@dataclass
class World:
    """A scheduler, a ring, and who asked."""

    scheduler: Scheduler
    ring: Ring
    asked: list[Sequence] = field(default_factory=list)
    cancelled: set[int] = field(default_factory=set)  # arrivals
    ended: dict[int, str] = field(default_factory=dict)  # arrival → reason
    scores: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))  # by arrival

    @classmethod
    def make(
        cls, capacity: int, chunk: int, rewind: int | None, *, shares: bool = False, per_sequence: int = 0
    ) -> World:
        limits = Limits(2, capacity, BLOCK, 200, chunk, rewind, shares, per_sequence)
        ledgers = [
            Ledger(NoTensors(), capacity + extra, BLOCK, rewind, shares=shares, per_sequence=per_sequence)
            for extra in (0, BLOCK)
        ]
        ring = Ring(ledgers)
        return cls(Scheduler(limits, frozenset((EOS,)), 1000), ring)

    def ask(self, family: int, shared: int, own: int, more: int) -> None:
        """A prompt whose beginning many others have, and an end of its own."""
        self.score(family, shared, own, more, 0)

    def chat(self, family: int, shared: int, own: int, more: int) -> None:
        """A prompt of which the next turn has all but the last tokens."""
        self.ask(family, shared, own, more)
        asked = self.asked[-1]
        asked.request = replace(asked.request, stable=max(0, len(asked.request.prompt) - 1 - own % 5))

    def next_turn(self, index: int, own: int, more: int) -> None:
        """It goes on from there, with another text in the place of the answer."""
        if self.asked:
            before = self.asked[index % len(self.asked)].request
            own_tokens = [1 + (index + own + i) % (VOCABULARY - 1) for i in range(own)]
            prompt = [*before.prompt[: before.stable], *own_tokens][: self.scheduler.limits.longest - 1]
            stable = max(0, len(prompt) - 3)
            request = GenerateRequest(tuple(prompt), Sampling(0.0), more, stable=stable)
            self.asked.append(self.scheduler.submit(request))

    def score(self, family: int, shared: int, own: int, more: int, score_from: int) -> None:
        """The same, with scores of the prompt from there on; nothing else where `more` is 0."""
        prompt = [1 + family] * shared + [1 + (family + own + i) % (VOCABULARY - 1) for i in range(own)]
        length = min(len(prompt), self.scheduler.limits.longest - 1)
        request = GenerateRequest(tuple(prompt[:length]), Sampling(0.0), more, score_from=score_from)
        self.asked.append(self.scheduler.submit(request))

    def follow_up(self, index: int, own: int, more: int) -> None:
        """The next turn of a conversation that was had."""
        if self.asked:
            before = self.asked[index % len(self.asked)].tokens
            prompt = [*before, *range(1, 1 + own)][: self.scheduler.limits.longest - 1]
            self.asked.append(self.scheduler.submit(GenerateRequest(tuple(prompt), Sampling(0.0), more)))

    def cancel(self, index: int) -> None:
        if self.asked:
            sequence = self.asked[index % len(self.asked)]
            if sequence.arrival not in self.ended:
                self.cancelled.add(sequence.arrival)
            self.scheduler.cancel(sequence)

    def step(self, ms: float) -> bool:
        """One frame out, or one answer in; False when there is neither."""
        frame = self.scheduler.schedule()
        self.check()
        if frame is not None:
            self.ring.push(frame, ms, self.scheduler.books)
            return True
        return self.answer()

    def answer(self) -> bool:
        if not self.ring.answers:
            return False
        for event in self.scheduler.commit(self.ring.answers.popleft(), 1.0):
            assert event.error is None
            assert event.sequence.arrival not in self.ended
            assert event.sequence.arrival not in self.cancelled
            self.scores[event.sequence.arrival] += event.scores
            if event.finish is not None:
                self.ended[event.sequence.arrival] = event.finish
        return True

    def check(self) -> None:
        """What holds at every moment."""
        scheduler = self.scheduler
        assert scheduler.unanswered <= scheduler.limits.stages + 1
        assert scheduler.books.held(scheduler.running.values()) <= scheduler.limits.capacity
        running = [sequence.arrival for sequence in scheduler.running.values()]
        waiting = [sequence.arrival for sequence in scheduler.waiting]
        assert waiting == sorted(waiting)
        assert not running or not waiting or max(running) < waiting[0], "nobody overtakes"

    def finish(self) -> None:
        """Everybody ends, with the text of a world without others; then nothing is left on the stages."""
        steps = 0
        while self.step(1.0):
            steps += 1
            assert steps < 100_000, "nobody starves"
        for sequence in self.asked:
            text = alone(sequence.request, sequence.end)
            if sequence.arrival in self.cancelled:
                assert sequence.tokens == text[: len(sequence.tokens)]
            else:
                assert sequence.tokens == text
                prompt, first = sequence.request.prompt, sequence.request.score_from or len(sequence.request.prompt)
                wanted = [score_of(list(prompt[:place]), prompt[place]) for place in range(first, len(prompt))]
                assert self.scores[sequence.arrival] == wanted
                assert self.ended[sequence.arrival] == ("length" if len(text) == sequence.end else "stop")
        self.scheduler.prefixes.clear()
        while self.step(1.0):
            pass
        assert not any(ledger.held.tables or ledger.used for ledger in self.ring.stages)


def acts() -> st.SearchStrategy[list[tuple[object, ...]]]:
    few, some = st.integers(0, 3), st.integers(1, 40)
    return st.lists(
        st.one_of(
            st.tuples(st.just("ask"), few, st.integers(0, 60), some, some),
            st.tuples(st.just("score"), few, st.integers(0, 60), some, few, st.integers(1, 70)),
            st.tuples(st.just("chat"), few, st.integers(0, 60), some, some),
            st.tuples(st.just("next_turn"), st.integers(0, 50), some, some),
            st.tuples(st.just("follow_up"), st.integers(0, 50), st.integers(1, 20), some),
            st.tuples(st.just("cancel"), st.integers(0, 50)),
            st.tuples(st.just("step"), st.sampled_from((0.5, 1.0, 20.0))),
            st.tuples(st.just("answer")),
        ),
        max_size=60,
    )


TRAFFIC = given(
    acts=acts(),
    capacity=st.sampled_from((64, 128, 320, 1000)),
    chunk=st.sampled_from((3, 8, 32, 256)),
    rewind=st.sampled_from((None, None, 0, 8, 40)),
    shares=st.booleans(),
    per_sequence=st.sampled_from((0, 0, BLOCK, 3 * BLOCK)),
)


@TRAFFIC
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_traffic_gives_every_text_and_leaves_nothing(
    acts: list[tuple[object, ...]], capacity: int, chunk: int, rewind: int | None, shares: bool, per_sequence: int
) -> None:
    play(World.make(capacity, chunk, rewind, shares=shares, per_sequence=per_sequence), acts)


@pytest.mark.full
@TRAFFIC
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_much_more_traffic(
    acts: list[tuple[object, ...]], capacity: int, chunk: int, rewind: int | None, shares: bool, per_sequence: int
) -> None:
    play(World.make(capacity, chunk, rewind, shares=shares, per_sequence=per_sequence), acts)


def play(world: World, acts: list[tuple[object, ...]]) -> None:
    for name, *values in acts:
        getattr(world, str(name))(*values)
    world.finish()


def test_conversations_in_little_room_reuse_most_of_their_tokens() -> None:
    world = World.make(1000, 32, None)
    for turn in range(8):
        for person in range(3):
            if turn == 0:
                world.ask(family=1, shared=40, own=person + 1, more=10)
            else:
                world.follow_up(len(world.asked) - 3, own=5, more=10)
        while world.step(1.0):
            pass
    counters = world.scheduler.counters
    assert counters.reused_tokens > 5 * counters.prefilled_tokens
    assert counters.preempted == 0
    world.finish()
