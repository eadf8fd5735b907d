"""A file of machines that one may not own: written, planned with, and every mistake in it a sentence."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT, RealApp
from tests.support.checksum import make_checksum_model
from tests.support.folders import write_model
from tests.support.hub_home import own_home, own_hub
from tests.support.patience import PATIENCE
from together.cluster_types import DeviceProfile
from together.desktop.cli import main
from together.desktop.own_machines import AppMachine, Measurements, ShapeToMeasure
from together.errors import BadSetting
from together.planning.shapes import SHAPES
from together.settings import Settings

MINE = """
weights = "4 bit"
model = "Llama-3.3-70B"
[[machines]]
name = "my PC"
kind = "8 cores AVX2"
memory = "32 GB"
[[machines]]
name = "card"
kind = "RTX 3090"
inside = "my PC"
[[machines]]
name = "mini"
kind = "Mac mini M4 16 GB"
network = "wifi"
"""


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "together", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.toml"


def plan(file: Path, text: str, *options: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    file.write_text(text, encoding="utf-8")
    code = main(["plan", "--cluster", str(file), *options])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_example_plans_llama_70b_in_four_bits_with_reasons(file: Path) -> None:
    wrote = launch("cluster-file", str(file))
    assert (wrote.returncode, wrote.stderr) == (0, "")
    assert wrote.stdout == f"wrote {file}; change it, then: python3 launch.py plan --cluster {file}\n"
    planned = launch("plan", "--cluster", str(file))
    assert (planned.returncode, planned.stderr) == (0, "")
    names = [machine["name"] for machine in tomllib.loads(file.read_text(encoding="utf-8"))["machines"]]
    assert names == ["my PC", "RTX 3090", "Mac mini"]
    for name in names:
        assert re.search(rf"^{name} takes [0-9]+ layers \([0-9]+:[0-9]+\): at .* per layer, ", planned.stdout, re.M)
    assert "Llama-3.3-70B: 42.7 GB of weights" in planned.stdout
    assert "4-bit weights are an estimate" in planned.stdout
    again = launch("cluster-file", str(file))
    assert (again.returncode, again.stdout) == (2, "")
    assert "is there already; name another file" in again.stderr
    lines = [line.removeprefix("# ") for line in file.read_text(encoding="utf-8").splitlines()]
    assert tomllib.loads("\n".join(line for line in lines if re.match(r"\[\[|\w+ = ", line)))["links"]  # all of it


def test_the_answer_for_programs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(file, MINE, "--json", capsys=capsys)
    answer = json.loads(out)
    assert code == 0
    assert {stage["node"] for stage in answer["stages"]} == {"my PC", "card", "mini"}
    hops = {stage["node"]: stage["hop_ms"] for stage in answer["stages"]}
    assert max(hops.values()) > 2  # over Wi-Fi
    assert min(hops.values()) == 0.4  # within the PC
    assert len(answer["notes"]) == 4


def test_what_is_missing_is_said_exactly(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(file, MINE.replace("32 GB", "8 GB"), capsys=capsys)
    assert code == 3
    assert re.search(r"^the model does not fit: the nodes hold \d+ of its 80 layers; [\d.]+ GB are missing", out)
    assert "4-bit weights: they take" not in out  # they are that already
    code, out, _ = plan(file, MINE.replace('weights = "4 bit"', ""), "--json", capsys=capsys)
    assert code == 3
    assert json.loads(out)["missing_bytes"] > 80e9


@pytest.mark.parametrize("model", ["folder", "config", "table", "hub name"])
def test_any_model(model: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, text = SHAPES["Llama-3.2-1B"], MINE.replace('model = "Llama-3.3-70B"', "")
    match model:
        case "folder":
            code, out, _ = plan(file, text, "--model", str(ROOT / "examples/demo_model"), capsys=capsys)
            assert "demo_model: " in out
        case "config":
            folder = tmp_path / "bare"
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config))
            code, out, _ = plan(file, text, "--model", str(folder), "--bits", "8", capsys=capsys)
            assert "bare: 1.6 GB of weights" in out
            assert "8-bit weights are an estimate" in out
        case "table":
            lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in config.items())
            code, out, _ = plan(file, f"{text}\n[model]\nname = 'mine'\n{lines}", capsys=capsys)
            assert "mine: 1.1 GB of weights" in out
        case _:
            code, out, _ = plan(file, text, "--model", "llama-3.2-1b", capsys=capsys)
            assert "Llama-3.2-1B: 1.1 GB of weights" in out
    assert code == 0


def test_a_model_of_the_hub_by_its_headers(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_home(tmp_path, monkeypatch)
    with own_hub(monkeypatch) as hub:
        hub.add("acme/tiny", write_model(tmp_path / "tiny", model_type="of tomorrow"))
        code, out, error = plan(file, MINE, "--model", "acme/tiny", capsys=capsys)
        assert (code, error) == (0, "")
        assert "acme/tiny: " in out
        assert set(hub.served) <= {"config.json", "generation_config.json", "model.safetensors"}
        code, _, error = plan(file, MINE, "--model", "meta-llama/Llama-3.3-70B-Instruct", capsys=capsys)
        assert code == 2
        assert error.endswith("; its shape is known without the hub: --model Llama-3.3-70B\n")


def test_the_same_words_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_json = json.dumps(tomllib.loads(MINE))
    assert plan(file, MINE, "--json", capsys=capsys) == plan(file, as_json, "--json", capsys=capsys)


@pytest.mark.parametrize("number", [1e-6, 1e18])
def test_numbers_at_their_limits_are_answered(number: float, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wire = {"bandwidth": number, "latency": 1e18}
    machine = {"memory": 1e18, "bandwidth": number, "tflops": number, "network": wire}
    data = {"model": "Llama-3.1-405B", "machines": [machine | {"name": "a"}, machine | {"name": "b"}]}
    for count in (1, 10**9):
        code, out, error = plan(file, json.dumps(data | {"users": count, "context": count}), "--json", capsys=capsys)
        assert (code in (0, 3), error) == (True, "")
        json.loads(out)


NOT_THERE = os.strerror(errno.ENOENT)
ONE = '[[machines]]\nname = "a"\n'
CARD = ONE + 'kind = "RTX 4090"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("machines = 3 = 4", "the cluster file is not TOML"),
        ("model = 'x'\nmodel = 'y'", "the cluster file is not TOML: Cannot overwrite a value"),
        ("machines = " + "[" * 100_000, "the cluster file is not TOML"),
        ("", "machines is missing"),
        (CARD.replace("machines", "machine"), "machine is not known; did you mean machines?"),
        ("machines = []", "machines must name at least one"),
        ("machines = 3", "machines must be a list, not 3"),
        ("machines = [3]", "machines[0] must be an object with name, kind, memory"),
        ("netwrk = 1\n" + CARD, "netwrk is not known; did you mean network?"),
        (ONE + 'kund = "RTX 4090"', "machines[0].kund is not known; did you mean kind?"),
        (CARD + CARD, "machines[1].name: a stands twice"),
        (ONE, "machines[0] (a) has no kind, so it needs memory, bandwidth and tflops as well"),
        (ONE + 'kind = "RTX 309"', 'machines[0].kind: there is no kind "RTX 309"; the nearest: RTX 3090, '),
        (ONE + 'kind = "GTX 4090"', 'there is no kind "GTX 4090"; the nearest: RTX 4090, '),
        (ONE + f'kind = "{"x" * 1_000}"', "there is no kind"),
        (ONE + f'kind = "{"RTX 3090 " * 200_000}"', "machines[0].kind must have at most 1000 characters"),
        (ONE + 'kind = "Mac mini M4"', 'machines[0].kind: how much memory has a? Write kind = "M4 16 GB", or'),
        (ONE + 'kind = "M4 48 GB"', "machines[0].kind: M4 comes with 16 GB, 24 GB, 32 GB, not with 48 GB"),
        (CARD + 'memory = "24 XB"', "machines[0].memory must be a number, at least 0, or with its unit as 24 GB"),
        (CARD + "memory = 0", "machines[0].memory must be more than 0"),
        (CARD + "memory = inf", "machines[0].memory must be a number"),
        (CARD + "memory = 1e999", "machines[0].memory must be a number"),
        (CARD + 'memory = "1e400 GB"', "machines[0].memory must be a number"),
        (CARD + "memory = 2026-01-01", "machines[0].memory must be a number"),
        (
            CARD + 'bandwidth = "9 GB"',
            "machines[0].bandwidth must be a number, at least 0, or with its unit as 936 GB/s",
        ),
        (CARD + 'network = "wify"', 'machines[0].network: there is no network "wify"; the nearest: wifi'),
        (CARD + 'inside = "b"', "machines[0].inside: there is no machine b"),
        (CARD + 'inside = "a"', "machines[0].inside is the machine itself"),
        (
            CARD + CARD.replace('"a"', '"b"') + 'inside = "a"\nnetwork = "wifi"',
            "machines[1] (b) is inside a and uses its",
        ),
        ('weights = "four"\n' + CARD, 'weights must be bits, as "4 bit", not "four"'),
        ("weights = 7\n" + CARD, "weights of 7 bits are not known; choose one of 2, 3, 4"),
        ('head = "b"\n' + CARD, "head: there is no machine b"),
        ("context = 0\n" + CARD, "context must be a whole number, at least 1"),
        (CARD + '[[links]]\na = "a"\nb = "a"', "links[0] links a with itself"),
        (CARD + '[[links]]\na = "a"\nb = "c"', "links[0].b: there is no machine c; there are: a"),
        (
            'measured = "none.json"\n' + ONE + 'kind = "studio"',
            f"none.json cannot be read: {os.strerror(errno.ENOENT)}",
        ),
        ("users = 10000000000\n" + CARD, "users must be a whole number, at least 1 and at most 1000000000"),
        (CARD + "bandwidth = 1e19", "machines[0].bandwidth must be at most 1e+18"),
        (f"users = 0x{5000 * 'f'}\n" + CARD, "users must be a number, at least 0, not a number of thousands of digits"),
        ("model = 5\n" + CARD, "model must be a name, not 5"),
        ('model = "Lama-3.1-8B"\n' + CARD, "or a well-known one: Llama-3.1-8B"),
        (CARD, "name the model, with --model or in the file"),
        (CARD + "[model]\nmodel_type = 'llama'", "hidden_size"),
        (CARD + "[model]\nmodel_type = 'checksum'\nhidden_size = 1", "config.json of"),
    ],
)
def test_a_mistake_is_one_sentence(text: str, said: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = "" if "model" in text or said.startswith("name the model") else 'model = "Llama-3.1-8B"\n'
    code, out, error = plan(file, named + text, capsys=capsys)
    assert (code, out) == (2, "")
    assert said in error
    assert error.count("\n") == 1
    assert len(error) < 700


def test_bits_without_a_model_to_size_again(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = {
        "model": {"layers": 2, "layer_bytes": "1 GB"},
        "nodes": [{"name": "a", "ms_per_layer": 1, "max_layers": 2}],
    }
    code, _, error = plan(file, json.dumps(measured), "--bits", "4", capsys=capsys)
    assert (code, "--bits needs --model" in error) == (2, True)
    assert main(["plan", "--bits", "4"]) == 2
    assert "--bits goes with --cluster" in capsys.readouterr().err


def test_machines_that_were_measured_once(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of status --save is planned with for another model, and its machines can be named in a file of kinds."""
    node = {"name": "studio", "ms_per_layer": 10, "ms_per_stage": 1, "free_bytes": "40 GB", "reserve_bytes": "1 GB"}
    model = {"layers": 10, "layer_bytes": "500 MB", "kv_bytes_per_token_per_layer": 4096}
    saved = {"model": model, "nodes": [node, node | {"name": "far"}], "links": [{"a": "studio", "b": "far", "ms": 9}]}
    code, out, _ = plan(file, json.dumps(saved), "--model", "Llama-3.3-70B", "--bits", "4", "--json", capsys=capsys)
    answer = json.loads(out)
    assert code == 0
    layer_ms = 10 * 855_654_400 * 4.5 / 8 / 500e6
    expected = 1 + answer["stages"][0]["stop"] * layer_ms
    assert f"{answer['stages'][0]['ms']:.6f}" == f"{expected:.6f}"
    assert answer["stages"][0]["hop_ms"] == 9
    assert "studio and far: as measured" in answer["notes"]
    (tmp_path / "saved.json").write_text(json.dumps(saved))
    mine = MINE.replace("model", 'measured = "saved.json"\nmodel', 1).replace(
        '"8 cores AVX2"\nmemory = "32 GB"', '"studio"'
    )
    code, out, _ = plan(file, mine, capsys=capsys)
    assert code == 0
    assert "my PC: as measured" in out
    assert "card and mini: by published figures" in out
    both = mine.replace('"Mac mini M4 16 GB"', '"far"')
    code, out, _ = plan(file, both, "--strategy", "uniform", "--json", capsys=capsys)
    assert 9 in [stage["hop_ms"] for stage in json.loads(out)["stages"]]  # as measured between the two
    code, _, error = plan(file, mine.replace('"studio"', '"studo"'), capsys=capsys)
    assert (code, 'there is no kind "studo"; the nearest: studio' in error) == (2, True)
    code, _, error = plan(file, mine.replace('"studio"', '"studio"\ntflops = 3'), capsys=capsys)
    assert (code, "machines[0] (my PC) is measured, so memory, bandwidth and tflops go without saying" in error) == (
        2,
        True,
    )


