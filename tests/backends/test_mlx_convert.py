"""What `mlx_lm.convert` writes runs as it lies, and computes what mlx-lm computes."""

# ruff: noqa: E402  (mlx-lm is only where MLX is)

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")

from tests.support.chain import Chain, Logits, assert_close, load_shard, new_sequence, row
from tests.support.mlx_folders import convert, mlx_lm
from tests.support.smollm2 import smollm2_folder
from together.models.spec import read_config, read_spec
from together.requests import Message
from together.text.tokenizer import TextModel
from together.types import LayerRange
from together.weights.find import BUNDLED

PAIRS = (("torch", "mlx"), ("mlx", "torch"), ("mlx", "mlx"), ("torch", "torch"))
WAYS: dict[str, dict[str, Any]] = {
    "4-bit": {"q_bits": 4},
    "6-bit": {"q_bits": 6},
    "8-bit": {"q_bits": 8},
    "mxfp4": {"q_mode": "mxfp4"},
    "mixed": {"quant_predicate": "mixed_3_6", "q_group_size": 64},
}
SMALLER: dict[str, dict[str, Any]] = {  # in coarser forms SmolLM2 does not know it any more, in mlx-lm either
    "4-bit": {"q_bits": 4, "q_group_size": 32},
    "mixed": {"quant_predicate": "mixed_4_6", "q_group_size": 32},
}


class Theirs:
    """mlx-lm's own model of a folder, in fp32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        mx.set_default_device(mx.cpu)
        mx.disable_compile()  # it would call a C++ compiler
        rope = read_config(folder)["rope_parameters"]  # transformers 5's word, which mlx-lm does not read
        self._model = mlx_lm().load_model(folder, model_config={"rope_theta": rope["rope_theta"]})[0]
        self._model.set_dtype(mx.float32)

    def logits(self, ids: Sequence[int]) -> Logits:
        return np.array(self._model(mx.array([list(ids)]))[0])


def halves(folder: Path, pair: tuple[str, str]) -> Chain:
    layers = read_spec(folder).layers
    ranges = (LayerRange(0, layers // 2), LayerRange(layers // 2, layers))
    return Chain([load_shard(folder, each, part, memory=2**30) for each, part in zip(pair, ranges, strict=True)])


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way in ("4-bit", "mixed") else pytest.mark.full) for way in WAYS]
)
@pytest.mark.parametrize("pairs", [PAIRS[:2], pytest.param(PAIRS[2:], marks=pytest.mark.full)], ids=["mixed", "alone"])
def test_the_demo(tmp_path: Path, way: str, pairs: tuple[tuple[str, str], ...]) -> None:
    folder = convert(BUNDLED, tmp_path / "demo", **WAYS[way])
    text = TextModel.open(folder)
    prompt = text.prompt_ids((Message("user", "What is the capital of France?"),))
    for pair in pairs:
        answers_as_mlx_lm_does(halves(folder, pair), Theirs(folder), text, prompt)


@pytest.mark.full
@pytest.mark.parametrize("way", WAYS)
def test_smollm2(tmp_path: Path, way: str) -> None:
    folder = convert(smollm2_folder(), tmp_path / "smollm2", **SMALLER.get(way, WAYS[way]))
    text = TextModel.open(folder)
    prompt = text.encode("The capital of France is")  # short: MLX takes 0.3 s per token on a CPU
    answers_as_mlx_lm_does(halves(folder, ("mlx", "torch")), Theirs(folder), text, prompt)


def answers_as_mlx_lm_does(chain: Chain, theirs: Theirs, text: TextModel, prompt: Sequence[int]) -> None:
    """The same tokens, by logits that are the same."""
    answer = chain.greedy(new_sequence(), prompt, 6)
    ids = (*prompt, *answer[:-1])
    wanted = theirs.logits(ids)
    assert_close(chain.logits(row(new_sequence(), 0, ids)), wanted, 1e-4)
    assert answer == tuple(wanted[len(prompt) - 1 :].argmax(axis=-1))
    assert "Paris" in text.tokenizer.decode(answer)
