"""What a split costs: ms per stage, hop and token, bytes per stage, tokens per second. Knows no search."""

from __future__ import annotations

from dataclasses import dataclass

from together.planning.problem import Problem, Split


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
