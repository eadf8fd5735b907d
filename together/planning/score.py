"""What a split costs (ms per stage, hop and token, bytes, tokens per second), and whether it is valid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from together.planning.problem import Assignment, Problem, Split
from together.sentences import NOTHING, Sentence, say
from together.types import LayerRange
from together.wording import MOST, cut, layers_text


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


def hops_of(problem: Problem, names: tuple[str, ...]) -> list[float]:
    """ms from each machine of a ring to the next, the last one's to the first."""
    circle = circle_of(problem, names)
    return [problem.hop(a, b) for a, b in zip(circle, (*circle[1:], circle[0]), strict=True)]


def score_of(problem: Problem, split: Split) -> Score:
    """The figures of a split of known nodes; ms are infinite over an unusable link."""
    hops = hops_of(problem, split.nodes)
    costs: list[StageCost] = []
    busy: dict[tuple[str, str], float] = {}
    for share, hop in zip(split.shares, hops, strict=False):
        node = problem.node(share.node)
        ms = problem.stage_ms(node, share.layers)
        costs.append(StageCost(ms, problem.stage_bytes(share.layers), hop))
        processor = (node.processor, "" if node.processor else node.name)
        busy[processor] = busy.get(processor, 0) + ms
    between = len(hops) if len(hops) > 1 else 0
    return Score(tuple(costs), sum(hops), between, problem.users, max(busy.values(), default=0))


SIZES = ("too_many_layers", "needs_memory", "unusable_link")  # violations that other sizes may not have


def violations(problem: Problem, split: Split) -> tuple[Sentence, ...]:
    """Everything that is wrong with a split: first gaps and overlaps, then nodes, memory and links."""
    found = range_violations([share.layers for share in split.shares], problem.model.layers)
    names, seen, strange = [node.name for node in problem.nodes], set[str](), False
    for share in split.shares:
        if share.node in seen:
            found.append(say("node_twice", node=share.node))
        elif share.node not in names:
            found.append(say("no_node", node=cut(share.node, MOST), nodes=tuple(names)))
        else:
            found += _memory(problem, share)
        strange |= share.node in seen or share.node not in names
        seen.add(share.node)
    return tuple(found if strange else [*found, *_links(problem, split)])


def range_violations(ranges: Sequence[LayerRange], layers: int) -> list[Sentence]:
    """What keeps the ranges, in this order, from being exactly layers 0 to `layers`."""
    found, reached = [], 0
    for item in ranges:
        if item.start > reached:
            found.append(say("gap", layers=f"{reached}:{item.start}"))
        if item.start < reached:
            found.append(say("overlap", layers=str(item), reached=reached))
        reached = item.stop
    return found if reached == layers else [*found, say("wrong_end", reached=reached, layers=layers)]


def _memory(problem: Problem, share: Assignment) -> list[Sentence]:
    node, layers = problem.node(share.node), share.layers
    if node.max_layers is not None and len(layers) > node.max_layers:
        return [say("too_many_layers", node=node.name, layers=len(layers), most=node.max_layers)]
    if layers.stop > problem.model.layers or problem.stage_bytes(layers) <= node.room_bytes:
        return []
    sizes = (problem.stage_bytes(layers), node.room_bytes)
    sizing = say("sized", context=problem.context, users=problem.users) if problem.users > 1 else NOTHING
    return [say("needs_memory", node=node.name, sizes=sizes, layers=layers_text(layers), sizing=sizing)]


def _links(problem: Problem, split: Split) -> list[Sentence]:
    circle = circle_of(problem, split.nodes)
    pairs = dict.fromkeys(frozenset(pair) for pair in zip(circle, (*circle[1:], *circle[:1]), strict=True))
    broken = [sorted(pair) for pair in pairs if len(pair) == 2 and problem.hop(*pair) == inf]
    return [say("unusable_link", a=a, b=b) for a, b in broken]
