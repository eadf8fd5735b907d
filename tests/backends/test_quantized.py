"""Quantized models on every backend against transformers on their widened weights."""

# ruff: noqa: E402  (only where MLX exists is there anybody to write them)

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from _pytest.mark import ParameterSet

mx = pytest.importorskip("mlx.core")

from safetensors.numpy import load_file, save_file

from tests.backends.conftest import Rings
from tests.backends.judged import PROMPT, conforms
from tests.backends.published import SINGLE, Form, edit_config, extras, wrapped
from tests.support.chain import GREEDY, Chain, load_shard, row
from tests.support.families import BY_NAME, LAYERS, MORE, reference_logits
from tests.support.mlx_folders import FORMS, INDEX, make_plain, stored_arrays, write_judge, write_mlx
from tests.support.pieces import exported
from tests.support.widen import dequantize
from together.head.loopback import Place, local_engine
from together.models.codes import pack
from together.models.config import FAMILIES
from together.requests import GenerateRequest
from together.types import LayerRange, Packing
from together.weights.quantize import quantize_affine

PAIRS: tuple[tuple[str, str], ...] = (("mlx", "mlx"), ("torch", "torch"), ("torch", "mlx"), ("mlx", "torch"))
MIXED = PAIRS[2:]
EXAMPLE = ("numpy", "numpy")  # tests/backends/numpy_backend.py: the llama family alone
LATER = tuple(case.name for case in MORE)
NAMES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "qwen3_moe")
USUAL = {  # two families for each form; every family, plain and stacked experts, tied and other heads among them
    "affine-4": ("llama", "qwen3_moe"),
    "affine-8": ("qwen2", "mistral"),
    "mixed": ("gemma3_text", "qwen3_moe"),
    "mxfp4": ("llama", "qwen3"),
    "nvfp4": ("llama", "gemma3_text"),
}
SIX = "affine-6-g64"
EACH = ("affine-8", "affine-4", "mxfp4", SIX)  # that every family runs in
Ring = tuple[str, ...]
Case = tuple[str, str, Ring, int]  # a form, a family's case, the backends of two stages, and where they meet


def rings(name: str) -> tuple[Ring, ...]:
    return (*PAIRS, EXAMPLE) if BY_NAME[name].family == "llama" else PAIRS


SHORT = {  # both backends in each form, each of them first for one of its two families; the rest is the long form
    (form, name, MIXED[index]) for form, names in USUAL.items() for index, name in enumerate(names)
} | {("affine-4", "llama", EXAMPLE), ("affine-4", "llama", ("torch", "torch")), ("affine-4", "llama", ("mlx", "mlx"))}
CASES = [(form, name, pair, 2) for form, names in USUAL.items() for name in names for pair in rings(name)]
ALL_CASES = [
    (form, name, pair, cut)
    for form, name, cut in product(USUAL, NAMES, range(1, LAYERS))
    for pair in rings(name)
    if (form, name, pair, cut) not in CASES
] + [
    (form, case.name, pair, case.cut)
    for form, case in product(EACH, MORE)
    for pair in PAIRS
    if case.packed and set(pair) <= set(case.backends)
]
ALL_CASES += [(SIX, name, pair, 2) for name in (*NAMES, "llama-tied") for pair in PAIRS if pair[0] == pair[1]]
ALL_CASES += [(form, "llama-tied", pair, 2) for form in EACH[:-1] for pair in PAIRS if pair[0] == pair[1]]


