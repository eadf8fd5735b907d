"""Layers that no stage may begin with: no search and no strategy cuts there, and whoever asks for it hears why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.planning.brute import brute_force, of_kinds, random_problem, with_joined, with_rows
from together.errors import BadPlan, BadSetting
from together.models.summary import summarize_config
from together.planning.cluster_file import parse_cluster
from together.planning.demand import demand_of
from together.planning.explain import explain, explain_left_out
from together.planning.mend import near_cuts
from together.planning.problem import Assignment, ModelSize, NodeProfile, Problem, Split
from together.planning.recommend import recommend
from together.planning.request import PlanRequest, plan_for
from together.planning.score import score_of, violations
from together.planning.strategies import RULES, by_ratio, custom, uniform_ranges
from together.types import LayerRange


def cluster(joined: tuple[int, ...], *rooms: int, layers: int = 12) -> Problem:
    """Nodes that hold so many layers, the first the fastest."""
    nodes = tuple(NodeProfile(f"n{i}", 1.0 + i, max_layers=room) for i, room in enumerate(rooms))
    return Problem(ModelSize((1,) * layers, joined=joined), nodes, hop_ms=1.0)


def ends(split: Split) -> list[int]:
    return [share.layers.stop for share in split.shares]


def of(*ranges: tuple[int, int]) -> tuple[Assignment, ...]:
    return tuple(Assignment(f"n{i}", LayerRange(*each)) for i, each in enumerate(ranges))


@pytest.mark.parametrize("part", range(4))
def test_the_recommendation_equals_brute_force(part: int) -> None:
    solved = parted = 0
    for seed in range(part * 60, part * 60 + 60):
        problem = with_joined(of_kinds(random_problem(seed), seed), seed)
        problem = with_rows(problem, seed) if seed % 3 == 0 else problem
        best, split = min((each.score for each in brute_force(problem).values()), default=None), recommend(problem)
        if best is None:
            assert split is None, seed
            continue
        assert split is not None, seed
        assert score_of(problem, split).score_ms == pytest.approx(best, rel=1e-9), seed
        assert not violations(problem, split), seed
        solved, parted = solved + 1, parted + (len(split.shares) > 1)
    assert solved > 20
    assert parted > 5


@pytest.mark.parametrize("hops_alike", [True, False])
def test_many_nodes_are_cut_where_layers_may_be(hops_alike: bool) -> None:
    """More nodes than subsets are tried of: the tours obey, and all of its reasons can be given."""
    problem = cluster(tuple(range(7, 30)), *(4,) * 11, 30, layers=30)
    problem = problem if hops_alike else replace(problem, head="n3")
    split = recommend(problem)
    assert split is not None
    assert not violations(problem, split)
    assert explain(problem, split)
    assert len(explain_left_out(problem, split)) == 12 - len(split.shares)


def test_where_no_legal_plan_fits_there_is_none() -> None:
    assert recommend(cluster((), 6, 6)) is not None
    assert recommend(cluster((5, 6, 7), 6, 6)) is None
    assert recommend(cluster((5, 6, 7), 6, 8)) is not None


@pytest.mark.parametrize("rule", RULES)
def test_rules_move_their_cuts(rule: str) -> None:
    problem = cluster(tuple(range(4, 12)), 12, 12, 12)
    split = RULES[rule](problem)
    assert not violations(problem, split)
    assert ends(split)[-1] == 12
    assert len(RULES[rule](cluster(tuple(range(1, 12)), 12, 12)).shares) == 1


def test_a_ratio_moves_its_cuts() -> None:
    problem = cluster((3, 4, 5, 6, 7, 8), 12, 12, 12)
    assert ends(by_ratio(problem, [1, 1])) == [9, 12]
    assert ends(by_ratio(problem, [1, 1, 1])) == [2, 9, 12]
    with pytest.raises(BadPlan, match=r"has 3 parts, and the model's layers can be parted into 2; give fewer"):
        by_ratio(cluster(tuple(range(2, 12)), 12, 12, 12), [1, 1, 1])


def test_a_custom_split_hears_why_not_and_what_would_be_right() -> None:
    problem = cluster((5, 6, 7), 12, 12)
    said = (
        "no stage can begin with layer 6: it, or one behind it, needs what an earlier layer's stage has",
        "right would be n0=0:4,n1=4:12",
    )
    assert tuple(map(str, violations(problem, Split(of((0, 6), (6, 12)))))) == said
    with pytest.raises(BadPlan) as refused:
        plan_for(PlanRequest("custom", assignments=of((0, 6), (6, 12))), problem)
    assert str(refused.value) == "; ".join(said)
    with pytest.raises(BadPlan, match="layer 6"):
        custom(problem, [Assignment("", LayerRange(0, 6)), Assignment("", LayerRange(6, 12))])
    assert not violations(problem, Split(of((0, 8), (8, 12))))


def test_a_remedy_moves_no_layer_that_cannot_move_alone() -> None:
    problem = cluster((5, 6, 7), 6, 12)
    wrong = violations(problem, Split(of((0, 8), (8, 12))))
    assert [str(each) for each in wrong] == [
        "n0 can hold 6 of its 8 layers; not every layer can move alone: plan again, lower the context, or add a node"
    ]


def test_a_part_keeps_its_own() -> None:
    size = ModelSize((1,) * 12, joined=(5, 6, 7))
    assert size.part(LayerRange(4, 12)).joined == (1, 2, 3)
    assert size.part(LayerRange(8, 12)).joined == ()
    assert (size.most_stages, size.cuts) == (9, (1, 2, 3, 4, 8, 9, 10, 11))


def test_uniform_ranges_are_as_even_as_they_can_be() -> None:
    assert [each.stop for each in uniform_ranges(12, 3, (4, 8))] == [3, 7, 12]
    assert [each.stop for each in uniform_ranges(12, 4, tuple(range(3, 12)))] == [1, 2, 12]


@pytest.mark.parametrize(
    ("wished", "possible", "found"),
    [
        ([6], [1, 2, 9], [9]),
        ([4, 6], [1, 2, 9], [2, 9]),
        ([9, 10], [1, 2, 9], [2, 9]),
        ([1, 2, 3], [7], [7]),
        ([1], [], []),
        ([], [3], []),
    ],
)
def test_near_cuts(wished: list[int], possible: list[int], found: list[int]) -> None:
    assert near_cuts(wished, possible) == found


def test_a_config_alone_says_what_keeps_together_and_what_a_first_stage_has_and_sends() -> None:
    """Gemma 4 E2B's shape."""
    kinds = (["sliding_attention"] * 4 + ["full_attention"]) * 7
    shape = {"model_type": "gemma4_text", "hidden_size": 1536, "num_hidden_layers": 35, "num_kv_shared_layers": 20}
    each = {"num_key_value_heads": 1, "layer_types": kinds, "use_double_wide_mlp": True, "intermediate_size": 6144}
    demand = demand_of("m", summarize_config("m", shape | each))
    assert demand.size.cuts == tuple(range(1, 14))
    assert demand.size.embed_bytes - demand.size.tied_bytes == 2 * (262144 * 35 * 256 + 35 * 256 * 1536 + 256)
    assert demand.size.layer_bytes[15] > 1.5 * demand.size.layer_bytes[13]
    assert demand.state_bytes == 2 * (1536 + 34 * 256)


@pytest.mark.parametrize("layer", [0, 3, -1, 1.5, True, "2"])
def test_a_cluster_file_names_layers_that_can_be_joined(layer: object) -> None:
    shown = {True: "true", "2": '"2"'}.get(layer, layer)
    text = f'{{"model": {{"layers": 3, "layer_bytes": 1, "joined": [{shown}]}}, "nodes": []}}'
    with pytest.raises(BadSetting, match=r"model\.joined must list layers behind the first one, up to 2"):
        parse_cluster(text)
