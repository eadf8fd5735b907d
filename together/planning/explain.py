"""Why a plan is as it is, and if nothing fits, what is missing and what would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

from together.planning.problem import EXACT_NODES, Assignment, NodeProfile, Problem, Split
from together.planning.recommend import recommend
from together.planning.score import Score, score_of
from together.planning.search.instance import SearchProblem, compile_problem, differ, split_of
from together.planning.search.rings import ring_ms
from together.planning.search.subsets import Subsets, fill, speed_order, stages_of
from together.types import LayerRange
from together.wording import count_text, layers_text, ms_text, names_text, size_text, sizes_text

FOUR_BIT = 4.5 / 16  # of bf16's bytes: 4 bits a weight, and scales


@dataclass(frozen=True, slots=True)
class Infeasible:
    """Why there is no plan. `layers` and `bytes` (with KV) are what no node can hold."""

    error: str
    layers: int
    bytes: float
    suggestions: tuple[str, ...]


def explain_missing(problem: Problem) -> Infeasible:
    """For a problem that `recommend` has no plan for."""
    layers, placed = problem.model.layers, _placeable(problem)
    missing = layers - placed
    size = problem.stage_bytes(LayerRange(placed, layers)) if placed else _whole(problem)
    error = f"the model does not fit: the nodes hold {placed} of its {layers} layers"
    if size:
        error += f"; {size_text(size)} are missing{_sizing(problem)}"
    return Infeasible(error, missing, size, tuple(_suggestions(problem, missing, size)))


def _fits(problem: Problem) -> bool:
    return recommend(replace(problem, tolerance=0.0)) is not None


def _whole(problem: Problem) -> float:
    return problem.stage_bytes(LayerRange(0, problem.model.layers))


def _placeable(problem: Problem) -> int:
    """The most layers, from the first on, that a model of only these could have here."""
    low, high = 0, problem.model.layers
    while high - low > 1:
        middle = (low + high) // 2
        part = replace(problem.model, layer_bytes=problem.model.layer_bytes[:middle])
        if _fits(replace(problem, model=part)):
            low = middle
        else:
            high = middle
    return low


def _sizing(problem: Problem) -> str:
    if not problem.kv_bytes_per_layer:
        return ""
    return (
        f" with a context of {problem.context} for {count_text(problem.users, 'person').replace('persons', 'people')}"
    )


def _suggestions(problem: Problem, missing: int, size: float) -> Iterator[str]:
    """At least one, all of them true."""
    by_bytes = any(node.max_layers is None for node in problem.nodes)
    if by_bytes:
        yield from _smaller(problem)
    yield from _links(problem)
    if by_bytes:
        yield _more_memory(problem, size)
    else:
        yield f"add a node that holds {count_text(missing, 'layer')}, or let the nodes hold so many more"


def _smaller(problem: Problem) -> Iterator[str]:
    """A shorter context, fewer people, 4-bit weights; all three together where none is enough alone."""
    context, users, packed = _context(problem), _users(problem), _four_bit(problem)
    alone = False
    if context is not None and _fits(replace(problem, context=context)):
        alone = True
        yield f"lower the context from {problem.context} to {context}"
    if users is not None:
        alone = True
        yield f"plan for {users} instead of {problem.users} people at once"
    if packed is not None and _fits(packed):
        alone = True
        saved = sum(problem.model.layer_bytes) - sum(packed.model.layer_bytes)
        yield f"use 4-bit weights: they take {size_text(saved)} less than 16-bit ones"
    if not alone and packed is not None:
        least = replace(packed, users=1, context=min(problem.context, 4096))
        if _fits(least):
            yield f"use 4-bit weights with a context of {least.context} for one person"


def _context(problem: Problem) -> int | None:
    """4096, or the longest half, quarter, … that fits; None where the context makes no difference."""
    if not problem.model.kv_bytes_per_token_per_layer:
        return None
    tried = 4096 if problem.context > 4096 else problem.context // 2
    while tried >= 512 and not _fits(replace(problem, context=tried)):
        tried //= 2
    return tried if tried >= 512 else None


def _users(problem: Problem) -> int | None:
    if not problem.model.kv_bytes_per_token_per_layer:
        return None
    users = problem.users // 2
    while users and not _fits(replace(problem, users=users)):
        users //= 2
    return users or None


def _four_bit(problem: Problem) -> Problem | None:
    if not any(problem.model.layer_bytes):
        return None
    sizes = tuple(float(round(size * FOUR_BIT)) for size in problem.model.layer_bytes)
    return replace(problem, model=replace(problem.model, layer_bytes=sizes))


def _links(problem: Problem) -> Iterator[str]:
    broken = [link for link in problem.links if link.ms is None]
    usable = tuple(replace(link, ms=problem.hop_ms) if link.ms is None else link for link in problem.links)
    if broken and _fits(replace(problem, links=usable)):
        pairs = names_text([f"{link.a} and {link.b}" for link in broken])
        yield f"make the unusable links work: between {pairs}"


def _more_memory(problem: Problem, size: float) -> str:
    """The least of a few sizes of another node that is enough."""
    model = problem.model
    ends = model.embed_bytes + model.head_bytes
    layer = max(model.layer_bytes) + problem.kv_bytes_per_layer
    taken = {node.name for node in problem.nodes}
    name = next(name for i in range(len(taken) + 1) if (name := f"new {i}") not in taken)
    for room in (size, size + ends, size + ends + layer, size + ends + 2 * layer):
        node = NodeProfile(name, 1.0, free_bytes=room)
        if room < inf and _fits(replace(problem, nodes=(*problem.nodes, node))):
            return f"add a node with {size_text(room)} free, or free as much on the others"
    return f"add nodes with {size_text(_whole(problem))} free in all, or free memory on these"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A node without layers, and why, with its name in the sentence."""

    node: str
    why: str


