"""The recommendation: the best split of a model over nodes, by the search that fits the problem.

The score of a split is max(D/m, B): D a token's time through the ring, B the slowest stage, m the concurrent users.
Where rows of one step share time, frames that carry rows of several users are tried, too: D and B are theirs then.
Where nodes share a processor, B is what their stages take together; the searches ignore that.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class _Found:
    """A plan, and the instance that it was found in; its score is of a token."""

    instance: SearchProblem
    plan: Candidate

    @property
    def of_token(self) -> Candidate:
        return replace(self.plan, score=self.plan.score * self.instance.share)


def _search(problem: Problem, names: list[str]) -> Split | None:
    """The best with these nodes, as if each had a processor of its own, for as many frames as are best."""
    instances = [compile_problem(problem, names, frames) for frames in problem.frames]
    able = instances[0].able
    if not able:
        return None
    found = _exactly(instances) if len(able) <= EXACT_NODES else _along_tours(problem, instances)
    best = _choose(found, problem.tolerance)
    return None if best is None else split_of(best.instance, evened(best.instance, best.plan))


def _exactly(instances: list[SearchProblem]) -> list[_Found]:
    """Of each instance the best of the fewest machines within the tolerance of the best of all."""
    searches = [Ordered(instance) for instance in instances]
    scores = [search.best.score * search.instance.share for search in searches if search.best]
    best = min(scores, default=inf)
    plans = [(each.instance, each.fewest(best / each.instance.share)) for each in searches]
    return [_Found(instance, plan) for instance, plan in plans if plan is not None]


def _along_tours(problem: Problem, instances: list[SearchProblem]) -> list[_Found]:
    """What the tours find, and what is exactly best on the few nodes that they found."""
    found = []
    for instance in instances:
        plans = Tours(instance).best()
        for plan in list(plans):
            pool = _pool(problem, instance, plan)
            search = Ordered(pool) if len(pool.able) <= EXACT_NODES else None
            exact = search.fewest(search.best.score) if search and search.best else None
            plans += [] if exact is None else [_renamed(exact, pool, instance)]
        found += [_Found(instance, plan) for plan in plans]
    return found


def _pool(problem: Problem, instance: SearchProblem, plan: Candidate) -> SearchProblem:
    """The nodes of a plan, and others that may do better up to POOL."""
    nodes = list(plan.order)
    nodes += [i for i in promising(instance) if i not in nodes][: max(POOL - len(nodes), 0)]
    return compile_problem(problem, [instance.names[i] for i in nodes], instance.frames)


def _renamed(choice: Candidate, pool: SearchProblem, instance: SearchProblem) -> Candidate:
    return replace(choice, order=tuple(instance.names.index(pool.names[i]) for i in choice.order))


def _choose(found: list[_Found], tolerance: float) -> _Found | None:
    """The best of the fewest machines within the tolerance."""
    if not found:
        return None
    bound = min(choice.of_token.score for choice in found) * (1 + tolerance + EPSILON)
    near = [choice for choice in found if choice.of_token.score <= bound]
    fewest = min(len(choice.plan.order) for choice in near)
    best: _Found | None = None
    for choice in near:
        few = tolerance == 0 or len(choice.plan.order) == fewest
        if few and choice.of_token.beats(None if best is None else best.of_token):
            best = choice
    return best
