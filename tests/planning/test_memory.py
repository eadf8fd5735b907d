"""What stages need in memory: figures computed by hand, and properties over all sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from tests.support.checksum import VOCABULARY, make_checksum_model
from together.models.spec import ModelSpec, read_spec, shape_of
from together.planning.memory import cache_tokens, model_size, process_bytes, stage_memory, workspace_bytes
from together.planning.problem import Problem
from together.types import BLOCK, LayerRange

WIDTH, LAYERS = 8, 6


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return read_spec(make_checksum_model(tmp_path_factory.mktemp("toy") / "toy", layers=LAYERS, width=WIDTH))


@pytest.mark.parametrize(("context", "users", "tokens"), [(1, 1, BLOCK), (BLOCK, 1, BLOCK), (BLOCK + 1, 3, 6 * BLOCK)])
def test_every_user_has_whole_blocks(context: int, users: int, tokens: int) -> None:
    assert cache_tokens(context, users) == tokens


def test_what_stages_need_by_hand(spec: ModelSpec) -> None:
    """The toy: one vector per layer, two matrices of vocabulary × width, and 8 bytes of KV per token and layer."""
    matrix, vector, kv = VOCABULARY * WIDTH * 4, WIDTH * 4, 2 * 512 * 8
    first = stage_memory(spec, LayerRange(0, 2), "fp32", 512, 2, "torch")
    inner = stage_memory(spec, LayerRange(2, 5), "fp32", 512, 2, "torch")
    last = stage_memory(spec, LayerRange(5, 6), "fp32", 512, 2, "torch")
    fixed = process_bytes("torch") + workspace_bytes(spec)
    assert first == matrix + 2 * vector + 2 * kv + fixed
    assert inner == 3 * vector + 3 * kv + fixed
    assert last == vector + vector + matrix + kv + fixed


def test_half_the_bytes_in_half_the_precision(spec: ModelSpec) -> None:
    whole = LayerRange(0, LAYERS)
    fixed = process_bytes("torch") + workspace_bytes(spec)
    full, half = (stage_memory(spec, whole, dtype, 512, 2, "torch") - fixed for dtype in ("fp32", "bf16"))
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
    need = stage_memory(spec, layers, "fp32", context, users, "torch")
    assert need <= stage_memory(spec, layers, "fp32", context + 1, users, "torch")
    assert need < stage_memory(spec, layers, "fp32", context, users + 1, "torch")


def test_plans_count_what_each_layer_keeps() -> None:
    """Of Gemma 4, whose layers have heads of two sizes: as grants do, whatever the range."""
    words = {"model_type": "gemma4_text", "hidden_size": 64, "num_hidden_layers": 12, "hidden_size_per_layer_input": 0}
    spec, _ = shape_of("tiny", words)
    problem = Problem(model_size(spec, "bf16"), (), users=3, context=1024)
    for layers in (LayerRange(0, 12), LayerRange(1, 5), LayerRange(5, 6), LayerRange(4, 12)):
        assert problem.stage_bytes(layers) == 3 * 1024 * spec.kv_bytes_per_token(layers, "bf16")
    assert problem.held_layers()[4] != problem.held_layers()[5]
    later = LayerRange(5, 12)
    assert problem.part(later).cached == problem.cached[5:]
