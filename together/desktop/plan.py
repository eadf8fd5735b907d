"""`plan` for a cluster file or the running app, and `status --save`."""

from __future__ import annotations

import json
from pathlib import Path

from together.desktop.client import RunningApp
from together.desktop.show import printable
from together.errors import BadSetting
from together.planning.cluster_file import parse_cluster
from together.planning.explain import Infeasible
from together.planning.problem import Problem
from together.planning.report import answer_json, answer_text, missing_json, missing_text
from together.planning.request import PlanRequest, plan_for

DOES_NOT_FIT = 3  # exit code


def run_plan(cluster: Path, request: PlanRequest, as_json: bool) -> int:
    """Print the plan, or what is missing; the exit code. Raises BadInput for a bad file, option or split."""
    outcome = plan_for(request, _read(cluster))
    if isinstance(outcome, Infeasible):
        print(json.dumps(missing_json(outcome), indent=2) if as_json else printable(missing_text(outcome)))
        return DOES_NOT_FIT
    print(json.dumps(answer_json(outcome), indent=2) if as_json else printable(answer_text(outcome)))
    return 0


def _read(path: Path) -> Problem:
    try:
        return parse_cluster(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"--cluster {path} cannot be read: {error}") from None


def run_live_plan(running: RunningApp, order: dict[str, object], as_json: bool) -> int:
    """Print the plan, or what is missing; the exit code."""
    answer = running.ask("plan", order)
    text = answer.pop("text")
    print(json.dumps(answer, indent=2) if as_json else printable(text))
    return DOES_NOT_FIT if "error" in answer else 0


def save_cluster(running: RunningApp, model: str | None, file: Path) -> None:
    """Write the living cluster in the format of `plan --cluster`. Raises BadSetting where the file cannot be."""
    cluster = running.ask("cluster", {} if model is None else {"model": model})
    try:
        file.write_text(json.dumps(cluster, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadSetting(f"--save {file} cannot be written: {error.strerror or error}") from None
