"""Weights of folders in MLX's format: what mlx-lm and our backends compute from them, and every byte by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx.core")

import gguf
import mlx.core as mx
from gguf import GGMLQuantizationType as Kind

from tests.support.chain import Chain, Logits, assert_close, load_shard, new_sequence, row
from tests.support.families import LAYERS, prompt_ids, reference_greedy, reference_logits
from tests.support.gguf_files import every, imported, make_plain, mixed, write_gguf, write_judge
from tests.support.mlx_folders import FORMS, stored_arrays, write_mlx
from tests.support.mlx_folders import make_plain as make_narrow
from tests.support.mlx_lm_runs import mlx_lm_greedy, mlx_lm_logits
from tests.support.pieces import carry
from together.errors import UnsupportedModel
from together.models.codes import Floats
from together.models.form import PUBLISHED, asked_form
from together.models.gguf.kinds import PACKINGS
from together.models.needed import needed_tensors
from together.models.spec import read_runnable
from together.types import Dtype, LayerRange
from together.weights.mlx.folder import WrittenFolder, convert_folder
from together.weights.mlx.making import narrowest, write_weights
from together.weights.mlx.plan import plan_folder
from together.weights.quantize import quantize_affine
from together.weights.store import Store

PROMPT = prompt_ids(24)
LAYER = "model.layers.2.mlp"
WHOLE = LayerRange(0, LAYERS)
FAMILIES = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma3_text", "qwen3_moe")


def convert(source: Path, target: Path, quantize: str | None = None, head: str | None = None) -> WrittenFolder:
    form = asked_form(quantize, head) or PUBLISHED
    return asyncio.run(convert_folder(source, target, target.parent / "home", form, lambda done, total: None))


def facts(written: WrittenFolder) -> list[str]:
    return [str(fact) for fact in written.facts]


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def logits(folder: Path, backend: str) -> Logits:
    return Chain([load_shard(folder, backend, WHOLE)]).logits(row(new_sequence(), 0, PROMPT))


def assert_computes(folder: Path, judge: Logits) -> None:
    """On mlx-lm and on both backends."""
    assert_close(mlx_lm_logits(folder, PROMPT), judge, 1e-4)
    for backend in ("torch", "mlx"):
        assert_close(logits(folder, backend), judge)


def raw(array: mx.array) -> bytes:
    return np.array(array.reshape(-1).view(mx.uint8)).tobytes()


def assert_same(folder: Path, wanted: Path) -> None:
    """Every tensor has the same name, dtype, shape and bytes."""
    found, theirs = stored_arrays(folder), stored_arrays(wanted)
    assert found.keys() == theirs.keys()
    for name, array in theirs.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert raw(found[name]) == raw(array), name


# --- GGUF -------------------------------------------------------------------------------------------------------------

Files = Callable[[str, str], tuple[Path, Path, Path]]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """`files(family, kind)` → a GGUF file's folder, its judge, and the file; each is made once."""
    made: dict[tuple[str, str], tuple[Path, Path, Path]] = {}

    def make(name: str, kind: str) -> tuple[Path, Path, Path]:
        if (name, kind) not in made:
            place = tmp_path_factory.mktemp(f"{name}-{kind}")
            plain = make_plain(place / "plain", name)
            file = write_gguf(plain, place / "m.gguf", mixed if kind == "mixed" else every(Kind[kind]))
            made[name, kind] = imported(file, place / "model"), write_judge(file, plain, place / "judge"), file
        return made[name, kind]

    return make


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(pytest.param(name, "Q4_K", marks=() if name == "gemma3_text" else pytest.mark.full) for name in FAMILIES),
        ("qwen3_moe", "Q8_0"),
        *(pytest.param("llama", kind, marks=pytest.mark.full) for kind in ("Q4_0", "Q5_1", "MXFP4")),
    ],
)
def test_groups_that_mlx_has_keep_their_codes(files: Files, tmp_path: Path, name: str, kind: str) -> None:
    source, judge, _ = files(name, kind)
    written = convert(source, tmp_path / "out")
    assert_computes(tmp_path / "out", reference_logits(judge, PROMPT))
    assert mlx_lm_greedy(tmp_path / "out", PROMPT, 8) == reference_greedy(judge, PROMPT, 8)
    packing = PACKINGS[kind]
    assert packing is not None
    assert facts(written)[0].endswith(f" quantized matrices keep their codes: {packing}")
    settings = {"group_size": packing.group, "bits": packing.bits, "mode": packing.mode}
    assert config_of(tmp_path / "out")["quantization"] == settings
    assert set(read_runnable(tmp_path / "out").packings) == {packing}


