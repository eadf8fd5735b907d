"""Whether Wi-Fi costs: what a plan would reach if machines on Wi-Fi had a cable, by the planner's own score."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from math import inf

from together.cluster.life import link_kind
from together.cluster.survey import THIS_MACHINE, Survey, Surveyor
from together.cluster_types import LinkKind
from together.planning.network import USUAL, WIRES, hop_ms
from together.planning.problem import Link, Problem, Split
from together.planning.score import circle_of, score_of
from together.sentences import NOTHING, Sentence, say

WORTH_TELLING = 0.1  # more tokens per second


async def wireless_nodes(surveyor: Surveyor) -> frozenset[str]:
    """The ids of living nodes that are on Wi-Fi, and THIS_MACHINE where the head's machine is."""
    found = {node.id for node in surveyor.membership.living() if node.life and node.life.link is LinkKind.WIFI}
    here = surveyor.membership.where()
    own = await asyncio.to_thread(_kind_of, here.addresses) if here is not None else LinkKind.UNKNOWN
    return frozenset({*found, THIS_MACHINE} if own is LinkKind.WIFI else found)


@lru_cache(4)
def _kind_of(addresses: tuple[str, ...]) -> LinkKind:
    """A cable that is put in brings another address."""
    return link_kind(addresses)


def places_of(survey: Survey, wireless: Collection[str]) -> frozenset[str]:
    """The names by which a survey's problem calls those nodes."""
    names = {name for name, place in survey.placements.items() if place.node in wireless}
    return frozenset({*names, THIS_MACHINE} if THIS_MACHINE in wireless else names)


def with_cables(problem: Problem, wireless: Collection[str], size: int) -> Problem:
    """The same with usual cables at those places, for messages of `size` bytes; what is faster already stays."""
    cable, names = WIRES[USUAL], [node.name for node in problem.nodes]
    most = hop_ms(cable, cable, size)

    def hop(a: str, b: str) -> float | None:
        ms = problem.hop(a, b)
        return None if ms == inf else min(ms, most) if {a, b} & set(wireless) else ms

    return replace(problem, links=tuple(Link(a, b, hop(a, b)) for a, b in combinations(names, 2)))


def cable_gain(model: str, problem: Problem, split: Split, wireless: Collection[str], size: int) -> Sentence:
    """What cables would give a split of that problem; NOTHING where that is little, or nobody in it is on Wi-Fi."""
    circle = circle_of(problem, split.nodes)
    places = tuple(name for name in circle if name in wireless)
    if not places or len(circle) == 1:
        return NOTHING
    now = score_of(problem, split).tokens_per_second
    then = score_of(with_cables(problem, wireless, size), split).tokens_per_second
    if now <= 0 or then < now * (1 + WORTH_TELLING):
        return NOTHING
    names = tuple(say("this_machine") if name == THIS_MACHINE else name for name in places)
    return say("cable_gain", nodes=names, model=model, then=then, now=now)