@pytest.mark.parametrize("kind", ["this machine", "node"])
def test_a_running_app_is_asked_for_its_machines(kind: str, real_app: RealApp, file: Path, tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "other", layers=6)
    name = json.loads(real_app.command("status", "--json").stdout)["nodes"][0]["name"] if kind == "node" else kind
    file.write_text(f'[[machines]]\nname = "mine"\nkind = {json.dumps(name)}\n{CARD}', encoding="utf-8")
    planned = real_app.command("plan", "--cluster", str(file), "--model", str(toy))
    assert (planned.returncode, planned.stderr) == (0, "")
    assert "mine: as measured" in planned.stdout
    assert "a: by published figures" in planned.stdout
    file.write_text(f'[[machines]]\nname = "mine"\nkind = {json.dumps(name[:-1])}\n', encoding="utf-8")
    refused = real_app.command("plan", "--cluster", str(file), "--model", str(toy))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert name in refused.stderr.partition("; the nearest: ")[2]


def test_this_machine_is_what_all_its_nodes_have_left(real_app: RealApp, file: Path, tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "other", layers=6)
    nodes = json.loads(real_app.command("status", "--json").stdout)["nodes"]
    kinds = ["this machine", *(node["name"] for node in nodes)]
    machines = [{"name": f"m{i}", "kind": kind} for i, kind in enumerate(kinds)]
    file.write_text(json.dumps({"machines": machines}), encoding="utf-8")
    planned = real_app.command("plan", "--cluster", str(file), "--model", str(toy), "--strategy", "uniform", "--json")
    room = {stage["node"]: stage["room_bytes"] for stage in json.loads(planned.stdout)["stages"]}
    assert set(room) == {"m0", "m1", "m2"}
    assert room["m0"] > max(room["m1"], room["m2"])
    hops = [stage["hop_ms"] for stage in json.loads(planned.stdout)["stages"]]
    assert len(set(hops)) > 1  # measured, not by the one network of the file


