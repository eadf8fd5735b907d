"""Scripts take a GGUF file as they take a folder, and the names of other programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.gguf_models import make_gguf
from tests.support.lightest import LIGHTEST
from tests.support.other_programs import LIBRARY, OllamaFolder
from together.scripting import PartitionStrategy, partition


def test_a_file_and_a_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file in two stages, the tag in one."""
    file = make_gguf(tmp_path / "files")
    OllamaFolder(tmp_path / "ollama").add(f"{LIBRARY}/llama3.2/3b", file.read_bytes())
    monkeypatch.setenv("TOGETHER_BACKEND", LIGHTEST)
    monkeypatch.setenv("TOGETHER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    answers = []
    two = PartitionStrategy(strategy_type="custom", custom_boundaries=[(0, 1), (2, 3)], context=1024)
    for name, strategy in ((file, two), ("llama3.2:3b", PartitionStrategy(num_partitions=1, context=1024))):
        with partition(name, strategy) as model:
            answers.append(model.generate("the", max_tokens=8, temperature=0))
    assert answers[0] == answers[1] != ""
