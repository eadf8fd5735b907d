"""Models that compute on one machine at once: which part of its processors each of them may use. Pure.

Stages of other models are other processes: with more threads than processors they wait for one another within every
product, and the system, which knows no steps, makes a token wait for a prompt. So each frame says what its stages may
use, and nobody waits for a turn. A model alone may use all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from together.engine.stats import StepTimes
from together.head.plan import PlannedModel
from together.planning.score import score_of
from together.sentences import NOTHING, Sentence, say

Place = tuple[str, str]  # a machine and its device
FEW = 2  # texts at once: somebody reads along
FIRST = 2  # times as much as a model with more of them
SURE = 20  # steps that tell what a token takes
ALL = 0.9  # who uses less than the rest of a machine disturbs nobody: more than this is all of it


@dataclass(frozen=True, slots=True)
class AtWork:
    """A model that computes now."""

    processors: tuple[str, ...]  # by stage, the machine on whose processors it computes; "": on a device of its own
    use: tuple[float, ...]  # by stage, the part of the time that it computed lately; (): not known yet
    texts: int  # at once

    @property
    def weight(self) -> int:
        return FIRST if self.texts <= FEW else 1

    def used(self, machine: str) -> float:
        """The part of the time that its stages there compute, together."""
        use = self.use if len(self.use) == len(self.processors) else (1.0,) * len(self.processors)
        return sum(part for part, place in zip(use, self.processors, strict=True) if place == machine)


def shares_of(own: AtWork, others: Sequence[AtWork]) -> tuple[int, ...]:
    """Percent of its processors that each stage may use, as in `Frame`.

    Each model has its part by weight, where texts that are few come before many; what others leave of theirs it has,
    too.
    """
    shares = tuple(_shares(own, others))
    return () if all(share == 100 for share in shares) else shares


def _shares(own: AtWork, others: Sequence[AtWork]) -> Iterator[int]:
    for machine in own.processors:
        here = [other for other in others if machine and machine in other.processors]
        weights = own.weight + sum(other.weight for other in here)
        taken = sum(min(other.used(machine), other.weight / weights) for other in here)
        share = max(own.weight / weights, 1 - taken)
        yield 100 if share > ALL else round(100 * share)


# --- what it costs ----------------------------------------------------------------------------------------------------


def shared_places(places: Sequence[Place], others: Mapping[str, Sequence[Place]]) -> dict[Place, tuple[str, ...]]:
    """Those of `places` where stages of others are, too, and whose. `others` are by the model's name."""
    found = {place: tuple(name for name, theirs in others.items() if place in theirs) for place in places}
    return {place: names for place, names in found.items() if names}


def cost_of_sharing(
    model: str, nodes: Sequence[str], places: Sequence[Place], times: StepTimes, others: Mapping[str, Sequence[Place]]
) -> Sentence:
    """What one person's tokens take while all answer: as measured, else as follows from those alone.

    `nodes` and `places` are by stage. Empty where nothing is shared.
    """
    shared = shared_places(places, others)
    if not shared:
        return NOTHING
    names = tuple(dict.fromkeys(chain.from_iterable(shared.values())))
    where = tuple(dict.fromkeys(node for node, place in zip(nodes, places, strict=True) if place in shared))
    ms = times.beside.step_ms if times.beside.count >= SURE else 0.0
    if not ms and times.alone.count >= SURE:
        ms = times.alone.step_ms + sum(
            more * len(shared.get(place, ())) for more, place in zip(times.alone.stage_ms, places, strict=False)
        )
    if not ms:
        return say("shares_part", model=model, others=names, nodes=where)
    return say("shares", model=model, others=names, nodes=where, rate=1000 / ms)


def cost_of_plan(decision: PlannedModel, others: Mapping[str, Sequence[Place]]) -> Sentence:
    """What a plan's tokens take while models that compute on its devices answer, too; empty where none does."""
    problem, split = decision.answer.problem, decision.answer.split
    places = {name: (place.machine, place.device.name) for name, place in decision.survey.placements.items()}
    shared = shared_places([places[name] for name in split.nodes], others)
    if not shared:
        return NOTHING
    names = tuple(dict.fromkeys(chain.from_iterable(shared.values())))
    where = tuple(name for name in split.nodes if places[name] in shared)
    slowed = [node.slowed(1 + len(shared.get(places.get(node.name, ("", "")), ()))) for node in problem.nodes]
    rate = score_of(replace(problem, nodes=tuple(slowed)), split).tokens_per_second
    if not rate or not decision.answer.score.computing_ms:
        return say("plan_shares_part", others=names, nodes=where)
    return say("plan_shares", others=names, nodes=where, rate=rate)
