"""Names of forms: made and read in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from together.errors import BadSetting, BrokenModel
from together.models.form import PUBLISHED, asked_form, form_of, form_title, is_form, targets_of
from together.models.headers import TensorInfo
from together.types import model_key


@pytest.mark.parametrize(
    ("quantize", "head", "name"),
    [
        ("4", None, "mlx-affine-4-g64@1"),
        ("8", "yes", "mlx-affine-8-g64@1"),
        (" MXFP4 ", None, "mlx-mxfp4@1"),
        ("4", "no", "mlx-affine-4-g64-plain-head@1"),
    ],
)
def test_what_a_person_asks_for_is_a_form(quantize: str, head: str | None, name: str) -> None:
    assert asked_form(quantize, head) == name
    assert form_of(name).name == name
    assert form_of(name).head is (head != "no")
    assert is_form(name)


def test_nothing_asked_is_the_published_form() -> None:
    assert asked_form(None) is None
    assert asked_form("no") == PUBLISHED
    assert is_form(PUBLISHED)


@pytest.mark.parametrize("quantize", ["5", "", "fp8", "affine-4", "4\x1b[31m"])
def test_another_quantization_is_refused(quantize: str) -> None:
    with pytest.raises(BadSetting, match="choose 4, 8 or mxfp4"):
        asked_form(quantize)


def test_a_plain_head_needs_a_quantization() -> None:
    with pytest.raises(BadSetting, match="add --quantize 4"):
        asked_form(None, "no")
    with pytest.raises(BadSetting, match="'maybe' is neither yes nor no"):
        asked_form("4", "maybe")


@pytest.mark.parametrize("name", ["", "plain", "mlx-affine-4-g64@2", "mlx-affine-4-g64", "../x", "mlx-affine-3-g64@1"])
def test_a_form_of_another_version_is_refused_by_name(name: str) -> None:
    with pytest.raises(BrokenModel, match=r"is no form .* update all machines"):
        form_of(name)


def test_keys_tell_forms_apart() -> None:
    forms = [PUBLISHED, *(asked_form(quantize, head) for quantize in ("4", "8", "mxfp4") for head in ("yes", "no"))]
    assert len({model_key("0" * 64, form or "") for form in forms}) == len(forms)
    assert form_title(asked_form("mxfp4", "no") or "") == "mxfp4, head plain"


@pytest.mark.parametrize("block", ["mlp.", ""])
def test_experts_in_one_tensor_become_stacks(block: str) -> None:
    """As Qwen3.5's files have them, and Gemma 4's: each expert's gate lies before its up."""
    path = f"model.layers.3.{block}"
    size = 2 * 6 * 64 * 2
    fused = TensorInfo(f"{path}experts.gate_up_proj", Path("m"), "BF16", (2, 6, 64), 100, 100 + size)
    found = {target.name: target for target in targets_of([fused], form_of("mlx-affine-4-g64@1"))}
    assert list(found) == [f"{path}switch_mlp.{part}.weight" for part in ("gate_proj", "up_proj")]
    gate, up = found.values()
    assert [(source.shape, source.start, source.stop) for source in (*gate.sources, *up.sources)] == [
        ((3, 64), 100, 484),
        ((3, 64), 868, 1252),
        ((3, 64), 484, 868),
        ((3, 64), 1252, 1636),
    ]
    assert gate.packing is not None
    assert gate.tensors[0].shape == (2, 3, 8)
    beside = TensorInfo(f"{path}experts.gate_up_proj_bias", Path("m"), "BF16", (2, 6), 0, 24)
    kept = targets_of([fused, beside], form_of("mlx-affine-4-g64@1"))
    assert [target.packing for target in kept] == [None, None], "there gates and ups take turns"
