"""What a stage imports of transformers and of torch, and what becomes of who wants more of them. Real interpreters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.conftest import Checkpoints
from tests.support.families import CASES, LAYERS

_STAGE = """
import sys
from pathlib import Path
from backends.base import LoadRequest
from backends.on_torch import backend
from together.types import Batch, LayerRange, Row
for folder in map(Path, sys.argv[1:]):
    request = LoadRequest(folder, LayerRange(0, {layers}), "cpu", "fp32", 1 << 30, folder.parent)
    backend.load(request).step(Batch((Row(1, 0, (3, 4, 5)),)), None)
unwanted = {{"torch._dynamo", "torch._inductor", "sympy", "torch.distributed.tensor", "scipy"}}
print((unwanted | {{"transformers.models", "transformers.loss"}}) & set(sys.modules))
"""

_ALL_MODELS_AND_THE_COMPILER = """
import torch
from backends.on_torch.library import library
given = torch.distributed.is_available()
library("transformers.models.llama.modeling_llama")
assert torch.distributed.is_available() == given
import transformers.models, transformers.loss.loss_utils
from transformers import AutoConfig, LlamaForCausalLM
print(AutoConfig.for_model("qwen3").model_type, LlamaForCausalLM.__name__, "gemma3" in dir(transformers.models))
print("ForCausalLM" in transformers.loss.loss_utils.LOSS_MAPPING)
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""

_ASKS_MORE = "import torch\nLIMIT = torch._dynamo.config.recompile_limit + 0\n"


def _said(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_a_stage_imports_what_it_needs_to_compute(checkpoint: Checkpoints) -> None:
    """Compiler and collectives are 75 MB and half of the time that the imports take; losses and the list of all models
    are a third of what is left."""
    folders = [checkpoint(case.name) for case in CASES]
    assert _said(_STAGE.format(layers=LAYERS), *folders) == "set()"


@pytest.mark.full  # one that asks is below
def test_models_losses_and_the_compiler_are_there_for_who_asks_later() -> None:
    assert _said(_ALL_MODELS_AND_THE_COMPILER) == "qwen3 LlamaForCausalLM True\nTrue\n2.0"


@pytest.mark.full  # what no stage imports is above
def test_a_library_that_asks_the_compiler_for_more_gets_it(tmp_path: Path) -> None:
    (tmp_path / "newer.py").write_text(_ASKS_MORE)
    code = f"import sys; sys.path.append({str(tmp_path)!r})\n"
    code += "from backends.on_torch.library import library; print(library('newer').LIMIT > 0)"
    assert _said(code) == "True"
