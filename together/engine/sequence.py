"""The scheduler's data: requests in the ring, cached prefixes, events, and the ring as a protocol."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from together.errors import TogetherError
from together.requests import FinishReason, GenerateRequest
from together.types import Fork, Frame, Limits, Orders, Row, Sampled

WORTH = 16  # tokens from which starting with another sequence's caches pays for the orders


@dataclass(frozen=True, slots=True)
class Prefix:
    """A finished sequence's cached tokens."""

    id: int  # its name in the caches
    tokens: list[int]
    rewind_floor: int  # lowest position, besides 0, that its caches can go back to

    @property
    def sent(self) -> int:
        return len(self.tokens)


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
    last_step: int = 0  # the step that carried its last row
    attempts: int = 0  # refusals since its last new token

    @property
    def unsent(self) -> int:
        return len(self.tokens) - self.sent

    @property
    def decoding(self) -> bool:
        """All but the newest token are in the caches, and that one was not in the prompt."""
        return self.unsent == 1 and len(self.tokens) > len(self.request.prompt)


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What an answer brought one sequence: tokens to show, and how it ended if it did."""

    sequence: Sequence
    token_ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    error: TogetherError | None = None
    sampled: tuple[Sampled, ...] = ()  # the tokens with their log-probabilities, if the request asks for those


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


class RingPort(Protocol):
    """A loaded ring as the engine sees it: its limits, and one frame in, one answer out."""

    @property
    def limits(self) -> Limits: ...

    async def push(self, frame: Frame) -> None:
        """Send a frame to the first stage; waits while the link is full. Raises RingBroken."""

    async def receive(self) -> Frame:
        """The next answer, in step order: results or a failure, and timings. Raises RingBroken."""


# --- prefixes ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Prefixes:
    """The cached prefixes, least recently used first, and the orders that the next frame has to carry."""

    limits: Limits
    held: dict[int, Prefix] = field(default_factory=dict)
    drops: dict[int, int] = field(default_factory=dict)  # id → tokens that its blocks take until the drop is obeyed
    _forks: list[Fork] = field(default_factory=list)
    _ids: int = 0

    def new_id(self) -> int:
        """A name that no cache ever had."""
        self._ids += 1
        return self._ids

    @property
    def used(self) -> int:
        """Tokens that the prefixes' blocks take."""
        return sum(self.limits.blocks(prefix.sent) for prefix in self.held.values())

    def keep(self, prefix: Prefix) -> None:
        """Make it the most recently used."""
        self.held.pop(prefix.id, None)
        self.held[prefix.id] = prefix

    def fork(self, source: int, target: int, length: int) -> None:
        if source in self.held:
            self.keep(self.held[source])
        self._forks.append(Fork(source, target, length))

    def drop(self, cache: int, tokens: int) -> None:
        """Free a cache, which holds `tokens` by the head's books."""
        self.drops[cache] = self.limits.blocks(tokens)

    def evict(self, keep: int = -1) -> bool:
        """Give up the least recently used prefix except `keep`; False if there is none."""
        oldest = next((cache for cache in self.held if cache != keep), None)
        if oldest is not None:
            self.discard(oldest)
        return oldest is not None

    def discard(self, cache: int) -> None:
        """Give up one prefix, if it is there."""
        if (prefix := self.held.pop(cache, None)) is not None:
            self.drop(cache, prefix.sent)

    def clear(self) -> None:
        while self.evict():
            pass

    def forget_orders(self, lost: Iterable[Orders]) -> None:
        """A new epoch: frames were lost, perhaps with their drops; what was to be forked is dropped by its owner."""
        self._forks.clear()
        self.drops = {cache: 0 for orders in lost for cache in orders.drops} | self.drops

    def take_orders(self) -> Orders:
        orders = Orders(tuple(self.drops), tuple(self._forks))
        self.drops, self._forks = {}, []
        return orders


def common(first: list[int], second: list[int]) -> int:
    """The number of leading tokens that two sequences share. Slices compare at the speed of C."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True)
class Match:
    """Caches to start with: the first `length` tokens of a prefix, or of a sequence that has them or will have."""

    source: Prefix | Sequence
    length: int

    @property
    def ready(self) -> bool:
        return self.source.sent >= self.length

    @property
    def whole(self) -> bool:
        """Nearly all that is cached is used: the new owner takes the caches over, nothing needs to be copied."""
        return isinstance(self.source, Prefix) and self.source.sent - self.length <= WORTH


def best_match(sequence: Sequence, prefixes: Prefixes, running: Iterable[Sequence]) -> Match | None:
    """The longest common prefix that is cached, or a clearly longer one that soon will be.

    At least the last token is left to compute. No sequence waits for one that waits, so there are no circles.
    """
    ready = later = Match(sequence, 0)
    most = len(sequence.tokens) - 1
    others = (other for other in running if other is not sequence and not other.waits_for)
    sources: tuple[Prefix | Sequence, ...] = (*reversed(prefixes.held.values()), *others)
    for source in sources:
        place = ready.length  # a better one has the same token here, which spares most comparisons
        if place >= min(len(source.tokens), most) or source.tokens[place] != sequence.tokens[place]:
            continue
        length = min(common(source.tokens, sequence.tokens), most)
        if place < min(length, source.sent) >= source.rewind_floor:
            ready = Match(source, min(length, source.sent))
        if later.length < length > source.sent:
            later = Match(source, length)
    best = later if later.length >= ready.length + WORTH else ready
    return best if best.length >= WORTH else None
