"""What a split costs (ms per stage, hop and token, bytes, tokens per second), and whether it is valid."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

from together.planning.mend import Moves, fits, most_of, moves, option_of, right_ranges
from together.planning.problem import Assignment, Problem, Split
from together.sentences import NOTHING, Sentence, Value, say
from together.wording import MOST, cut


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage: ms for one token, in the last with the LM head, its bytes, and ms of the hop to what comes next.

    Of the ms, `message_ms` are what its process does for the message.
    """

    ms: float
    bytes: float
    hop_ms: float
    message_ms: float = 0.0

    @property
    def computing_ms(self) -> float:
        return self.ms - self.message_ms


@dataclass(frozen=True, slots=True)
class Score:
    """A split in figures. `hops` counts the messages between different machines per token.

    `busiest_ms` is what the busiest processor computes for one token: the slowest stage, or stages that share it.
    `head_ms` is the head's own part of a token, and `batched_ms` the least time between two tokens of the ring where
    rows of several users share a frame; infinite where that was not asked.
    """

    stages: tuple[StageCost, ...]
    ring_ms: float
    hops: int
    users: int
    busiest_ms: float
    head_ms: float = 0.0
    batched_ms: float = inf

    @property
    def token_ms(self) -> float:
        """D: one token through the whole ring."""
        return sum(stage.ms for stage in self.stages) + self.ring_ms + self.head_ms

    @property
    def computing_ms(self) -> float:
        """Of a token, in all stages."""
        return sum(stage.computing_ms for stage in self.stages)

    @property
    def around_ms(self) -> float:
        """Of a token, neither computed nor on a network: messages within machines, and the head."""
        return sum(stage.message_ms for stage in self.stages) + self.head_ms

    @property
    def slowest_stage_ms(self) -> float:
        return max(stage.ms for stage in self.stages)

    @property
    def score_ms(self) -> float:
        """max(D/m, B), or less in shared frames: ms between two tokens of the ring, whoever they are for."""
        return min(max(self.token_ms / self.users, self.busiest_ms), self.batched_ms)

    @property
    def shares_frames(self) -> bool:
        """Whether that is reached where rows of several users share a frame."""
        return self.batched_ms < max(self.token_ms / self.users, self.busiest_ms)

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
    alone, *together = problem.frames
    assert alone == problem.users
    batched = min((_between_ms(problem, split, frames) for frames in together), default=inf)
    return replace(_with_one_row(problem, split), batched_ms=batched)


def _between_ms(problem: Problem, split: Split, frames: int) -> float:
    """ms between two tokens where the rows of all users travel in so many frames."""
    found = _with_one_row(problem.in_frames(frames), split)
    return max(found.token_ms, frames * found.busiest_ms) / problem.users


def _with_one_row(problem: Problem, split: Split) -> Score:
    hops = hops_of(problem, split.nodes)
    costs: list[StageCost] = []
    busy: dict[tuple[str, str], float] = {}
    for share, hop in zip(split.shares, hops, strict=False):
        node = problem.node(share.node)
        ms = problem.stage_ms(node, share.layers)
        costs.append(StageCost(ms, problem.stage_bytes(share.layers, node), hop, node.ms_per_step))
        processor = (node.processor, "" if node.processor else node.name)
        busy[processor] = busy.get(processor, 0) + ms
    between = len(hops) if len(hops) > 1 else 0
    busiest = max(busy.values(), default=0)
    return Score(tuple(costs), sum(hops), between, problem.users, busiest, problem.head_ms())


SIZES = ("too_many_layers", "needs_memory", "unusable_link")  # violations that other sizes may not have


def violations(problem: Problem, split: Split) -> tuple[Sentence, ...]:
    """What is wrong with a split, and what would be right: first gaps and overlaps, then nodes, memory and links."""
    found = range_violations(split.shares, problem.model.layers, problem.model.joined)
    strange = list(_strange(problem, split))
    if found or strange:
        return (*found, *strange)
    return (*_memory(problem, split), *_links(problem, split))


def _strange(problem: Problem, split: Split) -> Iterator[Sentence]:
    """Names that no node has, or that two ranges have."""
    names, seen = tuple(node.name for node in problem.nodes), set[str]()
    for share in split.shares:
        if share.node in seen:
            yield say("node_twice", node=share.node)
        elif share.node not in names:
            yield say("no_node", node=cut(share.node, MOST), nodes=names)
        seen.add(share.node)


def range_violations(shares: Sequence[Assignment], layers: int, joined: Collection[int] = ()) -> list[Sentence]:
    """What keeps the ranges, in this order, from being exactly layers 0 to `layers`, with none that begins with one of
    `joined`; at the end those that would be.
    """
    found, reached = [], 0
    for item in sorted(share.layers for share in shares):
        start, stop = max(item.start, reached), min(item.stop, reached)
        if item.start > reached and reached < layers:
            found.append(say("gap", layers=f"{reached}:{min(item.start, layers)}"))
        if item.start < reached:
            found.append(say("overlap", layers=f"{item.start}:{stop}"))
        if item.stop > layers:
            found.append(say("beyond", layers=f"{max(start, layers)}:{item.stop}", most=layers))
        reached = max(reached, item.stop)
    if reached < layers:
        found.append(say("gap", layers=f"{reached}:{layers}"))
    if not found and any(a.layers > b.layers for a, b in pairwise(shares)):
        found.append(say("wrong_order"))
    found += [say("joined", layer=share.layers.start) for share in shares if share.layers.start in joined]
    if not found or not shares:
        return found
    return [*found, say("right_ranges", shares=option_of(right_ranges(shares, layers, joined)))]


def _memory(problem: Problem, split: Split) -> list[Sentence]:
    over = [share for share in split.shares if not fits(problem, problem.node(share.node), share.layers)]
    moved = moves(problem, split.shares) if over else {}
    return [_too_much(problem, share, moved) for share in over]


def _too_much(problem: Problem, share: Assignment, moved: Moves) -> Sentence:
    node, layers = problem.node(share.node), share.layers
    gifts = tuple(say("gift", count=count, node=to) for (giver, to), count in moved.items() if giver == share.node)
    most = len(layers) - sum(moved[pair] for pair in moved if pair[0] == share.node)
    most = most if gifts else most_of(problem, node, layers)
    if node.max_layers is not None:
        nobody = say("not_singly") if problem.model.joined else say("no_taker")
        remedy = say("give", gifts=gifts) if gifts else nobody
        return say("too_many_layers", node=node.name, count=len(layers), most=most, remedy=remedy)
    nobody = say("not_singly") if problem.model.joined else say("no_memory_elsewhere")
    remedy = say("give", gifts=gifts) if gifts else nobody
    sizes = (problem.stage_bytes(layers, node), node.room_bytes)
    sizing = say("sized", context=problem.context, users=problem.users) if problem.users > 1 else NOTHING
    values: dict[str, Value] = {"node": node.name, "count": len(layers), "most": most, "layers": str(layers)}
    return say("needs_memory", **values, sizes=sizes, sizing=sizing, remedy=remedy)


def _links(problem: Problem, split: Split) -> list[Sentence]:
    circle = circle_of(problem, split.nodes)
    pairs = dict.fromkeys(frozenset(pair) for pair in zip(circle, (*circle[1:], *circle[:1]), strict=True))
    broken = [sorted(pair) for pair in pairs if len(pair) == 2 and problem.hop(*pair) == inf]
    return [say("unusable_link", a=a, b=b) for a, b in broken]
