"""Bounds on what nodes hold: they exclude no plan, and spare most of the search."""

from __future__ import annotations

import pytest

from tests.planning.brute import brute_force, of_kinds, random_problem
from together.desktop.bench.small import CASES, Case, made_up
from together.planning import ordered
from together.planning.recommend import recommend
from together.planning.search import compile_problem

MOST_SWEEPS = 7  # of sets of up to eight nodes; each takes milliseconds


@pytest.mark.parametrize("case", [case for case in CASES if case.nodes == 8], ids=str)
def test_few_sweeps_find_the_best_of_eight_nodes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    sweep = ordered._Sweep.__init__

    def counted(self: ordered._Sweep, search: ordered.Ordered, limit: float, sizes: range) -> None:
        limits.append(limit)
        sweep(self, search, limit, sizes)

    monkeypatch.setattr(ordered._Sweep, "__init__", counted)
    assert recommend(made_up(case)) is not None
    assert 0 < len(limits) <= MOST_SWEEPS


@pytest.mark.parametrize("kinds", [False, True], ids=["alike", "kinds"])
def test_bounds_exclude_no_plan(kinds: bool) -> None:
    """The slowest stage of a plan takes no longer than its score."""
    solved = 0
    for seed in range(60):
        problem = of_kinds(random_problem(seed), seed) if kinds else random_problem(seed)
        instance = compile_problem(problem)
        bounds = ordered.Ordered(instance).bounds if instance.able else None
        for size, best in brute_force(problem).items():
            assert bounds is not None
            assert bounds.least_limit(size) <= best.score * (1 + 1e-9)
            assert bounds.held(size, best.score * (1 + 1e-9)) >= problem.model.layers
            assert bounds.hopeful(size, best.score * (1 + 1e-9)).any()
            solved += 1
    assert solved > 50
