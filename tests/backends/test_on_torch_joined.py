"""Plain experts that lie apart in a file: each is read to its place in the one tensor that transformers has of them.

Handed over one by one, transformers makes three copies of a layer's on the way: 0.64 GB at GLM-4.7-Flash's widths.
"""

from __future__ import annotations

import pytest
import torch

from backends.on_torch.replaced import sort_sources
from backends.on_torch.tensors import Joined, Lazy, Reader
from tests.backends.conftest import Checkpoints
from tests.support.families import LAYERS, reference_model
from together.models.needed import needed_tensors
from together.types import Dtype, LayerRange


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize("stored", ["fp32", "bf16"])
def test_experts_one_by_one(checkpoint: Checkpoints, name: str, stored: Dtype) -> None:
    folder = checkpoint(name, stored)
    seen: list[float] = []
    reader = Reader(torch.float32, torch.device("cpu"), seen.append)
    needed = needed_tensors(folder, LayerRange(0, LAYERS), folder.parent)
    sources = {info.name.replace(".block_sparse_moe.", ".mlp."): Lazy(info, reader) for info in needed.plain}
    reader.total = sum(source.nbytes for source in sources.values())
    found = sort_sources(dict(sources)).state
    joined = {key: source for key, source in found.items() if isinstance(source, Joined)}
    assert joined
    assert not any(".experts.0." in key for key in found)
    wanted = dict(reference_model(folder).named_parameters())
    for key, source in joined.items():
        assert source.shape == tuple(wanted[key].shape)
        assert torch.equal(source[...], wanted[key])
    assert seen[-1] == pytest.approx(sum(source.nbytes for source in joined.values()) / reader.total)
