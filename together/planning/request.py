"""What is asked of the planner, also as text, and how it is answered: by a strategy, checked, with reasons."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from math import inf

from together.errors import BadPlan, BadSetting
from together.models.form import asked_form
from together.planning.explain import (
    Infeasible,
    explain,
    explain_left_out,
    explain_missing,
    explain_rule,
    explain_tolerance,
)
from together.planning.problem import Assignment, Problem, Split
from together.planning.recommend import recommend
from together.planning.report import NetworkTarget, PlanReport, network_of
from together.planning.score import SIZES, violations
from together.planning.search import compile_problem
from together.planning.strategies import NEEDS_LAYERS, RULES, STRATEGIES, by_ratio, custom, limit_partitions
from together.sentences import Sentence, say
from together.settings import parse_bytes
from together.types import DTYPES, Dtype, LayerRange
from together.wording import quoted


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """How a model is to be split. None leaves a value of the problem as it is."""

    strategy: str = "recommend"
    users: int | None = None
    context: int | None = None
    ratio: tuple[float, ...] = ()
    assignments: tuple[Assignment, ...] = ()  # with no node named, for the nodes in their order
    max_bytes: int | None = None  # of a stage
    hidden_size: int | None = None
    dtype: Dtype = "bf16"  # of what travels
    wish: NetworkTarget = field(default_factory=NetworkTarget)
    tolerance: float | None = None
    form: str | None = None  # of the model, by models/form.py; None: as it serves, else as published

    @property
    def names_nodes(self) -> bool:
        return self.strategy == "custom" and any(item.node for item in self.assignments)


def plan_for(request: PlanRequest, problem: Problem) -> PlanReport | Infeasible:
    """The plan of a strategy, checked. Raises BadInput where it is wrong in another way than too little memory."""
    _check_numbers(request)
    problem = replace(
        problem,
        users=problem.users if request.users is None else request.users,
        context=problem.context if request.context is None else request.context,
        tolerance=problem.tolerance if request.tolerance is None else request.tolerance,
    )
    if request.max_bytes is not None:
        problem = limit_partitions(problem, request.max_bytes)
    split = recommend(problem) if request.strategy == "recommend" else _by_strategy(request, problem)
    if split is None:
        return explain_missing(problem)
    wrong = violations(problem, split)
    if any(item.code not in SIZES for item in wrong):
        raise BadPlan(say("all", sentences=wrong))
    return _refused(problem, split, wrong) if wrong else _answer(request, problem, split)


def rescore(problem: Problem, split: Split) -> PlanReport | tuple[Sentence, ...]:
    """The figures of a split that a person edits, without reasons; or all that is wrong with it."""
    return violations(problem, split) or PlanReport(problem, split)


def _by_strategy(request: PlanRequest, problem: Problem) -> Split | None:
    if request.strategy in RULES:
        return RULES[request.strategy](problem) if compile_problem(problem).able else None
    if request.strategy == "ratio":
        return by_ratio(problem, request.ratio)
    if request.strategy == "custom":
        return custom(problem, request.assignments)
    name = quoted(request.strategy)
    raise BadSetting("there is no strategy {name}; choose one of {names}", name=name, names=STRATEGIES)


def _refused(problem: Problem, split: Split, wrong: tuple[Sentence, ...]) -> Infeasible:
    """A strategy's split that does not fit, though another may."""
    error, better = say("all", sentences=wrong), recommend(problem)
    if better is None:
        return replace(explain_missing(problem), error=error)
    nodes = [problem.node(share.node) for share in split.shares]
    over = (problem.stage_bytes(s.layers, n) - n.room_bytes for s, n in zip(split.shares, nodes, strict=True))
    layers = sum(_layers_over(problem, share) for share in split.shares)
    shares = tuple(say("assigned", node=share.node, layers=str(share.layers)) for share in better.shares)
    return Infeasible(error, layers, sum(max(short, 0) for short in over), (say("other_split", shares=shares),))


