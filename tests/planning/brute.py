"""The best plan by trying everything: every order of every subset, every way to cut the layers. Knows no planner code.

Slow on purpose, and written from the words of the design alone, to be what the planner is compared with.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from math import inf

from together.planning.problem import Link, ModelSize, NodeProfile, Problem

USERS = (1, 2, 3, 8, 1000)


@dataclass(frozen=True)
class Best:
    """The lowest score, among equals the lowest token time, by number of machines."""

    score: float
    token_ms: float


def hop(problem: Problem, a: str, b: str) -> float:
    if a == b:
        return 0.0
    for link in problem.links:
        if (link.a, link.b) in ((a, b), (b, a)):
            return inf if link.ms is None else link.ms
    return problem.hop_ms


def ring(problem: Problem, names: tuple[str, ...]) -> float:
    """Through the used nodes and the head, each once, and closed."""
    circle = list(names)
    if problem.head is not None and problem.head not in names:
        circle = [problem.head, *circle]
    if len(circle) == 1:
        return 0.0
    return sum(hop(problem, a, b) for a, b in zip(circle, circle[1:] + circle[:1]))  # noqa: B905


def holds(problem: Problem, node: NodeProfile, start: int, stop: int) -> bool:
    if node.max_layers is not None:
        return stop - start <= node.max_layers
    model = node.size or problem.model
    need = sum(model.layer_bytes[start:stop])
    each = problem.model.caches or ((problem.model.kv_bytes_per_token_per_layer, 0),) * model.layers
    need += sum(token for token, _ in each[start:stop]) * problem.users * problem.context
    need += model.embed_bytes if start == 0 else 0
    need += model.head_bytes if stop == model.layers else 0
    need -= model.tied_bytes if stop - start == model.layers else 0
    assert node.free_bytes is not None
    return need <= node.free_bytes - node.reserve_bytes


def layers_ms(node: NodeProfile, start: int, stop: int) -> float:
    return sum(node.layer_ms[layer] if node.layer_ms else node.ms_per_layer for layer in range(start, stop))


def cuts(problem: Problem, parts: int) -> Iterator[tuple[int, ...]]:
    layers = problem.model.layers
    for inner in combinations([layer for layer in range(1, layers) if layer not in problem.model.joined], parts - 1):
        yield (0, *inner, layers)


def busiest(order: tuple[NodeProfile, ...], times: list[float]) -> float:
    """The time of the slowest stage, or of those together that take turns on one processor."""
    shared = {node.processor for node in order if node.processor}
    turns = (sum(ms for node, ms in zip(order, times, strict=True) if node.processor == name) for name in shared)
    return max((*times, *turns))


def frames_of(problem: Problem) -> list[int]:
    """How many frames may carry the users' rows: one each, or fewer by powers of two where rows share time."""
    fewer = [2**power for power in range(20) if 2**power < problem.users and 2**power <= len(problem.nodes)]
    return [problem.users, *(fewer if any(node.shared for node in problem.nodes) else [])]


def rows_ms(node: NodeProfile, ms: float, rows: int) -> float:
    """What takes `ms` with one row, with several: each further one adds what it does not share."""
    return ms + (rows - 1) * (1 - node.shared) * ms


