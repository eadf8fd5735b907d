"""Comparing with llama.cpp: what its programs are asked and how they are read, with scripts in their place."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.desktop.test_bench import bench
from tests.support.gguf_files import imported
from tests.support.llama_programs import NEW, PEOPLE, PROMPT, says, stand_in, write_program
from together.desktop.bench.llama_cpp import BATCHED, BENCH, SERVERS, LlamaCpp, llama_folder, yardstick
from together.desktop.bench.llama_gguf import gguf_kind, random_gguf
from together.desktop.bench.reads import step_bytes
from together.desktop.bench.shapes import SHAPES, random_checkpoint
from together.errors import BadSetting, TogetherError
from together.models.form import PUBLISHED, asked_form
from together.models.spec import read_spec

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows starts no script as a program")
FOUR, EIGHT = asked_form("4") or "", asked_form("8") or ""
DECODE = ("decode", "--shape", "tiny", "--dtype", "fp32", "--prompt", str(PROMPT), "--new", str(NEW), "--rounds", "2")


def programs(folder: Path, *names: str, servers: int = 0) -> LlamaCpp:
    """What stands in for these, on a file that is there."""
    stand_in(folder, *names)
    (folder / "model.gguf").touch()
    return LlamaCpp(folder, folder / "model.gguf", 2, servers)


# --- the commands -----------------------------------------------------------------------------------------------------


@pytest.mark.full  # what is made of its programs is below
def test_decode_stands_beside_llama_cpp(tmp_path: Path) -> None:
    folder = stand_in(tmp_path / "bin", BENCH)
    report = bench(tmp_path, *DECODE, "--stages", "1", "--compare", f"llama.cpp={folder}")
    (other,) = report["compare"]
    assert other["name"] == "llama.cpp"
    assert min(other["prefill_tok_s"], other["decode_tok_s"], other["decode_ratio"]) > 0
    assert other["computing"][0]["threads"] == 2
    assert "llama" in other["computing"][0]["kernels"][0]
    assert report["read_bytes_per_s"] > 0
    assert report["decode_ratio"] == report["prefill_ratio"] == 1
    assert [stage["kernels"] for stage in report["computing"]] == [["linear (29)"]]
    assert report["computing"][0]["threads"] > 0
    assert report["of_reads"] > 0


@pytest.mark.full
def test_several_stages_stand_beside_as_many_rpc_servers(tmp_path: Path) -> None:
    folder = stand_in(tmp_path / "bin", BENCH, SERVERS[1])
    report = bench(tmp_path, *DECODE, "--stages", "2", "--compare", f"llama.cpp={folder}")
    (other,) = report["compare"]
    assert other["name"] == "llama.cpp RPC, 2 servers"
    assert len(other["rss_bytes"]) == 2


@pytest.mark.full
def test_many_users_stand_beside_the_batched_bench(tmp_path: Path) -> None:
    folder = stand_in(tmp_path / "bin", BATCHED)
    arguments = ("--shape", "tiny", "--dtype", "fp32", "-c", str(PEOPLE), "--new", str(NEW), "--rounds", "1")
    report = bench(tmp_path, "engine", *arguments, "--stages", "1", "--compare", f"llama.cpp={folder}")
    both = report["together"]
    assert both["beside"]["name"] == "llama.cpp"
    assert both["beside"]["ratio"] == pytest.approx(both["all_tok_s"] / both["beside"]["all_tok_s"])
    assert both["beside"]["threads"] == 2


# --- its programs -----------------------------------------------------------------------------------------------------


async def test_what_was_printed_is_read(tmp_path: Path) -> None:
    async with programs(tmp_path, BENCH, BATCHED).ready() as runs:
        prefill, decode = await runs.bench(PROMPT, 0, 0), await runs.bench(0, NEW, PROMPT)
        one, all_ = await runs.batched((1, PEOPLE), 32, NEW)
    assert (prefill.n_prompt, decode.n_gen, decode.n_depth) == (PROMPT, NEW, PROMPT)
    assert prefill.tok_s == PROMPT * 1e9 / prefill.avg_ns
    assert decode.tok_s == NEW * 1e9 / decode.avg_ns
    assert (one.pl, all_.pl, one.n_threads) == (1, PEOPLE, 2)


async def test_servers_run_as_long_as_they_are_needed(tmp_path: Path) -> None:
    async with programs(tmp_path, SERVERS[0], servers=2).ready() as runs:
        assert len({server.port for server in runs.servers}) == 2
        pids = runs.pids
        assert all(map(psutil.pid_exists, pids))
        told = ",".join(f"127.0.0.1:{server.port}" for server in runs.servers)
        assert runs._common()[-4:] == ("--rpc", told, "-ngl", "99")
    assert not any(map(psutil.pid_exists, pids))


@pytest.mark.parametrize(
    ("printed", "what"),
    [
        ("", "printed something else"),
        ("ggml: hello", "printed something else"),
        ("[]", "0 results"),
        ('{"n_prompt": 40}', "printed something else"),
        ('[{"n_prompt": 40, "n_gen": 0}]', "n_depth"),
    ],
)
async def test_other_output_is_said_with_the_program(tmp_path: Path, printed: str, what: str) -> None:
    made = programs(tmp_path)
    says(tmp_path / BENCH, printed)
    says(tmp_path / BATCHED, printed)
    async with made.ready() as runs:
        with pytest.raises(TogetherError, match=what) as found:
            await runs.bench(PROMPT, 0, 0)
        with pytest.raises(TogetherError, match=r"0 results|Field required"):
            await runs.batched((1,), 32, NEW)
    assert f"run it yourself: {tmp_path / BENCH} -m" in str(found.value)


async def test_results_of_something_else_are_not_taken(tmp_path: Path) -> None:
    """As an older program gives, which leaves an option out."""
    made = programs(tmp_path, BENCH)
    async with made.ready() as runs:
        line = await runs.bench(PROMPT, 0, 0)
        fields = f'"n_prompt": {line.n_prompt}, "n_gen": 0, "n_depth": 0, "n_threads": 2, "avg_ns": 0'
        says(tmp_path / BENCH, f'[{{{fields}, "backends": "CPU", "model_type": "x", "build_commit": "x"}}]')
        with pytest.raises(TogetherError, match="of what was asked"):
            await runs.bench(PROMPT, 0, 0)
        with pytest.raises(TogetherError, match="of what was asked"):
            await runs.bench(PROMPT + 1, 0, 0)


async def test_a_program_that_fails_is_quoted(tmp_path: Path) -> None:
    made = programs(tmp_path)
    says(tmp_path / BENCH, "", code=3, error="loading\nno such model\n")
    async with made.ready() as runs:
        with pytest.raises(TogetherError, match="llama-bench ended with code 3 and said: no such model; run it"):
            await runs.bench(PROMPT, 0, 0)


async def test_a_server_that_ends_is_quoted(tmp_path: Path) -> None:
    made = programs(tmp_path, servers=1)
    says(tmp_path / SERVERS[0], "", code=1, error="No devices found")
    with pytest.raises(TogetherError, match="ggml-rpc-server ended with code 1 and said: No devices found"):
        async with made.ready():
            pass


async def test_a_server_that_never_listens_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("together.desktop.bench.llama_cpp._STARTED_WITHIN", 0.2)
    made = programs(tmp_path, servers=1)
    write_program(tmp_path / SERVERS[0], f"#!{sys.executable}\nimport time\ntime.sleep(600)\n")
    with pytest.raises(TogetherError, match=r"ggml-rpc-server does not listen after 0\.2 s"):
        async with made.ready():
            pass


async def test_what_is_no_program_says_so(tmp_path: Path) -> None:
    made = programs(tmp_path)
    write_program(tmp_path / BENCH, "\x7fELF of another machine")
    async with made.ready() as runs:
        with pytest.raises(TogetherError, match="does not start"):
            await runs.bench(PROMPT, 0, 0)


async def test_programs_that_are_missing_are_named(tmp_path: Path) -> None:
    async with programs(tmp_path).ready() as runs:
        with pytest.raises(BadSetting, match=r"has no program llama-bench; build llama\.cpp with -DGGML_RPC=ON"):
            await runs.bench(PROMPT, 0, 0)
    with pytest.raises(BadSetting, match="has no program ggml-rpc-server"):
        async with programs(tmp_path, servers=1).ready():
            pass


def test_a_comparison_names_a_folder(tmp_path: Path) -> None:
    assert llama_folder(f"llama.cpp={tmp_path}") == yardstick(f"llama.cpp={tmp_path}") == tmp_path.resolve()
    assert llama_folder("transformers") is None
    for wrong in ("llama.cpp", "llama.cpp=", f"llama.cpp={tmp_path / 'none'}"):
        with pytest.raises(BadSetting, match="is no folder"):
            llama_folder(wrong)
    with pytest.raises(BadSetting, match="cannot compare with 'transformers'"):
        yardstick("transformers")


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "bits"), [(PUBLISHED, 16), (FOUR, 4.5), (EIGHT, 8.5)])
@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_has_the_shape_and_the_bits(
    tmp_path: Path, form: str, bits: float, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one token reads as much of it as of our own form."""
    monkeypatch.setitem(SHAPES, "odd", replace(SHAPES["tiny"], tied=tied, vocab=500, heads=8))
    file = random_gguf("odd", "bf16", form, tmp_path)
    spec = read_spec(imported(file, tmp_path / "imported"))
    plain = read_spec(random_checkpoint("odd", "bf16", tmp_path))
    for name in ("family", "layers", "hidden_size", "inner_size", "vocab_size", "heads", "kv_heads", "head_dim"):
        assert getattr(spec, name) == getattr(plain, name)
    assert (spec.context, spec.tied) == (plain.context, tied)
    norms = (2 * plain.layers + 1) * plain.hidden_size
    read = step_bytes(plain, "bf16", 0) // 2 - norms
    assert step_bytes(spec, "bf16", 10) == 2 * norms + read * bits / 8 + 10 * 4 * 2 * 2 * 16 * 2


def test_a_gguf_file_is_written_once(tmp_path: Path) -> None:
    file = random_gguf("tiny", "bf16", FOUR, tmp_path)
    written = file.stat().st_mtime_ns
    assert random_gguf("tiny", "bf16", FOUR, tmp_path) == file
    assert file.stat().st_mtime_ns == written
    assert [path.name for path in file.parent.iterdir()] == ["tiny-Q4_0.gguf"]


def test_forms_that_llama_cpp_has_not_are_refused() -> None:
    assert [gguf_kind("fp16", form) for form in (PUBLISHED, FOUR, EIGHT)] == ["F16", "Q4_0", "Q8_0"]
    with pytest.raises(BadSetting, match=r"llama\.cpp has nothing like weights in mxfp4"):
        gguf_kind("bf16", asked_form("mxfp4") or "")
    with pytest.raises(BadSetting, match="there is no shape 'gpt-9'"):
        random_gguf("gpt-9", "bf16", PUBLISHED, Path())


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BadSetting, match="-m pip install gguf"):
        random_gguf("tiny", "bf16", PUBLISHED, tmp_path)
