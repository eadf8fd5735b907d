"""The recommendation against brute force, its invariants, the cases that break others, and how much work it is."""

from __future__ import annotations

import random
from dataclasses import astuple, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.planning.brute import Best, brute_force, of_kinds, random_problem
from tests.support.work import calls_of
from together.desktop.bench.small import CASES, Case, made_up
from together.planning.explain import explain
from together.planning.problem import Link, ModelSize, NodeProfile, Problem, Split
from together.planning.recommend import recommend
from together.planning.score import score_of

MOST_CALLS = 60_000  # twice what it is; `bench plan` shows the time


def check_plan(problem: Problem, split: Split) -> None:
    """Contiguous layers from the first to the last, each node once, every cap kept, every hop usable."""
    assert split.shares[0].layers.start == 0
    assert split.shares[-1].layers.stop == problem.model.layers
    pairs = zip(split.shares, split.shares[1:], strict=False)
    assert all(before.layers.stop == after.layers.start for before, after in pairs)
    assert len(set(split.nodes)) == len(split.nodes)
    for share in split.shares:
        node = problem.node(share.node)
        fits = problem.stage_bytes(share.layers, node) <= node.room_bytes
        assert fits if node.max_layers is None else len(share.layers) <= node.max_layers
    assert score_of(problem, split).token_ms < float("inf")


def best_score(problem: Problem) -> float:
    split = recommend(replace(problem, tolerance=0.0))
    return float("inf") if split is None else score_of(problem, split).score_ms


# --- exactness --------------------------------------------------------------------------------------------------------


def expected(found: dict[int, Best], tolerance: float) -> tuple[Best, int | None]:
    """What must come out, and of how many machines (None: any of the best)."""
    lowest = min(best.score for best in found.values())
    near = {size: best for size, best in found.items() if best.score <= lowest * (1 + tolerance + 1e-9)}
    if tolerance > 0:
        return near[min(near)], min(near)
    return min(near.values(), key=lambda best: best.token_ms), None


@pytest.mark.parametrize("kinds", [False, True], ids=["alike", "kinds"])
@pytest.mark.parametrize("part", [*range(5), *(pytest.param(part, marks=pytest.mark.full) for part in range(5, 10))])
def test_equals_brute_force(part: int, kinds: bool) -> None:
    solved = 0
    for seed in range(part * 50, part * 50 + 50):
        problem = of_kinds(random_problem(seed), seed) if kinds else random_problem(seed)
        found = brute_force(problem)
        for tolerance in (0.0, 0.1):
            split = recommend(replace(problem, tolerance=tolerance))
            if not found:
                assert split is None, seed
                continue
            assert split is not None, seed
            check_plan(problem, split)
            best, size = expected(found, tolerance)
            score = score_of(problem, split)
            assert score.score_ms == pytest.approx(best.score, rel=1e-9), seed
            assert score.token_ms == pytest.approx(best.token_ms, rel=1e-9), seed
            assert size is None or len(split.shares) == size, seed
            solved += 1
    assert solved > 40, "most of the random problems must have a plan, or this tests nothing"


@pytest.mark.full
@pytest.mark.parametrize("kinds", [False, True], ids=["alike", "kinds"])
def test_equals_brute_force_on_many_more(kinds: bool) -> None:
    for seed in range(1000, 6000):
        problem = of_kinds(random_problem(seed), seed) if kinds else random_problem(seed)
        found = brute_force(problem)
        assert best_score(problem) == pytest.approx(expected(found, 0.0)[0].score if found else float("inf"), rel=1e-9)


# --- invariants -------------------------------------------------------------------------------------------------------

EXAMPLES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
problems = st.integers(0, 10**6).map(lambda seed: random_problem(seed, nodes=7, layers=16))


def no_worse(after: float, before: float) -> bool:
    return after == before or after <= before * (1 + 1e-9)


@EXAMPLES
@given(problems)
def test_a_plan_is_whole_and_keeps_every_cap(problem: Problem) -> None:
    for tolerance in (0.0, 0.1):
        split = recommend(replace(problem, tolerance=tolerance))
        if split is not None:
            check_plan(problem, split)


@EXAMPLES
@given(problems, st.randoms(use_true_random=False))
def test_the_order_of_the_input_changes_nothing(problem: Problem, chance: random.Random) -> None:
    nodes, links = list(problem.nodes), list(problem.links)
    chance.shuffle(nodes)
    chance.shuffle(links)
    turned = tuple(Link(link.b, link.a, link.ms) if chance.random() < 0.5 else link for link in links)
    for tolerance in (0.0, 0.1):
        first = recommend(replace(problem, tolerance=tolerance))
        again = recommend(replace(problem, tolerance=tolerance))
        other = recommend(replace(problem, tolerance=tolerance, nodes=tuple(nodes), links=turned))
        assert first == again == other


