"""Why a plan is as it is, and if nothing fits, what is missing and what would fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

from together.planning.mend import fits
from together.planning.ordered import Ordered
from together.planning.problem import EXACT_NODES, Assignment, ModelSize, NodeProfile, Problem, Split
from together.planning.recommend import recommend
from together.planning.score import Score, score_of
from together.planning.search import (
    Candidate,
    SearchProblem,
    best_plan,
    candidate,
    compile_problem,
    differ,
    speed_order,
    split_of,
)
from together.sentences import NOTHING, Sentence, Value, say
from together.types import LayerRange

SHORTEST = 512  # tokens: no shorter context is suggested


@dataclass(frozen=True, slots=True)
class Infeasible:
    """Why there is no plan. `layers` and `bytes` (with KV) are what no node can hold."""

    error: Sentence
    layers: int = 0
    bytes: float = 0
    suggestions: tuple[Sentence, ...] = ()

    @property
    def sentence(self) -> Sentence:
        """The error, and a line for each suggestion."""
        return say("infeasible", error=self.error, suggestions=self.suggestions)


def explain_missing(problem: Problem) -> Infeasible:
    """For a problem that `recommend` has no plan for."""
    layers, placed = problem.model.layers, _placeable(problem)
    size = problem.stage_bytes(LayerRange(placed, layers) if placed else problem.all_layers)
    sizing = say("sized", context=problem.context, users=problem.users) if any(problem.cached) else NOTHING
    missing = say("missing_bytes", size=size, sizing=sizing) if size else NOTHING
    error = say("too_large", placed=placed, layers=layers, missing=missing)
    return Infeasible(error, layers - placed, size, tuple(_suggestions(problem, layers - placed, size)))


def _fits(problem: Problem) -> bool:
    """Asked for one user with the context of all, which needs the same memory and is found faster."""
    alone = replace(problem, users=1, context=problem.users * problem.context, tolerance=0.0)
    return recommend(alone) is not None


def _placeable(problem: Problem) -> int:
    """The most layers, from the first on, that a model of only these could have here."""
    low, high = 0, problem.model.layers
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(_beginning(problem, middle)) else (low, middle)
    return low


def _beginning(problem: Problem, layers: int) -> Problem:
    """As if the model had only its first layers, with its head behind them."""
    nodes = tuple(
        replace(node, size=node.size and _shorter(node.size, layers), layer_ms=node.layer_ms[:layers])
        for node in problem.nodes
    )
    return replace(problem, model=_shorter(problem.model, layers), nodes=nodes)


def _shorter(size: ModelSize, layers: int) -> ModelSize:
    joined = tuple(layer for layer in size.joined if layer < layers)
    return replace(size, layer_bytes=size.layer_bytes[:layers], joined=joined, caches=size.caches[:layers])


def _suggestions(problem: Problem, missing: int, size: float) -> Iterator[Sentence]:
    """At least one, all of them true."""
    by_bytes = any(node.max_layers is None for node in problem.nodes)
    if by_bytes:
        yield from _smaller(problem)
    yield from _links(problem)
    yield _more_memory(problem, size) if by_bytes else say("add_layers", layers=missing)


def _smaller(problem: Problem) -> Iterator[Sentence]:
    """A shorter context, fewer users, quantized weights; all three together where none is enough alone."""
    context, users = problem.context, problem.users
    less, fewer = _context(problem), _users(problem)
    enough = next((option for option in problem.smaller if _fits(_in_size(problem, option.size))), None)
    if less is not None:
        yield say("less_context", context=context, less=less)
    if fewer is not None:
        yield say("fewer_users", users=users, fewer=fewer)
    if enough is not None:
        less_bytes = problem.model.weight_bytes - enough.size.weight_bytes
        yield say("quantized", bits=enough.bits, size=less_bytes, option=enough.option)
    if less is None and fewer is None and enough is None:
        alone = replace(problem, users=1, context=min(context, 4096))
        for option in problem.smaller:
            if _fits(_in_size(alone, option.size)):
                yield say("quantized_alone", bits=option.bits, context=alone.context, option=option.option)
                return


def _context(problem: Problem) -> int | None:
    """4096, or the longest half, quarter, … that fits; None where no context of SHORTEST or more does."""
    if not problem.model.kv_bytes_per_token_per_layer:
        return None
    tried = 4096 if problem.context > 4096 else problem.context // 2
    while tried >= SHORTEST and not _fits(replace(problem, context=tried)):
        tried //= 2
    return tried if tried >= SHORTEST else None


def _users(problem: Problem) -> int | None:
    if not problem.model.kv_bytes_per_token_per_layer:
        return None
    users = problem.users // 2
    while users and not _fits(replace(problem, users=users)):
        users //= 2
    return users or None


def _in_size(problem: Problem, size: ModelSize) -> Problem:
    """With the model in other sizes, on every node."""
    return replace(problem, model=size, nodes=tuple(replace(node, size=None) for node in problem.nodes))


def _links(problem: Problem) -> Iterator[Sentence]:
    broken = [link for link in problem.links if link.ms is None]
    usable = tuple(replace(link, ms=problem.hop_ms) if link.ms is None else link for link in problem.links)
    if broken and _fits(replace(problem, links=usable)):
        yield say("mend_links", links=tuple(say("link", a=link.a, b=link.b) for link in broken))


def _more_memory(problem: Problem, size: float) -> Sentence:
    """The least of a few sizes of another node that is enough."""
    model = problem.model
    ends = model.embed_bytes + model.head_bytes
    layer = max(problem.held_layers())
    taken = {node.name for node in problem.nodes}
    name = next(name for i in range(len(taken) + 1) if (name := f"new {i}") not in taken)
    for room in (size, size + ends, size + ends + layer, size + ends + 2 * layer):
        node = NodeProfile(name, 1.0, free_bytes=room)
        if room < inf and _fits(replace(problem, nodes=(*problem.nodes, node))):
            return say("add_memory", size=room)
    return say("add_nodes", size=problem.stage_bytes(problem.all_layers))


# --- nodes with layers ------------------------------------------------------------------------------------------------


def explain(problem: Problem, split: Split) -> tuple[Sentence, ...]:
    """Why each node of the split has its layers, and what that costs."""
    score = score_of(problem, split)
    return (*(_why(problem, split, score, share) for share in split.shares), *_cost(problem, split, score))


def explain_tolerance(problem: Problem, split: Split) -> tuple[Sentence, ...]:
    """Says so when a faster plan with more machines was passed over."""
    fastest = recommend(replace(problem, tolerance=0.0)) if problem.tolerance else None
    if fastest is None or len(fastest.shares) <= len(split.shares):
        return ()
    gain = score_of(problem, split).score_ms / score_of(problem, fastest).score_ms - 1
    count = len(fastest.shares)
    return (say("not_worth", machines=count, gain=gain, more=count - len(split.shares)),)


def explain_rule(problem: Problem, split: Split, rule: str) -> tuple[tuple[Sentence, ...], dict[str, Sentence]]:
    """The same for a split that follows a rule instead, and by name, that a node gets no layer by it."""
    score = score_of(problem, split)
    taken = [
        say("takes_by", **_taken(problem, share), rule=rule, ms=cost.ms)
        for share, cost in zip(split.shares, score.stages, strict=True)
    ]
    reason = say("out_by", rule=rule)
    left_out = {node.name: say("left_out", node=node.name, why=reason) for node in _unused(problem, split)}
    return (*taken, *_cost(problem, split, score)), left_out


def _unused(problem: Problem, split: Split) -> list[NodeProfile]:
    return [node for node in problem.nodes if node.name not in split.nodes]


def _taken(problem: Problem, share: Assignment) -> dict[str, str | int | Sentence]:
    """The values of a node's layers, and of the LM head where that takes time."""
    ms = problem.node(share.node).ms_per_head if share.layers.stop == problem.model.layers else 0
    head = say("lm_head", ms=ms) if ms else NOTHING
    return {"node": share.node, "count": len(share.layers), "layers": str(share.layers), "head": head}


