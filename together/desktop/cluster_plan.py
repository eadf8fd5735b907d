"""`plan --cluster`: from a file of machines and a model to the plan, or what is missing, for programs and a person."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from math import inf
from pathlib import Path
from typing import Any

from together.desktop.own_machines import Measurements, shape_to_measure
from together.desktop.planned import ModelToPlan, planned_model
from together.errors import BadSetting
from together.planning.cluster_file import problem_of_data, read_data
from together.planning.demand import Demand, demand_of
from together.planning.explain import Infeasible
from together.planning.machine_file import MachineFile, parse_machines
from together.planning.machines import REACHED, Machine, machines_of, problem_of, prompt_seconds
from together.planning.memory import cache_tokens
from together.planning.network import Way
from together.planning.problem import Problem
from together.planning.report import PlanReport, answer_json, answer_text, missing_json
from together.planning.request import PlanRequest, plan_for
from together.sentences import Sentence, Value, say, template
from together.settings import Settings
from together.wording import reason_of

NAMED = 6  # machines in a sentence


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What a file asks: the problem, and where its figures come from; both empty for a file that was measured."""

    problem: Problem
    machines: tuple[Machine, ...] = ()
    demand: Demand | None = None


def plan_file(
    file: Path, request: PlanRequest, model: str | None, bits: int | None, settings: Settings
) -> tuple[dict[str, Any], str]:
    """The answer for programs and the text for a person. Raises BadInput, or Unreachable for a model on the hub."""
    asked = _read(file, model, bits, settings)
    outcome = plan_for(request, asked.problem)
    if isinstance(outcome, Infeasible):
        answer, text = missing_json(outcome), str(outcome.sentence)
    else:
        answer, text = answer_json(outcome), answer_text(outcome)
    notes = tuple(_notes(asked, outcome, request))
    if not notes:
        return answer, text
    return answer | {"notes": list(map(str, notes))}, "\n".join([text, "", *map(str, notes)])


def _read(file: Path, model: str | None, bits: int | None, settings: Settings) -> ClusterPlan:
    try:
        data = read_data(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting("--cluster {file} cannot be read: {error}", file=str(file), error=reason_of(error)) from None
    if isinstance(data, dict) and "nodes" not in data:
        return _by_kinds(parse_machines(data), file.parent, model, bits, settings)
    problem = problem_of_data(data)
    if model is None:
        if bits is not None:
            raise BadSetting("--bits needs --model: the file has the sizes of one model as it is")
        return ClusterPlan(problem)
    return _for_another(problem, _demand(planned_model(model, settings.home_path), bits))


def _demand(planned: ModelToPlan, bits: int | None) -> Demand:
    return demand_of(planned.name, planned.summary, bits)


def _by_kinds(file: MachineFile, folder: Path, model: str | None, bits: int | None, settings: Settings) -> ClusterPlan:
    wanted = model if model is not None else file.model
    if wanted is None:
        raise BadSetting("name the model, with --model or in the file, as model = {example}", example='"Llama-3.3-70B"')
    planned = planned_model(wanted, settings.home_path)
    demand = _demand(planned, bits if bits is not None else file.bits)
    saved = folder / file.measured if file.measured is not None else None
    own = Measurements(settings, shape_to_measure(planned), saved)
    machines = file.machines(own)
    problem = problem_of(machines, demand, file.ways(own), file.head)
    context = cache_tokens(file.context, 1)
    problem = replace(problem, users=file.users, context=context, tolerance=file.tolerance)
    return ClusterPlan(problem, machines, demand)


def _for_another(measured: Problem, demand: Demand) -> ClusterPlan:
    """The machines of a measured file with another model than they were measured with."""
    machines, names = machines_of(measured), [node.name for node in measured.nodes]
    hops = [Way(a, b, None if (ms := measured.hop(a, b)) == inf else ms) for a, b in combinations(names, 2)]
    problem = problem_of(machines, demand, hops, measured.head)
    kept = replace(measured, model=problem.model, nodes=problem.nodes, links=problem.links, smaller=problem.smaller)
    return ClusterPlan(replace(kept, hop_ms=problem.hop_ms), machines, demand)


# --- where the figures come from --------------------------------------------------------------------------------------


def _notes(asked: ClusterPlan, outcome: PlanReport | Infeasible, request: PlanRequest) -> list[Sentence]:
    demand, machines = asked.demand, asked.machines
    if demand is None:
        return []
    context, users = request.context or asked.problem.context, request.users or asked.problem.users
    notes = [say("plan_model", model=demand.name, size=demand.weight_bytes, context=context, users=users)]
    if demand.quantized and demand.bits is not None:
        notes.append(say("plan_bits", bits=demand.bits))
    by_kind = [machine.name for machine in machines if not machine.measured]
    measured = [machine.name for machine in machines if machine.measured]
    if by_kind:
        notes.append(say("plan_published", machines=_some(by_kind), share=REACHED))
    if measured:
        notes.append(say("plan_measured", machines=_some(measured)))
    if isinstance(outcome, PlanReport):
        prompt = request.wish.prompt_tokens
        seconds = prompt_seconds(machines, outcome.split, demand, prompt)
        if 0.05 <= seconds < inf:
            notes.append(say("plan_prompt", tokens=prompt, seconds=seconds))
    return notes


def _some(names: list[str]) -> tuple[Value, ...]:
    """All of a few names, the first of many."""
    if len(names) <= NAMED:
        return tuple(names)
    return (*names[: NAMED - 1], template("{count} more", count=len(names) - NAMED + 1))
