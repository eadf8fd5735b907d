"""The example scripts of the Python API, run as a person runs them, from another folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.checksum import make_checksum_model
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
    said = run(tmp_path, "split_by_hand.py")
    assert "layers 0–4 on cpu" in said[1]
    assert "layers 5–7 on cpu" in said[2]
    assert said[3] == "The capital of France is Paris."
    assert "12" in said[4]


def test_every_strategy_has_a_split_and_a_reason(tmp_path: Path) -> None:
    """With the toy, which is measured in no time."""
    toy = make_checksum_model(tmp_path / "toy", layers=8)
    said = run(tmp_path, "compare_splits.py", str(toy), "3", TOGETHER_BACKEND="checksum")
    kinds = [line.partition(":")[0] for line in said if not line.startswith(" ")]
    assert kinds == ["recommend", "uniform", "memory", "compute", "mixed"]
    assert any(line.startswith("uniform: layers 0–2 on cpu (checksum), ") for line in said)
    by_compute = re.compile(r"  cpu \(partition 1\) takes \d layers? \(.*\) by compute")  # how many is measured
    assert any(map(by_compute.match, said))


def test_a_strategy_that_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy", layers=2)
    said = run(tmp_path, "compare_splits.py", str(toy), "3", TOGETHER_BACKEND="checksum")
    assert "uniform: toy has 2 layers, too few for 3 partitions; ask for fewer" in said