def between_ms(
    problem: Problem, order: tuple[NodeProfile, ...], computing: list[float], latency: float, frames: int
) -> float:
    """Between two tokens, where `frames` are on their way at once."""
    rows = -(-problem.users // frames)
    times = [rows_ms(node, node.ms_per_step + ms, rows) for node, ms in zip(order, computing, strict=True)]
    frame = sum(times) + latency + problem.head_step_ms + rows * problem.head_row_ms
    return max(frame, frames * busiest(order, times)) / problem.users


def brute_force(problem: Problem) -> dict[int, Best]:
    """For every number of machines that has a plan, its best."""
    found: dict[int, Best] = {}
    layers = problem.model.layers
    for size in range(1, min(len(problem.nodes), layers) + 1):
        options = []
        for order in permutations(problem.nodes, size):
            latency = ring(problem, tuple(node.name for node in order))
            if latency == inf:
                continue
            fits = {
                (place, start, stop): holds(problem, node, start, stop)
                for place, node in enumerate(order)
                for start in range(layers)
                for stop in range(start + 1, layers + 1)
            }
            for cut in cuts(problem, size):
                if all(fits[place, cut[place], cut[place + 1]] for place in range(size)):
                    times = [
                        node.ms_per_stage + layers_ms(node, start, stop)
                        for node, start, stop in zip(order, cut, cut[1:], strict=False)
                    ]
                    times[-1] += order[-1].ms_per_head
                    score = min(between_ms(problem, order, times, latency, each) for each in frames_of(problem))
                    alone = sum(times) + sum(node.ms_per_step for node in order) + latency
                    options.append((score, alone + problem.head_step_ms + problem.head_row_ms))
        if options:
            score = min(option[0] for option in options)
            token = min(token for option, token in options if option <= score * (1 + 1e-9))
            found[size] = Best(score, token)
    return found


def random_problem(seed: int, nodes: int = 5, layers: int = 10) -> Problem:
    """Up to so many nodes and layers; half of them count bytes, half of those have layers of different size.

    Half of all have nodes that need time for the LM head, half have a tied embedding.
    """
    chance = random.Random(seed)
    count, depth = chance.randint(1, nodes), chance.randint(1, layers)
    by_bytes, unequal = chance.random() < 0.6, chance.random() < 0.5
    sizes = tuple(chance.randint(50, 200) if unequal else 100 for _ in range(depth))
    kv = chance.choice((0, 0, 1))
    users, context = chance.choice(USERS), chance.choice((1, 4))
    kept = tuple((kv * (layer % 3), 0) for layer in range(depth)) if seed % 2 else ()
    model = ModelSize(sizes, chance.choice((0, 80)), chance.choice((0, 120)), kv, caches=kept)
    per_layer = 125 + kv * users * context
    room = depth * per_layer * chance.choice((0.4, 0.8, 1.6)) + 100

    def node(index: int) -> NodeProfile:
        speed = chance.choice((chance.uniform(0.1, 20), float(chance.randint(1, 4))))
        overhead = chance.choice((0.0, chance.uniform(0, 10), 2.0))
        if by_bytes and chance.random() < 0.9:
            free = chance.randint(0, int(room))
            return NodeProfile(f"n{index}", speed, overhead, free_bytes=free, reserve_bytes=chance.choice((0, 30)))
        return NodeProfile(f"n{index}", speed, overhead, max_layers=chance.randint(0, depth))

    profiles = tuple(node(index) for index in range(count))
    links = []
    for a, b in combinations(profiles, 2):
        kind = chance.random()
        if kind < 0.6:
            links.append(Link(a.name, b.name, chance.choice((float(chance.randint(0, 3)), chance.uniform(0, 30)))))
        elif kind < 0.75:
            links.append(Link(a.name, b.name, None))
    head = chance.choice((None, *(node.name for node in profiles)))
    hop_ms = chance.choice((1.0, 25.0))
    if chance.random() < 0.5:
        profiles = tuple(
            replace(node, ms_per_head=chance.choice((0.0, 3.0, chance.uniform(0, 40)))) for node in profiles
        )
    if chance.random() < 0.5:
        model = replace(model, tied_bytes=min(model.embed_bytes, model.head_bytes))
    return Problem(model, profiles, tuple(links), hop_ms, head, users, context, 0.0)


def with_rows(problem: Problem, seed: int) -> Problem:
    """The same problem where messages and the head take time, and where most nodes' rows share some of a step."""
    chance = random.Random(seed ^ 0xF00)
    nodes = tuple(
        replace(
            node,
            ms_per_step=chance.choice((0.0, chance.uniform(0, 3))),
            shared=chance.choice((0.0, 0.5, chance.random())),
        )
        for node in problem.nodes
    )
    head_step_ms, head_row_ms = chance.uniform(0, 3), chance.uniform(0, 1)
    return replace(problem, nodes=nodes, head_step_ms=head_step_ms, head_row_ms=head_row_ms)


def with_joined(problem: Problem, seed: int) -> Problem:
    """The same problem where some layers must not begin a stage: a run of them at the end, or any."""
    chance = random.Random(seed ^ 0xBA5E)
    inner = range(1, problem.model.layers)
    joined = [layer for layer in inner if chance.random() < 0.4] if seed % 2 else inner[chance.randint(0, len(inner)) :]
    return replace(problem, model=replace(problem.model, joined=tuple(joined)))


def of_kinds(problem: Problem, seed: int) -> Problem:
    """The same nodes with a model of two kinds of layers, on two backends that hold and compute each kind otherwise."""
    chance = random.Random(-seed)
    kinds = [chance.randint(0, 1) for _ in range(problem.model.layers)]
    backends = [(chance.uniform(0.5, 2), chance.uniform(0.5, 2)) for _ in range(2)]

    def scaled(bytes_: tuple[float, float]) -> ModelSize:
        model = problem.model
        ends = {key: round(getattr(model, key) * bytes_[0]) for key in ("embed_bytes", "head_bytes", "tied_bytes")}
        return replace(
            model, layer_bytes=tuple(x * bytes_[k] for x, k in zip(model.layer_bytes, kinds, strict=True)), **ends
        )

    def node(plain: NodeProfile) -> NodeProfile:
        own = chance.randint(0, 1)
        ms = (plain.ms_per_layer, plain.ms_per_layer * chance.choice((0.3, 2.0, chance.uniform(0.2, 4))))
        layer_ms = tuple(ms[kind] for kind in kinds)
        mean = sum(layer_ms) / len(layer_ms)
        return replace(plain, ms_per_layer=mean, layer_ms=layer_ms, size=scaled(backends[own]) if own else None)

    model = scaled(backends[0])
    return replace(problem, model=model, nodes=tuple(map(node, problem.nodes)))
