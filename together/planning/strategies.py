"""Splits by a simple rule instead of the recommendation: uniform, memory, compute, mixed, ratio, custom.

A strategy only proposes; `score.violations` says what is wrong with it, as with any other split.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from together.errors import BadPlan, BadSetting
from together.planning.mend import near_cuts, right_ranges
from together.planning.problem import Assignment, ModelSize, NodeProfile, Problem, Split
from together.planning.recommend import recommend
from together.planning.score import hops_of, range_violations
from together.planning.search import EPSILON, compile_problem
from together.sentences import say
from together.types import LayerRange

NEEDS_LAYERS = "studio=0:12,mini=12:16 (half-open) or 0-11,12-15"


def limit_partitions(problem: Problem, max_memory: float) -> Problem:
    """The same problem with no stage above `max_memory` bytes."""

    def limited(node: NodeProfile) -> NodeProfile:
        if node.max_layers is not None:
            layer = max(problem.held_layers(node))
            return replace(node, max_layers=min(node.max_layers, int(max_memory // layer))) if layer else node
        return replace(node, free_bytes=min(node.room_bytes, max_memory), reserve_bytes=0)

    return replace(problem, nodes=tuple(map(limited, problem.nodes)))


def uniform_ranges(layers: int, parts: int, joined: Collection[int] = ()) -> tuple[LayerRange, ...]:
    """`layers` cut into `parts` ranges that differ by at most one layer, larger ones first; fewer if layers run out.

    Where layers are `joined`, the cuts are as near to that as they can be.
    """
    parts = min(parts, layers - len(joined))
    if parts < 1:
        raise BadPlan("there is no node to take the layers; start one with: python3 launch.py node")
    small, extra = divmod(layers, parts)
    starts = [index * small + min(index, extra) for index in range(1, parts)]
    possible = [layer for layer in range(1, layers) if layer not in joined]
    return tuple(LayerRange(start, stop) for start, stop in pairwise((0, *near_cuts(starts, possible), layers)))


def uniform(problem: Problem) -> Split:
    """Equal numbers of layers, give or take one, for all nodes that can hold one. Raises BadPlan if none can."""
    nodes = _ring(problem)[: problem.model.most_stages]
    ranges = uniform_ranges(problem.model.layers, len(nodes), problem.model.joined)
    return Split(tuple(Assignment(node.name, layers) for node, layers in zip(nodes, ranges, strict=True)))


def by_memory(problem: Problem) -> Split:
    """Layers in proportion to what each node can hold."""
    nodes = _ring(problem)
    return _shared(problem, nodes, [_capacity(problem, node) for node in nodes])


def by_compute(problem: Problem) -> Split:
    """Layers by speed, so that all stages take about as long, the last with the LM head, as far as memory allows."""
    return _ended(problem, lambda nodes: _speeds(problem, nodes))


def mixed(problem: Problem) -> Split:
    """Half by memory and half by speed."""

    def weights(nodes: list[NodeProfile]) -> list[float]:
        memory = _shares([_capacity(problem, node) for node in nodes])
        speed = _shares(_speeds(problem, nodes))
        return [(a + b) / 2 for a, b in zip(memory, speed, strict=True)]

    return _ended(problem, weights)


RULES = {"uniform": uniform, "memory": by_memory, "compute": by_compute, "mixed": mixed}
STRATEGIES = ("recommend", *RULES, "ratio", "custom")


def by_ratio(problem: Problem, ratio: Sequence[float]) -> Split:
    """Weights in the given ratio, on the nodes in the order given, embedding and LM head counted where they lie.

    3:1 means the same as 12:4. Where bytes are not known every layer weighs the same. Raises BadPlan.
    """
    if not ratio:
        raise BadSetting("the strategy ratio needs --ratio, as 3:1, a part for each node in the order of the file")
    if min(ratio) < 0 or not any(ratio):
        raise BadPlan("the ratio must be numbers that are not negative, as 3:1")
    if len(ratio) > len(problem.nodes):
        parts, nodes = len(ratio), len(problem.nodes)
        raise BadPlan("the ratio has {parts} parts and there are {nodes} nodes", parts=parts, nodes=nodes)
    pairs = [(node, part) for node, part in zip(problem.nodes, ratio, strict=False) if part > 0]
    if len(pairs) > problem.model.layers:
        wrong = "the ratio has {parts} parts and the model {layers} layers; give fewer"
        raise BadPlan(wrong, parts=len(pairs), layers=problem.model.layers)
    if len(pairs) > problem.model.most_stages:
        wrong = "the ratio has {parts} parts, and the model's layers can be parted into {most}; give fewer"
        raise BadPlan(wrong, parts=len(pairs), most=problem.model.most_stages)
    cuts = _cuts_by_weight(problem, [part for _, part in pairs])
    ranges = [LayerRange(start, stop) for start, stop in pairwise(cuts)]
    return Split(tuple(Assignment(node.name, layers) for (node, _), layers in zip(pairs, ranges, strict=True)))


def custom(problem: Problem, assignments: Sequence[Assignment]) -> Split:
    """Given layers on the nodes named, or on the nodes in their order where none is named. Raises BadPlan."""
    if not assignments:
        raise BadSetting("the strategy custom needs --layers, as {needed}", needed=NEEDS_LAYERS)
    if any(item.node for item in assignments):
        return Split(tuple(assignments))
    if (count := len(assignments)) > (there := len(problem.nodes)):
        wrong = "the plan has {ranges} ranges and there are {nodes} nodes; start more, or give fewer"
        raise BadPlan(wrong, ranges=count, nodes=there)
    # Said as they were written: without names.
    if found := range_violations(assignments, problem.model.layers, problem.model.joined):
        raise BadPlan(say("all", sentences=tuple(found)))
    named = zip(problem.nodes, assignments, strict=False)
    return Split(tuple(Assignment(node.name, item.layers) for node, item in named))


# --- what the rules share ---------------------------------------------------------------------------------------------


def _ring(problem: Problem) -> list[NodeProfile]:
    """The nodes that can hold a layer, in the order given if no ring is shorter, else in the order of a short one."""
    instance = compile_problem(problem)
    able = {instance.names[i] for i in instance.able}
    given = [node for node in problem.nodes if node.name in able]
    if not given:
        raise BadPlan("no node can hold a single layer; free memory, or add a node")
    short = _short_ring(problem, given)
    ms, least = (sum(hops_of(problem, tuple(node.name for node in nodes))) for nodes in (given, short))
    return short if least < ms * (1 - EPSILON) else given


def _short_ring(problem: Problem, nodes: list[NodeProfile]) -> list[NodeProfile]:
    """Through all nodes, as the plan of a model that has a layer for each; where there is no ring, any order."""
    profiles = tuple(NodeProfile(node.name, 0.0, max_layers=1) for node in nodes)
    if problem.head is not None and problem.head not in {node.name for node in nodes}:
        profiles += (NodeProfile(problem.head, 0.0, max_layers=0),)
    split = recommend(replace(problem, model=ModelSize((0.0,) * len(nodes)), nodes=profiles, users=1))
    return nodes if split is None else [problem.node(name) for name in split.nodes]


def _capacity(problem: Problem, node: NodeProfile) -> float:
    """Layers of mean size that a node holds without embedding or head."""
    layers = problem.model.layers
    mean = sum(problem.held_layers(node)) / layers
    if node.max_layers is not None:
        return float(node.max_layers)
    return node.room_bytes / mean if mean else float(layers)


def _speeds(problem: Problem, nodes: list[NodeProfile]) -> list[float]:
    """Weights by speed: the last node's LM head counts as the layers that it would run in that time."""
    speeds, last = [1 / max(node.ms_per_layer, 1e-9) for node in nodes], nodes[-1]
    worth = last.ms_per_head * speeds[-1]
    if not worth:
        return speeds
    counts = [share * (problem.model.layers + worth) for share in _shares(speeds)]
    return [*counts[:-1], max(counts[-1] - worth, 0.0)]