@EXAMPLES
@given(problems, st.integers(0, 10**6))
def test_one_more_node_is_never_worse(problem: Problem, seed: int) -> None:
    extra = replace(random_problem(seed, nodes=1).nodes[0], name="extra")
    more = replace(problem, nodes=(*problem.nodes, extra))
    assert no_worse(best_score(more), best_score(problem))


@EXAMPLES
@given(problems, st.data())
def test_more_room_or_speed_is_never_worse(problem: Problem, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(problem.nodes) - 1))
    node = problem.nodes[place]
    if node.max_layers is None:
        assert node.free_bytes is not None
        roomier = replace(node, free_bytes=node.free_bytes + data.draw(st.integers(1, 1000)))
    else:
        roomier = replace(node, max_layers=node.max_layers + 1)
    faster = replace(node, ms_per_layer=node.ms_per_layer * 0.7, ms_per_stage=node.ms_per_stage * 0.7)
    for better in (roomier, faster, replace(node, ms_per_head=node.ms_per_head * 0.7)):
        nodes = (*problem.nodes[:place], better, *problem.nodes[place + 1 :])
        assert no_worse(best_score(replace(problem, nodes=nodes)), best_score(problem))


@pytest.mark.parametrize("lm_head", [0.0, 30.0])
@pytest.mark.parametrize("seed", range(12))
def test_many_nodes_are_near_the_optimum(seed: int, lm_head: float) -> None:
    """Equal hops, room in layers: the tours are exact, so a score of all by subsets cannot be lower."""
    chance = random.Random(seed)
    users = chance.choice((1, 3, 50))
    good = [NodeProfile(f"a{i}", chance.uniform(1, 3), chance.uniform(0, 3), chance.randint(3, 9)) for i in range(8)]
    good = [replace(node, ms_per_head=chance.uniform(0, lm_head)) for node in good]
    useless = [NodeProfile(f"b{i}", 500.0, 500.0, 1) for i in range(6)]
    problem = Problem(ModelSize((0,) * 22), tuple(good), hop_ms=2.0, users=users, head=chance.choice((None, "a2")))
    many = replace(problem, nodes=tuple(useless + good))
    assert best_score(many) == pytest.approx(best_score(problem), rel=1e-9)
    split = recommend(many)
    assert split is not None
    check_plan(many, split)


def test_many_nodes_with_uneven_links_are_mostly_at_the_optimum() -> None:
    """Six nodes that nobody would use take the search away from the subsets, and little from the result."""
    ratios = []
    for seed in range(60):
        problem = replace(random_problem(seed, nodes=7, layers=24), tolerance=0.0)
        exact = best_score(problem)
        useless = tuple(NodeProfile(f"x{i}", 900.0, 900.0, 1) for i in range(6))
        far = tuple(Link(node.name, other.name, 500.0) for node in useless for other in problem.nodes)
        found = best_score(replace(problem, nodes=(*problem.nodes, *useless), links=(*problem.links, *far)))
        if exact < float("inf"):
            ratios.append(found / exact)
    assert len(ratios) > 30
    assert max(ratios) < 1.3
    assert sum(ratio < 1 + 1e-9 for ratio in ratios) > 0.9 * len(ratios)


# --- cases that break others ------------------------------------------------------------------------------------------


def cluster(layers: int, *nodes: tuple[float, int], **more: object) -> Problem:
    """Nodes a, b, c, … of (ms per layer, most layers), 1 ms apart."""
    profiles = tuple(NodeProfile("abcdefghij"[i], speed, max_layers=most) for i, (speed, most) in enumerate(nodes))
    return replace(Problem(ModelSize((0,) * layers), profiles, hop_ms=1.0), **more)  # type: ignore[arg-type]


def counts(problem: Problem) -> dict[str, int]:
    split = recommend(problem)
    assert split is not None
    check_plan(problem, split)
    return {share.node: len(share.layers) for share in split.shares}


def test_uneven_layer_counts() -> None:
    assert sorted(counts(cluster(28, (1, 28), (1, 28), (1, 28), users=1000)).values()) == [9, 9, 10]
    assert sorted(counts(cluster(32, *[(1, 32)] * 5, users=1000)).values(), reverse=True) == [7, 7, 6, 6, 6]


def test_more_nodes_than_layers() -> None:
    assert counts(cluster(2, *[(1, 1)] * 6)) == {"a": 1, "b": 1}
    assert counts(cluster(3, *[(1, 3)] * 10, users=1000)) == {"a": 1, "b": 1, "c": 1}


def test_one_node() -> None:
    problem = cluster(28, (1.5, 28))
    assert counts(problem) == {"a": 28}
    assert best_score(problem) == 42.0


