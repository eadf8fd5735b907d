"""gpt-oss as it was published: experts in mxfp4, against transformers on what transformers widens them to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.backends.conftest import Rings
from tests.backends.judged import conforms
from tests.backends.test_conformance import PAIRS
from tests.support.mlx_folders import make_plain
from together.errors import UnsupportedModel
from together.models.spec import read_runnable
from together.types import Packing

_QUANTIZED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
Folders = tuple[Path, Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The published folder, and its judge in fp32."""
    place = tmp_path_factory.mktemp("gpt-oss")
    plain = make_plain(place / "plain", "gpt_oss", hidden_size=96)  # neither square nor a multiple of 64
    made, weights = torch.Generator().manual_seed(0), load_file(plain / "model.safetensors")
    published: dict[str, Tensor] = {}
    for name, tensor in weights.copy().items():
        if not name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            published[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        shape = experts, outputs, inputs // 32
        blocks = torch.randint(0, 256, (*shape, 16), generator=made, dtype=torch.uint8)
        scales = torch.randint(121, 125, shape, generator=made, dtype=torch.uint8)
        published |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        weights[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    for kind, tensors in (("published", published), ("judge", weights)):
        (place / kind).mkdir()
        save_file(tensors, place / kind / "model.safetensors", {"format": "pt"})
        (place / kind / "config.json").write_text((plain / "config.json").read_text())
    _edit(place / "published", lambda config: config | {"quantization_config": _QUANTIZED})
    return place / "published", place / "judge"


def _edit(folder: Path, change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_in_rings(ring: Rings, folders: Folders, pair: tuple[str, str]) -> None:
    folder, judge = folders
    conforms(ring(folder, pair, (1,)), judge)


def test_experts_stay_packed(folders: Folders) -> None:
    spec = read_runnable(folders[0])
    experts = 4 * 3 * 96 * 128  # gate, up and down of four
    assert all(weights.packed == ((Packing("mxfp4", 4, 32), experts),) for weights in spec.layer_weights)
    assert all(weights.packed_bytes == experts * 17 // 32 for weights in spec.layer_weights)


def test_half_of_the_experts_packed_is_refused(folders: Folders, tmp_path: Path) -> None:
    tensors, plain = (load_file(each / "model.safetensors") for each in folders)
    name = "model.layers.1.mlp.experts.down_proj"
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{name}_b") or key.endswith("bias")}
    save_file(kept | {name: plain[name]}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folders[0] / "config.json").read_text())
    with pytest.raises(UnsupportedModel, match="some experts"):
        read_runnable(tmp_path)
