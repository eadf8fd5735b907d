"""Later families in a form that this program makes of plain weights, as `--quantize` asks for it."""

# ruff: noqa: E402  (only where MLX exists is there anybody to write them)

from __future__ import annotations

from pathlib import Path
from shutil import copy
from typing import Any

import pytest

mx = pytest.importorskip("mlx.core")

from tests.backends.judged import conforms
from tests.support.case import Case
from tests.support.chain import Chain, load_shard
from tests.support.families import MORE
from tests.support.mlx_folders import make_plain, write_judge
from together.models.form import asked_form, converted_unit, form_of, targets_of
from together.models.names import unit_of
from together.models.reading import all_tensors
from together.models.spec import read_spec
from together.types import LayerRange
from together.weights.convert import converted

SHORT = ("glm4_moe", "deepseek_v3")  # routers that stay plain


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case.name in SHORT else pytest.mark.full) for case in MORE], ids=str
)
def test_a_family_runs_in_our_form(case: Case, tmp_path: Path) -> None:
    plain, folder = make_plain(tmp_path / "plain", case.name), tmp_path / "ours"
    write_form(plain, folder, "4")
    judge = write_judge(folder, plain, tmp_path / "judge")
    for backend in case.backends:
        cuts = LayerRange(0, case.cut), LayerRange(case.cut, case.layers)
        conforms(Chain([load_shard(folder, backend, layers) for layers in cuts]), judge)


def test_experts_in_one_tensor_are_packed_each(tmp_path: Path) -> None:
    plain, folder = make_plain(tmp_path / "plain", "gemma4-experts"), tmp_path / "ours"
    write_form(plain, folder, "4")
    arrays = mx.load(str(folder / "model.safetensors"))
    for name, shape in {"gate_proj": (5, 128, 2), "up_proj": (5, 128, 2), "down_proj": (5, 128, 2)}.items():
        assert arrays[f"model.layers.0.switch_mlp.{name}.scales"].shape == shape
    assert read_spec(folder).packed_as().layers is not None
    assert len(read_spec(folder).packings) == 2, "and the router in 8 bits"


def write_form(plain: Path, folder: Path, quantize: str) -> None:
    """A folder of all units of a model in a form."""
    form, tensors = form_of(asked_form(quantize) or ""), all_tensors(plain)
    arrays: dict[str, Any] = {}
    folder.mkdir()
    for unit in dict.fromkeys(unit_of(tensor.name) for tensor in tensors):
        assert unit is not None
        own = [tensor for tensor in tensors if unit_of(tensor.name) == unit]
        made, file = converted_unit(unit, targets_of(own, form), {"format": "mlx"}), folder / unit
        file.write_bytes(made.header + b"".join(converted(own, form, 1)))
        arrays |= mx.load(str(file))
        mx.eval(list(arrays.values()))
        file.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "mlx"})
    copy(plain / "config.json", folder)
