"""A problem as numbers for the search: nodes in a fixed order, hops as a matrix, memory as prefix sums."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import inf
from typing import Protocol, TypeVar

from together.planning.problem import Assignment, Problem, Split
from together.types import LayerRange

EPSILON = 1e-9  # relative: times closer than this are the same time


class Timed(Protocol):
    """A plan's score, and ms of a token and of the slowest stage."""

    @property
    def score(self) -> float: ...
    @property
    def token_ms(self) -> float: ...
    @property
    def slowest_ms(self) -> float: ...


PlanT = TypeVar("PlanT", bound=Timed)


def differ(a: float, b: float) -> bool:
    return abs(a - b) > EPSILON * max(abs(a), abs(b))


def beats(plan: Timed, other: Timed | None) -> bool:
    """Lower score, then lower token time."""
    if other is None or differ(plan.score, other.score):
        return other is None or plan.score < other.score
    return differ(plan.token_ms, other.token_ms) and plan.token_ms < other.token_ms


def count_under(speed: float, fixed: float, most: int, limit: float) -> int:
    """How many layers a stage runs within `limit` ms, at most `most`, by the rounding of fixed + count × speed."""
    if fixed + most * speed <= limit:
        return most
    if fixed > limit:
        return 0
    count = int((limit - fixed) / speed)
    while fixed + count * speed > limit:
        count -= 1
    while fixed + (count + 1) * speed <= limit:
        count += 1
    return count


def best_plan(
    limits: list[float], users: int, free: PlanT, under: Callable[[float], PlanT | None], least_ms: float = 0.0
) -> PlanT:
    """The plan of the lowest score, max(D/m, B): token time D for `users` m, slowest stage B.

    `limits` are sorted and hold every time a stage can take; `under(limit)` is the plan of lowest D with no stage over
    the limit, None where there is none, and surely none below `least_ms`; `free` is that without a limit. The best is
    under the lowest limit with D/m within it, or under the one before.
    """
    if free.slowest_ms <= free.token_ms / users:
        return free
    low = bisect_left(limits, max(free.token_ms / users, least_ms)) - 1  # these are below D/m
    high = min(bisect_left(limits, free.slowest_ms), len(limits) - 1)
    plans: dict[int, PlanT | None] = {high: free}
    middle = low + 1  # first the lowest one: with many users it is often the best
    while high - low > 1:
        plan = plans[middle] = under(limits[middle])
        if plan is None:
            low = middle
        elif plan.token_ms / users <= limits[middle]:
            high = middle
            low = max(low, bisect_left(limits, plan.token_ms / users) - 1)
        else:
            low = middle
            high = min(high, bisect_left(limits, plan.token_ms / users))
        middle = (low + high) // 2
    best = free
    for index in (high, low):
        if index >= 0:
            plan = plans[index] if index in plans else under(limits[index])
            best = plan if plan and beats(plan, best) else best
    return best


