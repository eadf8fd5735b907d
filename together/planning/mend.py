"""What would make a wrong split right: other ranges, or layers moved from one machine to another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from math import inf

from together.planning.problem import Assignment, NodeProfile, Problem
from together.types import LayerRange

Moves = Mapping[tuple[str, str], int]  # (from, to) → layers


def option_of(shares: Sequence[Assignment]) -> str:
    """As `--layers` takes them: `studio=0:8,mini=8:12`."""
    return ",".join(f"{share.node}={share.layers}" if share.node else str(share.layers) for share in shares)


def right_ranges(shares: Sequence[Assignment], layers: int, joined: Collection[int] = ()) -> tuple[Assignment, ...]:
    """All layers in order, near to what was meant: the same numbers of layers, else the same ends as far as they go.

    No range begins with one of `joined`.
    """
    found = _in_order(shares, layers)
    if not joined:
        return found
    possible = [layer for layer in range(1, layers) if layer not in joined]
    starts = [0, *near_cuts([share.layers.start for share in found[1:]], possible)]
    ends = zip(found, starts, [*starts[1:], layers], strict=False)
    return tuple(Assignment(share.node, LayerRange(start, stop)) for share, start, stop in ends)


def near_cuts(wished: Sequence[int], possible: Sequence[int]) -> list[int]:
    """The nearest possible place for each wished one, in their order and all different; of too many the last go."""
    found: list[int] = []
    for left in range(min(len(wished), len(possible)), 0, -1):
        first = possible.index(found[-1]) + 1 if found else 0
        place = wished[len(found)]
        open_ones = possible[first : len(possible) - left + 1]
        found.append(min(open_ones, key=lambda cut: (abs(cut - place), cut)))
    return found


def _in_order(shares: Sequence[Assignment], layers: int) -> tuple[Assignment, ...]:
    ordered = sorted(shares, key=lambda share: share.layers)
    if sum(len(share.layers) for share in ordered) == layers:
        return _consecutive([(share.node, len(share.layers)) for share in ordered])
    found: list[tuple[str, int]] = []
    reached = 0
    for share in ordered:
        stop = min(share.layers.stop, layers)
        if stop > reached:
            found.append((share.node, stop - reached))
            reached = stop
    return _consecutive([*found[:-1], *((node, count + layers - reached) for node, count in found[-1:])])


def _consecutive(counts: Sequence[tuple[str, int]]) -> tuple[Assignment, ...]:
    """One run after the other; a node without layers has none."""
    shares, reached = [], 0
    for node, count in counts:
        if count:
            shares.append(Assignment(node, LayerRange(reached, reached + count)))
        reached += count
    return tuple(shares)


def moves(problem: Problem, shares: Sequence[Assignment]) -> Moves:
    """What each node that has too much gives to whom, so that all hold their layers; empty where there is no room.

    Takers are the next ones in the ring, with the nodes without layers at its end, then those before.
    """
    counts = {share.node: len(share.layers) for share in shares}
    others = {*counts, *([problem.head] if problem.head else [])}
    counts |= {node.name: 0 for node in problem.nodes if node.name not in counts and _reaches(problem, node, others)}
    found: Counter[tuple[str, str]] = Counter()
    while (giver := next((node for node in counts if not _holds(problem, counts, node)), None)) is not None:
        taker = next((node for node in _takers(list(counts), giver) if _can_take(problem, counts, giver, node)), None)
        if taker is None or found.total() > problem.model.layers:
            return {}
        found[giver, taker] += 1
        counts[giver], counts[taker] = counts[giver] - 1, counts[taker] + 1
    return {} if set(accumulate(counts.values())) & set(problem.model.joined) else found


def _reaches(problem: Problem, node: NodeProfile, others: Iterable[str]) -> bool:
    return all(problem.hop(node.name, other) < inf for other in others)


def _takers(nodes: list[str], giver: str) -> list[str]:
    place = nodes.index(giver)
    return [*nodes[place + 1 :], *reversed(nodes[:place])]


def _can_take(problem: Problem, counts: Mapping[str, int], giver: str, taker: str) -> bool:
    return _holds(problem, {**counts, giver: counts[giver] - 1, taker: counts[taker] + 1}, taker)


def _holds(problem: Problem, counts: Mapping[str, int], name: str) -> bool:
    """Whether a node has room for its run of layers, with those before it as many as they are."""
    start = 0
    for node, count in counts.items():
        if node == name:
            return not count or fits(problem, problem.node(name), LayerRange(start, start + count))
        start += count
    return True


def fits(problem: Problem, node: NodeProfile, layers: LayerRange) -> bool:
    """Whether a node can hold these layers; of a range that goes beyond the model, as far as the model goes."""
    if node.max_layers is not None:
        return len(layers) <= node.max_layers
    return problem.stage_bytes(layers, node) <= node.room_bytes


def most_of(problem: Problem, node: NodeProfile, layers: LayerRange) -> int:
    """How many of these layers, from the first on, a node can hold."""
    counts = range(len(layers), 0, -1)
    return next((count for count in counts if fits(problem, node, LayerRange(layers.start, layers.start + count))), 0)
