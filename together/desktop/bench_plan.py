"""`bench plan`: how long a recommendation takes on made-up clusters, always the same ones. Knows no real machine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from together.planning.explain import explain, explain_left_out, explain_tolerance
from together.planning.problem import Link, ModelSize, NodeProfile, Problem
from together.planning.recommend import recommend

USERS = (1, 8, 1000)
SIZES = ((8, 80, "layers"), (8, 80, "bytes"), (32, 128, "layers"))


@dataclass(frozen=True, slots=True)
class PlanTime:
    """One line: median ms of the search alone, and with all sentences; room counted in `layers` or free `bytes`."""

    nodes: int
    layers: int
    room: str
    users: int
    search_ms: float
    answer_ms: float
    machines: int


def bench_plan(repeats: int = 9) -> list[PlanTime]:
    return [
        _measure(made_up(nodes, layers, room, users), room, repeats) for nodes, layers, room in SIZES for users in USERS
    ]


def made_up(nodes: int, layers: int, room: str, users: int) -> Problem:
    """Uneven speeds and links; no two or three nodes hold the model alone."""
    chance = random.Random(nodes * 1000 + layers)
    least, most = layers // nodes + 1, 4 * layers // nodes
    profiles = []
    for index in range(nodes):
        speed, overhead, held = chance.uniform(0.5, 8), chance.uniform(0, 2), chance.randint(least, most)
        free = held * 400_000_000 + 2_000_000_000 if room == "bytes" else None
        count = held if room == "layers" else None
        profiles.append(NodeProfile(f"node{index:02}", speed, overhead, count, free, 500_000_000 if free else 0))
    links = [Link(a.name, b.name, chance.uniform(0.2, 20)) for a, b in combinations(profiles, 2)]
    model = ModelSize((400_000_000,) * layers, 1_000_000_000, 1_000_000_000)
    return Problem(model, tuple(profiles), tuple(links), head="node00", users=users)


def _measure(problem: Problem, room: str, repeats: int) -> PlanTime:
    split = recommend(problem)  # the first one also imports
    assert split is not None, "the made-up clusters hold their model"

    def answer() -> None:
        found = recommend(problem)
        assert found is not None
        explain(problem, found)
        explain_left_out(problem, found)
        explain_tolerance(problem, found)

    search_ms = _median_ms(lambda: recommend(problem), repeats)
    answer_ms = _median_ms(answer, repeats)
    return PlanTime(
        len(problem.nodes), problem.model.layers, room, problem.users, search_ms, answer_ms, len(split.shares)
    )


def _median_ms(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1e3)
    return median(times)
