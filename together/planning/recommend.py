"""The recommendation: the best split of a model over nodes, by the search that fits the problem.

The score of a split is max(D/m, B): D a token's time through the ring, B the slowest stage, m the concurrent users.
Where nodes share a processor, B is what their stages take together; the searches ignore that.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import inf

from together.planning.ordered import Ordered
from together.planning.problem import EXACT_NODES, Problem, Split
from together.planning.score import score_of
from together.planning.search import EPSILON, Candidate, SearchProblem, compile_problem, evened, split_of
from together.planning.tours import Tours, promising

POOL = 8  # nodes that are looked at exactly after the tours


def recommend(problem: Problem) -> Split | None:
    """The split with the lowest score, or with fewer machines within the tolerance; None where the model does not fit.

    Exact up to 8 nodes that can hold a layer and share no processor. Equal plans are chosen between by names, never by
    chance or input order.
    """
    names = [node.name for node in problem.nodes]
    split = _search(problem, names)
    while split is not None and (relieved := _relieved(problem, names, split)):
        names, split = relieved
    return split


def _relieved(problem: Problem, names: list[str], split: Split) -> tuple[list[str], Split] | None:
    """With one node less of those that share a processor, if that is not worse; and the names that are left."""
    found = []
    for name in sorted(_crowded(problem, split), reverse=True):
        left = [other for other in names if other != name]
        fewer = _search(problem, left)
        if fewer is not None:
            found.append((score_of(problem, fewer).score_ms, left, fewer))
    score, left, fewer = min(found, key=lambda item: item[0], default=(inf, names, split))
    return (left, fewer) if score <= score_of(problem, split).score_ms * (1 + EPSILON) else None


def _crowded(problem: Problem, split: Split) -> list[str]:
    """Nodes of the split whose processor runs another stage too; for one user that costs nothing."""
    used = {name: problem.node(name).processor for name in split.nodes}
    times = Counter(used.values())
    return [name for name, processor in used.items() if processor and times[processor] > 1 and problem.users > 1]


def _search(problem: Problem, names: list[str]) -> Split | None:
    """The best with these nodes, as if each had a processor of its own."""
    instance = compile_problem(problem, names)
    if not instance.able:
        return None
    few = len(instance.able) <= EXACT_NODES
    plan = Ordered(instance).best() if few else _along_tours(problem, instance)
    return None if plan is None else split_of(instance, evened(instance, plan))


def _along_tours(problem: Problem, instance: SearchProblem) -> Candidate | None:
    """What the tours find, and what is exactly best on the few nodes that they found; the fewest machines count."""
    found = Tours(instance).best()
    for plan in list(found):
        pool = _pool(problem, instance, plan)
        exact = Ordered(pool).best() if len(pool.able) <= EXACT_NODES else None
        found += [] if exact is None else [_renamed(exact, pool, instance)]
    return _choose(found, problem.tolerance)


def _pool(problem: Problem, instance: SearchProblem, plan: Candidate) -> SearchProblem:
    """The nodes of a plan, and others that may do better up to POOL."""
    nodes = list(plan.order)
    nodes += [i for i in promising(instance) if i not in nodes][: max(POOL - len(nodes), 0)]
    return compile_problem(problem, [instance.names[i] for i in nodes])


def _renamed(choice: Candidate, pool: SearchProblem, instance: SearchProblem) -> Candidate:
    return replace(choice, order=tuple(instance.names.index(pool.names[i]) for i in choice.order))


def _choose(found: list[Candidate], tolerance: float) -> Candidate | None:
    """The best of the fewest machines within the tolerance."""
    if not found:
        return None
    bound = min(choice.score for choice in found) * (1 + tolerance + EPSILON)
    near = [choice for choice in found if choice.score <= bound]
    fewest = min(len(choice.order) for choice in near)
    best: Candidate | None = None
    for choice in near:
        if (tolerance == 0 or len(choice.order) == fewest) and choice.beats(best):
            best = choice
    return best
