"""`plan --cluster`: who would take which layers of a model on machines that a file describes. Knows no search."""

from __future__ import annotations

import json
from pathlib import Path

from together.desktop.printable import printable
from together.errors import BadSetting
from together.planning.cluster_file import parse_cluster
from together.planning.infeasible import Missing
from together.planning.problem import Problem
from together.planning.report import answer_json, answer_text, missing_json, missing_text
from together.planning.request import PlanRequest, plan_for

DOES_NOT_FIT = 3  # exit code


def run_plan(cluster: Path, request: PlanRequest, as_json: bool) -> int:
    """Print the plan, or what is missing; the exit code. Raises BadInput for a bad file, option or split."""
    outcome = plan_for(request, _read(cluster))
    if isinstance(outcome, Missing):
        print(json.dumps(missing_json(outcome), indent=2) if as_json else printable(missing_text(outcome)))
        return DOES_NOT_FIT
    print(json.dumps(answer_json(outcome), indent=2) if as_json else printable(answer_text(outcome)))
    return 0


def _read(path: Path) -> Problem:
    try:
        return parse_cluster(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"--cluster {path} cannot be read: {error}") from None
