"""A plan as it is asked for: strategy, people, context; and its way to an answer. Pure: knows no file and no node."""

from __future__ import annotations

import re
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
from together.planning.problem import Problem, Split
from together.planning.recommend import recommend
from together.planning.report import Network, NetworkTarget, PlanReport, network_of
from together.planning.score import complaints, terms_of
from together.planning.search.instance import compile_problem
from together.planning.strategies import (
    STRATEGIES,
    by_compute,
    by_memory,
    by_ratio,
    custom,
    half_open,
    inclusive,
    limit_partitions,
    mixed,
    uniform,
)
from together.quoting import quoted
from together.settings import parse_bytes
from together.types import DTYPES, Dtype, LayerRange


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What is wanted. None leaves a value of the problem as it is."""

    strategy: str = "recommend"
    users: int | None = None
    context: int | None = None
    ratio: str | None = None
    layers: str | None = None
    max_memory: str | None = None
    hidden_size: int | None = None
    dtype: str = "bf16"  # of what travels
    wish: NetworkTarget = field(default_factory=NetworkTarget)
    tolerance: float | None = None


def plan_for(request: PlanRequest, problem: Problem) -> PlanReport | Infeasible:
    """The plan of a strategy, checked. Raises BadInput where it is wrong in another way than too little memory."""
    dtype = _dtype(request.dtype)
    _check_numbers(request)
    problem = replace(
        problem,
        users=problem.users if request.users is None else request.users,
        context=problem.context if request.context is None else request.context,
        tolerance=problem.tolerance if request.tolerance is None else request.tolerance,
    )
    if request.max_memory is not None:
        problem = limit_partitions(problem, parse_bytes(request.max_memory))
    split = recommend(problem) if request.strategy == "recommend" else _by_strategy(request, problem)
    if split is None:
        return explain_missing(problem)
    wrong = complaints(split.shares, terms_of(problem))
    if any(complaint.kind not in ("memory", "link") for complaint in wrong):
        raise BadPlan("; ".join(map(str, wrong)))
    if wrong:
        return _refused(problem, split, [str(complaint) for complaint in wrong])
    return _answer(request, problem, split, dtype)


def rescore(problem: Problem, split: Split) -> PlanReport | list[str]:
    """The figures of a split that a person edits, without sentences; or all that is wrong with it, in sentences."""
    wrong = complaints(split.shares, terms_of(problem))
    return [str(complaint) for complaint in wrong] or PlanReport(problem, split, (), (), None, NetworkTarget())


def _by_strategy(request: PlanRequest, problem: Problem) -> Split | None:
    simple = {"uniform": uniform, "memory": by_memory, "compute": by_compute, "mixed": mixed}
    if request.strategy in simple:
        return simple[request.strategy](problem) if compile_problem(problem).able else None
    if request.strategy == "ratio":
        return by_ratio(problem, _ratio(request.ratio))
    if request.strategy == "custom":
        return _custom(problem, request.layers)
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


def _answer(request: PlanRequest, problem: Problem, split: Split, dtype: Dtype) -> PlanReport:
    if request.strategy == "recommend":
        left_out = explain_left_out(problem, split)
        why = (*explain(problem, split), *explain_tolerance(problem, split))
    else:
        why, left_out = explain_rule(problem, split, request.strategy)
    why = (*why, *(item.why for item in left_out))
    hidden, wish = request.hidden_size, request.wish

    def network(hops: int) -> Network:
        assert hidden is not None
        return network_of(hidden, dtype, hops, wish)

    return PlanReport(problem, split, why, left_out, None if hidden is None else network, wish)


# --- options ----------------------------------------------------------------------------------------------------------


def _check_numbers(request: PlanRequest) -> None:
    """Raises BadSetting."""
    for name, value in (("users", request.users), ("context", request.context)):
        if value is not None and value < 1:
            raise BadSetting(f"{name} must be at least 1, not {value}")
    if request.tolerance is not None and not 0 <= request.tolerance < inf:
        raise BadSetting(f"tolerance must be a number, at least 0, not {request.tolerance}")


def _dtype(text: str) -> Dtype:
    for dtype in DTYPES:
        if dtype == text:
            return dtype
    raise BadSetting(f"there is no dtype {quoted(text)}; choose one of {', '.join(DTYPES)}")


def _ratio(text: str | None) -> list[float]:
    """`"3:1"` → [3, 1]."""
    if text is None:
        raise BadSetting("the strategy ratio needs --ratio, as 3:1, a part for each node in the order of the file")
    try:
        return [float(part) for part in text.split(":")]
    except ValueError:
        raise BadSetting(f"--ratio {quoted(text)} is not numbers with colons between, as 3:1") from None


# The end belongs to it: a node's name is its owner's choice, and may have commas.
_RANGE = re.compile(r"\s*(?:(?P<node>.+?)=)?(?P<start>[0-9]{1,9})(?P<kind>[:-])(?P<end>[0-9]{1,9})\s*(?:,|$)")


def parse_layers(text: str) -> list[tuple[LayerRange, str | None]]:
    """`"studio=0:12,mini=12:16"`, `"0:12,12:16"`, or with last layers, `"0-11,12-15"`: ranges and their nodes.

    Raises BadSetting for anything else, BadPlan for an empty range.
    """
    parts: list[re.Match[str]] = []
    while (place := parts[-1].end() if parts else 0) < len(text) and (part := _RANGE.match(text, place)):
        parts.append(part)
    if place < len(text) or text.endswith(",") or len({part["kind"] for part in parts}) != 1:
        raise BadSetting(f"--layers {quoted(text)} is not ranges as studio=0:12,mini=12:16 (half-open) or 0-11,12-15")
    named = [part["node"] for part in parts]
    if any(named) and not all(named):
        raise BadSetting("--layers must name the node of every range, or of none")
    boundaries = [(int(part["start"]), int(part["end"])) for part in parts]
    try:
        ranges = half_open(boundaries) if parts[0]["kind"] == ":" else inclusive(boundaries)
    except BadPlan as error:
        raise BadPlan(f"--layers: {error}") from None
    return list(zip(ranges, named, strict=True))


def _custom(problem: Problem, text: str | None) -> Split:
    if text is None:
        raise BadSetting("the strategy custom needs --layers, as studio=0:12,mini=12:16 (half-open) or 0-11,12-15")
    parts = parse_layers(text)
    names = [name for _, name in parts if name is not None]
    return custom(problem, [layers for layers, _ in parts], names or None)
