"""What is asked of the planner, and how it is answered: by a strategy, checked, with reasons."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf

from together.errors import BadPlan, BadSetting
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
from together.planning.report import Network, NetworkTarget, PlanReport, network_of
from together.planning.score import violations
from together.planning.search.instance import compile_problem
from together.planning.strategies import (
    STRATEGIES,
    by_compute,
    by_memory,
    by_ratio,
    custom,
    limit_partitions,
    mixed,
    uniform,
)
from together.types import Dtype
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
    if any(item.kind not in ("memory", "link") for item in wrong):
        raise BadPlan("; ".join(map(str, wrong)))
    if wrong:
        return _refused(problem, split, [str(item) for item in wrong])
    return _answer(request, problem, split)


def rescore(problem: Problem, split: Split) -> PlanReport | list[str]:
    """The figures of a split that a person edits, without sentences; or all that is wrong with it, in sentences."""
    wrong = violations(problem, split)
    return [str(item) for item in wrong] or PlanReport(problem, split, (), (), None, NetworkTarget())


def _by_strategy(request: PlanRequest, problem: Problem) -> Split | None:
    simple = {"uniform": uniform, "memory": by_memory, "compute": by_compute, "mixed": mixed}
    if request.strategy in simple:
        return simple[request.strategy](problem) if compile_problem(problem).able else None
    if request.strategy == "ratio":
        return by_ratio(problem, request.ratio)
    if request.strategy == "custom":
        return custom(problem, request.assignments)
    raise BadSetting(f"there is no strategy {quoted(request.strategy)}; choose one of {', '.join(STRATEGIES)}")


def _refused(problem: Problem, split: Split, wrong: list[str]) -> Infeasible:
    """A strategy's split that does not fit, though another may."""
    over = {
        share.node: problem.stage_bytes(share.layers) - problem.node(share.node).room_bytes for share in split.shares
    }
    size = sum(short for short in over.values() if short > 0)
    layers = sum(_layers_over(problem, split))
    better = recommend(problem)
    if better is None:
        missing = explain_missing(problem)
        return replace(missing, error="; ".join(wrong))
    ranges = ", ".join(f"{share.node}={share.layers}" for share in better.shares)
    return Infeasible("; ".join(wrong), layers, size, (f"the recommended split fits: {ranges}",))


def _layers_over(problem: Problem, split: Split) -> list[int]:
    """By how many of its last layers each stage is too large."""
    found = []
    for share in split.shares:
        node, over = problem.node(share.node), 0
        if node.max_layers is not None:
            over = max(len(share.layers) - node.max_layers, 0)
        else:
            short = problem.stage_bytes(share.layers) - node.room_bytes
            for layer in reversed(range(share.layers.start, share.layers.stop)):
                if short <= 0:
                    break
                short -= problem.model.layer_bytes[layer] + problem.kv_bytes_per_layer
                over += 1
        found.append(over)
    return found


def _answer(request: PlanRequest, problem: Problem, split: Split) -> PlanReport:
    if request.strategy == "recommend":
        left_out = explain_left_out(problem, split)
        why = (*explain(problem, split), *explain_tolerance(problem, split))
    else:
        why, left_out = explain_rule(problem, split, request.strategy)
    why = (*why, *(item.why for item in left_out))
    hidden, wish = request.hidden_size, request.wish

    def network(hops: int) -> Network:
        assert hidden is not None
        return network_of(hidden, request.dtype, hops, wish)

    return PlanReport(problem, split, why, left_out, None if hidden is None else network, wish)


def _check_numbers(request: PlanRequest) -> None:
    """Raises BadSetting."""
    for name, value in (("users", request.users), ("context", request.context)):
        if value is not None and value < 1:
            raise BadSetting(f"{name} must be at least 1, not {value}")
    if request.tolerance is not None and not 0 <= request.tolerance < inf:
        raise BadSetting(f"tolerance must be a number, at least 0, not {request.tolerance}")
