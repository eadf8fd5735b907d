"""A model that cannot run is refused while another one goes on serving: by a real app, from files alone."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest

from tests.conftest import ROOT, RealApp, run_up
from tests.support.lightest import LIGHTEST
from tests.support.patience import PATIENCE
from together.models.config import effective
from together.models.layout import needs

DEMO = ROOT / "examples" / "demo_model"
QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
Q = "model.layers.2.self_attn.q_proj.weight"
HUGE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealApp]:
    """Serves the demo on one device."""
    arguments = ("--model", str(DEMO), "--backend", LIGHTEST, "--layers", "0:4,4:8", "--dtype", "fp32")
    with run_up(tmp_path_factory.mktemp("app"), *arguments) as app:
        yield app


def demo(folder: Path, **config: Any) -> Path:
    copytree(DEMO, folder, ignore=ignore_patterns("*.py", "__pycache__"))
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config))
    return folder


def edit(folder: Path, *, drop: str = "", halve: str = "") -> Path:
    """Drop a tensor, or take half of its rows."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    kept, found = b"", {}
    for name, entry in header.items():
        if name in ("__metadata__", drop):
            continue
        start, stop = entry["data_offsets"]
        if name == halve:
            entry["shape"][0] //= 2
            stop = (start + stop) // 2
        found[name] = entry | {"data_offsets": [len(kept), len(kept) + stop - start]}
        kept += data[start:stop]
    text = json.dumps(found).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + kept)
    return folder


def huge(folder: Path, files: int = 118) -> Path:
    """A model of 235 billion parameters in sparse files: 37,000 tensors that take no room."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(HUGE))
    shapes = list(needs(effective("huge", HUGE), head=True).items())
    places: dict[str, str] = {}
    for i in range(files):
        part = shapes[i * len(shapes) // files : (i + 1) * len(shapes) // files]
        name, at, header = f"model-{i + 1:05}-of-{files:05}.safetensors", 0, {}
        for key, shape in part:
            stop = at + 2 * prod(shape)
            header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, stop]}
            places[key], at = name, stop
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + at)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def refused(app: RealApp, folder: Path) -> str:
    """The sentence; what serves has kept its processes and answers as before."""
    before = app.stage_pids()
    answer = app.post("/control/load", {"model": str(folder), "layers": "0:4,4:8"})
    said: str = answer.json()["error"]["message"]
    assert answer.status_code == 400, said
    assert not any(word in said for word in ("Error", "NoneType", "Traceback", "get this model again"))
    assert app.stage_pids() == before
    answer = app.post("/v1/chat/completions", QUESTION | {"max_tokens": 20})
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    return said


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "bits": 4}}, "bitsandbytes"),
        ({"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}}, "mrope"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "longrope"),
        ({"rope_theta": "ten"}, "rope_theta"),
        ({"tie_word_embeddings": False}, "lm_head"),
        ({"head_dim": 31}, "head_dim"),
        ({"hidden_act": "swiglu"}, "swiglu"),
        ({"num_key_value_heads": 4}, "k_proj"),
        ({"model_type": "llava", "text_config": {"model_type": "llama"}}, "llava"),
    ],
)
def test_a_configuration_that_cannot_run(app: RealApp, tmp_path: Path, config: dict[str, Any], named: str) -> None:
    assert named in refused(app, demo(tmp_path / "m", **({"rope_parameters": None} | config)))


def test_tensors_of_another_shape(app: RealApp, tmp_path: Path) -> None:
    said = refused(app, edit(demo(tmp_path / "m"), halve=Q))
    assert all(part in said for part in (Q, "64×128", "128×128"))


def test_pointers_of_git_lfs(app: RealApp, tmp_path: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        folder = demo(tmp_path / name)
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
        assert "git lfs pull" in refused(app, folder)


def test_a_missing_tensor_is_named(app: RealApp, tmp_path: Path) -> None:
    answer = app.post("/control/load", {"model": str(edit(demo(tmp_path / "m"), drop=Q)), "layers": "0:4,4:8"})
    assert answer.status_code == 400
    assert Q in answer.json()["error"]["message"]


@pytest.mark.skipif(os.name == "nt", reason="files there are not sparse by themselves")
def test_a_huge_model_is_looked_at_and_refused_in_no_time(app: RealApp, tmp_path: Path) -> None:
    """Its headers are read once each, and none of its weights but samples."""
    folder = huge(tmp_path / "huge")
    command = [sys.executable, "-m", "together", "inspect", str(folder), "--json"]
    shown = subprocess.run(
        command, cwd=ROOT, env=app.environment, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    found = json.loads(shown.stdout)
    assert (found["layers"], found["supported"], found["params"]) == (94, True, 235093634560)
    (folder / "config.json").write_text(json.dumps(HUGE | {"num_experts": 129}))
    assert "129×4096" in app.post("/control/load", {"model": str(folder)}).json()["error"]["message"]
    (folder / "config.json").write_text(json.dumps(HUGE | {"vocab_size": 151935}))
    assert "151936×4096" in refused(app, folder)
