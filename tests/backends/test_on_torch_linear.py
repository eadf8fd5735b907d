"""What packing linear layers promises: right products, also where fp16 does not reach; less time; no more memory."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from backends.base import LoadRequest, open_backend
from backends.on_torch import linear as torch_linear
from backends.on_torch import linear as torch_packed
from backends.on_torch.linear import Held, PackedLinear, Packer, can_pack, fits, packs, speed_up
from tests.support.chain import MEMORY, Chain, assert_close, load_shard, new_sequence, row
from tests.support.families import LAYERS, make_checkpoint, prompt_ids, reference_logits
from together.errors import BrokenModel
from together.models.reading import all_tensors
from together.types import LayerRange

WHOLE = LayerRange(0, LAYERS)
CPU = torch.device("cpu")
PROMPT = prompt_ids(24)
WIDE: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1024, "head_dim": 128}  # as FBGEMM likes its matrices
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)

needs_packing = pytest.mark.skipif(not can_pack(), reason="this torch has no FBGEMM")


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack whatever a trial would say, or said to another test: a CPU with bf16 instructions would not."""
    monkeypatch.setattr(torch_linear, "_packing_pays", lambda dtype, home: True)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """bf16 models whose layers are packed, by name."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("llama", "llama-tied", "qwen2", "qwen3_moe")}
    return {name: make_checkpoint(folder, name, "bf16", **WIDE) for name, folder in folders.items()}


def packed_layer(weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
    with Packer(weight.dtype) as packer:
        return packer.layer(Held(weight), bias)


def seeded(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


# --- products ---------------------------------------------------------------------------------------------------------


@needs_packing
@HALVES
@pytest.mark.parametrize("rows", [1, 2, 7, 33])
def test_packed_products_are_at_least_as_exact(dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against fp64: several parts, the last one not full and of odd height."""
    monkeypatch.setattr(torch_packed, "_PART", 2**18)
    weight, given = seeded(1301, 520, dtype=dtype), seeded(1, rows, 520, dtype=dtype)
    found, plain, exact = packed_layer(weight)(given), linear(given, weight), given.double() @ weight.double().T
    assert (found.shape, found.dtype) == (plain.shape, dtype)
    assert (found.double() - exact).abs().max() <= (plain.double() - exact).abs().max() * 1.01 + 1e-3


@needs_packing
def test_biases_are_added_and_no_rows_give_none() -> None:
    weight, bias, given = seeded(48, 512), seeded(48), seeded(5, 512)
    layer = packed_layer(weight, bias)
    torch.testing.assert_close(layer(given), linear(given, weight, bias), rtol=0.02, atol=0.1)
    assert layer(given[:0]).shape == (0, 48)


@needs_packing
@pytest.mark.parametrize("scale", [1e6, 1e-6, float("nan"), float("inf")])
def test_parts_that_fp16_cannot_hold_stay_as_they_are(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_packed, "_PART", 512 * 512)
    weight, given = seeded(1024, 512), seeded(3, 512)
    weight[600] *= scale
    if abs(scale) < 1:
        weight[512:] *= scale
    found, plain = packed_layer(weight)(given), linear(given, weight)
    torch.testing.assert_close(found[:, 512:], plain[:, 512:], rtol=0, atol=0, equal_nan=True)  # torch's own product
    torch.testing.assert_close(found[:, :512], plain[:, :512], rtol=0.02, atol=0.2)


@needs_packing
@HALVES
def test_a_packed_layer_keeps_no_reference_to_what_it_was_made_of(dtype: torch.dtype) -> None:
    """Nor to the room that the next part is packed in."""
    weight, given = seeded(512, 512, dtype=dtype), seeded(2, 512, dtype=dtype)
    layer, before = packed_layer(weight), linear(given, weight)
    weight.zero_()
    torch.testing.assert_close(layer(given), before, rtol=0.02, atol=0.1)


def test_only_widths_that_packing_hardly_rounds_up_are_packed() -> None:
    assert [fits(inputs) for inputs in (512, 2048, 3072, 8960, 14336)] == [True] * 5
    assert [fits(inputs) for inputs in (64, 520, 896, 1152, 2304)] == [False] * 5


class Operations(TorchDispatchMode):
    """Counts what torch is asked to compute meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


@needs_packing
def test_several_rows_read_the_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as one row does: each part is multiplied once, on whatever processor."""
    monkeypatch.setattr(torch_packed, "_PART", 2**18)
    layer, rows = packed_layer(seeded(2048, 520)), seeded(8, 520)
    counts = []
    for some in (rows[:1], rows):
        with Operations() as seen:
            layer(some)
        counts.append(seen.count)
    assert counts[0] == counts[1]
    assert counts[0]["quantized.linear_dynamic_fp16.default"] == len(layer._parts) > 1


# --- where it is done -------------------------------------------------------------------------------------------------


@needs_packing
def test_only_half_precision_on_a_cpu_is_packed(always: None) -> None:
    assert packs(torch.bfloat16, CPU, None)
    assert packs(torch.float16, CPU, None)
    assert not packs(torch.float32, CPU, None)
    assert not packs(torch.bfloat16, torch.device("cuda"), None)


