"""Plans and what they cost: properties over all numbers of layers and nodes, and figures computed by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from tests.support.checksum import VOCABULARY, make_checksum_model
from together.errors import BadPlan, NotEnoughMemory
from together.models.spec import ModelSpec, read_spec
from together.planning.memory import cache_tokens, stage_memory, workspace_bytes
from together.planning.split import Sizing, check_ranges, make_plan, uniform_ranges
from together.types import BLOCK, Device, Endpoint, LayerRange, ModelRef, NodeState, NodeStatus

WIDTH, LAYERS = 8, 6
SIZING = Sizing(context=512, users=2, dtype="fp32")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return read_spec(make_checksum_model(tmp_path_factory.mktemp("toy") / "toy", layers=LAYERS, width=WIDTH))


def nodes(count: int, memory: int = 10**9) -> tuple[NodeStatus, ...]:
    devices = (Device("checksum", "cpu", "", memory, memory), Device("checksum", "second", "", memory, memory))
    return tuple(
        NodeStatus(f"id{i}", f"node{i}", "m", Endpoint((), 1), 1, NodeState.IDLE, devices=devices, memory_bytes=memory)
        for i in range(count)
    )


def reference(spec: ModelSpec) -> ModelRef:
    return spec.ref(Path("toy"))


# --- ranges -----------------------------------------------------------------------------------------------------------


@hypothesis(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40))
def test_equal_parts_cover_all_layers_and_differ_by_at_most_one(layers: int, parts: int) -> None:
    ranges = uniform_ranges(layers, parts)
    check_ranges(ranges, layers)
    sizes = [len(item) for item in ranges]
    assert len(ranges) == min(layers, parts)
    assert sum(sizes) == layers
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


cuts = st.lists(st.integers(1, 39), unique=True, max_size=6).map(sorted)


@hypothesis(max_examples=100, deadline=None)
@given(cuts)
def test_any_rising_cuts_are_a_plan(points: list[int]) -> None:
    ends = [0, *points, 40]
    check_ranges(tuple(LayerRange(a, b) for a, b in pairwise(ends)), 40)


@hypothesis(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), max_size=5), st.integers(1, 12))
def test_ranges_pass_exactly_when_they_are_all_layers_in_order(pairs: list[tuple[int, int]], layers: int) -> None:
    ranges = tuple(LayerRange(start, start + size) for start, size in pairs)
    flat = [layer for item in ranges for layer in range(item.start, item.stop)]
    if flat == list(range(layers)):
        check_ranges(ranges, layers)
    else:
        with pytest.raises(BadPlan):
            check_ranges(ranges, layers)


@pytest.mark.parametrize(
    ("ranges", "sentence"),
    [
        (["0:2", "3:6"], "layers 2:3 are in no range"),
        (["1:6"], "layers 0:1 are in no range"),
        (["0:4", "3:6"], "the range 3:6 starts before layer 4"),
        (["3:6", "0:3"], "layers 0:3 are in no range"),
        (["0:3"], "the ranges end at layer 3, and the model has 6 layers"),
        (["0:9"], "the ranges end at layer 9, and the model has 6 layers"),
        ([], "the ranges end at layer 0"),
    ],
)
def test_what_is_wrong_is_said(ranges: list[str], sentence: str) -> None:
    with pytest.raises(BadPlan, match=sentence):
        check_ranges(tuple(map(LayerRange.parse, ranges)), LAYERS)


# --- plans ------------------------------------------------------------------------------------------------------------


def test_a_uniform_plan_uses_the_nodes_in_order_and_their_first_device(spec: ModelSpec) -> None:
    plan = make_plan(spec, reference(spec), nodes(4), SIZING)
    assert [(stage.node, str(stage.layers)) for stage in plan.stages] == [
        ("id0", "0:2"),
        ("id1", "2:4"),
        ("id2", "4:5"),
        ("id3", "5:6"),
    ]
    assert {(stage.backend, stage.device) for stage in plan.stages} == {("checksum", "cpu")}
    assert (plan.context, plan.users, plan.dtype, plan.model) == (512, 2, "fp32", reference(spec))


def test_more_nodes_than_layers_leave_some_out(spec: ModelSpec) -> None:
    plan = make_plan(spec, reference(spec), nodes(9), SIZING)
    assert [len(stage.layers) for stage in plan.stages] == [1] * LAYERS


def test_a_custom_plan_takes_the_first_nodes(spec: ModelSpec) -> None:
    ranges = (LayerRange(0, 5), LayerRange(5, 6))
    plan = make_plan(spec, reference(spec), nodes(3), SIZING, ranges)
    assert [(stage.node, stage.layers) for stage in plan.stages] == [("id0", ranges[0]), ("id1", ranges[1])]


def test_plans_that_cannot_be(spec: ModelSpec) -> None:
    three = (LayerRange(0, 1), LayerRange(1, 2), LayerRange(2, 6))
    with pytest.raises(BadPlan, match="the plan has 3 ranges and there are 2 nodes"):
        make_plan(spec, reference(spec), nodes(2), SIZING, three)
    with pytest.raises(BadPlan, match="there is no node to take the layers"):
        make_plan(spec, reference(spec), (), SIZING)


def test_a_stage_beyond_all_of_a_nodes_memory_is_no_plan(spec: ModelSpec) -> None:
    need = stage_memory(spec, LayerRange(0, LAYERS), "fp32", 512, 2)
    make_plan(spec, reference(spec), nodes(1, memory=need), SIZING)
    sentence = (
        f"needs {need:,} bytes for layers 0–5 with a context of 512 for 2 users, may use {need - 1:,} bytes; lower"
    )
    with pytest.raises(NotEnoughMemory, match=sentence):
        make_plan(spec, reference(spec), nodes(1, memory=need - 1), SIZING)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("context", "users", "tokens"), [(1, 1, BLOCK), (BLOCK, 1, BLOCK), (BLOCK + 1, 3, 6 * BLOCK)])
def test_every_user_has_whole_blocks(context: int, users: int, tokens: int) -> None:
    assert cache_tokens(context, users) == tokens


def test_what_stages_need_by_hand(spec: ModelSpec) -> None:
    """The toy: one vector per layer, two matrices of vocabulary × width, and 8 bytes of KV per token and layer."""
    matrix, vector, kv = VOCABULARY * WIDTH * 4, WIDTH * 4, 2 * 512 * 8
    first = stage_memory(spec, LayerRange(0, 2), "fp32", 512, 2)
    inner = stage_memory(spec, LayerRange(2, 5), "fp32", 512, 2)
    last = stage_memory(spec, LayerRange(5, 6), "fp32", 512, 2)
    assert first == matrix + 2 * vector + 2 * kv + workspace_bytes(spec)
    assert inner == 3 * vector + 3 * kv + workspace_bytes(spec)
    assert last == vector + vector + matrix + kv + workspace_bytes(spec)


def test_half_the_bytes_in_half_the_precision(spec: ModelSpec) -> None:
    whole = LayerRange(0, LAYERS)
    full, half = (stage_memory(spec, whole, dtype, 512, 2) - workspace_bytes(spec) for dtype in ("fp32", "bf16"))
    assert full == 2 * half


def test_a_step_takes_more_of_a_wider_model(spec: ModelSpec) -> None:
    """By hand: 12 MiB for libraries, 16 bytes per element of 256 tokens, 12 per logit of 8 rows; or packing."""
    narrow = replace(spec, hidden_size=512, inner_size=1024, vocab_size=50_000)
    assert workspace_bytes(narrow) == 12 * 2**20 + 256 * 16 * 1536 + 8 * 12 * 50_000
    assert workspace_bytes(replace(narrow, hidden_size=4096, inner_size=4096)) == (12 + 68) * 2**20
    wide = replace(narrow, hidden_size=8192, inner_size=28672)
    assert workspace_bytes(wide) == 12 * 2**20 + 256 * 16 * 36864 + 8 * 12 * 50_000


@hypothesis(max_examples=50, deadline=None)
@given(st.integers(1, 4096), st.integers(1, 16))
def test_more_context_or_users_never_need_less(spec: ModelSpec, context: int, users: int) -> None:
    layers = LayerRange(1, 3)
    need = stage_memory(spec, layers, "fp32", context, users)
    assert need <= stage_memory(spec, layers, "fp32", context + 1, users)
    assert need < stage_memory(spec, layers, "fp32", context, users + 1)
