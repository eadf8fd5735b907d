"""The cluster file, written and read again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
    return ModelSize(tuple(layers), embed, head, draw(numbers), tied)


@st.composite
def profiles(draw: st.DrawFn, name: str) -> NodeProfile:
    node = NodeProfile(name, draw(numbers), draw(numbers), ms_per_head=draw(numbers), processor=draw(shared))
    if draw(st.booleans()):
        return replace(node, max_layers=draw(st.integers(0, 99)))
    return replace(node, free_bytes=draw(numbers), reserve_bytes=draw(numbers))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    named = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    pairs = [(a, b) for place, a in enumerate(named) for b in named[:place]]
    linked = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return Problem(
        draw(models()),
        tuple(draw(profiles(name)) for name in named),
        tuple(Link(a, b, draw(st.one_of(st.none(), numbers))) for a, b in linked),
        draw(numbers),
        draw(st.sampled_from((None, *named))),
        draw(st.integers(1, 5000)),
        draw(st.integers(1, 10**6)),
        draw(numbers),
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