def test_nodes_of_one_speed_share_alike_and_the_head_begins() -> None:
    problem = cluster(20, (1, 14), (1, 14), (1, 14), head="b", tolerance=0.0)
    split = recommend(problem)
    assert split is not None
    assert (split.nodes, [len(share.layers) for share in split.shares]) == (("b", "a"), [10, 10])


def test_times_of_zero() -> None:
    assert counts(cluster(4, (0, 4), (0, 4), hop_ms=0.0, users=8)) == {"a": 4}


def test_a_hundred_nodes() -> None:
    nodes = [(1 + i % 7, 2) for i in range(100)]
    profiles = tuple(NodeProfile(f"n{i:03}", speed, 0.0, most) for i, (speed, most) in enumerate(nodes))
    problem = Problem(ModelSize((0,) * 150), profiles, hop_ms=1.0, users=1000)
    split = recommend(problem)
    assert split is not None
    check_plan(problem, split)
    assert (
        score_of(problem, split).slowest_stage_ms == 8.0
    )  # two layers up to 4 ms each, one on the others; 7 ms would hold 143


def test_no_capacity_at_all() -> None:
    assert recommend(cluster(4, (1, 0), (1, 0))) is None
    assert counts(cluster(4, (1, 0), (9, 4))) == {"b": 4}


def test_an_unmeasured_link_is_slow_and_not_free() -> None:
    problem = cluster(10, (1, 9), (1, 9), (1.5, 9), hop_ms=25.0, links=(Link("a", "c", 1.0),))
    assert counts(problem) == {"a": 9, "c": 1}


def test_an_unusable_link_is_never_used() -> None:
    apart = cluster(10, (1, 5), (1, 5), links=(Link("a", "b", None),))
    assert recommend(apart) is None
    around = replace(apart, nodes=(*apart.nodes, NodeProfile("c", 1.0, max_layers=5)))
    assert len(counts(around)) == 2


def test_room_that_no_equal_part_fits() -> None:
    nodes = tuple(NodeProfile(name, 1.0, free_bytes=free) for name, free in (("a", 290), ("b", 390), ("c", 500)))
    taken = counts(Problem(ModelSize((100,) * 10), nodes))
    assert taken == {"a": 2, "b": 3, "c": 5}


@pytest.mark.parametrize("layers", range(2, 30))
def test_room_for_fractions_of_bytes_is_room(layers: int) -> None:
    model = ModelSize((100.1,) * layers)
    room = sum(model.layer_bytes)
    split = recommend(Problem(model, (NodeProfile("n0", 1.0, free_bytes=room),)))
    assert split is not None
    assert len(split.shares[0].layers) == layers


def test_the_fast_node_is_filled_first() -> None:
    nodes = (NodeProfile("small", 1.0, free_bytes=32e9), NodeProfile("large", 4.0, free_bytes=64e9))
    assert counts(Problem(ModelSize((10**9,) * 80), nodes)) == {"small": 32, "large": 48}


def test_embedding_and_head_stand_at_the_ends() -> None:
    """Only `big` can hold an end beside a layer, so it takes both only where it is alone."""
    nodes = (
        NodeProfile("a", 1.0, free_bytes=200),
        NodeProfile("b", 1.0, free_bytes=390),
        NodeProfile("c", 1.0, free_bytes=390),
    )
    split = recommend(Problem(ModelSize((100,) * 4, 290, 290), nodes))
    assert split is not None
    assert [len(share.layers) for share in split.shares] == [1, 2, 1]
    assert split.nodes[1] == "a"


def test_the_last_stage_has_the_lm_head() -> None:
    """The fast node is full either way; who draws slowly stands before it."""
    nodes = (NodeProfile("a", 1.0, max_layers=6), NodeProfile("b", 2.0, max_layers=9, ms_per_head=30.0))
    problem = Problem(ModelSize((0,) * 10), nodes, hop_ms=1.0, tolerance=0.0)
    split = recommend(problem)
    assert split is not None
    assert (split.nodes, [len(share.layers) for share in split.shares]) == (("b", "a"), [4, 6])
    drawing = replace(problem, nodes=(replace(nodes[0], ms_per_head=40.0), nodes[1]))
    turned = recommend(drawing)
    assert turned is not None
    assert turned.nodes == ("a", "b")
    assert score_of(drawing, turned).token_ms == 6 + 8 + 30 + 2


def test_an_lm_head_takes_layers_from_a_stage_for_many() -> None:
    """Ten layers' time for the LM head: 15 layers and it on one, 25 on the other."""
    nodes = (NodeProfile("a", 1.0, max_layers=40, ms_per_head=10.0), NodeProfile("b", 1.0, max_layers=40))
    problem = Problem(ModelSize((0,) * 40), nodes, hop_ms=0.0, users=1000)
    blind = {share.node: len(share.layers) for share in _split(problem).shares}
    assert blind == {"a": 20, "b": 20}
    both = replace(problem, nodes=(nodes[0], replace(nodes[1], ms_per_head=10.0)))
    assert [len(share.layers) for share in _split(both).shares] == [25, 15]
    assert score_of(both, _split(both)).slowest_stage_ms == 25.0


