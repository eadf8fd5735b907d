"""What backends hold of quantized weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.families import make_checkpoint
from together.models.manifest import describe
from together.models.matrices import PartWeights
from together.models.packing import FP_PACKINGS
from together.models.spec import read_spec
from together.planning.held import held_bits, held_bytes, stored_bits
from together.planning.memory import model_size, quantized_sizes
from together.types import Packing
from together.weights.store import Store, begin_form

FOUR, SIX = Packing("affine", 4, 64), Packing("affine", 6, 64)


@pytest.mark.parametrize(
    ("packing", "stored", "on_torch"),
    [
        (FOUR, 4.5, 4 + 96 / 64),
        (Packing("affine", 3, 32), 4, 4 + 96 / 32),
        (SIX, 6.5, 8 + 104 / 64),
        (FP_PACKINGS["mxfp4"], 4.25, 8 + 72 / 32),
        (FP_PACKINGS["nvfp4"], 4.5, 8 + 72 / 16),
        (FP_PACKINGS["mxfp8"], 8.25, 8.25),
    ],
)
def test_bits_of_a_weight(packing: Packing, stored: float, on_torch: float) -> None:
    assert stored_bits(packing) == held_bits(packing, "mlx") == stored
    assert held_bits(packing, "torch") == on_torch


def test_what_is_multiplied_whole_takes_another_form_and_the_rest_stays() -> None:
    whole = PartWeights(10, ((FOUR, 6400), (SIX, 640)), packed_bytes=4120)
    assert held_bytes(whole, "bf16", "mlx") == whole.nbytes("bf16") == 20 + 4120
    assert held_bytes(whole, "bf16", "torch") == 20 + 4120 + (6400 * 1.0 + 640 * 3.125) / 8
    picked = PartWeights(10, ((FOUR, 6400), (SIX, 640)), packed_bytes=4120, picked=((FOUR, 6400),))
    assert held_bytes(picked, "bf16", "torch") == 20 + 4120 + 640 * 3.125 / 8
    assert (whole + picked).picked == ((FOUR, 6400),)


def test_blocks_of_gguf_are_held_with_wide_scales() -> None:
    six = Packing("affine", 6, 16)
    layer = PartWeights(10, ((Packing("affine", 4, 32), 6400), (six, 640)), packed_bytes=1, wide=True)
    assert held_bytes(layer, "bf16", "mlx") == 20 + (6400 * 6 + 640 * 16) / 8  # MLX has no groups of 16: bf16
    assert held_bytes(layer, "fp32", "mlx") == 40 + (6400 * 6 + 640 * 32) / 8
    assert held_bytes(layer, "bf16", "torch") == 20 + (6400 * (4 + 96 / 32) + 640 * (8 + 104 / 16)) / 8
    looked_up = PartWeights(packed=((six, 640),), packed_bytes=1, picked=((six, 640),), wide=True)
    assert held_bytes(looked_up, "bf16", "torch") == 640 * 8 / 8
    assert (layer + PartWeights()).wide


@pytest.mark.parametrize(("backend", "bits"), [("torch", 4), ("torch", 8), ("mlx", 4), ("mlx", 8)])
def test_what_a_plain_model_would_take_is_what_its_form_takes(tmp_path: Path, backend: str, bits: int) -> None:
    """Advice that a quantization fits must hold once that is loaded."""
    wide: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}  # whole groups everywhere
    plain = make_checkpoint(tmp_path / "tiny", "llama-tied", "bf16", **wide)
    made = begin_form(plain, describe(plain), f"mlx-affine-{bits}-g64@1", Store(tmp_path))
    advised = {each.bits: each.size for each in quantized_sizes(read_spec(plain), "bf16", {"mlx", backend})}
    real, told = model_size(read_spec(made), "bf16", backend), advised[bits]
    for found, wanted in zip(told.layer_bytes, real.layer_bytes, strict=True):
        assert found == pytest.approx(wanted, rel=0.02)
    assert told.head_bytes == pytest.approx(real.head_bytes, rel=0.05)


def test_what_makes_keys_and_values_of_a_latent_is_plain_on_torch() -> None:
    four = Packing("affine", 4, 64)
    layer = PartWeights(10, ((four, 12800),), 7200, by_head=((four, 6400),))
    alone = PartWeights(10, ((four, 6400),), 3600)
    assert held_bytes(layer, "bf16", "torch") == held_bytes(alone, "bf16", "torch") + 2 * 6400
    assert held_bytes(layer, "bf16", "mlx") == layer.nbytes("bf16")
    assert (layer + alone).by_head == layer.by_head
