"""The example scripts of the Python API, run as a person runs them, from another folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checksum import make_checksum_model
from tests.support.lightest import LIGHTEST
from tests.support.mlx_folders import FORMS, write_mlx
from tests.support.patience import PATIENCE

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(folder: Path, name: str, *arguments: str, **settings: str) -> list[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TOGETHER_")}
    environment = clean | {"TOGETHER_HOME": str(folder / "home"), "PYTHONIOENCODING": "utf-8"} | settings
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=2 * PATIENCE, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8").splitlines()


def test_a_split_by_hand_answers(tmp_path: Path) -> None:
    said = run(tmp_path, "split_by_hand.py", TOGETHER_BACKEND=LIGHTEST)
    assert "layers 0:5 on cpu" in said[1]
    assert "layers 5:8 on cpu" in said[2]
    assert said[3] == "The capital of France is Paris."
    assert "12" in said[4]


def test_every_strategy_has_a_split_and_a_reason(tmp_path: Path) -> None:
    """With the toy, which is measured in no time."""
    toy = make_checksum_model(tmp_path / "toy", layers=8)
    said = run(tmp_path, "compare_splits.py", str(toy), "3", TOGETHER_BACKEND="checksum")
    kinds = [line.partition(":")[0] for line in said if not line.startswith(" ")]
    assert kinds == ["recommend", "uniform", "memory", "compute", "mixed"]
    assert any(line.startswith("uniform: layers 0:3 on cpu (checksum), ") for line in said)
    # how many is measured, and a slow LM head leaves all of them to the first
    by_compute = re.compile(r"  cpu \(partition 0\) takes \d layers? \(.*\) by compute")
    assert any(map(by_compute.match, said))


def test_a_model_that_cannot_be_compared_is_a_sentence(tmp_path: Path) -> None:
    said = run(tmp_path, "compare_quantized.py", str(tmp_path / "none"))
    names = ["none", "none --quantize 8", "none --quantize 4"]
    wanted = [f"{name} on {backend}: " for backend in ("torch", "mlx") for name in names]
    assert [line[: len(start)] for line, start in zip(said[1:], wanted, strict=True)] == wanted


@pytest.mark.full
def test_quantized_forms_are_compared_on_every_backend(tmp_path: Path) -> None:
    """The demo model; a folder in MLX's format, as it lies; and a model that is not there, which is passed over."""
    demo = EXAMPLES / "demo_model"
    packed = write_mlx(demo, tmp_path / "demo-4bit", FORMS["affine-4"])
    said = run(tmp_path, "compare_quantized.py", str(demo), str(tmp_path / "none"), str(packed))
    assert len(said) == 11
    for backend, lines in zip(("torch", "mlx"), (said[1:6], said[6:11]), strict=True):
        rows = [line.rsplit(maxsplit=4) for line in lines if not line.startswith("none on ")]
        assert [row[0] for row in rows] == [
            "demo_model",
            *(f"demo_model --quantize {bits}" for bits in (8, 4)),
            "demo-4bit",
        ]
        assert [row[1:3] for row in rows] == [[backend, bits] for bits in ("16.00", "8.51", "4.51", "4.51")]
        assert 8 < float(rows[0][3]) < 12
        assert all(0.8 < float(row[4]) < 1.25 for row in rows)
        assert lines[3].startswith(f"none on {backend}: ")


def test_a_strategy_that_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy", layers=2)
    said = run(tmp_path, "compare_splits.py", str(toy), "3", TOGETHER_BACKEND="checksum")
    assert "uniform: toy has 2 layers, too few for 3 partitions; ask for fewer" in said
