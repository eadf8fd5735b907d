"""Compares measured stage times with the plan's, and advises a better split when they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from together.engine.engine import Engine
from together.head.plan import PlannedModel
from together.planning.problem import Problem, Split
from together.planning.recommend import recommend
from together.planning.score import score_of
from together.sentences import NOTHING, Sentence, say

DRIFT = 0.15  # a stage so far from the plan is news
GAIN = 0.10  # a split so much better is worth moving layers


@dataclass(frozen=True, slots=True)
class Drift:
    """How the machines do against the plan; `factors` are by stage, 1 as planned, 2 twice as slow."""

    factors: tuple[float, ...]
    problem: Problem  # with the speeds as they are now

    @property
    def largest(self) -> int:
        """The stage that is furthest from the plan."""
        return max(range(len(self.factors)), key=lambda index: abs(self.factors[index] - 1))


def drift_of(problem: Problem, split: Split, measured_ms: Sequence[float]) -> Drift | None:
    """`measured_ms` by stage, in ring order. None where all are within DRIFT of the plan, or nothing was planned."""
    planned = [stage.ms for stage in score_of(problem, split).stages]
    if len(measured_ms) != len(planned) or min((*planned, *measured_ms), default=0) <= 0:
        return None
    ratios = [measured / expected for measured, expected in zip(measured_ms, planned, strict=True)]
    usual = median(ratios) if len(ratios) > 2 else min(ratios)  # of two, the faster one is taken for undisturbed
    factors = tuple(ratio / usual for ratio in ratios)
    if all(abs(factor - 1) <= DRIFT for factor in factors):
        return None
    slower = dict(zip(split.nodes, factors, strict=True))
    nodes = (
        replace(
            node,
            ms_per_layer=node.ms_per_layer * slower.get(node.name, 1.0),
            ms_per_stage=node.ms_per_stage * slower.get(node.name, 1.0),
            ms_per_head=node.ms_per_head * slower.get(node.name, 1.0),
        )
        for node in problem.nodes
    )
    return Drift(factors, replace(problem, nodes=tuple(nodes)))


def better_split(drift: Drift, split: Split) -> Split | None:
    """The split to move to, or None where the present one is still within GAIN of the best."""
    found = recommend(drift.problem)
    if found is None or found == split:
        return None
    now, then = score_of(drift.problem, split).score_ms, score_of(drift.problem, found).score_ms
    return found if then < now * (1 - GAIN) else None


def advice(drift: Drift, split: Split, better: Split) -> Sentence:
    node, factor = split.nodes[drift.largest], drift.factors[drift.largest]
    speed = say("slower", factor=factor) if factor > 1 else say("faster", factor=1 / factor)
    gain = score_of(drift.problem, split).score_ms / score_of(drift.problem, better).score_ms - 1
    layers = tuple(say("share", node=share.node, layers=str(share.layers)) for share in better.shares)
    return say("better_split", node=node, speed=speed, layers=layers, gain=gain)


LOOK_EVERY = 5.0  # seconds
LASTING = 3  # looks in a row that have to say the same: a busy moment is no reason to move layers
STEPS = 20  # decode steps between two looks, or nothing is known


@dataclass(slots=True)
class Balance:
    """One per served plan. `look` every few seconds; `better` is the split that lasted, `advice` the sentence to it."""

    decision: PlannedModel
    better: Split | None = None
    advice: Sentence = NOTHING
    _seen: int = 0
    _steps: int = 0

    def look(self, engine: Engine) -> None:
        """Compare what decode steps took lately with the plan."""
        stats = engine.stats()
        if stats.steps - self._steps < STEPS:
            return
        self._steps = stats.steps
        answer = self.decision.answer
        drift = drift_of(answer.problem, answer.split, stats.stage_ms)
        better = better_split(drift, answer.split) if drift else None
        self._seen = self._seen + 1 if better else 0
        if drift and better and self._seen >= LASTING:
            self.better, self.advice = better, advice(drift, answer.split, better)
        elif not better:
            self.better, self.advice = None, NOTHING