def test_scales_are_as_narrow_as_they_can_be(files: Files, tmp_path: Path) -> None:
    for kind, dtype in (("Q4_0", mx.float16), ("Q8_0", mx.float16), ("Q4_K", mx.float32), ("MXFP4", mx.uint8)):
        convert(files("llama", kind)[0], tmp_path / kind)
        found = stored_arrays(tmp_path / kind)
        ends = {name: array.dtype for name, array in found.items() if name.endswith((".scales", ".biases"))}
        assert set(ends.values()) == {dtype}, kind
        norms = {array.dtype for name, array in found.items() if name.endswith("norm.weight")}
        assert norms == {mx.float32}, "as the file has them"


def numbers(*values: float) -> Floats:
    return np.array(values, np.float32)


def test_the_narrowest_dtype_holds_every_number() -> None:
    half, brain, either = numbers(float(np.float16(0.1)), -70), numbers(2.0**100, -(2.0**-130)), numbers(0.5, -8)
    assert narrowest([half, either], "BF16") == "F16"
    assert narrowest([brain, either], "F16") == "BF16"
    assert (narrowest([either], "F16"), narrowest([either], "BF16")) == ("F16", "BF16")
    assert narrowest([half, brain], "BF16") == "F32"
    assert narrowest([numbers(70_001)], "F16") == "F32", "fp16 has no such number, bf16 only its neighbours"
    assert narrowest([numbers(np.nan)], "F16") == "BF16"


def dequantized(file: Path) -> dict[str, Floats]:
    """By the package gguf."""
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(file).tensors}


def test_groups_of_16_become_plain_and_it_is_said(files: Files, tmp_path: Path) -> None:
    source, _, file = files("qwen3_moe", "mixed")
    written = convert(source, tmp_path / "out")
    found, wanted = stored_arrays(tmp_path / "out"), dequantized(file)
    for path, stored in (
        ("model.embed_tokens", "token_embd"),
        (f"{LAYER}.switch_mlp.down_proj", "blk.2.ffn_down_exps"),
    ):
        rounded = mx.array(wanted[f"{stored}.weight"]).astype(mx.bfloat16)
        assert found[f"{path}.weight"].dtype == mx.bfloat16
        assert mx.array_equal(found[f"{path}.weight"], rounded), path
    assert found["model.layers.2.mlp.gate.weight"].dtype == mx.float32
    assert found["model.layers.2.self_attn.o_proj.weight"].dtype == mx.float16
    plain = [name for name, array in found.items() if array.dtype == mx.bfloat16 and "k_proj" not in name]
    size = sum(found[name].nbytes for name in plain)
    kept, widened = facts(written)
    assert kept.endswith("keep their codes: affine 4 bit, groups of 32")
    assert widened.startswith(
        f"{len(plain)} matrices of affine 6 bit, groups of 16 became plain in bf16, {size / 1e6:.1f} MB"
    )
    assert written.bytes == sum(part.stat().st_size for part in (tmp_path / "out").iterdir())
    assert_computes(tmp_path / "out", logits(tmp_path / "out", "torch"))


