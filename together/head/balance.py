"""Watches whether the machines keep up with the plan, and knows a better one when they do not. Knows no loading.

Only a plan that was made from measured speeds can be compared with what stages take now.
"""

from __future__ import annotations

from dataclasses import dataclass

from together.engine.engine import Engine
from together.head.deciding import Decision
from together.planning.drift import advice, better_split, drift_of
from together.planning.problem import Split

LOOK_EVERY = 5.0  # seconds
LASTING = 3  # looks in a row that have to say the same: a busy moment is no reason to move layers
STEPS = 20  # decode steps between two looks, or nothing is known


@dataclass(slots=True)
class Balance:
    """One per served plan. `look` every few seconds; `better` is the split that lasted, `advice` the sentence to it."""

    decision: Decision
    better: Split | None = None
    advice: str = ""
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
            self.better, self.advice = None, ""


def layers_of(split: Split) -> str:
    """A split as `--layers` takes it."""
    return ",".join(f"{share.node}={share.layers}" for share in split.shares)