def explain(problem: Problem, split: Split) -> tuple[str, ...]:
    """Why each node of the split has its layers, and what that costs."""
    score = score_of(problem, split)
    return (*(_why(problem, split, score, share) for share in split.shares), _cost(problem, split, score))


def explain_left_out(problem: Problem, split: Split) -> tuple[LeftOut, ...]:
    """In the order of the problem's nodes."""
    score = score_of(problem, split)
    names = [node for node in problem.nodes if node.name not in split.nodes]
    return tuple(LeftOut(node.name, f"{node.name} left out: {_why_not(problem, split, score, node)}") for node in names)


def explain_tolerance(problem: Problem, split: Split) -> tuple[str, ...]:
    """Says so when a faster plan with more machines was passed over."""
    fastest = recommend(replace(problem, tolerance=0.0)) if problem.tolerance else None
    if fastest is None or len(fastest.shares) <= len(split.shares):
        return ()
    gained = score_of(problem, split).score_ms / score_of(problem, fastest).score_ms - 1
    sentence = f"{count_text(len(fastest.shares), 'machine')} would be {gained:.1%} faster, which is not worth "
    return (sentence + f"{count_text(len(fastest.shares) - len(split.shares), 'machine')} more that can fail",)


def explain_rule(problem: Problem, split: Split, rule: str) -> tuple[tuple[str, ...], tuple[LeftOut, ...]]:
    """The same for a split that follows a rule instead: each node's layers and ms, and who gets none by it."""
    score = score_of(problem, split)
    taken = [
        f"{share.node} takes {count_text(len(share.layers), 'layer')} ({layers_text(share.layers)}) by {rule}: "
        f"{ms_text(cost.ms)}{_head_text(problem, share)}"
        for share, cost in zip(split.shares, score.stages, strict=True)
    ]
    names = [node.name for node in problem.nodes if node.name not in split.nodes]
    left_out = tuple(LeftOut(name, f"{name} left out: it gets no layer by {rule}") for name in names)
    return (*taken, _cost(problem, split, score)), left_out


# --- who got layers ---------------------------------------------------------------------------------------------------


def _why(problem: Problem, split: Split, score: Score, share: Assignment) -> str:
    node, all_layers = problem.node(share.node), problem.model.layers
    if len(split.shares) == 1:
        reason = "the whole model fits on it" + ("" if score.hops else ", so no token has to hop")
        return f"{share.node} takes all {count_text(all_layers, 'layer')}: {reason}"
    taken = f"{share.node} takes {count_text(len(share.layers), 'layer')} ({layers_text(share.layers)})"
    reason = _reason(problem, split, score, node, share)
    return f"{taken}: at {ms_text(node.ms_per_layer)} per layer, {reason}{_head_text(problem, share)}"