@needs_packing
@pytest.mark.parametrize(("clearly", "packed"), [(0.0, False), (1e9, True)])
def test_only_packing_that_pays_is_done(monkeypatch: pytest.MonkeyPatch, clearly: float, packed: bool) -> None:
    monkeypatch.setattr(torch_linear, "_CLEARLY", clearly)
    torch_linear._packing_pays.cache_clear()
    layer = nn.Sequential(nn.Linear(512, 64, dtype=torch.bfloat16))
    assert isinstance(speed_up(layer)[0], PackedLinear) == packed
    torch_linear._packing_pays.cache_clear()


@needs_packing
def test_without_fbgemm_all_is_as_it_was(wide: dict[str, Path], always: None) -> None:
    """torch's engine for other processors refuses to pack, as it does where FBGEMM was not built in."""
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "qnnpack"
    try:
        assert not can_pack()
        shard = load_shard(wide["llama-tied"], "torch", WHOLE, "bf16")
    finally:
        torch.backends.quantized.engine = engine
    assert not packed_names(shard)
    assert_close(Chain([shard]).logits(row(1, 0, PROMPT)), reference_logits(wide["llama-tied"], PROMPT), 0.1)


# --- models -----------------------------------------------------------------------------------------------------------


def packed_names(shard: object) -> set[str]:
    model: nn.Module = shard._model  # type: ignore[attr-defined]
    return {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}


@needs_packing
@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2", "qwen3_moe"])
@pytest.mark.parametrize("cuts", [(), (2,)], ids=["whole", "cut"])
def test_packed_models_are_right(wide: dict[str, Path], name: str, cuts: tuple[int, ...], always: None) -> None:
    """Prefill, decode of one row and of several, by teacher forcing; the head is packed also where it is tied."""
    folder, ends = wide[name], (0, *cuts, LAYERS)
    ranges = [LayerRange(start, stop) for start, stop in pairwise(ends)]
    ring = Chain([load_shard(folder, "torch", part, "bf16") for part in ranges])
    assert "lm_head" in packed_names(ring.shards[-1])
    assert "model.layers.0.self_attn.q_proj" in packed_names(ring.shards[0])
    wanted, (one, two) = reference_logits(folder, PROMPT), (new_sequence(), new_sequence())
    assert_close(ring.logits(row(one, 0, PROMPT[:-1])), wanted[:-1], 0.1)
    ring.logits(row(two, 0, PROMPT[:10]))
    assert_close(ring.logits(row(one, 23, PROMPT[-1:]), row(two, 10, PROMPT[10:11])), wanted[[23, 10]], 0.1)
    assert_close(ring.logits(row(two, 11, PROMPT[11:12])), wanted[11:12], 0.1)


@needs_packing
def test_a_checkpoint_of_another_dtype_is_packed_too(tmp_path: Path, always: None) -> None:
    """A tied matrix is not: its embedding would have to be converted, and be there a second time."""
    folder = make_checkpoint(tmp_path, "llama-tied", "fp32", **WIDE)
    shard = load_shard(folder, "torch", WHOLE, "bf16")
    assert "lm_head" not in packed_names(shard)
    assert "model.layers.0.mlp.up_proj" in packed_names(shard)
    assert_close(Chain([shard]).logits(row(1, 0, PROMPT)), reference_logits(folder, PROMPT), 0.1)


@needs_packing
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_packing_is_part_of_the_progress(wide: dict[str, Path], name: str, always: None) -> None:
    seen: list[float] = []
    open_backend("torch").load(LoadRequest(wide[name], WHOLE, "cpu", "bf16", MEMORY, wide[name].parent, seen.append))
    assert seen == sorted(seen)
    assert len(seen) > 7 * LAYERS
    assert seen[0] < 0.5
    assert seen[-1] == 1.0


# --- broken checkpoints -----------------------------------------------------------------------------------------------


@needs_packing
def test_broken_matrices_are_refused_while_packing(wide: dict[str, Path], tmp_path: Path, always: None) -> None:
    wider = copied(wide["llama"], tmp_path / "wider")
    config = json.loads((wider / "config.json").read_text()) | {"intermediate_size": 1536}
    (wider / "config.json").write_text(json.dumps(config))
    with pytest.raises(BrokenModel, match="mlp"):
        load_shard(wider, "torch", WHOLE, "bf16")


@needs_packing
def test_a_file_that_is_cut_while_it_is_packed_says_so(wide: dict[str, Path], tmp_path: Path, always: None) -> None:
    folder = copied(wide["llama"], tmp_path / "cut")
    file = next(iter(all_tensors(folder))).file

    def cut(_: float) -> None:
        os.truncate(file, 4096)

    with pytest.raises(BrokenModel, match="ends within tensor"):
        open_backend("torch").load(LoadRequest(folder, WHOLE, "cpu", "bf16", MEMORY, folder.parent, cut))


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))
