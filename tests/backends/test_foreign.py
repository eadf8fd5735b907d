"""GPTQ, AWQ, compressed-tensors and FP8 on every backend against transformers on what their libraries make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _pytest.mark import ParameterSet

pytest.importorskip("mlx.core")

from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.backends.conftest import Rings
from tests.backends.judged import PROMPT, conforms
from tests.support.chain import Chain, assert_close, load_shard, new_sequence, row
from tests.support.families import LAYERS, reference_logits
from tests.support.foreign_folders import FORMATS, write_foreign
from tests.support.gguf_files import imported, make_plain, write_gguf
from tests.support.gguf_files import write_judge as gguf_judge
from tests.support.mlx_folders import FORMS, INDEX, write_judge, write_mlx
from tests.support.mlx_folders import make_plain as plain_folder
from tests.support.pieces import exported
from together.models.spec import read_runnable
from together.types import LayerRange
from together.weights.mlx.folder import convert_folder

PAIRS = (("mlx", "mlx"), ("torch", "torch"), ("torch", "mlx"), ("mlx", "torch"))
PLAIN_AND_EXPERTS = ("llama", "qwen3_moe")
PUBLISHED = ("gptq-4", "awq", "int4", "fp8-blocks")  # the formats that most models are in
Files = Callable[[str, str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """`files(family, format)` → a folder in this format, and that of its judge; each is made once."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def make(name: str, format: str) -> tuple[Path, Path]:
        if (name, format) not in made:
            place = tmp_path_factory.mktemp(f"{name}-{format}")
            made[name, format] = write_foreign(make_plain(place / "plain", name), place, FORMATS[format])
        return made[name, format]

    return make


def short(first: Iterable[str], second: Sequence[Any], chosen: Callable[[int, int], bool]) -> list[ParameterSet]:
    """Every pair of the two; those that are not chosen, by their places, are the long form."""
    return [
        pytest.param(one, two, id=f"{one}-{two if isinstance(two, str) else '-'.join(two)}", marks=marks)
        for i, one in enumerate(first)
        for j, two in enumerate(second)
        for marks in [() if chosen(i, j) else pytest.mark.full]
    ]


def _formats() -> list[ParameterSet]:
    """By a family without experts and one that has them, in turns; tests/models/test_foreign.py reads every format."""
    names = list(FORMATS)
    return short(names, PLAIN_AND_EXPERTS, lambda format, name: names[format] in PUBLISHED and name == format % 2)


@pytest.mark.parametrize(("format", "name"), _formats())
def test_every_format(ring: Rings, files: Files, name: str, format: str) -> None:
    folder, judge = files(name, format)
    conforms(ring(folder, ("torch", "mlx"), (2,)), judge)


@pytest.mark.parametrize(
    ("format", "pair"), short(("gptq-4", "fp8-blocks"), PAIRS, lambda format, pair: pair in (format, 3))
)
@pytest.mark.parametrize("name", ["llama", pytest.param("qwen3_moe", marks=pytest.mark.full)])
def test_on_every_backend(ring: Rings, files: Files, name: str, pair: tuple[str, str], format: str) -> None:
    folder, judge = files(name, format)
    conforms(ring(folder, pair, (2,)), judge)


@pytest.mark.parametrize(
    ("name", "format"),
    short(("qwen2", "qwen3", "mistral", "gemma3_text"), PUBLISHED, lambda name, format: name == format),
)
def test_every_family(ring: Rings, files: Files, name: str, format: str) -> None:
    folder, judge = files(name, format)
    conforms(ring(folder, ("mlx", "torch"), (2,)), judge)


@pytest.mark.parametrize(
    ("format", "pair"),
    short(PUBLISHED, PAIRS[2:], lambda format, pair: PUBLISHED[format] == "fp8-blocks" and pair == 0),
)
def test_what_makes_keys_and_values_of_a_latent(tmp_path: Path, pair: tuple[str, str], format: str) -> None:
    """DeepSeek V3 and Kimi K2 are published in 8-bit floats."""
    plain = plain_folder(tmp_path / "plain", "deepseek_v3", q_lora_rank=128)
    folder, judge = write_foreign(plain, tmp_path, FORMATS[format])
    ranges = (LayerRange(0, 1), LayerRange(1, LAYERS))
    conforms(Chain([load_shard(folder, backend, layers) for backend, layers in zip(pair, ranges, strict=True)]), judge)