def test_this_machine_is_measured_where_no_app_runs(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOGETHER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TOGETHER_BACKEND", "checksum")
    toy = make_checksum_model(tmp_path / "toy")
    text = ONE + 'kind = "this machine"\nusable = "1 GB"'
    code, out, error = plan(file, text, "--model", str(toy), "--json", capsys=capsys)
    assert code == 0
    assert error.startswith(("measuring this machine, ", "other programs use ")) or error == ""
    assert json.loads(out)["notes"][-1] == "a: as measured"
    assert list((tmp_path / "home" / "profiles").iterdir())


@pytest.mark.parametrize("figures", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_machine_that_says_it_takes_no_time_is_a_sentence(
    figures: tuple[float, float, float], tmp_path: Path
) -> None:
    layer, memory, matrix = figures
    studio = AppMachine("studio", True, "torch/cpu", 10**9, DeviceProfile(layer, 1.0, 1.0, memory, matrix))
    own = Measurements(Settings(home=str(tmp_path)), ShapeToMeasure({}, "bf16", 1e6, 4096))
    with pytest.raises(BadSetting, match="studio could not be measured"):
        own._machine(studio)


def test_the_kinds_are_listed_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster-file", "--kinds"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^RTX 3090 +24 +936 +71 *$", out, re.M)
    assert "65% of the memory bandwidth" in out
    assert "RTX 3090: https://www.nvidia.com/" in out


def test_a_file_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster-file", "no/such/folder/c.toml"]) == 2
    assert "no/such/folder/c.toml cannot be written: " in capsys.readouterr().err