def _layers_over(problem: Problem, share: Assignment) -> int:
    """By how many of its last layers a stage is too large."""
    node = problem.node(share.node)
    if node.max_layers is not None:
        return max(len(share.layers) - node.max_layers, 0)
    short, over, held = problem.stage_bytes(share.layers, node) - node.room_bytes, 0, problem.held_layers(node)
    while short > 0 and over < len(share.layers):
        over += 1
        short -= held[share.layers.stop - over]
    return over


def _answer(request: PlanRequest, problem: Problem, split: Split) -> PlanReport:
    if request.strategy == "recommend":
        left_out = explain_left_out(problem, split)
        why = (*explain(problem, split), *explain_tolerance(problem, split))
    else:
        why, left_out = explain_rule(problem, split, request.strategy)
    report = PlanReport(problem, split, (*why, *left_out.values()), left_out)
    if request.hidden_size is None:
        return report
    return replace(report, network=network_of(request.hidden_size, request.dtype, report.score.hops, request.wish))


def _check_numbers(request: PlanRequest) -> None:
    """Raises BadSetting."""
    for name, value in (("users", request.users), ("context", request.context)):
        if value is not None and value < 1:
            raise BadSetting("{name} must be at least 1, not {value}", name=name, value=value)
    if request.tolerance is not None and not 0 <= request.tolerance < inf:
        raise BadSetting("tolerance must be a number, at least 0, not {value}", value=request.tolerance)


def parse_request(
    usual: str,
    strategy: str | None = None,
    *,
    users: int | None = None,
    context: int | None = None,
    ratio: str | None = None,
    layers: str | None = None,
    max_memory: str | None = None,
    tolerance: float | None = None,
    quantize: str | None = None,
    quantize_head: str | None = None,
) -> PlanRequest:
    """A request from text. Without a strategy, layers mean a custom split; else the strategy is `usual`.

    Raises BadSetting or BadPlan for text that cannot be read.
    """
    return PlanRequest(
        strategy=strategy or ("custom" if layers else usual),
        users=users,
        context=context,
        ratio=() if ratio is None else parse_ratio(ratio),
        assignments=() if layers is None else parse_layers(layers),
        max_bytes=None if max_memory is None else parse_bytes(max_memory),
        tolerance=tolerance,
        form=asked_form(quantize, quantize_head),
    )


def parse_dtype(text: str) -> Dtype:
    """Raises BadSetting."""
    for dtype in DTYPES:
        if dtype == text:
            return dtype
    raise BadSetting("there is no dtype {name}; choose one of {names}", name=quoted(text), names=DTYPES)


def parse_ratio(text: str) -> tuple[float, ...]:
    """`"3:1"` → (3, 1). Raises BadSetting."""
    try:
        return tuple(float(part) for part in text.split(":"))
    except ValueError:
        raise BadSetting("--ratio {ratio} is not numbers with colons between, as 3:1", ratio=quoted(text)) from None


# The number ends a part, not the comma: node names may contain commas.
_RANGE = re.compile(r"\s*(?:(?P<node>.+?)=)?(?P<start>[0-9]{1,9})(?P<kind>[:-])(?P<end>[0-9]{1,9})\s*(?:,|$)")


def parse_layers(text: str) -> tuple[Assignment, ...]:
    """`"studio=0:12,mini=12:16"`, or `"0:12,12:16"` without names; `"0-11,12-15"` names each range's last layer.

    Raises BadSetting for anything else, BadPlan for an empty range.
    """
    parts: list[re.Match[str]] = []
    while (place := parts[-1].end() if parts else 0) < len(text) and (part := _RANGE.match(text, place)):
        parts.append(part)
    if place < len(text) or text.endswith(",") or len({part["kind"] for part in parts}) != 1:
        raise BadSetting("--layers {layers} is not {needed}", layers=quoted(text), needed=NEEDS_LAYERS)
    if len({part["node"] is None for part in parts}) != 1:
        raise BadSetting("--layers must name the node of every range, or of none")
    return tuple(Assignment(part["node"] or "", _layers(part)) for part in parts)


def _layers(part: re.Match[str]) -> LayerRange:
    start, end = int(part["start"]), int(part["end"])
    try:
        return LayerRange(start, end + 1 if part["kind"] == "-" else end)
    except ValueError as error:
        raise BadPlan("--layers: {error}", error=str(error)) from None