def test_a_form_that_is_asked_for_takes_what_is_plain_or_has_more_bits(files: Files, tmp_path: Path) -> None:
    source, _, file = files("qwen3_moe", "mixed")
    convert(source, tmp_path / "as-it-is")
    convert(source, tmp_path / "out", "4")
    before, found, wanted = stored_arrays(tmp_path / "as-it-is"), stored_arrays(tmp_path / "out"), dequantized(file)
    gate = "model.layers.0.mlp.switch_mlp.gate_proj"
    for end in ("weight", "scales", "biases"):
        assert raw(found[f"{gate}.{end}"]) == raw(before[f"{gate}.{end}"]), "Q4_K has no more bits"
    down = wanted["blk.3.ffn_down_exps.weight"]
    _, scales, biases = quantize_affine(down.reshape(-1, down.shape[-1]), 4, 64)
    assert read_runnable(source).dtype == "fp16"
    for end, each in (("scales", scales), ("biases", biases)):
        made = found[f"model.layers.3.mlp.switch_mlp.down_proj.{end}"]
        assert raw(made) == raw(mx.array(each).astype(mx.float16)), "in the model's own dtype"
    router = found["model.layers.3.mlp.gate.weight"]
    assert router.dtype == mx.uint32
    assert router.shape[-1] == found["model.layers.3.mlp.gate.scales"].shape[-1] * 16, "8 bits in groups of 64"
    settings = config_of(tmp_path / "out")["quantization"]
    assert settings["model.layers.3.mlp.gate"] == {"group_size": 64, "bits": 8, "mode": "affine"}
    assert_computes(tmp_path / "out", logits(tmp_path / "out", "torch"))


def test_more_bits_are_made_fewer_and_the_head_stays_where_that_is_asked(files: Files, tmp_path: Path) -> None:
    source, _, _ = files("llama", "Q8_0")
    convert(source, tmp_path / "out", "4", "no")
    settings = config_of(tmp_path / "out")["quantization"]
    usual, eight = {"group_size": 64, "bits": 4, "mode": "affine"}, {"group_size": 32, "bits": 8, "mode": "affine"}
    assert settings == {**usual, "model.embed_tokens": eight, "lm_head": eight}
    assert_computes(tmp_path / "out", logits(tmp_path / "out", "torch"))


def test_experts_that_lie_one_by_one_are_stacked(tmp_path: Path) -> None:
    file = write_gguf(make_plain(tmp_path / "plain", "qwen3_moe"), tmp_path / "m.gguf", every(Kind.Q8_0), stacked=False)
    convert(imported(file, tmp_path / "model"), tmp_path / "out")
    found, wanted = stored_arrays(tmp_path / "out"), dequantized(file)
    path = "model.layers.2.mlp.switch_mlp.up_proj"
    scales, biases = (found[f"{path}.{end}"].astype(mx.float32) for end in ("scales", "biases"))
    made = mx.dequantize(found[f"{path}.weight"], scales, biases, group_size=32, bits=8)
    experts = [wanted[f"blk.2.ffn_up.{expert}.weight"] for expert in range(4)]
    assert np.abs(np.array(made) - np.stack(experts)).max() < 1e-8
    assert_computes(tmp_path / "out", logits(tmp_path / "out", "torch"))


# --- plain checkpoints and MLX's own ----------------------------------------------------------------------------------


PLAIN = ("llama", "gemma3_text", "qwen3_moe")  # heads of both kinds, norms that count from 1, and experts


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in PLAIN else pytest.mark.full)
        for name in (*FAMILIES, "smollm3", "olmo2", "olmo3")
    ],
)
def test_a_plain_model_stays_plain(tmp_path: Path, name: str) -> None:
    plain = make_narrow(tmp_path / "plain", name)
    written = convert(plain, tmp_path / "out")
    assert written.facts == ()
    assert "quantization" not in config_of(tmp_path / "out")
    assert_same(tmp_path / "out", write_mlx(plain, tmp_path / "theirs", None))
    assert_computes(tmp_path / "out", reference_logits(plain, PROMPT))


