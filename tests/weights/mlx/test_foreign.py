"""Checkpoints in the formats of others become folders that mlx-lm opens, with the same codes where MLX has them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx

from tests.support.chain import Chain, Logits, assert_close, load_shard, new_sequence, row
from tests.support.families import LAYERS, prompt_ids, reference_logits
from tests.support.foreign_folders import FORMATS, write_foreign
from tests.support.gguf_files import make_plain
from tests.support.mlx_folders import stored_arrays
from tests.support.mlx_lm_runs import mlx_lm_logits
from together.types import LayerRange
from together.weights.mlx.folder import WrittenFolder, convert_folder

PROMPT = prompt_ids(24)
ROUNDED = {name: "fp8" for name in FORMATS if name.startswith("fp8")} | {"nvfp4": "affine 5 bit, groups of 16"}
SHORT = ("gptq-4", "int4-asymmetric", "fp8-blocks", "nvfp4")  # tests/models/test_foreign.py reads every format
KEPT = [name for name in FORMATS if name not in ROUNDED]


def convert(source: Path, target: Path) -> WrittenFolder:
    return asyncio.run(convert_folder(source, target, target.parent / "home", "", lambda done, total: None))


def logits(folder: Path, backend: str) -> Logits:
    return Chain([load_shard(folder, backend, LayerRange(0, LAYERS))]).logits(row(new_sequence(), 0, PROMPT))


@pytest.mark.parametrize(
    "format", [pytest.param(each, marks=() if each in SHORT else pytest.mark.full) for each in KEPT]
)
def test_codes_are_kept(tmp_path: Path, format: str) -> None:
    name = "qwen3_moe" if format == "gptq-4" else "llama"
    source, judge = write_foreign(make_plain(tmp_path / "plain", name), tmp_path, FORMATS[format])
    written = convert(source, tmp_path / "out")
    wanted = reference_logits(judge, PROMPT)
    assert "keep their codes" in str(written.facts[0])
    assert len(written.facts) == 1
    assert_close(mlx_lm_logits(tmp_path / "out", PROMPT), wanted, 1e-4)
    for backend in ("torch", "mlx"):
        assert_close(logits(tmp_path / "out", backend), wanted)


@pytest.mark.parametrize(
    "format", [pytest.param(each, marks=() if each in SHORT else pytest.mark.full) for each in ROUNDED]
)
def test_others_become_plain(tmp_path: Path, format: str) -> None:
    source, judge = write_foreign(make_plain(tmp_path / "plain", "llama"), tmp_path, FORMATS[format])
    written = convert(source, tmp_path / "out")
    assert f"of {ROUNDED[format]} became plain in bf16" in str(written.facts[0])
    found, wanted = stored_arrays(tmp_path / "out"), stored_arrays(judge)
    path = "model.layers.1.mlp.down_proj.weight"
    assert found[path].dtype == mx.bfloat16
    assert np.array_equal(
        np.array(found[path].astype(mx.float32)), np.array(wanted[path].astype(mx.bfloat16).astype(mx.float32))
    )
    assert_close(mlx_lm_logits(tmp_path / "out", PROMPT), logits(tmp_path / "out", "torch"), 1e-4)
