"""Strategies, the one check, the network's figures, and the sentences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest

from together.errors import BadPlan
from together.planning.explain import explain, explain_left_out, explain_missing, explain_rule, explain_tolerance
from together.planning.problem import Assignment, Link, ModelSize, NodeProfile, Problem, Smaller, Split
from together.planning.recommend import recommend
from together.planning.report import NetworkTarget, network_of
from together.planning.request import parse_layers
from together.planning.score import violations
from together.planning.strategies import (
    by_compute,
    by_memory,
    by_ratio,
    custom,
    limit_partitions,
    mixed,
    uniform,
)
from together.sentences import Sentence
from together.types import LayerRange

GB = 10**9


def cluster(layers: int, *nodes: NodeProfile, layer_bytes: int = GB, **ends: int) -> Problem:
    model = replace(ModelSize((layer_bytes,) * layers), **ends)  # type: ignore[arg-type]
    return Problem(model, nodes, hop_ms=1.0)


def node(name: str, ms: float = 1.0, gb: float = 100) -> NodeProfile:
    return NodeProfile(name, ms, free_bytes=gb * GB)


def counts(split: Split) -> dict[str, int]:
    return {share.node: len(share.layers) for share in split.shares}


def texts(sentences: Iterable[Sentence]) -> list[str]:
    return list(map(str, sentences))


def wrong(problem: Problem, split: Split) -> list[tuple[str, str]]:
    return [(item.code, str(item)) for item in violations(problem, split)]


# --- strategies -------------------------------------------------------------------------------------------------------


def test_uniform() -> None:
    assert counts(uniform(cluster(28, node("a"), node("b"), node("c")))) == {"a": 10, "b": 9, "c": 9}
    assert counts(uniform(cluster(32, *map(node, "abcde")))) == {"a": 7, "b": 7, "c": 6, "d": 6, "e": 6}
    assert counts(uniform(cluster(2, *map(node, "abcde")))) == {"a": 1, "b": 1}
    with pytest.raises(BadPlan, match="no node can hold"):
        uniform(cluster(2, node("a", gb=0)))


def test_by_memory() -> None:
    assert counts(by_memory(cluster(16, node("a", gb=30), node("b", gb=10), node("c", gb=0)))) == {"a": 12, "b": 4}


def test_no_partition_is_larger_than_wished() -> None:
    problem = limit_partitions(cluster(16, node("a", gb=30), node("b", gb=10), node("c", gb=3)), 8 * GB)
    split = by_memory(problem)
    assert counts(split) == {"a": 7, "b": 7, "c": 2}
    assert wrong(problem, split) == []
    layers = limit_partitions(cluster(16, NodeProfile("a", 1.0, max_layers=16)), 4.5 * GB)
    assert layers.nodes[0].max_layers == 4


def test_by_compute() -> None:
    assert counts(by_compute(cluster(32, node("a"), node("b")))) == {"a": 16, "b": 16}
    assert counts(by_compute(cluster(32, node("a", 1), node("b", 3)))) == {"a": 24, "b": 8}
    assert counts(by_compute(cluster(32, node("a", 1, gb=20), node("b", 3)))) == {"a": 20, "b": 12}


def test_by_compute_the_lm_head_counts_as_layers() -> None:
    """Of 32 layers and a head worth 8, each has 20; who cannot even have the head in its time gets nothing."""
    heads = tuple(replace(node(name), ms_per_head=8.0) for name in "ab")
    assert counts(by_compute(cluster(32, *heads))) == {"a": 20, "b": 12}
    slow = (replace(node("a"), ms_per_head=2.0), node("b"), replace(node("c"), ms_per_head=90.0))
    assert counts(by_compute(cluster(32, *slow))) == {"a": 16, "b": 16}
    assert counts(by_compute(cluster(32, slow[2], slow[1], slow[0]))) == {"c": 12, "b": 11, "a": 9}


def test_mixed_counts_the_lm_head_by_half() -> None:
    assert counts(mixed(cluster(32, *(replace(node(name), ms_per_head=8.0) for name in "ab")))) == {"a": 18, "b": 14}


def test_a_single_stage_by_memory_counts_a_tied_embedding_once() -> None:
    problem = cluster(4, node("a", gb=6), embed_bytes=2 * GB, head_bytes=2 * GB, tied_bytes=2 * GB)
    assert wrong(problem, by_memory(problem)) == []
    assert [kind for kind, _ in wrong(*_untied(problem))] == ["needs_memory"]


def _untied(problem: Problem) -> tuple[Problem, Split]:
    untied = replace(problem, model=replace(problem.model, tied_bytes=0))
    return untied, by_memory(untied)


def test_mixed_lies_between() -> None:
    problem = cluster(32, node("a", 1, gb=16), node("b", 3, gb=48))
    assert counts(by_memory(problem)) == {"a": 8, "b": 24}
    assert counts(mixed(problem)) == {"a": 16, "b": 16}
    assert counts(by_compute(problem)) == {"a": 16, "b": 16}


def test_a_ratio_is_a_ratio() -> None:
    problem = cluster(16, node("a"), node("b"))
    assert counts(by_ratio(problem, [3, 1])) == counts(by_ratio(problem, [12, 4])) == {"a": 12, "b": 4}
    assert counts(by_ratio(replace(problem, model=ModelSize((0,) * 16)), [3, 1])) == {"a": 12, "b": 4}


def test_a_ratio_counts_embedding_and_head() -> None:
    """16 layers and 4 of embedding: 3 : 1 of 20 is 15 : 5, and the embedding is 4 of the 15."""
    problem = cluster(16, node("a"), node("b"), embed_bytes=4 * GB)
    assert counts(by_ratio(problem, [3, 1])) == {"a": 11, "b": 5}
    ends = cluster(16, node("a"), node("b"), embed_bytes=2 * GB, head_bytes=6 * GB)
    assert counts(by_ratio(ends, [1, 1])) == {"a": 10, "b": 6}


@pytest.mark.parametrize(("ratio", "said"), [([0, 0], "3:1"), ([-1, 2], "3:1"), ([1, 1, 1], "2 nodes")])
def test_a_ratio_that_is_none(ratio: list[float], said: str) -> None:
    with pytest.raises(BadPlan, match=said):
        by_ratio(cluster(16, node("a"), node("b")), ratio)


def test_layers_without_names_go_to_the_nodes_in_their_order() -> None:
    problem = cluster(4, node("a"), node("b"))
    assert counts(custom(problem, parse_layers("0:3,3:4"))) == {"a": 3, "b": 1}
    assert custom(problem, parse_layers("b=0:4")).nodes == ("b",)
    with pytest.raises(BadPlan, match="3 ranges and there are 2 nodes"):
        custom(problem, parse_layers("0:1,1:2,2:4"))


# --- the check --------------------------------------------------------------------------------------------------------


def shares(*parts: tuple[str, int, int]) -> Split:
    return Split(tuple(Assignment(name, LayerRange(start, stop)) for name, start, stop in parts))


@pytest.mark.parametrize(
    ("parts", "kind", "said"),
    [
        ([("a", 0, 2), ("b", 3, 4)], "gap", "layers 2:3 are in no range"),
        ([("a", 0, 3), ("b", 2, 4)], "overlap", "layers 2:3 are in two ranges"),
        ([("a", 0, 3)], "gap", "layers 3:4 are in no range"),
        ([("a", 0, 5)], "beyond", "there are no layers 4:5: the model has 4"),
        ([("b", 2, 4), ("a", 0, 2)], "wrong_order", "the ranges are not in the order of the layers"),
        ([("a", 0, 2), ("z", 2, 4)], "no_node", "there is no node z; there are: a, b, c"),
        ([("a", 0, 2), ("a", 2, 4)], "node_twice", "node a is named twice"),
        (
            [("b", 0, 4)],
            "needs_memory",
            "b can hold 3 of its 4 layers: 0:4 need 4.0 GB, it may use 3.0 GB; give 1 of them to a",
        ),
        ([("c", 0, 4)], "too_many_layers", "c can hold 2 of its 4 layers; give 2 of them to b"),
        ([("a", 0, 2), ("c", 2, 4)], "unusable_link", "the link between a and c cannot be used"),
    ],
)
def test_everything_wrong_is_a_sentence(parts: list[tuple[str, int, int]], kind: str, said: str) -> None:
    nodes = (node("a"), node("b", gb=3), NodeProfile("c", 1.0, max_layers=2))
    problem = replace(cluster(4, *nodes), links=(Link("a", "c", None),))
    found = wrong(problem, shares(*parts))
    assert [code for code, _ in found if code != "right_ranges"] == [kind]
    assert said in found[0][1]


def test_all_that_is_wrong_is_said_at_once() -> None:
    problem = cluster(9, node("a", gb=1), node("b"))
    assert wrong(problem, shares(("a", 1, 4), ("x", 3, 5))) == [
        ("gap", "layers 0:1 are in no range"),
        ("overlap", "layers 3:4 are in two ranges"),
        ("gap", "layers 5:9 are in no range"),
        ("right_ranges", "right would be a=0:4,x=4:9"),
        ("no_node", "there is no node x; there are: a, b"),
    ]


@pytest.mark.parametrize(
    ("room", "parts", "said"),
    [
        (
            (20, 9, 9),
            (23, 5, 0),
            ["a can hold 20 of its 23 layers: 0:23 need 23.0 GB, it may use 20.0 GB; give 3 of them to b"],
        ),
        (
            (20, 6, 9),
            (23, 5, 0),
            [
                "a can hold 20 of its 23 layers: 0:23 need 23.0 GB, it may use 20.0 GB; "
                "give 1 of them to b and 2 of them to c"
            ],
        ),
        (
            (9, 20, 9),
            (5, 5, 18),
            ["c can hold 9 of its 18 layers: 10:28 need 18.0 GB, it may use 9.0 GB; give 9 of them to b"],
        ),
        (
            (10, 10, 8),
            (11, 11, 6),
            [
                "a can hold 10 of its 11 layers: 0:11 need 11.0 GB, it may use 10.0 GB; give 1 of them to c",
                "b can hold 10 of its 11 layers: 11:22 need 11.0 GB, it may use 10.0 GB; give 1 of them to c",
            ],
        ),
        (
            (9, 9, 9),
            (9, 9, 10),
            [
                "c can hold 9 of its 10 layers: 18:28 need 10.0 GB, it may use 9.0 GB; "
                "no other node has room for them; lower the context, or add a node"
            ],
        ),
    ],
)
def test_who_takes_what_is_too_much(room: tuple[int, ...], parts: tuple[int, ...], said: list[str]) -> None:
    problem = cluster(28, *(node(name, gb=gb) for name, gb in zip("abc", room, strict=True)))
    ends = [0, *accumulate(parts)]
    split = shares(*((name, a, b) for name, (a, b) in zip("abc", pairwise(ends), strict=True) if a < b))
    assert [text for _, text in wrong(problem, split)] == said


def test_nobody_is_advised_to_use_a_broken_link() -> None:
    problem = replace(cluster(4, node("a", gb=3), node("b")), links=(Link("a", "b", None),))
    assert [text for _, text in wrong(problem, shares(("a", 0, 4)))] == [
        "a can hold 3 of its 4 layers: 0:4 need 4.0 GB, it may use 3.0 GB; "
        "no other node has room for them; lower the context, or add a node"
    ]


# --- network ----------------------------------------------------------------------------------------------------------


def test_the_network_of_eight_stages() -> None:
    """16 KiB per hop; a fifth of 50 ms over 8 hops is 1.25 ms; 1,000 tokens are 131 Mbit, eight times in a second."""
    network = network_of(8192, "bf16", 8, NetworkTarget(20, 1000, 1.0))
    assert network.bytes_per_token_and_hop == 16384
    assert network.mbit_per_s == pytest.approx(105, abs=0.5)
    assert network.ms == pytest.approx(1.25)
    assert network.prompt_mbit_per_s == pytest.approx(1050, rel=0.005)
    assert network_of(8192, "bf16", 0, NetworkTarget()).mbit_per_s == 0


# --- sentences --------------------------------------------------------------------------------------------------------


def test_why_each_node_has_its_layers_and_one_was_left_out() -> None:
    problem = cluster(
        40, node("Studio", 1, gb=24), node("Mini", 2, gb=24), NodeProfile("Laptop", 3.2, 2.0, 40), node("Pi", 9, gb=0.5)
    )
    split = recommend(problem)
    assert split is not None
    assert counts(split) == {"Studio": 24, "Mini": 16}
    assert [line for line in map(str, explain(problem, split)) if line.startswith("Studio")] == [
        "Studio takes 24 layers (16:40): at 1.0 ms per layer, as many as its memory holds"
    ]
    assert any(
        line.startswith("Mini takes 16 layers (0:16): at 2.0 ms per layer, what the")
        for line in map(str, explain(problem, split))
    )
    left_out = {node: str(why) for node, why in explain_left_out(problem, split).items()}
    assert left_out == {
        "Laptop": "Laptop left out: it would make each token 4.2 ms slower",  # 2 more, one layer 1.2 slower, a hop
        "Pi": "Pi left out: it has 0.5 GB to give, and one layer takes 1.0 GB",
    }


def test_the_lm_head_is_named_where_it_takes_time() -> None:
    problem = cluster(4, replace(node("a", 1, gb=3), ms_per_head=4.0), replace(node("b", 1.5, gb=3), ms_per_head=9.0))
    split = recommend(problem)
    assert split is not None
    sentences = list(map(str, explain(problem, split)))
    assert [line.partition(" takes")[0] for line in sentences if "LM head" in line] == ["a"]
    assert sentences[1].endswith("; as the last one it also has the LM head, 4.0 ms")
    assert sentences[-1] == "a token takes 10.5 ms: 8.5 ms of computing and 2.0 ms on 2 hops"
    ruled, _ = explain_rule(problem, split, "compute")
    assert str(ruled[1]) == "a takes 3 layers (1:4) by compute: 7.0 ms; as the last one it also has the LM head, 4.0 ms"


def test_a_tied_embedding_is_not_missing_twice() -> None:
    problem = cluster(4, node("a", gb=3), embed_bytes=GB, head_bytes=GB, tied_bytes=GB)
    assert recommend(problem) is None
    alone = replace(problem, nodes=(node("a", gb=1.5),))
    assert explain_missing(alone).bytes == 5 * GB
    assert "add a node with 5.0 GB free, or free as much on the others" in texts(explain_missing(alone).suggestions)
    assert recommend(replace(problem, nodes=(node("a", gb=5),))) is not None
    assert recommend(replace(problem, nodes=(node("a", gb=4.9),))) is None


def test_why_a_faster_plan_was_passed_over() -> None:
    nodes = (NodeProfile("fast", 1.0, max_layers=9), NodeProfile("other", 1.05, max_layers=10))
    problem = replace(cluster(10, *nodes), hop_ms=0.0)
    split = recommend(problem)
    assert split is not None
    assert texts(explain_tolerance(problem, split)) == [
        "2 machines would be 4.5% faster, which is not worth 1 machine more that can fail",
    ]
    assert "only 0.45 ms faster" in str(next(iter(explain_left_out(problem, split).values())))


def test_what_is_missing_and_what_would_make_it_fit() -> None:
    model = ModelSize((GB,) * 10, kv_bytes_per_token_per_layer=100_000)
    four = Smaller(4, replace(model, layer_bytes=(GB * 0.28,) * 10))
    problem = Problem(model, (node("a", gb=4), node("b", gb=4)), context=16384, smaller=(four,))
    assert recommend(problem) is None
    missing = explain_missing(problem)
    assert missing.layers == 10 - 2
    assert missing.bytes == 8 * (GB + 16384 * 100_000)
    assert "hold 2 of its 10 layers; 21.1 GB are missing with a context of 16384 for 1 user" in str(missing.error)
    assert "quantize it to 4 bits with a context of 4096 for one user: --quantize 4" in texts(missing.suggestions)
    assert "add a node with 21.1 GB free, or free as much on the others" in texts(missing.suggestions)
    shorter = replace(problem, model=replace(model, layer_bytes=(GB // 10,) * 10))
    assert "lower the context from 16384 to 4096" in texts(explain_missing(shorter).suggestions)


def test_missing_layers_and_missing_links() -> None:
    nodes = (NodeProfile("a", 1.0, max_layers=5), NodeProfile("b", 1.0, max_layers=6))
    missing = explain_missing(Problem(ModelSize((0,) * 14), nodes))
    assert (missing.layers, missing.bytes) == (3, 0)
    assert texts(missing.suggestions) == ["add a node that holds 3 layers, or let the nodes hold that many more"]
    apart = Problem(ModelSize((0,) * 10), nodes, (Link("a", "b", None),))
    assert "make the unusable links work: between a and b" in texts(explain_missing(apart).suggestions)
    assert explain_missing(apart).layers == 4
