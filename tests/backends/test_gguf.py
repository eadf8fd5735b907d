"""GGUF files on every backend against transformers on what the package `gguf` makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mlx.core")

from gguf import GGMLQuantizationType as Kind

from tests.backends.conftest import Rings
from tests.backends.judged import PROMPT, conforms
from tests.support.chain import Chain, load_shard, row
from tests.support.families import LAYERS, reference_logits
from tests.support.gguf_conversion import Conversion
from tests.support.gguf_files import (
    as_published,
    every,
    imported,
    make_plain,
    mixed,
    write_gguf,
    write_judge,
    write_ollama,
)
from tests.support.gguf_hybrids import OLDER_NEXT
from tests.support.gguf_later import CONVERSIONS, OLDER_LATENT
from together.errors import BrokenModel
from together.models.gguf.kinds import PACKINGS
from together.models.spec import read_runnable
from together.types import LayerRange

PAIRS = (("mlx", "mlx"), ("torch", "torch"), ("torch", "mlx"), ("mlx", "torch"))
FAMILIES = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma3_text", "qwen3_moe")
LATER = (
    "gpt_oss", "granite", "smollm3", "olmo2", "olmo3", "seed_oss", "seed_oss-biased", "exaone4", "exaone4-full",
    "glm4", "glm4-quarter", "phi3", "ministral3", "qwen2_moe", "olmoe", "mixtral", "glm4_moe", "minimax_m2",
    "granitemoe", "qwen3_5", "qwen3_5_moe", "deepseek_v3", "glm4_moe_lite", "gemma4_text", "gemma4-shared",
    "granite4", "granite4-experts", "qwen3_next", "gemma4-experts",
    "nemotron_h", "nemotron_h-experts", "nemotron_h-latent", "llama4", "qwen3_vl",
)  # fmt: skip
MIXED = ("torch", "mlx")
SHORT = (  # parts, experts, recurrent layers, and what a class has in one and a file in several, or the other way
    "llama", "gemma3_text", "qwen3_moe", "phi3", "glm4_moe", "qwen3_5", "granite4-experts", "qwen3_next",
    "gemma4-experts",
)  # fmt: skip
KINDS = ("Q4_K", "Q5_0", "Q8_0", "MXFP4")  # tests/models/gguf/test_blocks.py reads every type
CHOICES = {"mixed": mixed, "published": as_published}


Files = Callable[[str, str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """`files(family, kind)` → the folder of a GGUF file, and that of its judge; each is made once."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def make(name: str, kind: str) -> tuple[Path, Path]:
        if (name, kind) not in made:
            place = tmp_path_factory.mktemp(f"{name}-{kind}")
            plain = make_plain(place / "plain", name)
            file = write_gguf(plain, place / "m.gguf", CHOICES.get(kind) or every(Kind[kind]))
            made[name, kind] = imported(file, place / "model"), write_judge(file, plain, place / "judge")
        return made[name, kind]

    return make


def _rings() -> Iterator[object]:
    for name, pair in product((*FAMILIES, *LATER), PAIRS):
        is_short = pair == MIXED and name in SHORT
        marks = () if is_short else pytest.mark.full
        yield pytest.param(name, pair, marks=marks, id=f"{name}-{'-'.join(pair)}")


@pytest.mark.parametrize(("name", "pair"), [*_rings()])
def test_every_family_in_mixed_types(ring: Rings, files: Files, name: str, pair: tuple[str, str]) -> None:
    folder, judge = files(name, "mixed")
    conforms(ring(folder, pair, (2,)), judge)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("name", LATER)
def test_later_families_in_one_type(ring: Rings, files: Files, name: str, kind: str) -> None:
    folder, judge = files(name, kind)
    conforms(ring(folder, MIXED, (1,)), judge)


@pytest.mark.full
def test_experts_one_by_one(ring: Rings, tmp_path: Path) -> None:
    """As the first files of Mixtral have them."""
    plain = make_plain(tmp_path / "plain", "mixtral")
    file = write_gguf(plain, tmp_path / "m.gguf", mixed, stacked=False)
    conforms(ring(imported(file, tmp_path / "model"), MIXED, (2,)), write_judge(file, plain, tmp_path / "judge"))