def test_a_tied_embedding_counts_once_where_one_node_has_both_ends() -> None:
    model = ModelSize((100,) * 4, 290, 300, tied_bytes=290)
    nodes = (NodeProfile("a", 1.0, free_bytes=700), NodeProfile("b", 1.0, free_bytes=700))
    assert _split(Problem(model, nodes)).nodes == ("a",)
    assert len(_split(Problem(replace(model, tied_bytes=289), nodes)).shares) == 2
    assert len(_split(Problem(replace(model, layer_bytes=(100, 100, 101, 99)), nodes)).shares) == 1
    assert len(_split(Problem(replace(model, layer_bytes=(100, 100, 101, 100)), nodes)).shares) == 2


def _split(problem: Problem) -> Split:
    split = recommend(problem)
    assert split is not None
    check_plan(problem, split)
    return split


def test_fewest_machines_within_the_tolerance() -> None:
    problem = cluster(10, (1.0, 9), (1.0, 10), (1.05, 10), hop_ms=0.0)
    nodes = (NodeProfile("fast", 1.0, max_layers=9), NodeProfile("other", 1.05, max_layers=10))
    close = replace(problem, nodes=nodes)
    assert counts(replace(close, tolerance=0.1)) == {"other": 10}
    assert counts(replace(close, tolerance=0.0)) == {"fast": 9, "other": 1}
    assert counts(replace(close, tolerance=0.04)) == {"fast": 9, "other": 1}


# --- nodes that share a processor -------------------------------------------------------------------------------------


def twins(users: int, most: int) -> Problem:
    """Two nodes of one machine and one of another, that is a third slower; twelve layers."""
    nodes = (
        NodeProfile("a", 3.0, max_layers=most, processor="a"),
        NodeProfile("b", 3.0, max_layers=most, processor="a"),
        NodeProfile("c", 4.0, max_layers=12),
    )
    return Problem(ModelSize((0,) * 12), nodes, hop_ms=0.0, users=users, tolerance=0.0)


def test_nodes_of_one_machine_are_no_two_machines() -> None:
    """Seven layers on a and five on c: with b, which is a, a third would be faster only in words."""
    problem = twins(1000, most=12)
    split = _split(problem)
    assert {share.node: len(share.layers) for share in split.shares} == {"a": 7, "c": 5}
    assert score_of(problem, split).score_ms == 21
    apart = replace(problem, nodes=tuple(replace(node, processor="") for node in problem.nodes))
    assert score_of(apart, _split(apart)).score_ms == 15


def test_nodes_of_one_machine_take_turns_where_both_are_needed() -> None:
    problem = replace(twins(1000, most=6), nodes=twins(1000, most=6).nodes[:2])
    split = _split(problem)
    score = score_of(problem, split)
    assert len(split.shares) == 2
    assert (score.slowest_stage_ms, score.busiest_ms, score.score_ms) == (18, 36, 36)
    assert str(explain(problem, split)[-1]).endswith(
        "takes 18.0 ms, and stages of one machine take turns, 36.0 ms in all"
    )


def test_for_one_person_nothing_takes_turns() -> None:
    for most in (6, 12):
        problem = twins(1, most)
        apart = replace(problem, nodes=tuple(replace(node, processor="") for node in problem.nodes))
        assert recommend(problem) == recommend(apart)


def test_with_shared_processors_it_is_the_best_but_for_a_few() -> None:
    exact = solved = 0
    for seed in range(150):
        plain = random_problem(seed, nodes=4, layers=6)
        alike = plain.nodes[0]
        nodes = (
            replace(node, ms_per_layer=alike.ms_per_layer, ms_per_stage=alike.ms_per_stage, processor="x")
            for node in plain.nodes[:3]
        )
        problem = replace(plain, nodes=(*nodes, *plain.nodes[3:]))
        found, split = brute_force(problem), recommend(problem)
        assert (split is None) == (not found), seed
        if split is not None:
            check_plan(problem, split)
            score, best = score_of(problem, split).score_ms, min(each.score for each in found.values())
            assert score >= best * (1 - 1e-9), seed
            exact += score <= best * (1 + 1e-9)
            solved += 1
    assert exact > 0.95 * solved > 50


# --- work -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(part) for part in astuple(case)))
def test_it_answers_without_much_work(case: Case) -> None:
    problem = made_up(case)
    recommend(problem)  # the first one imports
    assert calls_of(lambda: recommend(problem)) < MOST_CALLS
