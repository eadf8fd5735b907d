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

# Nodes, layers, and how room is counted: in `layers`, in free `bytes`, or in bytes with layers of `mixed` size.
SIZES = ((8, 80, "layers"), (8, 80, "bytes"), (32, 128, "layers"))
LM_HEAD = 4.0  # layers' time, as in a 1B model


@dataclass(frozen=True, slots=True)
class Case:
    """A made-up cluster; `lm_head` in layers' time."""

    nodes: int
    layers: int
    room: str
    users: int
    lm_head: float = 0.0


CASES = (
    *(Case(*size, users) for size in SIZES for users in (1, 8, 1000)),
    *(Case(*size, 1000, LM_HEAD) for size in SIZES),
    *(Case(8, 80, "mixed", 1000, lm_head) for lm_head in (0.0, LM_HEAD)),
)


@dataclass(frozen=True, slots=True)
class PlanTime:
    """One line: median ms of the search alone, and with all sentences."""

    nodes: int
    layers: int
    room: str
    users: int
    lm_head: float
    search_ms: float
    answer_ms: float
    machines: int


def bench_plan(repeats: int = 9) -> list[PlanTime]:
    return [_measure(case, repeats) for case in CASES]


def made_up(case: Case) -> Problem:
    """Uneven speeds and links; no two or three nodes hold the model alone."""
    nodes, layers, room = case.nodes, case.layers, case.room
    chance = random.Random(nodes * 1000 + layers)
    least, most = layers // nodes + 1, 4 * layers // nodes
    profiles = []
    for index in range(nodes):
        speed, overhead, held = chance.uniform(0.5, 8), chance.uniform(0, 2), chance.randint(least, most)
        free = None if room == "layers" else held * 400_000_000 + 2_000_000_000
        count, reserve = (held, 0) if free is None else (None, 500_000_000)
        drawing = speed * case.lm_head * (1 + index % 3 / 4)
        profiles.append(NodeProfile(f"node{index:02}", speed, overhead, count, free, reserve, drawing))
    links = [Link(a.name, b.name, chance.uniform(0.2, 20)) for a, b in combinations(profiles, 2)]
    sizes = tuple(400_000_000 + (layer % 7 * 1_000_000 if room == "mixed" else 0) for layer in range(layers))
    model = ModelSize(sizes, 1_000_000_000, 1_000_000_000)
    return Problem(model, tuple(profiles), tuple(links), head="node00", users=case.users)


def _measure(case: Case, repeats: int) -> PlanTime:
    problem = made_up(case)
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
    sizes = (case.nodes, case.layers, case.room, case.users, case.lm_head)
    return PlanTime(*sizes, search_ms, answer_ms, len(split.shares))


def _median_ms(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1e3)
    return median(times)
