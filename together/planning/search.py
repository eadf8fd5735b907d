"""A problem as numbers for the search: nodes in a fixed order, hops as a matrix, memory as prefix sums."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from math import inf, isclose
from operator import add

from together.planning.problem import Assignment, ModelSize, Problem, Split
from together.planning.speed import Speed, count_under
from together.types import LayerRange

EPSILON = 1e-9  # relative: times closer than this are the same time


def differ(a: float, b: float) -> bool:
    return not isclose(a, b, rel_tol=EPSILON)


@dataclass(frozen=True, slots=True)
class HeldModel:
    """The model as one node holds it: `prefix[l]` bytes of the first l layers with KV, and of the ends."""

    prefix: tuple[float, ...]
    embed: float
    tail: float  # norm and LM head
    tied: float  # of these, what is the embedding again
    weight: float | None  # bytes of every layer with KV, None where they differ

    @classmethod
    def of(cls, size: ModelSize, cached: Sequence[float]) -> HeldModel:
        """`cached` are bytes of each layer's caches."""
        weights = list(map(add, size.layer_bytes, cached))
        equal = weights[0] if len(set(weights)) == 1 else None
        prefix = tuple(accumulate(weights, initial=0.0))
        return cls(prefix, size.embed_bytes, size.head_bytes, size.tied_bytes, equal)

    @property
    def lightest(self) -> float:
        return min(b - a for a, b in pairwise(self.prefix))

    @property
    def mean(self) -> float:
        return self.prefix[-1] / (len(self.prefix) - 1)

    def ends(self, first: bool, last: bool) -> float:
        """Bytes on top of the layers of a stage that is first, last, or both."""
        if first and last:
            return self.embed + self.tail - self.tied
        return self.embed if first else self.tail if last else 0


