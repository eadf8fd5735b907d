"""The scheduler's data: requests in the ring, cached prefixes, events, and the ring as a protocol."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from together.errors import RingBroken, TogetherError
from together.models.eyes import positions_of
from together.requests import FinishReason, GenerateRequest, Owner
from together.types import Continuation, Failure, Frame, Limits, Orders, Row, Sampled, SampleRequest

WORTH = 16  # tokens from which starting with another sequence's caches pays for the orders


@dataclass(eq=False, slots=True)
class Sequence:
    """One request's tokens and state. The scheduler alone changes it.

    It owns its known tokens, prompt and answer; `sent` of them are in the caches or in flight. When all are sent, the
    token sampled at the end is outstanding and the sequence is in no new frame, so no other flag is needed.
    """

    arrival: int  # order of arrival: the largest is the newest
    request: GenerateRequest
    end: int  # known tokens at which it ends by length
    tokens: list[int]  # prompt and answer
    id: int = -1  # its name in the caches
    sent: int = 0  # tokens in the caches or in flight
    rewind_floor: int = 0  # lowest position that its caches can go back to
    reserved: int = 0  # tokens that an adopted prefix takes on the stages until the first row cuts it
    source: Sequence | None = None  # whose prompt it waits for, to start with a copy of it
    waits_for: int = 0  # tokens that `source` must have until then; 0: it waits for nothing
    origin: int = -1  # the caches that it started with a copy of
    reused: int | None = None  # tokens it did not have to compute at its first start; None before that
    began: int = 0  # tokens that it did not have to compute at its last start
    read: int = 0  # those and the tokens of answered frames since then
    last_step: int = 0  # the step that carried its last row
    attempts: int = 0  # refusals since its last new token or score
    scores: int = 0  # log-probabilities of its prompt that have come
    kept: int = 0  # its stable tokens, once a copy of them is ordered or has no room
    copy: int = -1  # that copy's caches

    @property
    def unsent(self) -> int:
        return len(self.tokens) - self.sent

    @property
    def decoding(self) -> bool:
        """All but the newest token are in the caches, and that one was not in the prompt."""
        return self.unsent == 1 and len(self.tokens) > len(self.request.prompt)

    def begin(self) -> None:
        """It starts in caches that have `sent` of its tokens."""
        self.began = self.read = self.sent
        if self.reused is None:
            self.reused = min(self.sent, len(self.request.prompt))

    @property
    def owner(self) -> Owner:
        return self.request.owner

    @property
    def keys(self) -> list[int]:
        """What its tokens are known by: a part of a picture by that picture, which its token says nothing of."""
        if not self.request.pictures:
            return self.tokens
        found = list(self.tokens)
        for picture in self.request.pictures:
            found[picture.offset : picture.offset + picture.tokens] = [-1 - int(picture.key, 16)] * picture.tokens
        return found

    def row(self, start: int, stop: int) -> Row:
        """Its tokens from `start` to `stop`, with the pictures that some of them are parts of."""
        ids, sample, pictures = tuple(self.tokens[start:stop]), self.asks(start, stop), self.request.pictures
        if not pictures:
            return Row(self.id, start, ids, sample)
        seen = (each for each in pictures if each.offset < stop and each.offset + each.tokens > start)
        own = tuple(replace(each, offset=each.offset - start) for each in seen)
        return Row(self.id, start, ids, sample, positions_of(pictures, start, stop), pictures=own)

    @property
    def stable(self) -> int:
        """Leading tokens of which a copy is to be kept, and is not; 0: none."""
        stable = min(self.request.stable, len(self.request.prompt) - 1)
        return stable if self.kept < stable >= WORTH else 0

    @property
    def reusable(self) -> int:
        """Leading tokens that other caches may give it: at least the last one, and what is scored, is computed."""
        most, request = len(self.tokens) - 1, self.request
        unscored = request.score_from + self.scores
        return min(most, unscored - 1) if request.score_from > 0 and unscored < len(request.prompt) else most

    def asks(self, start: int, stop: int) -> SampleRequest | None:
        """What the last stage has to do for a row of its tokens from `start` to `stop`; None: nothing."""
        request, allowed, score = self.request, None, self._unscored(start, stop)
        offsets = (stop - start - 1,) if stop == len(self.tokens) < self.end else ()
        if not offsets and not score:
            return None
        if offsets and request.constraint is not None:
            allowed = request.constraint.allowed(self.tokens[len(request.prompt) :])
        return SampleRequest(offsets, request.sampling, len(request.prompt), request.top_logprobs, allowed, score)

    def _unscored(self, start: int, stop: int) -> tuple[Continuation, ...]:
        """The tokens of the prompt right after these, as far as they are to be scored and were not."""
        prompt, score_from = self.request.prompt, self.request.score_from
        places = range(max(start + 1, score_from + self.scores), min(stop + 1, len(prompt))) if score_from else ()
        return tuple(Continuation(place - 1 - start, prompt[place]) for place in places)


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What an answer brought one sequence: tokens to show, and how it ended if it did."""

    sequence: Sequence
    token_ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    error: TogetherError | None = None
    sampled: tuple[Sampled, ...] = ()  # the tokens with their log-probabilities, if the request asks for those
    scores: tuple[float, ...] = ()  # log-probabilities of the next tokens of its prompt, if it asks for those


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """A row and its sequence: the row's cache id may belong to another sequence when the answer comes."""

    row: Row
    sequence: Sequence


@dataclass(slots=True)
class InFlightStep:
    """A frame that waits for its answer."""

    step: int
    parts: tuple[ScheduledRow, ...]
    decodes: int  # rows of a lane
    orders: Orders
    alone: bool  # no other frame with rows was in flight meanwhile

    @property
    def tokens(self) -> int:
        return sum(len(part.row.token_ids) for part in self.parts)


@dataclass(slots=True)
class Counters:
    """What happened since the start."""

    requests: int = 0
    prompt_tokens: int = 0  # of those
    preempted: int = 0
    prefilled_tokens: int = 0  # computed for prompts and replays, without those that were reused
    reused_tokens: int = 0
    generated_tokens: int = 0
    scored_tokens: int = 0


def broken(failure: Failure) -> RingBroken:
    """The error for a step that a stage reports as failed."""
    return RingBroken(
        "node {name}: stage {place} failed ({reason}); load the model again",
        failure.node,
        failure.cause,
        failure.stage,
        failure.fault,
        name=failure.node,
        place=failure.stage,
        reason=failure.cause,
    )


class RingPort(Protocol):
    """A loaded ring as the engine sees it: its limits, and one frame in, one answer out."""

    @property
    def limits(self) -> Limits: ...

    async def push(self, frame: Frame) -> None:
        """Send a frame to the first stage; waits while the link is full. Raises RingBroken."""

    async def receive(self) -> Frame:
        """The next answer, in step order: results or a failure, and timings. Raises RingBroken."""