def _why(problem: Problem, split: Split, score: Score, share: Assignment) -> Sentence:
    if len(split.shares) == 1:
        layers = problem.model.layers
        if score.hops:
            return say("takes_all", node=share.node, layers=layers)
        return say("takes_all_alone", node=share.node, layers=layers)
    speed = problem.node(share.node).ms_per_layer
    return say("takes", **_taken(problem, share), speed=speed, why=_reason(problem, split, score, share))


def _reason(problem: Problem, split: Split, score: Score, share: Assignment) -> Sentence:
    node = problem.node(share.node)
    if _full(problem, node, share.layers):
        return say("all_its_memory") if node.max_layers is None else say("all_it_holds")
    if problem.users > 1 and score.slowest_stage_ms > 0:
        return say("balanced", ms=score.slowest_stage_ms)
    faster = any(problem.node(other).ms_per_layer < node.ms_per_layer for other in split.nodes)
    return say("faster_ones_full") if faster else say("none_faster")


def _full(problem: Problem, node: NodeProfile, layers: LayerRange) -> bool:
    """Whether no more layers would fit, on either side: one, or those up to the next place for a cut."""
    cuts = (0, *problem.model.cuts, problem.model.layers)
    before, behind = [cut for cut in cuts if cut < layers.start], [cut for cut in cuts if cut > layers.stop]
    wider = [LayerRange(cut, layers.stop) for cut in before[-1:]]
    wider += [LayerRange(layers.start, cut) for cut in behind[:1]]
    return not any(fits(problem, node, layers) for layers in wider)


