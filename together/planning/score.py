"""What a split costs (ms per stage, hop and token, bytes, tokens per second), and whether it is valid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

from together.planning.problem import Assignment, Problem, Split
from together.types import LayerRange
from together.wording import MOST, cut, layers_text, sizes_text


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


def violations(problem: Problem, split: Split) -> list[Violation]:
    """Everything that is wrong with a split: first gaps and overlaps, then nodes, memory and links."""
    found = range_violations([share.layers for share in split.shares], problem.model.layers)
    names, seen = [node.name for node in problem.nodes], set[str]()
    for share in split.shares:
        if share.node in seen:
            found.append(Violation("node", f"node {share.node} is named twice; give it one run of layers"))
        elif share.node not in names:
            there = ", ".join(names) or "none"
            found.append(Violation("node", f"there is no node {cut(share.node, MOST)}; there are: {there}"))
        else:
            found += _memory(problem, share)
        seen.add(share.node)
    if not any(item.kind == "node" for item in found):
        found += _links(problem, split)
    return found


def range_violations(ranges: Sequence[LayerRange], layers: int) -> list[Violation]:
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


def _memory(problem: Problem, share: Assignment) -> list[Violation]:
    node, layers = problem.node(share.node), share.layers
    if node.max_layers is not None and len(layers) > node.max_layers:
        return [
            Violation("memory", f"node {node.name}: has {len(layers)} layers, can hold {node.max_layers}; move some")
        ]
    if layers.stop > problem.model.layers or problem.stage_bytes(layers) <= node.room_bytes:
        return []
    need, have = sizes_text(problem.stage_bytes(layers), node.room_bytes)
    sizing = f" with a context of {problem.context} for {problem.users} users" if problem.users > 1 else ""
    sentence = f"node {node.name}: needs {need} for layers {layers_text(layers)}{sizing}, may use {have}; "
    return [Violation("memory", sentence + "lower the context, give it fewer layers, or add a node")]


def _links(problem: Problem, split: Split) -> list[Violation]:
    circle = circle_of(problem, split.nodes)
    pairs = dict.fromkeys(frozenset(pair) for pair in zip(circle, (*circle[1:], *circle[:1]), strict=True))
    broken = [tuple(sorted(pair)) for pair in pairs if len(pair) == 2 and problem.hop(*pair) == inf]
    return [
        Violation("link", f"the link between {a} and {b} cannot be used; put another node between them")
        for a, b in broken
    ]
