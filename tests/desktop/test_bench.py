"""The benchmarks, in small: that they run on real processes and print what they promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, environment_for
from tests.support.lightest import LIGHTEST
from tests.support.patience import PATIENCE


def bench(home: Path, *arguments: str) -> Any:
    command = [sys.executable, "-m", "together", "bench", *arguments, "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment_for(home), capture_output=True, text=True, timeout=2 * PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_hop_prints_every_shape_dtype_and_codec(tmp_path: Path) -> None:
    hops = bench(tmp_path, "hop", "--repeats", "5")
    assert [hop["shape"] for hop in hops[::2]] == [[rows, 8192] for rows in (1, 4, 16, 32, 64)] * 2
    assert {(hop["dtype"], hop["codec"]) for hop in hops} == {
        (dtype, codec) for dtype in ("bf16", "fp32") for codec in ("raw", "zlib")
    }
    first = hops[0]
    assert (first["dtype"], first["codec"], first["bytes"]) == ("bf16", "raw", 16384)
    assert min(hop["transmission_ms"] for hop in hops) > 0
    assert all(hop["total_ms"] == hop["transmission_ms"] + hop["compression_ms"] for hop in hops)


@pytest.mark.parametrize(
    ("backend", "others"),
    [
        (LIGHTEST, {"1": "1 stages"}),
        pytest.param("torch", {"1": "1 stages", "transformers": "transformers"}, marks=pytest.mark.full),
    ],
)
def test_decode_compares_rings_and_transformers(tmp_path: Path, backend: str, others: dict[str, str]) -> None:
    compared = [word for other in others for word in ("--compare", other)]
    report = bench(
        tmp_path, "decode", "--shape", "tiny", "--dtype", "fp32", "--prompt", "40", "--new", "8", "--rounds", "1",
        "--backend", backend, *compared,
    )  # fmt: skip
    for key in ("prefill_tok_s", "decode_tok_s", "ttft_s", "hop_ms"):
        assert report[key] > 0
    assert len(report["stage_ms"]) == len(report["rss_bytes"]) == 2
    assert [other["name"] for other in report["compare"]] == [*others.values()]
    assert all(other["decode_ratio"] > 0 for other in report["compare"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["decode", "--shape", "gpt-9"], "there is no shape 'gpt-9'"),
        (["decode", "--dtype", "int3"], "there is no dtype 'int3'"),
        (["decode", "--shape", "tiny", "--compare", "ollama"], "cannot compare with 'ollama'"),
    ],
)
def test_wrong_words_get_a_sentence(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "together", "bench", *arguments]
    environment = os.environ | {"TOGETHER_HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
