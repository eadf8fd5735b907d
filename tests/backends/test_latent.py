"""Attention that keeps latents: its memory is what is said of it; and routers of groups choose as transformers'."""

# ruff: noqa: E402  (only where MLX exists is there anybody to compare)

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

mx = pytest.importorskip("mlx.core")

from backends.on_mlx.routers import group_expert_select
from backends.on_torch.few import few_rows_by_head, takes
from tests.support.chain import Chain, assert_close, load_shard, new_sequence, row
from tests.support.families import LAYERS, make_checkpoint, prompt_ids, reference_logits
from together.models.spec import read_spec
from together.models.state import Latent
from together.types import Batch, LayerRange

NAMES = ("deepseek_v3", "glm4_moe_lite")
EVERY = LayerRange(0, LAYERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_token_keeps_one_vector_in_each_layer(tmp_path: Path, name: str) -> None:
    folder = make_checkpoint(tmp_path, name)
    spec = read_spec(folder)
    assert set(spec.states) == {Latent(24, 8)}
    assert spec.kv_bytes_per_token(EVERY, "fp32") == LAYERS * 4 * (24 + 8)


@pytest.mark.parametrize("name", NAMES)
def test_backends_keep_what_is_counted(tmp_path: Path, name: str) -> None:
    folder, sequence = make_checkpoint(tmp_path, name), new_sequence()
    each = read_spec(folder).kv_bytes_per_token(EVERY, "fp32")
    on_torch: Any = load_shard(folder, "torch", EVERY)
    pools = [pool.untyped_storage().nbytes() for _, pool in on_torch._caches.layers.values()]
    assert sum(pools) == each * on_torch.capacity
    on_mlx: Any = load_shard(folder, "mlx", EVERY)
    on_mlx.step(Batch((row(sequence, 0, prompt_ids(24), "none"),)), None)
    kept = [array for cache in on_mlx._caches.of(sequence) for array in cache.arrays]
    assert sum(array.nbytes for array in kept) == each * kept[0].shape[2]


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_dense_layers_may_lie_anywhere(tmp_path: Path, backend: str) -> None:
    """Before a cut and behind it; mlx-lm's own class has them at the start alone."""
    folder = make_checkpoint(tmp_path, "glm4_moe_lite", mlp_layer_types=["sparse", "dense", "sparse", "dense"])
    parts = [load_shard(folder, backend, LayerRange(*part)) for part in ((0, 2), (2, LAYERS))]
    assert_close(Chain(parts).logits(row(new_sequence(), 0, prompt_ids(24))), reference_logits(folder, prompt_ids(24)))


def test_keys_and_values_are_made_where_many_tokens_share_the_work() -> None:
    state = Latent(512, 64)
    assert [state.spreads(tokens, 128, 128) for tokens in (1, 100, 200)] == [False, False, True]
    assert not Latent(8, 4).spreads(10_000, 16, 16), "latents narrower than heads are asked themselves"


@pytest.mark.parametrize(
    ("chosen", "groups", "kept", "norm"), [(3, 4, 2, True), (1, 1, 1, True), (2, 4, 4, False), (2, 2, 1, False)]
)
def test_experts_are_chosen_as_transformers_does(chosen: int, groups: int, kept: int, norm: bool) -> None:
    """With corrections so low that an expert of another group would be the best by a score of 0."""
    generator = torch.Generator().manual_seed(0)
    config = SimpleNamespace(
        num_experts_per_tok=chosen,
        num_local_experts=8,
        hidden_size=16,
        routed_scaling_factor=1.7,
        n_group=groups,
        topk_group=kept,
        norm_topk_prob=norm,
    )
    router = DeepseekV3TopkRouter(config)  # type: ignore[arg-type]
    router.weight.data = torch.randn(8, 16, generator=generator)
    router.e_score_correction_bias.data = torch.randn(8, generator=generator) - 3.0
    states = torch.randn(50, 16, generator=generator)
    gates, wanted, places = (each.detach().numpy() for each in router(states))
    correction = mx.array(router.e_score_correction_bias.numpy())
    found = group_expert_select(mx.array(gates), correction, chosen, groups, kept, 1.7, norm)
    ids, shares = (np.array(each) for each in found)
    assert (np.sort(ids) == np.sort(places)).all()
    ours = np.take_along_axis(shares, ids.argsort(), axis=-1)
    np.testing.assert_allclose(ours, np.take_along_axis(wanted, places.argsort(), axis=-1), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 3])
def test_rows_of_heads_are_multiplied_in_one_call(dtype: torch.dtype, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, 24, 64, generator=generator).to(dtype)
    rows = torch.randn(count, 5, 64, generator=generator).to(dtype).transpose(0, 1)
    if not takes(weights[0], count):
        pytest.skip("no compiler for this processor")
    wanted = torch.bmm(rows.float(), weights.float().transpose(1, 2)).to(dtype)
    torch.testing.assert_close(few_rows_by_head(rows, weights), wanted)