@dataclass(frozen=True)
class SearchProblem:
    """Nodes that can hold a layer, and the head, sorted by name, so that the order of the input cannot matter.

    `hops[i][j]` in ms (infinite: unusable); `prefix[l]` bytes of the first l layers with KV; `most[i]` layers by count,
    `room[i]` by bytes, of which one is never the limit; `head` is an index.
    """

    names: tuple[str, ...]
    speeds: tuple[float, ...]  # ms per layer
    fixed: tuple[float, ...]  # ms per stage
    closing: tuple[float, ...]  # the same of a last stage, which also has norm, LM head and drawing
    most: tuple[int, ...]
    room: tuple[float, ...]
    hops: tuple[tuple[float, ...], ...]
    head: int | None
    layers: int
    users: int
    prefix: tuple[float, ...]
    embed: float
    tail: float  # norm and LM head
    tied: float  # of these, what is the embedding again
    tolerance: float
    weight: float | None  # bytes of every layer with KV, None where they differ

    @cached_property
    def by_bytes(self) -> bool:
        return any(room < inf for room in self.room)

    @property
    def order_matters(self) -> bool:
        """Whether a node's room depends on which layers it takes, not only on how many."""
        return self.by_bytes and self.weight is None

    @property
    def ends_weigh(self) -> bool:
        """Whether a node's room depends on being first or last."""
        return self.by_bytes and bool(self.embed or self.tail)

    @cached_property
    def last_slower(self) -> bool:
        """Whether a node's time depends on being last."""
        return self.closing != self.fixed

    @cached_property
    def able(self) -> tuple[int, ...]:
        """Nodes that could hold at least one layer somewhere."""
        lightest = min(b - a for a, b in zip(self.prefix, self.prefix[1:], strict=False))
        return tuple(i for i in range(len(self.names)) if self.most[i] > 0 and self.room[i] >= lightest)

    @cached_property
    def limits(self) -> list[float]:
        """Every time that a stage can take, sorted: the only values the slowest stage can have."""
        times = {*zip(self.speeds, self.fixed, self.most, strict=True)}
        times |= {*zip(self.speeds, self.closing, self.most, strict=True)}
        return sorted({fixed + count * speed for speed, fixed, most in times for count in range(1, most + 1)})

    @cached_property
    def least_limit(self) -> float:
        """Below this limit on a stage all nodes together do not hold the layers; infinite where they never do."""
        low, high = -1, len(self.limits)
        while high - low > 1:
            middle = (low + high) // 2
            held = sum(self.count_under(node, self.limits[middle]) for node in self.able)
            low, high = (low, middle) if held >= self.layers else (middle, high)
        return self.limits[high] if high < len(self.limits) else inf

    def cap(self, node: int, extra: float) -> int:
        """Layers of equal size that fit beside `extra` bytes."""
        left = self.room[node] - extra
        if left < 0:
            return 0
        if not self.weight or left == inf:
            return self.most[node]
        return min(self.most[node], int(left // self.weight))

    def ends_bytes(self, first: bool, last: bool) -> float:
        """Bytes beside the layers of a stage that is first, last, or both."""
        if first and last:
            return self.embed + self.tail - self.tied
        return self.embed if first else self.tail if last else 0

    def holds_all(self, node: int) -> bool:
        return self.prefix[-1] + self.ends_bytes(True, True) <= self.room[node]

    def count_under(self, node: int, limit: float) -> int:
        return count_under(self.speeds[node], self.fixed[node], self.most[node], limit)

    def count_closing(self, node: int, limit: float) -> int:
        """The same as the last stage."""
        return count_under(self.speeds[node], self.closing[node], self.most[node], limit)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A found plan: node indices in ring order, how many layers each, ms per token and of the slowest stage."""

    order: tuple[int, ...]
    counts: tuple[int, ...]
    token_ms: float
    slowest_ms: float
    score: float

    def beats(self, other: Candidate | None) -> bool:
        """As `beats`; fewer machines where both times are the same."""
        if other is None or beats(self, other) or beats(other, self):
            return other is None or beats(self, other)
        return len(self.order) < len(other.order)


def choice_of(instance: SearchProblem, order: tuple[int, ...], counts: tuple[int, ...], ring_ms: float) -> Candidate:
    fixed = [*(instance.fixed[i] for i in order[:-1]), instance.closing[order[-1]]]
    times = [own + count * instance.speeds[i] for i, own, count in zip(order, fixed, counts, strict=True)]
    token = sum(times) + ring_ms
    return Candidate(order, counts, token, max(times), max(token / instance.users, max(times)))


def compile_problem(problem: Problem, only: Iterable[str] | None = None) -> SearchProblem:
    """The instance of a problem; with `only` these nodes alone may take layers."""
    allowed = {node.name for node in problem.nodes} if only is None else set(only)
    layers, kv = problem.model.layers, problem.kv_bytes_per_layer
    weights = [size + kv for size in problem.model.layer_bytes]
    equal = weights[0] if len(set(weights)) == 1 else None
    lightest = min(weights)
    kept = []
    for node in sorted(problem.nodes, key=lambda item: item.name):
        able = node.name in allowed and node.max_layers != 0 and node.room_bytes >= lightest
        if able or node.name == problem.head:
            kept.append((node, (layers if node.max_layers is None else min(node.max_layers, layers)) if able else 0))
    names = tuple(node.name for node, _ in kept)
    known = {frozenset((link.a, link.b)): inf if link.ms is None else link.ms for link in problem.links}
    hops = tuple(tuple(0.0 if a == b else known.get(frozenset((a, b)), problem.hop_ms) for b in names) for a in names)
    return SearchProblem(
        names=names,
        speeds=tuple(node.ms_per_layer for node, _ in kept),
        fixed=tuple(node.ms_per_stage for node, _ in kept),
        closing=tuple(node.ms_per_stage + node.ms_per_head for node, _ in kept),
        most=tuple(most for _, most in kept),
        room=tuple(node.room_bytes for node, _ in kept),
        hops=hops,
        head=None if problem.head is None else names.index(problem.head),
        layers=layers,
        users=problem.users,
        prefix=tuple(accumulate(weights, initial=0.0)),
        embed=problem.model.embed_bytes,
        tail=problem.model.head_bytes,
        tied=problem.model.tied_bytes,
        tolerance=problem.tolerance,
        weight=equal,
    )


def split_of(instance: SearchProblem, choice: Candidate) -> Split:
    stops = list(accumulate(choice.counts))
    shares = [
        Assignment(instance.names[node], LayerRange(stop - count, stop))
        for node, count, stop in zip(choice.order, choice.counts, stops, strict=True)
    ]
    return Split(tuple(shares))
