"""`bench engine` and `bench sampler`, in small: that they run, print what they promise, and are not far off."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.desktop.test_bench import SLACK, bench

ALL_MS, GREEDY_MS = 10.0, 1.0


@pytest.mark.full  # beside other tests its time says nothing
def test_the_sampler_is_fast_enough(tmp_path: Path) -> None:
    lines = {line["settings"]: line for line in bench(tmp_path, "sampler", "--repeats", "5")}
    assert {(line["rows"], line["vocabulary"]) for line in lines.values()} == {(8, 128256)}
    assert lines["greedy"]["ms"] <= GREEDY_MS * SLACK
    assert lines["top-k, top-p, penalties"]["ms"] <= ALL_MS * SLACK


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
    assert gaps["gaps"] > 2
    assert 0 < gaps["gap_ms"] <= gaps["p95_ms"] * SLACK
    assert report["flatness"] is None