def _cost(problem: Problem, split: Split, score: Score) -> Iterator[Sentence]:
    """What a token's time is made of; nothing where it is all computing, and without times."""
    computing, around = score.computing_ms, score.around_ms
    if not (score.hops or around) or computing <= 0:
        return
    slowest = busiest = NOTHING
    if score.shares_frames:
        slowest = say("cost_shared", users=problem.users, ms=score.score_ms)
    elif problem.users > 1 and len(split.shares) > 1:
        node = split.shares[[stage.ms for stage in score.stages].index(score.slowest_stage_ms)].node
        slowest = say("cost_slowest", users=problem.users, node=node, ms=score.slowest_stage_ms)
        busiest = say("cost_turns", ms=score.busiest_ms) if score.busiest_ms > score.slowest_stage_ms else NOTHING
    times: dict[str, Value] = {"token": score.token_ms, "computing": computing, "slowest": slowest, "turns": busiest}
    if not score.hops:
        yield say("cost_here", **times, around=around)
        return
    beside = say("cost_around", ms=around) if around else NOTHING
    yield say("cost", **times, around=beside, ring=score.ring_ms, hops=score.hops)


# --- nodes without ----------------------------------------------------------------------------------------------------


def explain_left_out(problem: Problem, split: Split) -> dict[str, Sentence]:
    """By the name of each node without layers, in the order of the problem's nodes."""
    score = score_of(problem, split)
    reasons = {node.name: _why_not(problem, split, score, node) for node in _unused(problem, split)}
    return {name: say("left_out", node=name, why=why) for name, why in reasons.items()}


def _why_not(problem: Problem, split: Split, score: Score, node: NodeProfile) -> Sentence:
    smallest = min(problem.held_layers(node))
    if node.max_layers == 0:
        return say("out_no_layer")
    if node.room_bytes < smallest:
        return say("out_no_memory", sizes=(node.room_bytes, smallest))
    if len(split.shares) >= problem.model.most_stages:
        return say("out_no_more_layers")
    with_it = _score_with(problem, split, node.name)
    if with_it == inf:
        return say("out_no_ring")
    if not differ(with_it, score.score_ms):
        return say("out_not_faster")
    slower = (with_it - score.score_ms) * problem.users
    return say("out_slower", ms=slower) if slower > 0 else say("out_not_worth", ms=-slower)


def _score_with(problem: Problem, split: Split, name: str) -> float:
    """The best score of a plan that uses this node and all of the split's; infinite if there is none."""
    return min(_pool_score(problem, split, name, frames) for frames in problem.frames)


def _pool_score(problem: Problem, split: Split, name: str, frames: int) -> float:
    pool = compile_problem(problem, [*split.nodes, name], frames)
    if len(pool.able) <= len(split.shares):
        return inf
    if len(problem.nodes) > EXACT_NODES:
        return _inserted(pool, split, name) * pool.share
    plan = Ordered(pool).exactly(len(pool.able))
    return inf if plan is None else score_of(problem, split_of(pool, plan)).score_ms


def _inserted(pool: SearchProblem, split: Split, name: str) -> float:
    """With the ring kept and the node put where it costs least; layers as if all were of mean size."""
    order, new = [pool.names.index(node) for node in split.nodes], pool.names.index(name)
    orders = [(*order[:place], new, *order[place:]) for place in range(len(order) + 1)]
    sizes, ring = pool.of_mean_layers, min(orders, key=pool.ring_ms)
    free = _filled(sizes, ring, inf) if pool.ring_ms(ring) < inf else None
    return best_plan(sizes, free, lambda limit: _filled(sizes, ring, limit)).score if free else inf


def _filled(pool: SearchProblem, ring: tuple[int, ...], limit: float) -> Candidate | None:
    """All nodes of a ring, the fastest filled first, no stage over the limit."""
    left, counts = pool.layers - len(ring), {}
    for node in speed_order(pool, ring):
        counts[node] = min(pool.cap(ring, ring.index(node), limit), left + 1)
        left -= counts[node] - 1
    fits = left == 0 and min(counts.values()) > 0
    return candidate(pool, ring, tuple(counts[node] for node in ring)) if fits else None
