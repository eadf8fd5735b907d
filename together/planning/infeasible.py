"""When nothing fits: what is missing, and what would make it fit, each suggestion tried. Knows no other sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

from together.planning.problem import NodeProfile, Problem
from together.planning.recommend import recommend
from together.types import LayerRange
from together.wording import count_text, names_text, size_text

FOUR_BIT = 4.5 / 16  # of bf16's bytes: 4 bits a weight, and scales


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there is no plan. `layers` and `bytes` (with KV) are what no node can hold."""

    error: str
    layers: int
    bytes: float
    suggestions: tuple[str, ...]


def explain_missing(problem: Problem) -> Missing:
    """For a problem that `recommend` has no plan for."""
    layers, placed = problem.model.layers, _placeable(problem)
    missing = layers - placed
    size = problem.stage_bytes(LayerRange(placed, layers)) if placed else _whole(problem)
    error = f"the model does not fit: the nodes hold {placed} of its {layers} layers"
    if size:
        error += f"; {size_text(size)} are missing{_sizing(problem)}"
    return Missing(error, missing, size, tuple(_suggestions(problem, missing, size)))


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
