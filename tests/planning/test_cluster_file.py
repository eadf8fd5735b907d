"""The cluster file, written and read again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from together.errors import BadSetting
from together.planning.cluster_file import parse_cluster, problem_json
from together.planning.problem import Link, ModelSize, NodeProfile, Problem

EXAMPLES = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
numbers = st.one_of(st.integers(0, 10**15), st.floats(0, 1e15))
names = st.text(min_size=1, max_size=12).filter(lambda text: bool(text.strip()))
shared = st.one_of(st.just(""), names)  # processors


@st.composite
def models(draw: st.DrawFn) -> ModelSize:
    layers = draw(st.one_of(st.lists(numbers, min_size=1, max_size=6), numbers.map(lambda size: [size] * 7)))
    embed, head = draw(numbers), draw(numbers)
    tied = draw(st.sampled_from((0, min(embed, head), min(embed, head) / 2)))
    joined = tuple(layer for layer in range(1, len(layers)) if draw(st.booleans()))
    return ModelSize(tuple(layers), embed, head, draw(numbers), tied, draw(numbers), joined)


@st.composite
def kinds(draw: st.DrawFn, node: NodeProfile, model: ModelSize) -> NodeProfile:
    """With its own sizes of the model, and a time for each layer."""
    each = tuple(draw(numbers) for _ in range(model.layers))
    each_bytes = tuple(draw(numbers) for _ in range(model.layers))
    size = replace(draw(models()), layer_bytes=each_bytes, joined=model.joined)
    return replace(node, ms_per_layer=sum(each) / model.layers, layer_ms=each, size=size)


@st.composite
def profiles(draw: st.DrawFn, name: str, model: ModelSize) -> NodeProfile:
    node = NodeProfile(name, draw(numbers), draw(numbers), ms_per_head=draw(numbers), processor=draw(shared))
    node = draw(kinds(node, model)) if draw(st.booleans()) else node
    node = replace(node, ms_per_step=draw(numbers), shared=draw(st.sampled_from((0, 0.25, 1))))
    if draw(st.booleans()):
        return replace(node, max_layers=draw(st.integers(0, 99)))
    return replace(node, free_bytes=draw(numbers), reserve_bytes=draw(numbers))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    named = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    pairs = [(a, b) for place, a in enumerate(named) for b in named[:place]]
    linked = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    model = draw(models())
    return Problem(
        model,
        tuple(draw(profiles(name, model)) for name in named),
        tuple(Link(a, b, draw(st.one_of(st.none(), numbers))) for a, b in linked),
        draw(numbers),
        draw(st.sampled_from((None, *named))),
        draw(st.integers(1, 5000)),
        draw(st.integers(1, 10**6)),
        draw(numbers),
        head_step_ms=draw(numbers),
        head_row_ms=draw(numbers),
    )


@EXAMPLES
@given(problems())
def test_what_is_written_is_read_again(problem: Problem) -> None:
    assert parse_cluster(json.dumps(problem_json(problem))) == problem


def test_the_file_is_what_the_documentation_says() -> None:
    nodes = (
        NodeProfile("a", 1.5, max_layers=3, processor="a"),
        NodeProfile("b", 2, 0.5, free_bytes=9, reserve_bytes=1, ms_per_head=4),
    )
    problem = Problem(ModelSize((5, 5, 5), 2, 3, 1, 2), nodes, (Link("a", "b", None),), head="a")
    assert problem_json(problem) == {
        "model": {
            "layers": 3,
            "layer_bytes": 5,
            "embed_bytes": 2,
            "head_bytes": 3,
            "tied_bytes": 2,
            "kv_bytes_per_token_per_layer": 1,
        },
        "nodes": [
            {"name": "a", "ms_per_layer": 1.5, "ms_per_stage": 0, "ms_per_head": 0, "processor": "a", "max_layers": 3},
            {
                "name": "b",
                "ms_per_layer": 2,
                "ms_per_stage": 0.5,
                "ms_per_head": 4,
                "free_bytes": 9,
                "reserve_bytes": 1,
            },
        ],
        "links": [{"a": "a", "b": "b", "ms": None}],
        "hop_ms": 25.0,
        "head": "a",
        "users": 1,
        "context": 4096,
        "tolerance": 0.1,
    }
    timed = replace(nodes[0], ms_per_step=0.4, shared=0.75)
    more = problem_json(replace(problem, nodes=(timed, nodes[1]), head_step_ms=0.3, head_row_ms=0.1))
    assert (more["nodes"][0]["ms_per_step"], more["nodes"][0]["shared"]) == (0.4, 0.75)
    assert (more["head_step_ms"], more["head_row_ms"]) == (0.3, 0.1)
    unequal = replace(problem, model=replace(problem.model, layer_bytes=(5, 6, 5)))
    assert problem_json(unequal)["model"]["layer_bytes"] == [5, 6, 5]


@pytest.mark.parametrize("field", ["ms_per_head", "tied_bytes"])
def test_what_is_not_written_is_zero(field: str) -> None:
    """Files from before these fields mean what they meant."""
    problem = Problem(ModelSize((5, 5), 2, 3, 1, 2), (NodeProfile("a", 1.5, max_layers=3, ms_per_head=4),))
    data = problem_json(problem)
    del (data["nodes"][0] if field == "ms_per_head" else data["model"])[field]
    read = parse_cluster(json.dumps(data))
    assert getattr(read.nodes[0] if field == "ms_per_head" else read.model, field) == 0


def of_two_kinds() -> Problem:
    node = NodeProfile("a", 2.0, free_bytes=99, layer_ms=(1.0, 3.0), size=ModelSize((7, 9), 2, 3))
    return Problem(ModelSize((5, 6), 2, 3), (node,))


def test_kinds_of_layers_are_lists_and_a_node_s_own_sizes() -> None:
    data = problem_json(of_two_kinds())["nodes"][0]
    assert data["ms_per_layer"] == [1.0, 3.0]
    assert data["size"]["layer_bytes"] == [7, 9]
    assert "layer_ms" not in data


def test_a_list_of_another_length_is_refused_by_name() -> None:
    data = problem_json(of_two_kinds())
    data["nodes"][0]["ms_per_layer"] = [1.0, 2.0, 3.0]
    with pytest.raises(BadSetting, match=r"nodes\[0\]\.ms_per_layer has 3 numbers, and model\.layers is 2"):
        parse_cluster(json.dumps(data))


def test_a_mistake_in_a_node_s_own_sizes_is_named() -> None:
    data = problem_json(of_two_kinds())
    data["nodes"][0]["size"]["layers"] = 3
    with pytest.raises(BadSetting, match=r"nodes\[0\]\.size"):
        parse_cluster(json.dumps(data))
