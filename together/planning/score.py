"""What a split costs (ms per stage, hop and token, bytes, tokens per second), and whether it is valid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from together.planning.problem import Assignment, Problem, Split
from together.quoting import MOST, cut
from together.types import LayerRange
from together.wording import layers_text, sizes_text


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage: ms for one token, in the last with the LM head, its bytes, and ms of the hop to what comes next."""

    ms: float
    bytes: float
    hop_ms: float


@dataclass(frozen=True, slots=True)
class Score:
    """A split in figures. `hops` counts the messages between different machines per token.

    `busiest_ms` is what the busiest processor computes for one token: the slowest stage, or stages that share it.
    """

    stages: tuple[StageCost, ...]
    ring_ms: float
    hops: int
    users: int
    busiest_ms: float

    @property
    def token_ms(self) -> float:
        """D: one token through the whole ring."""
        return sum(stage.ms for stage in self.stages) + self.ring_ms

    @property
    def slowest_stage_ms(self) -> float:
        return max(stage.ms for stage in self.stages)

    @property
    def score_ms(self) -> float:
        """max(D/m, B): ms between two tokens of the ring, whoever they are for."""
        return max(self.token_ms / self.users, self.busiest_ms)

    @property
    def tokens_per_second(self) -> float:
        return _per_second(self.score_ms)

    @property
    def tokens_per_second_each(self) -> float:
        return _per_second(self.score_ms * self.users)


def _per_second(ms: float) -> float:
    return 1000 / ms if ms > 0 else 0.0


def circle_of(problem: Problem, names: tuple[str, ...]) -> tuple[str, ...]:
    """The machines of a ring, each once: the stages' nodes from the first on, then the head where it has no stage."""
    return names if problem.head is None or problem.head in names else (*names, problem.head)


def score_of(problem: Problem, split: Split) -> Score:
    """The figures of a split of known nodes; ms are infinite over an unusable link."""
    circle = circle_of(problem, split.nodes)
    hops = [problem.hop(a, b) for a, b in zip(circle, (*circle[1:], circle[0]), strict=True)]
    costs: list[StageCost] = []
    busy: dict[tuple[str, str], float] = {}
    for share, hop in zip(split.shares, hops, strict=False):
        node = problem.node(share.node)
        ms = problem.stage_ms(node, share.layers)
        costs.append(StageCost(ms, problem.stage_bytes(share.layers), hop))
        processor = (node.processor, "" if node.processor else node.name)
        busy[processor] = busy.get(processor, 0) + ms
    between = len(circle) if len(circle) > 1 else 0
    return Score(tuple(costs), sum(hops), between, problem.users, max(busy.values(), default=0))


Kind = Literal["gap", "overlap", "node", "memory", "link"]


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong, and the sentence for a person."""

    kind: Kind
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True, slots=True)
class Room:
    """What a node may hold, and its name for a person."""

    name: str
    bytes: float = inf
    layers: int | None = None


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a split is checked against: the model's layers, rooms by node, bytes of a stage, which hops are usable."""

    layers: int
    rooms: Mapping[str, Room]
    needs: Callable[[LayerRange], float]
    sizing: str = ""  # such as " with a context of 4096 for 2 users"
    linked: Callable[[str, str], bool] = field(default=lambda a, b: True)
    head: str | None = None  # the ring passes it also where it has no stage


def complaints(shares: Sequence[Assignment], terms: Constraints) -> list[Violation]:
    """Everything that is wrong with a split: first gaps and overlaps, then nodes, memory and links."""
    found = range_complaints([share.layers for share in shares], terms.layers)
    seen: set[str] = set()
    for share in shares:
        if share.node in seen:
            found.append(Violation("node", f"node {share.node} is named twice; give it one run of layers"))
        elif share.node not in terms.rooms:
            names = ", ".join(room.name for room in terms.rooms.values()) or "none"
            found.append(Violation("node", f"there is no node {cut(share.node, MOST)}; there are: {names}"))
        else:
            found += _memory(share, terms)
        seen.add(share.node)
    if not any(complaint.kind == "node" for complaint in found):
        found += _links([share.node for share in shares], terms)
    return found


def range_complaints(ranges: Sequence[LayerRange], layers: int) -> list[Violation]:
    """What keeps the ranges, in this order, from being exactly layers 0 to `layers`."""
    found, reached = [], 0
    for item in ranges:
        if item.start > reached:
            gap = LayerRange(reached, item.start)
            found.append(Violation("gap", f"layers {gap} are in no range; the ranges must follow one another"))
        if item.start < reached:
            sentence = f"the range {item} starts before layer {reached}, where the one before it ends"
            found.append(Violation("overlap", sentence))
        reached = item.stop
    if reached != layers:
        kind: Kind = "gap" if reached < layers else "overlap"
        found.append(Violation(kind, f"the ranges end at layer {reached}, and the model has {layers} layers"))
    return found


def _memory(share: Assignment, terms: Constraints) -> list[Violation]:
    room, layers = terms.rooms[share.node], share.layers
    if room.layers is not None and len(layers) > room.layers:
        return [Violation("memory", f"node {room.name}: has {len(layers)} layers, can hold {room.layers}; move some")]
    if layers.stop > terms.layers or terms.needs(layers) <= room.bytes:
        return []
    need, have = sizes_text(terms.needs(layers), room.bytes)
    sentence = f"node {room.name}: needs {need} for layers {layers_text(layers)}{terms.sizing}, may use {have}; "
    return [Violation("memory", sentence + "lower the context, give it fewer layers, or add a node")]


def _links(names: list[str], terms: Constraints) -> list[Violation]:
    path = [*names, *([] if terms.head in (None, *names) else [str(terms.head)]), *names[:1]]
    pairs = dict.fromkeys(frozenset((a, b)) for a, b in itertools.pairwise(path) if a != b)
    broken = [tuple(sorted(pair)) for pair in pairs if not terms.linked(*sorted(pair))]
    return [
        Violation("link", f"the link between {a} and {b} cannot be used; put another node between them")
        for a, b in broken
    ]


def terms_of(problem: Problem) -> Constraints:
    """What a problem says about its splits."""
    rooms = {node.name: Room(node.name, node.room_bytes, node.max_layers) for node in problem.nodes}
    return Constraints(
        problem.model.layers,
        rooms,
        problem.stage_bytes,
        f" with a context of {problem.context} for {problem.users} users" if problem.users > 1 else "",
        lambda a, b: problem.hop(a, b) < inf,
        problem.head,
    )
