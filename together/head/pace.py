"""What tokens take against the plan, and why they take longer. Pure: all evidence is handed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends.measuring import QUIET
from together.cluster.survey import Survey
from together.cluster_types import NodeStatus, Strain
from together.engine.stats import DecodeTimes
from together.planning.problem import Assignment, Split
from together.planning.score import Score, score_of
from together.sentences import Sentence, say
from together.types import Plan
from together.view import PaceCause, TokenPace

APART = 1 / 3  # measured and expected times this far from each other need a reason
PAGING = 5e6  # bytes per second; what a stage reads once, a library perhaps, is less
HALF = 0.5  # of a machine's processors: others that use more delay its messages, too


@dataclass(frozen=True, slots=True)
class PlannedPace:
    """What a plan promised."""

    plan: Plan
    score: Score
    survey: Survey
    split: Split


def estimate_of(plan: Plan, survey: Survey) -> PlannedPace | None:
    """What a survey promises of a plan; None where it has not all of its devices."""
    names = {(place.node, place.device.key): name for name, place in survey.placements.items()}
    held = [(names.get((stage.node, f"{stage.backend}/{stage.device}"), ""), stage.layers) for stage in plan.stages]
    if not all(name for name, _ in held):
        return None
    split = Split(tuple(Assignment(name, layers) for name, layers in held))
    return PlannedPace(plan, score_of(survey.problem, split), survey, split)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A stage's node, what others use of its machine's processors (0 to 1), and bytes per second that it pages in."""

    node: str  # its name
    machine: str
    others: float = 0.0
    paged: float = 0.0


def surroundings_of(nodes: Sequence[NodeStatus], plan: Plan, machine: str, own: float) -> tuple[Surroundings, ...]:
    """By stage, in ring order; empty where a node is gone. `own` is the head's share of its `machine`'s processors.

    What nodes of one machine say of themselves is no other program.
    """
    known = {node.id: node for node in nodes}
    if not all(stage.node in known for stage in plan.stages):
        return ()

    def others(place: str) -> float:
        strains = [node.strain for node in nodes if node.machine == place and node.strain is not None]
        ours = sum(strain.own for strain in strains) + (own if place == machine else 0.0)
        return max(max((strain.processors for strain in strains), default=0.0) - ours, 0.0)

    holders = [known[stage.node] for stage in plan.stages]
    return tuple(
        Surroundings(node.name, node.machine, others(node.machine), (node.strain or Strain()).paged) for node in holders
    )


def pace_of(times: DecodeTimes, score: Score | None, places: Sequence[Surroundings], machine: str) -> TokenPace:
    """Compare. `times` are of one person alone, `score` is the plan's, `places` are by stage, `machine` is the head's.

    Without a score of the same stages nothing was expected.
    """
    measured = times.step_ms
    alone = say("pace_alone", measured=measured, rate=1000 / measured if measured > 0 else 0.0)
    if score is None or score.token_ms <= 0 or not len(score.stages) == len(times.stage_ms) == len(places):
        return TokenPace(measured, 0.0, PaceCause.NONE, "", alone)
    expected = score.token_ms
    pace = say("pace", alone=alone, expected=expected)
    if expected * (1 - APART) <= measured <= expected * (1 + APART):
        return TokenPace(measured, expected, PaceCause.NONE, "", pace)
    if measured < expected:
        return TokenPace(
            measured, expected, PaceCause.FASTER, "", say("pace_faster", pace=pace, factor=expected / measured)
        )
    cause, node, why = _cause(times, score, places, machine)
    slower = say("pace_slower", pace=pace, factor=measured / expected, why=why)
    return TokenPace(measured, expected, cause, node, slower)


def _cause(
    times: DecodeTimes, score: Score, places: Sequence[Surroundings], machine: str
) -> tuple[PaceCause, str, Sentence]:
    """Of what is above the plan the most: of the links, or of the machine whose stage it is."""
    above = [measured - stage.computing_ms for measured, stage in zip(times.stage_ms, score.stages, strict=True)]
    expected = score.ring_ms + score.around_ms
    if times.link_ms - expected <= max(above):
        return _cause_on(places[above.index(max(above))])
    strained = max(places, key=lambda place: (place.paged > PAGING, place.others))
    away = tuple(dict.fromkeys(place.node for place in places if place.machine != machine))
    if strained.paged > PAGING or strained.others > (HALF if away else QUIET):
        return _cause_on(strained)
    if away:
        why = say("slow_links", nodes=away, measured=times.link_ms, expected=expected)
    else:
        why = say("local_links", measured=times.link_ms, expected=expected)
    return PaceCause.LINKS, "", why


def _cause_on(place: Surroundings) -> tuple[PaceCause, str, Sentence]:
    if place.paged > PAGING:
        return PaceCause.PAGING, place.node, say("paging_machine", node=place.node, size=place.paged)
    if place.others > QUIET:
        return PaceCause.BUSY, place.node, say("busy_machine", node=place.node, share=place.others)
    return PaceCause.UNKNOWN, place.node, say("unknown_cause", node=place.node)