def _called(case: Case) -> str:
    form, name, pair, cut = case
    return f"{form}-{name}-{'-'.join(pair)}-{cut}"


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Path]]:
    """`quantized(form, name)` → a folder in MLX's format, and that of its judge; each is made once."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def make(form: str, name: str) -> tuple[Path, Path]:
        if (form, name) not in made:
            place = tmp_path_factory.mktemp(f"{form}-{name}")
            plain = make_plain(place / "plain", name)
            folder = write_mlx(plain, place / "mlx", FORMS[form], files=2)
            made[form, name] = folder, write_judge(folder, plain, place / "judge")
        return made[form, name]

    return make


Quantized = Callable[[str, str], tuple[Path, Path]]


def _cases() -> Iterator[ParameterSet]:
    for case in CASES:
        yield pytest.param(case, id=_called(case), marks=() if case[:3] in SHORT else pytest.mark.full)


@pytest.mark.parametrize("case", [*_cases()])
def test_a_cut_of_each(ring: Rings, quantized: Quantized, case: Case) -> None:
    form, name, pair, cut = case
    folder, judge = quantized(form, name)
    conforms(ring(folder, pair, (cut,)), judge)


@pytest.mark.parametrize("form", USUAL)
def test_torch_by_default_is_near_and_joins_parts(
    quantized: Quantized, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.on_torch.kernels._PART", 2**14)  # several of each matrix
    folder, judge = quantized(form, USUAL[form][0])
    found = Chain([load_shard(folder, "torch", LayerRange(0, LAYERS), exact=False)]).logits(row(1, 0, PROMPT))
    wanted = reference_logits(judge, PROMPT)
    assert np.linalg.norm(found - wanted) < 8e-2 * np.linalg.norm(wanted)  # random weights enlarge what a product loses


_STEPS = """
import resource, sys, torch
from pathlib import Path
from tests.support.chain import load_shard
from together.types import LayerRange
shard = load_shard(Path(sys.argv[1]), "torch", LayerRange(0, 1), exact=False)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before, size = faults(), 8 * 2**20
for _ in range(20):
    torch.ones(size // 4)
print((faults() - before) * resource.getpagesize() / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep freed memory as they like")
def test_steps_use_the_same_memory_again(quantized: Quantized) -> None:
    """States of a prompt are not got anew from the system for each product, page by page."""
    folder, _ = quantized("affine-4", USUAL["affine-4"][0])
    run = subprocess.run([sys.executable, "-c", _STEPS, str(folder)], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 10  # of 20 times its pages; 1 to 3, by what loading left


async def test_a_ring_that_was_asked_to_be_exact_is(quantized: Quantized, tmp_path: Path) -> None:
    """By the orders of real stages: log-probabilities that int8 activations would move."""
    folder, judge = quantized("affine-8", "qwen2")
    places = (Place("torch", "cpu", LayerRange(0, 2)), Place("torch", "cpu", LayerRange(2, LAYERS)))
    async with local_engine(folder, tmp_path, places, "fp32", 64, exact=True) as (engine, _):
        stream = engine.submit(GenerateRequest(tuple(PROMPT), GREEDY, 0, score_from=1))
        scores = [score async for tokens in stream for score in tokens.scores]
    wanted = torch.log_softmax(torch.from_numpy(reference_logits(judge, PROMPT)), -1)
    assert scores == pytest.approx(wanted[range(len(PROMPT) - 1), list(PROMPT[1:])].tolist(), abs=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("case", ALL_CASES, ids=_called)
def test_every_cut(ring: Rings, quantized: Quantized, case: Case) -> None:
    form, name, pair, cut = case
    folder, judge = quantized(form, name)
    conforms(ring(folder, pair, (cut,)), judge)


def test_every_family_is_among_them() -> None:
    assert {BY_NAME[name].family for name in (*NAMES, *LATER)} == set(FAMILIES)
    assert {name for names in USUAL.values() for name in names} == set(NAMES)


# --- as they are published --------------------------------------------------------------------------------------------


def renamed(folder: Path) -> None:
    """A text model within one of pictures, whose overrides have the tensors' prefix."""
    wrapped("gemma3", "language_model.model.", "language_model.lm_head.")(folder)


def misdescribed(folder: Path) -> None:
    """The configuration of another quantization."""
    wrong = {"group_size": 128, "bits": 2, "model.layers.0.self_attn.q_proj": False}
    edit_config(folder, quantization=wrong, quantization_config=wrong)


def undescribed(folder: Path) -> None:
    edit_config(folder, drop=("quantization", "quantization_config"))


PUBLISHED: dict[str, tuple[str, str, Form]] = {  # a form, a family's case, and what is different
    "wrapped": ("mixed", "gemma3_text", renamed),
    "wrong configuration": ("affine-4", "llama-tied", misdescribed),
    "no configuration": ("mixed", "qwen3_moe", undescribed),
    "dtypes that MLX lacks beside it": ("nvfp4", "llama-tied", extras),
    "8-bit floats": ("mxfp8", "qwen2", lambda folder: None),
    "embedding and head plain": ("ends-plain", "llama", lambda folder: None),
    "experts stacked and plain": ("plain", "qwen3_moe", lambda folder: None),
    "a latent's matrices by head, plain": ("plain", "deepseek_v3", lambda folder: None),
    "a latent's matrices by head, packed": ("affine-4", "glm4_moe_lite", lambda folder: None),
    "2 bits": ("affine-2-g128", "mistral", lambda folder: None),
}


def _published() -> Iterator[ParameterSet]:
    """Each kind by one ring of both backends, in turns; the other way round is the long form."""
    for index, kind in enumerate(PUBLISHED):
        for place, pair in enumerate(MIXED):
            marks = () if index % 2 == place else pytest.mark.full
            yield pytest.param(kind, pair, id=f"{'-'.join(pair)}-{kind}", marks=marks)


@pytest.mark.parametrize(("kind", "pair"), [*_published()])
def test_as_they_are_published(tmp_path: Path, kind: str, pair: Ring) -> None:
    form, name, change = PUBLISHED[kind]
    plain = make_plain(tmp_path / "plain", name, "bf16")
    folder = write_mlx(plain, tmp_path / "mlx", FORMS.get(form))
    judge = write_judge(folder, plain, tmp_path / "judge")
    change(folder)
    conforms(chain_of(folder, pair), judge)


def chain_of(folder: Path, pair: Ring) -> Chain:
    ranges = (LayerRange(0, 1), LayerRange(1, LAYERS))
    return Chain([load_shard(folder, backend, layers) for backend, layers in zip(pair, ranges, strict=True)])


@pytest.mark.parametrize("pair", [MIXED[0], pytest.param(MIXED[1], marks=pytest.mark.full)], ids="-".join)
def test_pieces_of_it_compute_the_same(tmp_path: Path, quantized: Quantized, pair: Ring) -> None:
    """Each stage has its own units alone, as machines without the published files get them."""
    folder, judge = quantized("mixed", "qwen3_moe")
    parts = []
    for backend, layers in zip(pair, (LayerRange(0, 1), LayerRange(1, LAYERS)), strict=True):
        exported(folder, layers, tmp_path / backend)
        parts.append(load_shard(tmp_path / backend, backend, layers))
    conforms(Chain(parts), judge)


def test_groups_of_16_run(tmp_path: Path) -> None:
    """MLX has no products for them: it holds them plain."""
    plain = make_plain(tmp_path / "plain", "llama")
    packing, found, wide = Packing("affine", 4, 16), {}, {}
    for name, tensor in load_file(plain / SINGLE).items():
        if tensor.ndim < 2:
            found[name] = wide[name] = tensor
            continue
        codes, scales, biases = quantize_affine(tensor, packing.bits, packing.group)
        start = name.removesuffix("weight")
        found |= {name: pack(codes, packing.bits), f"{start}scales": scales, f"{start}biases": biases}
        wide[name] = dequantize(found[name], scales, biases, packing)
    for folder, tensors in ((tmp_path / "packed", found), (tmp_path / "judge", wide)):
        copytree(plain, folder)
        save_file(tensors, folder / SINGLE)
    for pair in (("torch", "numpy"), ("torch", "mlx"), ("mlx", "mlx")):
        conforms(chain_of(tmp_path / "packed", pair), tmp_path / "judge")


# --- how they are made ------------------------------------------------------------------------------------------------


def test_mlx_lm_writes_what_its_repositories_hold(tmp_path: Path) -> None:
    """Stacked experts, 8-bit routers, scales away from their matrix, overrides under another prefix."""
    folder = write_mlx(
        make_plain(tmp_path / "plain", "qwen3_moe"), tmp_path / "mlx", FORMS["mxfp4"], files=2, prefix="language_model."
    )
    stored, index = stored_arrays(folder), json.loads((folder / INDEX).read_text())["weight_map"]
    assert set(index.values()) == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    assert set(index) == set(stored)
    experts = stored["model.layers.0.mlp.switch_mlp.up_proj.weight"]
    assert (experts.dtype, experts.shape) == (mx.uint32, (4, 128, 128 * 4 // 32))
    assert stored["model.layers.0.mlp.gate.biases"].shape == (4, 128 // 64)
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization"]["language_model.model.layers.0.mlp.gate"]["bits"] == 8
    assert config["quantization"] == config["quantization_config"]


@pytest.mark.parametrize("form", ["affine-4", "mixed", "mxfp4", "mxfp8", "nvfp4"])
def test_the_judge_is_what_mlx_reads(tmp_path: Path, form: str) -> None:
    plain = make_plain(tmp_path / "plain", "gemma3_text")
    folder = write_mlx(plain, tmp_path / "mlx", FORMS[form])
    judge, stored = stored_arrays(write_judge(folder, plain, tmp_path / "judge")), stored_arrays(folder)
    packed = [name.removesuffix(".scales") for name in stored if name.endswith(".scales")]
    assert len(packed) > 20
    for path in packed:
        words, scales, biases = (stored.get(f"{path}.{end}") for end in ("weight", "scales", "biases"))
        wanted = judge[f"{path}.weight"]
        assert words is not None
        assert scales is not None
        bits, group = words.shape[-1] * 32 // wanted.shape[-1], wanted.shape[-1] // scales.shape[-1]
        mode = FORMS[form].mode
        theirs = mx.dequantize(words, scales, biases, group, bits, mode, dtype=mx.float32, stream=mx.cpu)
        np.testing.assert_allclose(np.array(theirs), np.array(wanted), rtol=2e-7, atol=2e-8)
