"""A model that brings code of its own (`auto_map`): whatever reads it, none of that code runs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from backends.base import LoadRequest, open_backend
from together.models.manifest import describe
from together.models.spec import read_runnable
from together.text.tokenizer import TextModel
from together.types import LayerRange
from together.weights.find import BUNDLED

MAPS: dict[str, dict[str, object]] = {
    "config.json": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForCausalLM": "evil.Model"},
    "tokenizer_config.json": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
    "generation_config.json": {"AutoModelForCausalLM": "evil.Model"},
}


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """The bundled model with a module that leaves a mark where it is imported."""
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "evil"))
    for name, auto_map in MAPS.items():
        file = folder / name
        settings = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(settings | {"auto_map": auto_map}))
    mark = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    (folder / "evil.py").write_text(mark + "class Config: ...\nclass Model: ...\nclass Tokenizer: ...\n")
    return folder


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_model_s_own_code_is_never_run(evil: Path, tmp_path: Path, backend: str) -> None:
    spec = read_runnable(evil, "evil")
    text = TextModel.open(evil)
    assert text.tokenizer.get_vocab_size() > 0
    described = describe(evil)
    assert "evil.py" not in {file.name for file in described.small}  # nor does it travel
    shard = open_backend(backend).load(
        LoadRequest(
            folder=evil,
            layers=LayerRange(0, spec.layers),
            device="cpu",
            dtype="fp32",
            memory_bytes=2**30,
            home=tmp_path / "home",
        )
    )
    shard.close()
    assert not (tmp_path / "ran").exists()
    assert not [name for name in sys.modules if name.rpartition(".")[2] == "evil"]
