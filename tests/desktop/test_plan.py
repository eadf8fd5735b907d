"""`launch.py plan` from outside: files, exit codes, the documented JSON, one sentence per mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.patience import PATIENCE
from together.desktop.cli import main

CLUSTER: dict[str, Any] = {
    "model": {"layers": 12, "layer_bytes": 1e9, "embed_bytes": 500_000_000, "kv_bytes_per_token_per_layer": 1000},
    "nodes": [
        {"name": "Studio", "ms_per_layer": 1.0, "ms_per_stage": 0.5, "free_bytes": 10e9, "reserve_bytes": 1e9},
        {"name": "Mini", "ms_per_layer": 2.0, "max_layers": 6},
        {"name": "Laptop", "ms_per_layer": 5, "max_layers": 12},
    ],
    "links": [{"a": "Studio", "b": "Mini", "ms": 1}, {"a": "Mini", "b": "Laptop", "ms": None}],
    "hop_ms": 3,
    "head": "Studio",
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[object], str]:
    def write(data: object) -> str:
        path = tmp_path / "cluster.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
        return str(path)

    return write


def changed(path: str, value: object) -> dict[str, Any]:
    """CLUSTER with one field set, as `nodes.1.name`; a value of `...` removes it."""
    data: dict[str, Any] = json.loads(json.dumps(CLUSTER))
    *way, last = path.split(".")
    place: Any = data
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    key: Any = int(last) if isinstance(place, list) else last
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return data


def test_the_documented_answer_from_a_real_process(write: Callable[[object], str]) -> None:
    command = [sys.executable, "-m", "together", "plan", "--cluster", write(CLUSTER), "--json", "--hidden-size", "8192"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert list(answer) == [
        "stages",
        "token_ms",
        "slowest_stage_ms",
        "score_ms",
        "tokens_per_second",
        "tokens_per_second_each",
        "network",
        "left_out",
        "why",
    ]
    layer = 10**9 + 4096 * 1000
    assert answer["stages"] == [
        {"node": "Studio", "start": 0, "stop": 8, "ms": 8.5, "bytes": 8 * layer + 500_000_000}
        | {"room_bytes": 9 * 10**9, "hop_ms": 1.0},
        {"node": "Mini", "start": 8, "stop": 12, "ms": 8.0, "bytes": 4 * layer, "room_bytes": None, "hop_ms": 1.0},
    ]
    assert answer["token_ms"] == answer["score_ms"] == 18.5
    assert answer["slowest_stage_ms"] == 8.5
    assert answer["tokens_per_second"] == answer["tokens_per_second_each"] == pytest.approx(1000 / 18.5)
    assert answer["network"]["hops"] == 2
    assert answer["network"]["bytes_per_token_and_hop"] == 16384
    assert [item["node"] for item in answer["left_out"]] == ["Laptop"]
    assert all(isinstance(sentence, str) for sentence in answer["why"])


def test_what_does_not_fit_is_code_3(write: Callable[[object], str]) -> None:
    file = write(changed("nodes.2.max_layers", 0) | {"model": {"layers": 20, "layer_bytes": 1e9}})
    command = [sys.executable, "-m", "together", "plan", "--cluster", file, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (3, "")
    answer = json.loads(done.stdout)
    assert list(answer) == ["error", "missing_layers", "missing_bytes", "suggestions"]
    assert (answer["missing_layers"], answer["missing_bytes"]) == (5, 5 * 10**9)
    assert answer["suggestions"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object"),
        ('{"model": 1, "model": 2}', "'model' stands twice"),
        (changed("colour", 1), "colour is not known"),
        (changed("model.colour", 1), "model.colour is not known"),
        (changed("nodes.1.colour", 1), "nodes[1].colour is not known"),
        (changed("links.0.colour", 1), "links[0].colour is not known"),
        (changed("model", ...), "model is missing"),
        (changed("model.layers", ...), "model.layers is missing"),
        (changed("model.layers", 0), "model.layers must be a whole number, at least 1"),
        (changed("model.layers", 1.5), "model.layers must be a whole number"),
        (changed("model.layers", 10**9), "model.layers must be at most"),
        (changed("model.layer_bytes", [1, 2]), "model.layer_bytes has 2 numbers, and model.layers is 12"),
        (changed("model.layer_bytes", [1] * 11 + ["x"]), "model.layer_bytes[11] must be a number"),
        (changed("nodes", []), "nodes must name at least one"),
        (changed("nodes", {}), "nodes must be a list"),
        (changed("nodes.0", 5), "nodes[0] must be an object"),
        (changed("nodes.0.name", ...), "nodes[0].name is missing"),
        (changed("nodes.0.name", ""), "nodes[0].name must be a name"),
        (changed("nodes.1.name", "Studio"), "nodes[1].name: Studio stands twice"),
        (changed("nodes.1.ms_per_layer", -1), "nodes[1].ms_per_layer must be a number, at least 0"),
        (changed("nodes.1.ms_per_layer", True), "nodes[1].ms_per_layer must be a number"),
        (changed("nodes.1.ms_per_layer", float("nan")), "nodes[1].ms_per_layer must be a number"),
        (changed("nodes.1.ms_per_layer", 10**400), "nodes[1].ms_per_layer must be a number"),
        (changed("nodes.1.ms_per_head", -1), "nodes[1].ms_per_head must be a number, at least 0"),
        (changed("nodes.1.ms_per_step", -1), "nodes[1].ms_per_step must be a number, at least 0"),
        (changed("nodes.1.shared", 1.5), "nodes[1].shared must be at most 1, not 1.5"),
        (changed("head_row_ms", "x"), "head_row_ms must be a number, at least 0"),
        (changed("nodes.1.processor", 3), "nodes[1].processor must be a name, not 3"),
        (changed("model.tied_bytes", "yes"), "model.tied_bytes must be a number, at least 0"),
        (changed("model.tied_bytes", 500_000_000), "model.tied_bytes is in both ends: it must be at most model.head"),
        (changed("model.tied_bytes", 500_000_001), "model.tied_bytes is in both ends: it must be at most model.embed"),
        (changed("nodes.1.free_bytes", 1), "nodes[1] (Mini) must have either max_layers or free_bytes"),
        (changed("nodes.1.max_layers", ...), "nodes[1] (Mini) must have either max_layers or free_bytes"),
        (changed("nodes.1.reserve_bytes", 1), "nodes[1].reserve_bytes goes with free_bytes"),
        (changed("links.0.a", "Nope"), "links[0].a: there is no node Nope"),
        (changed("links.0.b", "Studio"), "links[0] links Studio with itself"),
        (changed("links.1.a", "Studio") | {"links": [CLUSTER["links"][0]] * 2}, "links[1]: the link between"),
        (changed("links.0.ms", ...), "links[0].ms is missing"),
        (changed("hop_ms", "fast"), "hop_ms must be a number"),
        (changed("head", "Nope"), "head: there is no node Nope"),
        (changed("users", 0), "users must be a whole number, at least 1"),
        (changed("context", "long"), "context must be a number"),
        (changed("tolerance", -0.1), "tolerance must be a number, at least 0"),
    ],
)
def test_a_bad_file_is_code_2_and_one_sentence(
    data: object, said: str, write: Callable[[object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--cluster", write(data), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith("together: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cluster", "nowhere.json"], "nowhere.json"),
        (["--strategy", "best"], "there is no strategy 'best'"),
        (["--strategy", "ratio"], "--ratio"),
        (["--strategy", "ratio", "--ratio", "3:x"], "3:x"),
        (["--strategy", "custom"], "--layers"),
        (["--strategy", "custom", "--layers", "0:12-13"], "0:12-13"),
        (["--strategy", "custom", "--layers", "Studio=0:4,4:12"], "name the node of every range"),
        (
            ["--strategy", "custom", "--layers", "Studio=0:4,Mini=5:12"],
            "layers 4:5 are in no range; right would be Studio=0:4,Mini=4:12",
        ),
        (
            ["--strategy", "custom", "--layers", "Studio=0:4,Mini=3:12"],
            "layers 3:4 are in two ranges; right would be Studio=0:4,Mini=4:12",
        ),
        (["--strategy", "custom", "--layers", "Studio=0:4,Maxi=4:12"], "there is no node Maxi"),
        (["--max-memory-per-partition", "lots"], "lots"),
        (["--dtype", "int3"], "int3"),
    ],
)
def test_bad_options_are_code_2_and_one_sentence(
    options: list[str], said: str, write: Callable[[object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = [] if "--cluster" in options else ["--cluster", write(CLUSTER)]
    assert main(["plan", *file, *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("layers", ["Studio=0:9,Mini=9:12", "Studio=0-8,Mini=9-11"])
def test_a_custom_split_over_memory_is_code_3(
    layers: str, write: Callable[[object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--cluster", write(CLUSTER), "--strategy", "custom", "--layers", layers, "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["error"].startswith("Studio can hold 8 of its 9 layers: 0:9 need 9.5 GB, it may use 9.0 GB")
    assert answer["missing_layers"] == 1
    assert answer["missing_bytes"] == 9 * (10**9 + 4096 * 1000) + 500_000_000 - 9 * 10**9
    assert answer["suggestions"] == ["the recommended split fits: Studio=0:8, Mini=8:12"]


def test_a_person_reads_a_table_and_sentences(
    write: Callable[[object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--cluster", write(CLUSTER), "--hidden-size", "8192"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["node", "layers", "ms", "memory", "hop", "ms"]
    assert lines[1].split() == ["Studio", "0:8", "(8)", "8.5", "8.5", "GB", "1.0"]
    assert any(line.startswith("Laptop left out: ") for line in lines)
    assert "Mbit/s" in lines[-1]


@pytest.mark.full  # it times searches
def test_the_benchmark_prints_a_line_per_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "plan", "--repeats", "1", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert {(line["nodes"], line["layers"], line["room"]) for line in lines} == {
        (8, 80, "layers"),
        (8, 80, "bytes"),
        (8, 80, "mixed"),
        (32, 128, "layers"),
    }
    assert all(min(line["search_ms"], line["answer_ms"]) > 0 for line in lines)
