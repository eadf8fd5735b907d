"""`launch.py convert`: what mlx-lm's own command says with the folder, and how the command ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm")

from tests.conftest import ROOT, until
from tests.support.families import make_checkpoint
from tests.support.gguf_models import make_gguf
from tests.support.hub_home import own_home
from tests.support.lightest import LIGHTEST
from tests.support.patience import PATIENCE
from tests.support.smollm2 import smollm2_gguf
from together.desktop.cli import main
from together.errors import BadSetting
from together.scripting import PartitionStrategy, convert, partition

QUESTION = "What is the capital of France?"
EXACT = PartitionStrategy(num_partitions=1, dtype="fp32", exact=True, backend=LIGHTEST)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_home(tmp_path, monkeypatch)


def said_by_mlx_lm(folder: Path, prompt: str, tokens: int) -> str:
    command = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(folder), "--prompt", prompt, "--temp", "0",
               "--max-tokens", str(tokens), "--verbose", "False"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=True)
    return done.stdout.strip()


def said_here(model: Path | str, prompt: str, tokens: int) -> str:
    with partition(model, EXACT) as found:
        return found.generate(prompt, max_tokens=tokens, temperature=0).strip()


def test_the_demo_model_answers_in_mlx_lm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["convert", "demo_model", str(out)]) == 0
    size = sum(file.stat().st_size for file in out.iterdir())
    assert capsys.readouterr().out == f"demo_model: {size / 1e6:.2f} MB in MLX's format are in {out}\n"
    assert said_by_mlx_lm(out, QUESTION, 32) == said_here("demo_model", QUESTION, 32) != ""


@pytest.mark.full  # tests/weights/mlx/test_weights.py compares what is computed
def test_a_gguf_file_answers_in_mlx_lm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = make_gguf(tmp_path / "files"), tmp_path / "out"
    assert main(["convert", str(file), str(out)]) == 0
    assert "keep their codes: affine" in capsys.readouterr().out
    assert said_by_mlx_lm(out, "the", 8) == said_here(file, "the", 8) == said_here(out, "the", 8) != ""


def test_a_script_gets_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[int] = []
    written = convert(
        "demo_model", tmp_path / "out", "8", quantize_head=False, progress=lambda done, _: told.append(done)
    )
    assert main(["convert", "demo_model", str(tmp_path / "same"), "--quantize", "8", "--quantize-head", "no"]) == 0
    for file in written.folder.iterdir():
        assert file.read_bytes() == (tmp_path / "same" / file.name).read_bytes(), file.name
    assert told == sorted(told)
    assert str(written.facts[0]) in capsys.readouterr().out
    with pytest.raises(BadSetting, match=r"org/none is not on this machine; get it first: .* pull org/none"):
        convert("org/none", tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", "out"), "there is no model 'none' on this machine"),
        (("org/none", "out"), "org/none is not on this machine; get it first: "),
        (("demo_model", "full"), "full exists already and is not empty; choose a new folder"),
        (("demo_model", "out", "--quantize", "3"), "--quantize '3' is not known; choose 4, 8 or mxfp4, or no"),
        (("demo_model", "out", "--quantize-head", "no"), "--quantize-head is for a model that is quantized"),
    ],
)
def test_what_cannot_be_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert main(["convert", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is a signal")
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "large", "llama", hidden_size=512, intermediate_size=4096, vocab_size=16_000)
    place = tmp_path / "place"
    place.mkdir()
    command = [sys.executable, "-m", "together", "convert", str(source), str(place / "out"), "--quantize", "4"]
    converting = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        begun = place / ".out.new" / "model.safetensors"
        until(lambda: begun.exists() and begun.stat().st_size > 10_000, PATIENCE, "weights are written")
        converting.send_signal(signal.SIGINT)
        out, error = converting.communicate(timeout=PATIENCE)
    finally:
        converting.kill()
    assert converting.returncode == 130
    assert out == f"stopped; {place / 'out'} was not written\n"
    assert error == ""
    assert list(place.iterdir()) == []


@pytest.mark.full
def test_a_real_gguf_file_answers_in_mlx_lm(tmp_path: Path) -> None:
    file, out = smollm2_gguf(), tmp_path / "out"
    assert main(["convert", str(file), str(out)]) == 0
    wanted = said_here(file, QUESTION, 48)
    assert "Paris" in wanted
    assert said_by_mlx_lm(out, QUESTION, 48) == wanted
    assert said_here(out, QUESTION, 48) == wanted
