"""What a quantized mixture of experts reads for a token, and of how many sessions one of real widths is made."""

# ruff: noqa: E402  (only where MLX exists is there anybody to write them)

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

mx = pytest.importorskip("mlx.core")
pytest.importorskip("onnxruntime")

from safetensors.torch import load_file, save_file

from backends.made_up import Filling, word_tile
from backends.on_torch.experts import QuantizedExperts
from backends.on_torch.nbits import _Session
from tests.support.chain import Chain, load_shard, new_sequence, row
from tests.support.families import BY_NAME, LAYERS, config_for
from tests.support.mlx_folders import FORMS, make_plain, write_mlx
from together.types import LayerRange, Packing

EXPERTS, USED, WIDTH = 8, 2, 128
TOKEN = (7,)
WHOLE = LayerRange(0, LAYERS)
FOUR = Packing("affine", 4, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plain = make_plain(tmp_path / "plain", "qwen3_moe", num_experts=EXPERTS, num_experts_per_tok=USED)
    return write_mlx(plain, tmp_path / "mlx", FORMS["affine-4"])


def _experts(chain: Chain) -> Iterator[QuantizedExperts]:
    model = chain.shards[0]._model  # type: ignore[attr-defined]
    return (module for module in model.modules() if isinstance(module, QuantizedExperts))


def _chosen(chain: Chain) -> list[set[int]]:
    """The experts of each layer that has any, as the routers choose them for TOKEN."""
    found: list[set[int]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, given: found.append(set(given[1].flatten().tolist())))
        for module in _experts(chain)
    ]
    chain.logits(row(new_sequence(), 0, TOKEN))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "default"])
def test_sessions_are_asked_for_chosen_experts_alone(
    folder: Path, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bytes of codes: each session's products are counted as they are made."""
    chain = Chain([load_shard(folder, "torch", WHOLE, exact=exact)])
    chosen = _chosen(chain)
    read: list[int] = []
    given = _Session.__call__

    def noted(session: Any, rows: Mapping[int, Any]) -> dict[int, Any]:
        found = given(session, rows)
        if len(session._inputs) > 1:  # of experts
            read.extend(out.shape[1] * WIDTH // 2 for out in found.values())
        return found

    monkeypatch.setattr(_Session, "__call__", noted)
    chain.logits(row(new_sequence(), 0, TOKEN))
    assert [len(each) for each in chosen] == [USED] * (LAYERS - 1)  # one of the layers is dense
    assert sum(read) == sum(map(len, chosen)) * 3 * WIDTH * WIDTH // 2


def test_the_others_may_hold_anything(folder: Path) -> None:
    """Nothing of an expert that was not chosen is multiplied: no number of it reaches the logits."""
    chain = Chain([load_shard(folder, "torch", WHOLE)])
    chosen, before = _chosen(chain), chain.logits(row(new_sequence(), 0, TOKEN))
    _spoil(folder, [set(range(EXPERTS)) - each for each in chosen])
    spoiled = Chain([load_shard(folder, "torch", WHOLE)])
    assert np.array_equal(spoiled.logits(row(new_sequence(), 0, TOKEN)), before)
    _spoil(folder, [set(sorted(each)[:1]) for each in chosen])
    spoiled = Chain([load_shard(folder, "torch", WHOLE)])
    assert np.isnan(spoiled.logits(row(new_sequence(), 0, TOKEN))).any()


def _spoil(folder: Path, experts: list[set[int]]) -> None:
    """Make the scales of these experts of each layer no numbers."""
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    layers = sorted({name.partition(".mlp.")[0] for name in tensors if ".switch_mlp." in name})
    for layer, spoiled in zip(layers, experts, strict=True):
        for name in tensors:
            if name.startswith(f"{layer}.mlp.switch_mlp.") and name.endswith(".scales"):
                tensors[name][list(spoiled)] = torch.nan
    save_file(tensors, file, {"format": "mlx"})


# --- real widths ------------------------------------------------------------------------------------------------------

_WIDTHS: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "mlp_only_layers": [],
}


def _packed(path: str, *shape: int) -> dict[str, torch.Tensor]:
    """Codes that repeat, under scales that keep states of order 1."""
    *rows, inputs = shape
    filling, tile = Filling.of(FOUR, inputs), torch.from_numpy(word_tile(FOUR).view(np.int32))
    words = FOUR.words(inputs)
    count = words * int(np.prod(rows))
    scales = torch.full((*rows, FOUR.groups(inputs)), filling.scale, dtype=torch.bfloat16)
    codes = tile.repeat(-(-count // len(tile)))[:count].reshape(*rows, words).view(torch.uint32)
    return {f"{path}.weight": codes, f"{path}.scales": scales, f"{path}.biases": torch.full_like(scales, filling.bias)}


def _write_real_widths(folder: Path) -> None:
    config = config_for(BY_NAME["qwen3_moe"], **_WIDTHS)
    config.save_pretrained(folder)
    described = json.loads((folder / "config.json").read_text()) | {"architectures": ["Qwen3MoeForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(described | {"quantization": {"group_size": 64, "bits": 4}}))
    hidden, inner, experts = config.hidden_size, config.moe_intermediate_size, _WIDTHS["num_experts"]
    matrices: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (4096, hidden),
        "self_attn.k_proj": (512, hidden),
        "self_attn.v_proj": (512, hidden),
    }
    matrices |= {"self_attn.o_proj": (hidden, 4096), "mlp.gate": (experts, hidden)}
    matrices |= {f"mlp.switch_mlp.{name}_proj": (experts, inner, hidden) for name in ("gate", "up")}
    matrices |= {"mlp.switch_mlp.down_proj": (experts, hidden, inner)}
    norms = {
        "input_layernorm": hidden,
        "post_attention_layernorm": hidden,
        "self_attn.q_norm": 128,
        "self_attn.k_norm": 128,
    }
    tensors = {"model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)}
    for path in ("model.embed_tokens", "lm_head"):
        tensors |= _packed(path, config.vocab_size, hidden)
    for layer in (f"model.layers.{index}." for index in range(LAYERS)):
        tensors |= {f"{layer}{name}.weight": torch.ones(width, dtype=torch.bfloat16) for name, width in norms.items()}
        for path, shape in matrices.items():
            tensors |= _packed(layer + path, *shape)
    save_file(tensors, folder / "model.safetensors", {"format": "mlx"})


@pytest.mark.full
def test_experts_of_real_widths_take_few_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four layers of Qwen3-30B-A3B's widths in 4 bit: 1,536 matrices of experts, 1.4 GB. A session takes 3 ms."""
    _write_real_widths(tmp_path)
    products: list[int] = []
    made = _Session.__init__

    def noted(session: Any, planes: Any, *rest: Any, **more: Any) -> None:
        products.append(len(planes))
        made(session, planes, *rest, **more)

    monkeypatch.setattr(_Session, "__init__", noted)
    shard = load_shard(tmp_path, "torch", WHOLE, "bf16", 2**33, exact=False)
    experts = [count for count in products if count > 1]
    assert sum(experts) == LAYERS * 2 * _WIDTHS["num_experts"]  # gate and up are one product
    assert len(experts) <= LAYERS * 6
    assert np.isfinite(Chain([shard]).logits(row(new_sequence(), 0, TOKEN))).all()