@pytest.mark.parametrize(("format", "pair"), short(("gptq-4", "int8"), PAIRS, lambda format, pair: pair in (2, 3)))
def test_embedding_and_head_too(tmp_path: Path, pair: tuple[str, str], format: str) -> None:
    """A head of its own in the one, a tied one in the other, whose rows are looked up."""
    names = {"gptq-4": ("llama", "lm_head"), "int8": ("llama-tied", "model.embed_tokens")}
    name, path = names[format]
    place = tmp_path / format
    place.mkdir()
    plain = make_plain(tmp_path / "plain", name)
    folder, judge = write_foreign(plain, place, FORMATS[format])
    stored, judged = (load_file(each / "model.safetensors") for each in (folder, judge))
    parts, judged[f"{path}.weight"] = FORMATS[format].write(judged[f"{path}.weight"])
    del stored[f"{path}.weight"]
    stored |= {f"{path}.{end}": part.contiguous() for end, part in parts.items()}
    for each, tensors in ((folder, stored), (judge, judged)):
        save_file(tensors, each / "model.safetensors", {"format": "pt"})
    assert read_runnable(folder).tied == (name == "llama-tied")
    ranges = (LayerRange(0, 2), LayerRange(2, LAYERS))
    conforms(Chain([load_shard(folder, backend, layers) for backend, layers in zip(pair, ranges, strict=True)]), judge)
    conforms(Chain([load_shard(folder, pair[0], LayerRange(0, LAYERS))]), judge)


@pytest.mark.parametrize(("kind", "pair"), short(("mlx", "gguf"), PAIRS, lambda kind, pair: pair == kind + 2))
def test_experts_one_by_one(tmp_path: Path, pair: tuple[str, str], kind: str) -> None:
    folder, judge = (mlx_one_by_one if kind == "mlx" else gguf_one_by_one)(tmp_path)
    ranges = (LayerRange(0, 2), LayerRange(2, LAYERS))
    conforms(Chain([load_shard(folder, backend, layers) for backend, layers in zip(pair, ranges, strict=True)]), judge)


def mlx_one_by_one(place: Path) -> tuple[Path, Path]:
    plain = make_plain(place / "plain", "qwen3_moe")
    folder = write_mlx(plain, place / "mlx", FORMS["affine-4"])
    judge = write_judge(folder, plain, place / "judge")
    apart: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        start, stack, end = name.partition(".switch_mlp.")
        each = {f"{start}.experts.{i}.{end}": one.clone() for i, one in enumerate(tensor)} if stack else {name: tensor}
        apart |= each
    save_file(apart, folder / "model.safetensors", {"format": "pt"})
    (folder / INDEX).unlink(missing_ok=True)
    return folder, judge


def gguf_one_by_one(place: Path) -> tuple[Path, Path]:
    plain = make_plain(place / "plain", "qwen3_moe")
    file = write_gguf(plain, place / "m.gguf", lambda name, _: Kind.F32 if "inp" in name else Kind.Q4_K, stacked=False)
    return imported(file, place / "model"), gguf_judge(file, plain, place / "judge")


@pytest.mark.parametrize(
    ("format", "pair"), short(("gptq-4", "fp8-blocks"), PAIRS[2:], lambda format, pair: format == pair)
)
def test_pieces_of_it_compute_the_same(tmp_path: Path, files: Files, pair: tuple[str, str], format: str) -> None:
    """Each stage has its own units alone, as machines without the published files get them."""
    folder, judge = files("qwen3_moe", format)
    parts = []
    for backend, layers in zip(pair, (LayerRange(0, 2), LayerRange(2, LAYERS)), strict=True):
        exported(folder, layers, tmp_path / backend)
        parts.append(load_shard(tmp_path / backend, backend, layers))
    conforms(Chain(parts), judge)


def test_8_bit_floats_are_rounded_once_to_bf16(tmp_path: Path, files: Files) -> None:
    """Weights of a stage in bf16 are what the judge's become in bf16."""
    folder, judge = files("llama", "fp8-blocks")
    found = load_shard(folder, "torch", LayerRange(0, LAYERS), dtype="bf16")
    plain = load_shard(judge, "torch", LayerRange(0, LAYERS), dtype="bf16")
    logits = [Chain([shard]).logits(row(new_sequence(), 0, PROMPT)) for shard in (found, plain)]
    assert np.array_equal(logits[0], logits[1])


def test_by_default_torch_is_near(files: Files) -> None:
    folder, judge = files("llama", "gptq-4")
    found = Chain([load_shard(folder, "torch", LayerRange(0, LAYERS), exact=False)]).logits(row(1, 0, PROMPT))
    wanted = reference_logits(judge, PROMPT)
    assert np.linalg.norm(found - wanted) < 8e-2 * np.linalg.norm(wanted)


async def test_it_becomes_a_folder_in_mlx_format(tmp_path: Path, files: Files) -> None:
    """Experts stacked, codes kept or, of 8-bit floats, plain; it computes what the published one does."""
    for name, format, bound in (("qwen3_moe", "awq", 1e-5), ("llama", "fp8-channel", 3e-2)):
        folder, judge = files(name, format)
        target = tmp_path / format
        await convert_folder(folder, target, tmp_path / "home", "", lambda done, total: None)
        found = Chain([load_shard(target, "mlx", LayerRange(0, LAYERS))]).logits(row(new_sequence(), 0, PROMPT))
        assert_close(found, reference_logits(judge, PROMPT), bound)