@pytest.mark.full
@pytest.mark.parametrize(("family", "older"), [("deepseek_v3", OLDER_LATENT), ("qwen3_next", OLDER_NEXT)])
def test_files_of_older_converters(
    ring: Rings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, older: Conversion
) -> None:
    """DeepSeek's latents have one matrix, and Qwen3-Next's inputs are one."""
    monkeypatch.setitem(CONVERSIONS, family, older)
    plain = make_plain(tmp_path / "plain", family)
    file = write_gguf(plain, tmp_path / "m.gguf", mixed)
    conforms(ring(imported(file, tmp_path / "model"), MIXED, (2,)), write_judge(file, plain, tmp_path / "judge"))


@pytest.mark.full
@pytest.mark.parametrize("name", ["granite4-experts", "qwen3_next"])
def test_parts_that_are_packed_each_in_another_way(ring: Rings, tmp_path: Path, name: str) -> None:
    def choose(stored: str, shape: tuple[int, ...]) -> Kind:
        packed = "ffn_up_shexp" in stored or "attn_gate" in stored
        return Kind.Q8_0 if packed else mixed(stored, shape)

    plain = make_plain(tmp_path / "plain", name)
    file = write_gguf(plain, tmp_path / "m.gguf", choose)
    conforms(ring(imported(file, tmp_path / "model"), MIXED, (2,)), write_judge(file, plain, tmp_path / "judge"))


@pytest.mark.parametrize("pair", [pytest.param(pair, marks=pytest.mark.full) for pair in PAIRS[:2]], ids="-".join)
def test_gpt_oss_as_it_is_published(ring: Rings, files: Files, pair: tuple[str, str]) -> None:
    folder, judge = files("gpt_oss", "published")
    assert PACKINGS["MXFP4"] in read_runnable(folder).packings
    conforms(ring(folder, pair, (2,)), judge)


def test_gpt_oss_as_ollama_has_it(ring: Rings, tmp_path: Path) -> None:
    plain = make_plain(tmp_path / "plain", "gpt_oss")
    file = write_gguf(plain, tmp_path / "m.gguf", as_published)
    folder = imported(write_ollama(file, tmp_path / "ollama.gguf"), tmp_path / "model")
    conforms(ring(folder, MIXED, (1,)), write_judge(file, plain, tmp_path / "judge"))


def _types() -> Iterator[object]:
    """Some by a family without experts or by one that has them, in turns; the others are the long form."""
    for (index, kind), (place, name) in product(enumerate(PACKINGS), enumerate(("llama", "qwen3_moe"))):
        marks = () if index % 2 == place and kind in KINDS else pytest.mark.full
        yield pytest.param(kind, name, id=f"{name}-{kind}", marks=marks)


@pytest.mark.parametrize(("kind", "name"), [*_types()])
def test_every_type(ring: Rings, files: Files, name: str, kind: str) -> None:
    folder, judge = files(name, kind)
    spec = read_runnable(folder)
    assert PACKINGS[kind] in spec.packings
    assert spec.dtype == "bf16"  # whatever norms and routers are in
    conforms(ring(folder, ("torch", "mlx"), (2,)), judge)


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0"])
def test_by_default_torch_is_near(files: Files, kind: str) -> None:
    folder, judge = files("llama", kind)
    found = Chain([load_shard(folder, "torch", LayerRange(0, LAYERS), exact=False)]).logits(row(1, 0, PROMPT))
    wanted = reference_logits(judge, PROMPT)
    assert np.linalg.norm(found - wanted) < 8e-2 * np.linalg.norm(wanted)


def test_a_file_that_changes_under_a_model_is_noticed(tmp_path: Path) -> None:
    """A tied embedding is looked up in the file: other bytes would be other words, without an error."""
    plain = make_plain(tmp_path / "plain", "llama-tied")
    file = write_gguf(plain, tmp_path / "m.gguf", every(Kind.Q8_0))
    folder = imported(file, tmp_path / "model")
    chain = Chain([load_shard(folder, "torch", LayerRange(0, LAYERS))])
    before = chain.logits(row(1, 0, PROMPT))
    kept = file.rename(tmp_path / "kept.gguf")  # replaced, and deleted: what is mapped stays
    file.write_bytes(b"another file")
    assert np.array_equal(chain.logits(row(2, 0, PROMPT)), before)
    with kept.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"x")
    with pytest.raises(BrokenModel, match="was changed while its model was loaded"):
        chain.logits(row(3, 0, PROMPT))