def _ended(problem: Problem, weights: Callable[[list[NodeProfile]], list[float]]) -> Split:
    """Layers in proportion to weights that depend on the last node, which must get layers by them."""
    nodes = _ring(problem)
    while True:
        split = _shared(problem, nodes, weights(nodes))
        if split.nodes[-1] == nodes[-1].name or not any(node.ms_per_head for node in nodes):
            return split
        nodes = nodes[:-1]


def _shares(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


def _shared(problem: Problem, nodes: list[NodeProfile], weights: list[float]) -> Split:
    """Layers in proportion to `weights`, within what each place in the ring can hold.

    Layers beyond that are placed all the same, and the check of the split reports them.
    """
    counts = _counts(problem, nodes, weights)
    stops = list(accumulate(counts))
    shares = [
        Assignment(node.name, LayerRange(stop - count, stop))
        for node, count, stop in zip(nodes, counts, stops, strict=True)
        if count
    ]
    return Split(right_ranges(shares, problem.model.layers, problem.model.joined))


def _counts(problem: Problem, nodes: list[NodeProfile], weights: list[float]) -> list[int]:
    layers = problem.model.layers
    wished = [share * layers for share in _shares(weights)]
    caps = [_cap_at(problem, node, place, len(nodes)) for place, node in enumerate(nodes)]
    counts = [0] * len(nodes)
    for _ in range(layers):
        open_places = [place for place in range(len(nodes)) if counts[place] < caps[place]] or range(len(nodes))
        counts[max(open_places, key=lambda place: (wished[place] - counts[place], -place))] += 1
    return counts


def _cap_at(problem: Problem, node: NodeProfile, place: int, count: int) -> int:
    """Layers of the largest size that fit a node at this place of the ring."""
    model = problem.size_on(node)
    if node.max_layers is not None:
        return node.max_layers
    extra = (model.embed_bytes if place == 0 else 0) + (model.head_bytes if place == count - 1 else 0)
    extra -= model.tied_bytes if count == 1 else 0
    layer = max(problem.held_layers(node))
    return max(int((node.room_bytes - extra) // layer), 0) if layer else model.layers


def _cuts_by_weight(problem: Problem, parts: list[float]) -> list[int]:
    """Where to cut so that each end is as near as possible to its share of all bytes; every part has a layer."""
    model, count = problem.model, len(parts)
    weights = list(model.layer_bytes) if any(model.layer_bytes) else [1.0] * model.layers
    ends = (model.embed_bytes, model.head_bytes) if any(model.layer_bytes) else (0.0, 0.0)
    held = list(accumulate(weights, initial=ends[0]))
    total = held[-1] + ends[1]
    cuts, possible = [0], [0, *model.cuts, model.layers]
    for place, share in enumerate(accumulate(_shares(parts)), start=1):
        allowed = possible[possible.index(cuts[-1]) + 1 : len(possible) - (count - place)]
        cuts.append(min(allowed, key=lambda cut: (abs(held[cut] - share * total), cut)))
    cuts[-1] = model.layers
    return cuts
