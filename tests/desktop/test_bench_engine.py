"""`bench engine` and `bench sampler`, in small: that they run and print what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.desktop.test_bench import bench


def test_the_sampler_bench_measures_every_kind_of_settings(tmp_path: Path) -> None:
    lines = {line["settings"]: line for line in bench(tmp_path, "sampler", "--repeats", "1")}
    assert {(line["rows"], line["vocabulary"]) for line in lines.values()} == {(8, 128256)}
    assert {"greedy", "top-k, top-p, penalties"} <= lines.keys()
    assert min(line["ms"] for line in lines.values()) > 0


@pytest.mark.full
def test_the_engine_bench_measures_all_its_parts(tmp_path: Path) -> None:
    report = bench(
        tmp_path, "engine", "--shape", "tiny", "--dtype", "fp32", "-c", "3", "--new", "8", "--rounds", "1",
        "--long-prompt", "600",
    )  # fmt: skip
    together, gaps = report["together"], report["long_prompt"]
    assert together["people"] == 3
    assert together["ratio"] > 0
    assert gaps["tokens"] == 600
    assert gaps["gaps"] > 0  # how many depends on how the prompt is cut, and that on the machine's load
    assert gaps["ratio"] == gaps["p95_ms"] / gaps["gap_ms"] > 0
    assert report["flatness"] is None
