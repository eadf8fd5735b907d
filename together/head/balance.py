"""Whether stages do as planned, and which split suits them better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from together.engine.engine import Engine
from together.head.plan import PlannedModel
from together.planning.problem import Problem, Split
from together.planning.recommend import recommend
from together.planning.score import score_of
from together.sentences import Sentence, say

DRIFT = 0.15  # a stage this far from the plan is no noise
GAIN = 0.10  # a split this much better is worth moving layers
LASTING = 3  # looks in a row that must say the same: a busy moment is no reason to move layers
STEPS = 20  # decode steps between two looks; after fewer, nothing is known


def drift_of(problem: Problem, split: Split, measured_ms: Sequence[float]) -> tuple[float, ...]:
    """By stage, its time against the plan: 1 as planned, 2 twice as slow; empty if all are within DRIFT.

    `measured_ms` are in ring order. Also empty where they are of another plan, or nothing was planned.
    """
    planned = [stage.computing_ms for stage in score_of(problem, split).stages]
    if len(measured_ms) != len(planned) or min((*planned, *measured_ms), default=0) <= 0:
        return ()
    ratios = [measured / expected for measured, expected in zip(measured_ms, planned, strict=True)]
    usual = median(ratios) if len(ratios) > 2 else min(ratios)  # of two, the faster one counts as undisturbed
    factors = tuple(ratio / usual for ratio in ratios)
    return () if all(abs(factor - 1) <= DRIFT for factor in factors) else factors


@dataclass(frozen=True, slots=True)
class Advice:
    """A split to move to, and why."""

    split: Split
    sentence: Sentence


def advise(problem: Problem, split: Split, measured_ms: Sequence[float]) -> Advice | None:
    """None where the present split is within GAIN of the best one for the speeds as they are now."""
    factors = drift_of(problem, split, measured_ms)
    now = _slowed(problem, dict(zip(split.nodes, factors, strict=False)))
    better = recommend(now) if factors else None
    if better is None or better == split:
        return None
    present, then = score_of(now, split).score_ms, score_of(now, better).score_ms
    if then >= present * (1 - GAIN):
        return None
    node, factor = max(zip(split.nodes, factors, strict=True), key=lambda item: abs(item[1] - 1))
    speed = say("slower", factor=factor) if factor > 1 else say("faster", factor=1 / factor)
    layers = tuple(say("share", node=share.node, layers=str(share.layers)) for share in better.shares)
    return Advice(better, say("better_split", node=node, speed=speed, layers=layers, gain=present / then - 1))


def _slowed(problem: Problem, factors: dict[str, float]) -> Problem:
    return replace(problem, nodes=tuple(node.slowed(factors.get(node.name, 1.0)) for node in problem.nodes))


@dataclass(slots=True)
class Balance:
    """One per served plan: `look` every few seconds; `advice` is what lasted."""

    decision: PlannedModel
    advice: Advice | None = None
    _seen: int = 0
    _steps: int = 0

    def look(self, engine: Engine) -> None:
        """Compare what decode steps took lately with the plan."""
        times = engine.times.whole
        if times.count < self._steps:
            self._steps = 0  # another ring began
        if times.count - self._steps < STEPS:
            return
        self._steps = times.count
        advice = advise(self.decision.answer.problem, self.decision.answer.split, times.stage_ms)
        self._seen = self._seen + 1 if advice else 0
        if advice is None or self._seen >= LASTING:
            self.advice = advice