@dataclass(frozen=True)
class SearchProblem:
    """The head and the nodes that can hold a layer, sorted by name, so that the order of the input cannot matter.

    `hops[i][j]` in ms (infinite: unusable); `most[i]` layers by count, `room[i]` by bytes, of which one is never the
    limit; `head` is an index.
    """

    names: tuple[str, ...]
    speeds: tuple[Speed, ...]
    fixed: tuple[float, ...]  # ms per stage, with its message
    closing: tuple[float, ...]  # the same of a last stage, which also has norm, LM head and drawing
    most: tuple[int, ...]
    room: tuple[float, ...]
    hops: tuple[tuple[float, ...], ...]
    head: int | None
    layers: int
    frames: int  # that travel at once
    held: tuple[HeldModel, ...]
    tolerance: float
    share: float = 1.0  # of a frame's time that a token of it takes
    head_ms: float = 0.0  # the head's own part of a frame
    joined: tuple[int, ...] = ()  # as in ModelSize

    @cached_property
    def by_bytes(self) -> bool:
        return any(room < inf for room in self.room)

    @cached_property
    def last_slower(self) -> bool:
        """Whether a node's time depends on being last."""
        return self.closing != self.fixed

    @cached_property
    def able(self) -> tuple[int, ...]:
        """Nodes that could hold at least one layer somewhere."""
        nodes = range(len(self.names))
        return tuple(i for i in nodes if self.most[i] > 0 and self.room[i] >= self.held[i].lightest)

    @cached_property
    def even(self) -> bool:
        """Whether layers are alike on every node, so that only their number counts."""
        alike = all(held.weight is not None for held in self.held) and all(speed.even for speed in self.speeds)
        return alike and not self.joined

    @cached_property
    def of_mean_layers(self) -> SearchProblem:
        """As if all layers had the mean size and took the mean time."""
        held = tuple(replace(each, weight=each.mean) for each in self.held)
        return replace(self, held=held, speeds=tuple(speed.flat for speed in self.speeds))

    @cached_property
    def limits(self) -> list[float]:
        """Every time that a stage can take, sorted: the only values the slowest stage can have."""
        kinds = {*zip(self.speeds, self.fixed, self.most, strict=True)}
        kinds |= {*zip(self.speeds, self.closing, self.most, strict=True)}
        return sorted({fixed + ms for speed, fixed, most in kinds for ms in speed.runs(most)})

    @cached_property
    def least_limit(self) -> float:
        """Below this limit on a stage all nodes together do not hold the layers; infinite where they never do."""
        low, high = -1, len(self.limits)
        while high - low > 1:
            middle = (low + high) // 2
            held = sum(self.count_under(node, self.limits[middle]) for node in self.able)
            low, high = (low, middle) if held >= self.layers else (middle, high)
        return self.limits[high] if high < len(self.limits) else inf

    def holds_all(self, node: int) -> bool:
        held = self.held[node]
        return held.prefix[-1] + held.ends(True, True) <= self.room[node]

    def ms_at(self, order: tuple[int, ...], node: int) -> float:
        """ms of a node's stage in a ring without its layers."""
        return (self.closing if node == order[-1] else self.fixed)[node]

    def stage_ms(self, order: tuple[int, ...], node: int, start: int, stop: int) -> float:
        return self.ms_at(order, node) + self.speeds[node].between(start, stop)

    def cap(self, order: tuple[int, ...], place: int, limit: float) -> int:
        """Layers of equal size that the node at a place of a ring holds, and runs within `limit` ms."""
        node, last = order[place], place == len(order) - 1
        held = self.held[node]
        left, most = self.room[node] - held.ends(place == 0, last), self.most[node]
        if left < 0:
            return 0
        if held.weight and left < inf:
            most = min(most, int(left // held.weight))
        return self.speeds[node].most_under(self.ms_at(order, node), most, limit)

    def count_under(self, node: int, limit: float) -> int:
        """Layers that the node runs within `limit` ms, at most."""
        speed = self.speeds[node]
        if not speed.each:
            return count_under(speed.mean, self.fixed[node], self.most[node], limit)
        return speed.most_under(self.fixed[node], self.most[node], limit)

    def count_closing(self, node: int, limit: float) -> int:
        """The last layers that it runs within `limit` ms as the last stage."""
        return self.speeds[node].last_under(self.closing[node], self.most[node], limit)

    def ring_ms(self, order: tuple[int, ...]) -> float:
        """ms from stage to stage and back to the first, by way of the head where that has no stage; with the head's."""
        between = self.head_ms + sum(self.hops[a][b] for a, b in pairwise(order))
        if self.head is None or self.head in order:
            return between + self.hops[order[-1]][order[0]]
        return between + self.hops[order[-1]][self.head] + self.hops[self.head][order[0]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A found plan: node indices in ring order, how many layers each, ms per token and of the slowest stage."""

    order: tuple[int, ...]
    counts: tuple[int, ...]
    token_ms: float
    slowest_ms: float
    score: float

    def beats(self, other: Candidate | None) -> bool:
        """Lower score, then lower token time, then fewer machines."""
        if other is None:
            return True
        for mine, its in ((self.score, other.score), (self.token_ms, other.token_ms)):
            if differ(mine, its):
                return mine < its
        return len(self.order) < len(other.order)


def best_plan(
    instance: SearchProblem, free: Candidate, under: Callable[[float], Candidate | None], least_ms: float = 0.0
) -> Candidate:
    """The plan of the lowest score, max(D/m, B): token time D with m frames at once, slowest stage B.

    `under(limit)` is the plan of lowest D with no stage over the limit; None where there is none, as below `least_ms`.
    `free` is that without a limit. The best is under the lowest limit with D/m within it, or under the one before.
    """
    limits, users = instance.limits, instance.frames
    if free.slowest_ms <= free.token_ms / users:
        return free
    low = bisect_left(limits, max(free.token_ms / users, least_ms)) - 1  # these are below D/m
    high = min(bisect_left(limits, free.slowest_ms), len(limits) - 1)
    plans: dict[int, Candidate | None] = {high: free}
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
            best = plan if plan and plan.beats(best) else best
    return best


def candidate(instance: SearchProblem, order: tuple[int, ...], counts: tuple[int, ...]) -> Candidate:
    stops = list(accumulate(counts))
    ends = zip(order, counts, stops, strict=True)
    times = [instance.stage_ms(order, node, stop - count, stop) for node, count, stop in ends]
    token = sum(times) + instance.ring_ms(order)
    return Candidate(order, counts, token, max(times), max(token / instance.frames, max(times)))


def evened(instance: SearchProblem, plan: Candidate) -> Candidate:
    """Nodes of one speed share their layers alike, which costs no time, where all layers are alike."""
    if not instance.even:
        return plan
    order, counts = plan.order, dict(zip(plan.order, plan.counts, strict=True))
    # What a node has fits: sums of fractions may say otherwise.
    caps = {node: max(counts[node], instance.cap(order, place, plan.slowest_ms)) for place, node in enumerate(order)}
    for speed in {instance.speeds[node] for node in order}:
        alike = sorted(node for node in order if instance.speeds[node] == speed)
        total = sum(counts[node] for node in alike)
        counts |= dict.fromkeys(alike, 1)
        for _ in range(total - len(alike)):
            free = [node for node in alike if counts[node] < caps[node]]
            counts[min(free, key=lambda node: instance.ms_at(order, node) + counts[node] * speed.mean)] += 1
    return candidate(instance, order, tuple(counts[node] for node in order))


def speed_order(instance: SearchProblem, nodes: Iterable[int]) -> list[int]:
    """Fastest per layer first; among equals by their place."""
    return sorted(nodes, key=lambda i: (instance.speeds[i].mean, i))


def compile_problem(problem: Problem, only: Iterable[str] | None = None, frames: int | None = None) -> SearchProblem:
    """The instance of a problem; with `only` these nodes alone may take layers.

    `frames` is one of the problem's, by default one for each user. Scores are of a frame then.
    """
    frames = frames or problem.users
    problem = problem.in_frames(frames)
    allowed = {node.name for node in problem.nodes} if only is None else set(only)
    layers, cached = problem.model.layers, problem.cached
    as_held = {
        size: HeldModel.of(size, cached) for size in {problem.size_on(node) for node in problem.nodes} | {problem.model}
    }
    kept = []
    for node in sorted(problem.nodes, key=lambda item: (item.name != problem.head, item.name)):
        lightest = as_held[problem.size_on(node)].lightest
        able = node.name in allowed and node.max_layers != 0 and node.room_bytes >= lightest
        if able or node.name == problem.head:
            kept.append((node, (layers if node.max_layers is None else min(node.max_layers, layers)) if able else 0))
    names = tuple(node.name for node, _ in kept)
    known = {frozenset((link.a, link.b)): inf if link.ms is None else link.ms for link in problem.links}
    hops = tuple(tuple(0.0 if a == b else known.get(frozenset((a, b)), problem.hop_ms) for b in names) for a in names)
    return SearchProblem(
        names=names,
        speeds=tuple(Speed.of(node, layers) for node, _ in kept),
        fixed=tuple(node.ms_per_step + node.ms_per_stage for node, _ in kept),
        closing=tuple(node.ms_per_step + node.ms_per_stage + node.ms_per_head for node, _ in kept),
        most=tuple(most for _, most in kept),
        room=tuple(node.room_bytes for node, _ in kept),
        hops=hops,
        head=None if problem.head is None else names.index(problem.head),
        layers=layers,
        frames=frames,
        held=tuple(as_held[problem.size_on(node)] for node, _ in kept),
        tolerance=problem.tolerance,
        share=frames / problem.users,
        head_ms=problem.head_ms(),
        joined=problem.model.joined,
    )


def split_of(instance: SearchProblem, choice: Candidate) -> Split:
    stops = list(accumulate(choice.counts))
    shares = [
        Assignment(instance.names[node], LayerRange(stop - count, stop))
        for node, count, stop in zip(choice.order, choice.counts, stops, strict=True)
    ]
    return Split(tuple(shares))
