"""`bench device`, in small: every line on real stages, and a line that cannot run beside others that do."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.desktop.test_bench import bench
from together.cluster.profiling import default_backend
from together.desktop.bench.device import LONG, DeviceRequest, bench_device
from together.desktop.bench.rings import BenchRequest, bench_folder
from together.errors import BadSetting
from together.models.form import asked_form

TINY = DeviceRequest(None, None, "tiny", "fp32", LONG)
ARGUMENTS = ("device", "--shape", "tiny", "--dtype", "fp32", "--context", str(LONG))
LINES = [("fp32", 1), ("4 bit", 1), ("8 bit", 1), ("fp32", 2)]


def expect_figures(line: dict[str, Any]) -> None:
    assert not line["why"]
    assert min(value for key, value in line.items() if key.endswith("_tok_s")) > 0
    assert len(line["peak_bytes"]) == line["stages"]
    assert all(ran["kernels"] for ran in line["computing"])


@pytest.mark.full  # lines that cannot run are below
@pytest.mark.parametrize("backend", ["mlx", pytest.param("torch", marks=pytest.mark.full)])
async def test_a_line_that_cannot_run_says_why_and_the_others_go_on(tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    four = asked_form("4") or ""
    folder = await bench_folder(BenchRequest("tiny", "fp32", backend, "cpu", form=four), tmp_path)
    file = folder / "embed.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    plain, broken, *rest = (await asyncio.to_thread(bench, tmp_path, *ARGUMENTS, "--backend", backend))["lines"]
    assert "embed.safetensors of tiny" in broken["why"]
    assert broken["decode_tok_s"] is None
    for line in (plain, *rest):
        expect_figures(line)


@pytest.mark.full
def test_every_line_of_the_default_backend_is_measured(tmp_path: Path) -> None:
    found = bench(tmp_path, *ARGUMENTS)
    assert (found["device"]["backend"], found["shape"], found["far"]) == (default_backend(), "tiny", LONG)
    assert [(line["weights"], line["stages"]) for line in found["lines"]] == LINES
    for line in found["lines"]:
        expect_figures(line)


async def test_lines_without_time_say_so(tmp_path: Path) -> None:
    lines = (await bench_device(TINY, tmp_path, within=0.0)).lines
    assert [(line.weights, line.stages) for line in lines] == LINES
    assert {line.decode_tok_s for line in lines} == {None}
    assert {line.why for line in lines} == {"the rest takes longer than the 0 s that it had; try a smaller --shape"}


async def test_a_device_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="no device 'tpu' here; choose one of cpu"):
        await bench_device(replace(TINY, device="tpu"), tmp_path)