def _head_text(problem: Problem, share: Assignment) -> str:
    """What the last stage does beside its layers, where that takes time."""
    ms = problem.node(share.node).ms_per_head if share.layers.stop == problem.model.layers else 0
    return f"; as the last one it also has the LM head, {ms_text(ms)}" if ms else ""


def _reason(problem: Problem, split: Split, score: Score, node: NodeProfile, share: Assignment) -> str:
    if node.max_layers is not None and len(share.layers) >= node.max_layers:
        return "as many as it can hold"
    if node.max_layers is None and _full(problem, node, share.layers):
        return "as many as its memory holds"
    if problem.users > 1 and score.slowest_stage_ms > 0:
        return f"so that no stage takes longer than {ms_text(score.slowest_stage_ms)}"
    faster = [other for other in split.nodes if problem.node(other).ms_per_layer < node.ms_per_layer]
    return "what the faster ones leave" if faster else "none of the others is faster"


def _full(problem: Problem, node: NodeProfile, layers: LayerRange) -> bool:
    """Whether not one layer more would fit, on either side where there is one."""
    wider = [LayerRange(layers.start - 1, layers.stop)] if layers.start else []
    wider += [LayerRange(layers.start, layers.stop + 1)] if layers.stop < problem.model.layers else []
    return all(problem.stage_bytes(layers) > node.room_bytes for layers in wider)


def _cost(problem: Problem, split: Split, score: Score) -> str:
    computing = ms_text(score.token_ms - score.ring_ms)
    travel = f" and {ms_text(score.ring_ms)} on {count_text(score.hops, 'hop')}" if score.hops else ""
    sentence = f"a token takes {ms_text(score.token_ms)}: {computing} of computing{travel}"
    if problem.users > 1:
        slowest = split.shares[[stage.ms for stage in score.stages].index(score.slowest_stage_ms)].node
        sentence += f"; with {problem.users} people at once the slowest stage, on {slowest}, takes "
        sentence += ms_text(score.slowest_stage_ms)
        if score.busiest_ms > score.slowest_stage_ms:
            sentence += f", and stages of one machine take turns, {ms_text(score.busiest_ms)} in all"
    return sentence


# --- who did not ------------------------------------------------------------------------------------------------------


def _why_not(problem: Problem, split: Split, score: Score, node: NodeProfile) -> str:
    smallest = min(problem.model.layer_bytes) + problem.kv_bytes_per_layer
    if node.max_layers == 0:
        return "it can hold no layer"
    if node.room_bytes < smallest:
        room, layer = sizes_text(node.room_bytes, smallest)
        return f"it has {room} to give, and one layer takes {layer}"
    if len(split.shares) >= problem.model.layers:
        return "there are no more layers than machines"
    with_it = _score_with(problem, split, node.name)
    if with_it == inf:
        return "no ring or split that uses it as well is possible"
    slower = (with_it - score.score_ms) * problem.users
    if not differ(with_it, score.score_ms):
        return "it would make no token faster"
    if slower > 0:
        return f"it would make each token {ms_text(slower)} slower"
    return f"it would make each token only {ms_text(-slower)} faster, not worth one more machine that can fail"


def _score_with(problem: Problem, split: Split, name: str) -> float:
    """The best score of a plan that uses this node beside all of the split's; infinite if there is none."""
    pool = compile_problem(problem, [*split.nodes, name])
    if len(pool.able) <= len(split.shares):
        return inf
    if len(problem.nodes) > EXACT_NODES:
        return _inserted(pool, split, name)
    if pool.order_matters:
        from together.planning.search.ordered import Ordered

        choice = Ordered(pool).exactly(len(pool.able))
    else:
        choice = Subsets(pool).exactly(pool.able)
    return inf if choice is None else score_of(problem, split_of(pool, choice)).score_ms


def _inserted(pool: SearchProblem, split: Split, name: str) -> float:
    """With the ring kept and the node put where it costs least; layers as if all were of mean size."""
    order, new = [pool.names.index(node) for node in split.nodes], pool.names.index(name)
    orders = [(*order[:place], new, *order[place:]) for place in range(len(order) + 1)]
    ring, best = min((ring_ms(pool.hops, pool.head, candidate), candidate) for candidate in orders)
    sizes = replace(pool, weight=pool.prefix[-1] / pool.layers)
    stages = stages_of(sizes, speed_order(pool, list(best)), (best[0], best[-1]))
    filled = fill(pool, stages, ring) if ring < inf else None
    return filled.score if filled else inf