@pytest.mark.parametrize(
    ("name", "dtype", "quantize", "theirs"),
    [
        ("qwen3_moe", "fp32", "4", "affine-4"),
        pytest.param("gemma3_text", "fp16", "8", "affine-8", marks=pytest.mark.full),
        pytest.param("qwen2", "bf16", "mxfp4", "mxfp4", marks=pytest.mark.full),
    ],
)
def test_a_form_is_what_mlx_lm_makes_of_a_plain_model(
    tmp_path: Path, name: str, dtype: Dtype, quantize: str, theirs: str
) -> None:
    plain = make_narrow(tmp_path / "plain", name, dtype)
    convert(plain, tmp_path / "out", quantize)
    wanted = write_mlx(plain, tmp_path / "theirs", FORMS[theirs])
    assert_same(tmp_path / "out", wanted)
    mine, known = (config_of(folder)["quantization"] for folder in (tmp_path / "out", wanted))
    assert {
        key: {"mode": "affine", **value} if isinstance(value, dict) else value for key, value in known.items()
    } == mine
    assert_computes(tmp_path / "out", logits(wanted, "torch"))


@pytest.mark.parametrize(
    "form", ["mixed", *(pytest.param(form, marks=pytest.mark.full) for form in ("nvfp4", "mxfp8", "ends-plain"))]
)
def test_a_folder_of_mlx_stays_byte_for_byte(tmp_path: Path, form: str) -> None:
    source = write_mlx(make_narrow(tmp_path / "plain", "qwen3_moe", "bf16"), tmp_path / "mlx", FORMS[form], files=3)
    convert(source, tmp_path / "out")
    assert_same(tmp_path / "out", source)
    assert_computes(tmp_path / "out", logits(source, "torch"))


def test_a_cached_model_in_a_form_is_one_too(tmp_path: Path) -> None:
    """Units of the cache, also where several published files make them."""
    plain = make_narrow(tmp_path / "plain", "qwen3", "bf16")
    store = Store(tmp_path / "home")
    folder = store.folder(carry(store, plain).key)
    convert(folder, tmp_path / "out")
    convert(plain, tmp_path / "wanted")
    assert_same(tmp_path / "out", tmp_path / "wanted")


def test_a_large_model_lies_in_several_files(tmp_path: Path) -> None:
    source = write_mlx(make_narrow(tmp_path / "plain", "llama", "bf16"), tmp_path / "mlx", FORMS["affine-4"])
    plan = plan_folder(needed_tensors(source, WHOLE, tmp_path / "home"), None, "bf16", most=60_000)
    target = tmp_path / "out"
    target.mkdir()
    told: list[int] = []
    write_weights(plan, target, 2, told.append)
    files = sorted(file.name for file in target.glob("*.safetensors"))
    assert files == list(plan.names)
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((target / name).stat().st_size <= 60_000 for name in files)
    assert_same(target, source)
    index = json.loads((target / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(index["weight_map"]) == set(stored_arrays(source))
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in stored_arrays(source).values())
    convert(source, tmp_path / "one")
    (target / "config.json").write_bytes((tmp_path / "one" / "config.json").read_bytes())
    assert_computes(target, logits(source, "torch"))


def test_experts_packed_in_several_ways_are_refused(tmp_path: Path) -> None:
    """As every backend does: one matrix has one packing, and stacked experts are one."""

    def choose(name: str, shape: tuple[int, ...]) -> Kind:
        return Kind.F32 if "gate_inp" in name else Kind.Q8_0 if ".1.weight" in name else Kind.Q4_0

    plain = make_plain(tmp_path / "plain", "qwen3_moe")
    source = imported(write_gguf(plain, tmp_path / "m.gguf", choose, stacked=False), tmp_path / "model")
    with pytest.raises(UnsupportedModel, match=r"some experts of a layer quantized otherwise.*mlp\.experts\.0\."):
        convert(source, tmp_path / "out")
