"""From a request to load a model to a plan that nodes can be ordered by. Loads nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from together.cluster.survey import Speeds, Survey, Surveyor, best_of_each
from together.cluster_types import Placement
from together.head.model import ModelHandle, sizings
from together.models.spec import ModelSpec
from together.planning.explain import Infeasible
from together.planning.memory import stage_memory
from together.planning.problem import Problem, Sizing
from together.planning.recommend import recommend
from together.planning.report import PlanReport
from together.planning.request import PlanRequest, plan_for
from together.sentences import Sentence, say
from together.settings import Settings
from together.types import LayerRange, Plan, StagePlan, missing_ranges

NEED_SPEEDS = ("recommend", "compute", "mixed")  # strategies that look at measured times


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A split that fits, what it was sized for, and whom its names stand for."""

    opened: ModelHandle
    sizing: Sizing
    survey: Survey
    answer: PlanReport


async def plan_model(
    opened: ModelHandle,
    request: PlanRequest,
    settings: Settings,
    surveyor: Surveyor,
    speeds: Speeds,
) -> PlannedModel | Infeasible:
    """A plan for the first sizing that fits. Raises BadInput for a wrong request, NotServing without a node."""

    async def plan_at(sizing: Sizing) -> PlannedModel | Infeasible:
        placements = surveyor.reclaimed(surveyor.placements())
        if not request.names_nodes and request.strategy not in NEED_SPEEDS:
            placements = best_of_each(placements)
        survey = await surveyor.survey(opened.spec, opened.config, sizing, speeds, placements)
        return plan_on(survey, opened, request, sizing)

    return await first_that_fits(sizings(opened, request, settings), plan_at)


async def first_that_fits(
    sizings: Iterable[Sizing], plan_at: Callable[[Sizing], Awaitable[PlannedModel | Infeasible]]
) -> PlannedModel | Infeasible:
    """The plan of the first sizing that has one, else what is missing for the first: that one was wanted."""
    missing: Infeasible | None = None
    for sizing in sizings:
        found = await plan_at(sizing)
        if isinstance(found, PlannedModel):
            why = (*found.answer.why, *_lowered(sizing, missing))
            return replace(found, answer=replace(found.answer, why=why))
        missing = missing or found
    assert missing is not None, "there is at least one sizing"
    return missing


def plan_on(survey: Survey, opened: ModelHandle, request: PlanRequest, sizing: Sizing) -> PlannedModel | Infeasible:
    """A plan for the problem of a survey, which was made for this sizing. Raises BadPlan."""
    request = replace(request, users=None, context=None, hidden_size=opened.spec.hidden_size, dtype=sizing.dtype)
    answer = plan_for(request, survey.problem)
    if isinstance(answer, Infeasible):
        return answer
    answer = replace(answer, why=(*answer.why, *survey.skipped))
    return PlannedModel(opened, sizing, survey, answer)


def plan_of(decision: PlannedModel) -> Plan:
    """The split as orders for nodes: each stage is granted what it needs."""
    spec, sizing, placements = decision.opened.spec, decision.sizing, decision.survey.placements
    shares = decision.answer.split.shares
    stages = tuple(_stage(spec, placements[share.node], share.layers, sizing) for share in shares)
    return Plan(decision.opened.ref, stages, sizing.context, sizing.users, sizing.dtype)


async def repair(
    opened: ModelHandle, plan: Plan, kept: tuple[StagePlan, ...], surveyor: Surveyor, speeds: Speeds
) -> Plan | None:
    """A plan that keeps those stages and adds stages for the layers that none of them holds; None where none fits.

    A node may get a further stage: what lives is not loaded again.
    """
    sizing = Sizing(plan.context, plan.users, plan.dtype)
    placements = surveyor.placements()
    if speeds is Speeds.NONE:
        placements = best_of_each(placements)
    survey = await surveyor.survey(opened.spec, opened.config, sizing, speeds, placements)
    problem, stages = survey.problem, list(kept)
    for gap in missing_ranges(plan.model.layers, [stage.layers for stage in kept]):
        split = recommend(_part(problem, gap))
        if split is None:
            return None
        for share in split.shares:
            layers = LayerRange(share.layers.start + gap.start, share.layers.stop + gap.start)
            stages.append(_stage(opened.spec, survey.placements[share.node], layers, sizing))
            problem = _less(problem, share.node, stages[-1].memory_bytes)
    return replace(plan, stages=tuple(sorted(stages, key=lambda stage: stage.layers)))


def _part(problem: Problem, layers: LayerRange) -> Problem:
    """A range of the model as a model of its own; only its end has an LM head."""
    model = problem.model
    first, last = layers.start == 0, layers.stop == model.layers
    nodes = problem.nodes if last else tuple(replace(node, ms_per_head=0.0) for node in problem.nodes)
    part = replace(
        model,
        layer_bytes=model.layer_bytes[layers.start : layers.stop],
        embed_bytes=model.embed_bytes if first else 0,
        head_bytes=model.head_bytes if last else 0,
        tied_bytes=model.tied_bytes if first and last else 0,
    )
    return replace(problem, model=part, nodes=nodes)


def _less(problem: Problem, name: str, size: int) -> Problem:
    nodes = (
        replace(node, free_bytes=(node.free_bytes or 0) - size) if node.name == name else node for node in problem.nodes
    )
    return replace(problem, nodes=tuple(nodes))


def _stage(spec: ModelSpec, place: Placement, layers: LayerRange, sizing: Sizing) -> StagePlan:
    memory = stage_memory(spec, layers, sizing.dtype, sizing.context, sizing.users)
    return StagePlan(place.node, place.device.backend, place.device.name, layers, memory)


def _lowered(sizing: Sizing, missing: Infeasible | None) -> tuple[Sentence, ...]:
    return () if missing is None else (say("sized_less", context=sizing.context, users=sizing.users),)
