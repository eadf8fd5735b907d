"""Products of quantized matrices on torch, against fp64 products of what numpy says the matrices are."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from backends.on_torch.affine import Plane
from backends.on_torch.blocks import Blocks
from backends.on_torch.compiled import has_dot_products, lanes
from backends.on_torch.kernels import Make, Precision, fastest_kernel, kernels_for, quantized_experts
from backends.on_torch.nbits import NBits, _read_later, _Session
from backends.on_torch.onnx_graph import CODES, SCALES, ZEROS
from backends.on_torch.packed import Packed, made_up
from backends.on_torch.quantized import MatrixProduct, QuantizedEmbedding, QuantizedLinear, Tiles
from backends.on_torch.shared import SharedProduct
from backends.on_torch.stacked import Stacked, StackedExperts, with_same_input
from tests.support.chain import Chain, assert_close, load_shard, new_sequence, row
from tests.support.families import make_checkpoint, prompt_ids, reference_logits
from together.models.codes import pack, unpack
from together.models.numbers import from_e4m3
from together.models.packing import AFFINE_BITS, FP_PACKINGS, Mode, Packing
from together.types import LayerRange
from together.weights.quantize import E2M1, fp_scales, quantize_affine, quantize_fp

PACKINGS = (*(Packing("affine", bits, 64) for bits in AFFINE_BITS), *FP_PACKINGS.values())
OTHER_GROUPS = tuple(Packing("affine", bits, group) for bits in (3, 4, 8) for group in (32, 128))
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # and the bound of an exact product, of the largest result
MODES = [  # `exact` with one dtype, and without it with another one; the other two are the long form
    pytest.param(exact, dtype, id=f"{exact}-{dtype}", marks=() if exact == (bound < 1e-4) else pytest.mark.full)
    for exact, (dtype, bound) in product((True, False), DTYPES.items())
]
ROWS = (1, 3, 32, 300)
CPU = torch.device("cpu")
PROMPT = prompt_ids(24)
OUTPUTS, INPUTS = 333, 384  # a multiple of nothing, and of the groups alone


@dataclass(frozen=True)
class Sample:
    """A quantized matrix, and what it is without packing."""

    packed: Packed
    weights: npt.NDArray[np.float64]


def sample(
    packing: Packing, outputs: int = OUTPUTS, inputs: int = INPUTS, stored: torch.dtype = torch.bfloat16
) -> Sample:
    """Random weights of many sizes; some groups have one sign, so that their bias is no multiple of their scale."""
    random = np.random.default_rng(outputs + inputs)
    weights = (random.standard_normal((outputs, inputs)) * np.exp(random.normal(0, 0.5, (outputs, 1)))).astype(
        np.float32
    )
    weights[::5, : packing.group] = np.abs(weights[::5, : packing.group]) + 1
    if packing.mode == "affine":
        codes, scales, biases = quantize_affine(weights, packing.bits, packing.group)
        kept = [torch.from_numpy(part).to(stored) for part in (scales, biases)]
        packed = Packed(packing, _words(pack(codes, packing.bits)), *kept)
        return Sample(packed, _plain(packed))
    codes, codes_of_scales = quantize_fp(weights, packing.mode)
    packed = Packed(packing, _words(pack(codes, packing.bits)), torch.from_numpy(codes_of_scales), None)
    return Sample(packed, _plain(packed))


def as_experts(packed: Packed, count: int) -> Packed:
    """`[count · outputs, inputs]` as `[count, outputs, inputs]`."""
    words, scales, *biases = (
        part.unflatten(0, (count, -1)) for part in (packed.words, packed.scales, packed.biases) if part is not None
    )
    return Packed(packed.packing, words, scales, biases[0] if biases else None)


def _words(words: npt.NDArray[np.uint32]) -> Tensor:
    return torch.from_numpy(words.view(np.int32))


def _plain(packed: Packed) -> npt.NDArray[np.float64]:
    packing = packed.packing
    codes = unpack(packed.words.numpy().view(np.uint32), packing.bits)
    if packed.biases is not None:
        values, scales = codes.astype(np.float64), packed.scales.double().numpy()
        biases = packed.biases.double().numpy()
    else:
        values = (E2M1[codes] if packing.bits == 4 else from_e4m3(codes)).astype(np.float64)
        scales, biases = fp_scales(packed.scales.numpy(), packing.mode).astype(np.float64), np.zeros(1)
    grouped = values.reshape(len(codes), -1, packing.group)
    return np.asarray((grouped * scales[..., None] + biases[..., None]).reshape(codes.shape))


def seeded(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def off(found: Tensor, wanted: npt.NDArray[np.float64]) -> float:
    """How far the results are from the right ones, as a part of the largest."""
    assert found.shape == wanted.shape
    return float(np.abs(found.double().numpy() - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("packing", [*PACKINGS, *OTHER_GROUPS], ids=str)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_plain_weights_are_what_numpy_unpacks(packing: Packing, stored: torch.dtype) -> None:
    made = sample(packing, stored=stored)
    assert made.packed.shape == made.weights.shape
    assert off(made.packed.weights(torch.float32), made.weights) < 1e-7


@pytest.mark.parametrize("mode", ["mxfp8", "nvfp4"])
def test_codes_that_are_no_numbers_are_none(mode: Mode) -> None:
    """As MLX reads them; 480 in their place would be wrong in silence."""
    packing = FP_PACKINGS[mode]
    codes = np.tile(np.arange(2**packing.bits, dtype=np.uint8), (256, 256 // 2**packing.bits))
    words, scales = pack(codes, packing.bits), np.tile(np.arange(256, dtype=np.uint8)[:, None], 256 // packing.group)
    found = Packed(packing, _words(words), torch.from_numpy(scales), None).weights(torch.float32)
    none = codes & 127 == 127 if mode == "mxfp8" else np.repeat(scales & 127 == 127, packing.group, axis=1)
    if mode == "mxfp8":
        none |= np.repeat(scales == 255, packing.group, axis=1) & (codes & 127 == 0)  # nothing times infinity
    assert np.array_equal(torch.isnan(found).numpy(), none)
    assert np.array_equal(np.isnan(from_e4m3(np.arange(256, dtype=np.uint8))), np.arange(256) & 127 == 127)


def _kernels(packing: Packing, inputs: int, precision: Precision) -> list[Make]:
    found = kernels_for(packing, inputs, precision)
    assert found[-1] is Tiles
    return found


@pytest.mark.parametrize("packing", [*PACKINGS, *OTHER_GROUPS, Packing("affine", 4, 16)], ids=str)
@pytest.mark.parametrize(("exact", "dtype"), MODES)
def test_every_kernel_multiplies(
    packing: Packing, dtype: torch.dtype, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.on_torch.quantized._TILE", {"cpu": 100 * INPUTS})  # several, the last one not full
    monkeypatch.setattr("backends.on_torch.int4._AT_ONCE", 64 * INPUTS)
    monkeypatch.setattr("backends.on_torch.affine._AT_ONCE", 100 * INPUTS)
    monkeypatch.setattr("backends.on_torch.blocks._AT_ONCE", 100 * INPUTS)
    inputs = INPUTS + packing.group if packing.group < 128 else INPUTS  # an odd number of groups where that is possible
    made, precision = sample(packing, inputs=inputs), Precision(dtype, CPU, exact)
    bound = DTYPES[dtype] if exact else 2e-2
    for make in _kernels(packing, inputs, precision):
        kernel = make(made.packed)
        for rows in ROWS:
            given = seeded(rows, inputs, dtype=dtype)
            found = kernel(given)
            assert found.dtype == dtype
            assert off(found, given.double().numpy() @ made.weights.T) < bound, kernel
        assert kernel(given[:0]).shape == (0, OUTPUTS)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "default"])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_none(packing: Packing, exact: bool, odd: float) -> None:
    """In whole numbers of 8 bits it would vanish, and the answer be wrong in silence."""
    made, given = sample(packing), seeded(4, INPUTS)
    given[1, 37] = odd
    for make in _kernels(packing, INPUTS, Precision(torch.float32, CPU, exact)):
        found = torch.isfinite(make(made.packed)(given))
        assert found[[0, 2, 3]].all()
        assert not found[1].any(), make


@pytest.mark.parametrize("packing", [each for each in (*PACKINGS, *OTHER_GROUPS) if each.mode == "affine"], ids=str)
def test_what_zero_points_leave_is_multiplied_with_8_bits(packing: Packing) -> None:
    """Rows of one number stand in int8 as they are, so that nothing else is lost; without it, 4 % and more were."""
    made, given = sample(packing), torch.tensor([[1.0], [-3.0]]).expand(2, INPUTS)
    kernel = NBits(made.packed, exact=False)
    assert off(kernel(given), given.double().numpy() @ made.weights.T) < 1e-2


def test_integer_kernels_are_candidates_where_they_can_be_exact() -> None:
    """Of this machine: with AVX2 or better and ONNX Runtime; loops need a compiler, and in int8 dot products."""
    four, float32, exact = Packing("affine", 4, 64), torch.float32, True
    loop, dots = ["Blocks"] * (lanes() > 0), ["Blocks"] * has_dot_products()
    assert _names(four, Precision(float32, CPU, exact)) == [*loop, "NBits", "Tiles"]
    assert _names(four, Precision(float32, CPU, not exact)) == [*dots, "NBits", "Int4", "Tiles"]
    assert _names(four, Precision(torch.bfloat16, CPU, exact)) == [*loop, "NBits", "Int4", "Tiles"]
    assert _names(Packing("mxfp8", 8, 32), Precision(float32, CPU, not exact)) == ["Tiles"]
    assert _names(four, Precision(float32, torch.device("cuda"), not exact)) == ["Tiles"]


def _names(packing: Packing, precision: Precision) -> list[str]:
    makes = kernels_for(packing, INPUTS, precision)
    return [(make.func if isinstance(make, partial) else make).__name__ for make in makes]


def test_without_onnx_runtime_and_a_compiler_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.on_torch.nbits.onnxruntime", None)
    monkeypatch.setattr("backends.on_torch.compiled.llvm", None)
    for known in (NBits.takes, lanes):
        known.cache_clear()
    assert _names(Packing("affine", 4, 64), Precision(torch.float32, CPU, False)) == ["Int4", "Tiles"]
    for known in (NBits.takes, lanes):
        known.cache_clear()


@pytest.mark.skipif(not has_dot_products(), reason="this processor has no dot products of bytes")
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30], ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_activations_of_any_size_become_int8(bits: int, size: float) -> None:
    made, given = sample(Packing("affine", bits, 64)), seeded(9, INPUTS)
    given[:, 64:128] = 0
    given[2] *= size
    found, wanted = Blocks(made.packed, exact=False)(given), given.double().numpy() @ made.weights.T
    for each, right in zip(found, wanted, strict=True):
        assert np.abs(each.double().numpy() - right).max() <= 2e-2 * np.abs(right).max()


@pytest.mark.skipif(lanes() == 0, reason="llvmlite has no build for this system")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_blocks_hold_scales_as_they_are_stored(stored: torch.dtype) -> None:
    made, given = sample(Packing("affine", 4, 64), stored=stored), seeded(3, INPUTS)
    kernel = Blocks(made.packed, exact=True)
    assert off(kernel(given), given.double().numpy() @ made.weights.T) < 1e-5
    padded = -(-OUTPUTS // lanes()) * lanes()
    assert kernel._blocks.nbytes == padded * (INPUTS // 2 + 2 * stored.itemsize * INPUTS // 64)


def test_codes_that_a_session_reads_where_they_lie_are_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime has no kernel of 8 bits in fp32: it must not be given codes that are let go."""
    codes = np.full((64, INPUTS), 3, np.uint8)
    ones = np.ones((64, INPUTS // 64), np.float32)
    session = _Session([Plane(8, codes, ones, np.zeros((64, INPUTS // 64), np.uint8))], 64, exact=True)
    rows = {0: np.ones((1, INPUTS), np.float32)}
    before = session(rows)[0]
    codes[...] = 0
    assert not np.array_equal(session(rows)[0], before)


def test_a_kernel_is_chosen_once() -> None:
    precision = Precision(torch.float32, CPU, exact=False)
    chosen = fastest_kernel(PACKINGS[2], INPUTS, precision)
    assert fastest_kernel(PACKINGS[2], INPUTS, precision) is chosen


def test_a_layer_joins_its_parts_and_adds_its_bias() -> None:
    made, bias = sample(PACKINGS[0]), seeded(OUTPUTS)
    layer = QuantizedLinear(MatrixProduct([Tiles(made.packed[:100]), Tiles(made.packed[100:])]), bias)
    given = seeded(2, 5, INPUTS)
    assert off(layer(given), given.double().numpy() @ made.weights.T + bias.double().numpy()) < 1e-5
    assert layer(given[:, :0]).shape == (2, 0, OUTPUTS)


@pytest.mark.parametrize("packing", [PACKINGS[0], FP_PACKINGS["nvfp4"]], ids=str)
def test_matrices_are_one_below_another(packing: Packing) -> None:
    made = [sample(packing, outputs) for outputs in (100, 7, 200)]
    stacked, weights = Stacked([each.packed for each in made]), np.concatenate([each.weights for each in made])
    assert stacked.shape == weights.shape
    for start, stop in ((0, 307), (99, 108), (100, 107), (150, 300)):
        assert off(stacked.read(start, stop).weights(torch.float32), weights[start:stop]) < 1e-7


def test_layers_with_the_same_input_are_one_product() -> None:
    made, calls = [sample(PACKINGS[0], outputs) for outputs in (100, 7, 200)], []

    class Counted(MatrixProduct):
        def __call__(self, input: Tensor) -> Tensor:
            calls.append(input)
            return super().__call__(input)

    product = Counted([Tiles(Stacked([each.packed for each in made]).read(0, 307))])
    shared = SharedProduct(lambda input: product(input).split([100, 7, 200], dim=-1))
    biases = [None, seeded(7), None]
    layers = [QuantizedLinear(partial(shared.part, place), bias) for place, bias in enumerate(biases)]
    for given in (seeded(2, 5, INPUTS), seeded(1, 1, INPUTS)):
        for layer, each, bias in zip(layers, made, biases, strict=True):
            wanted = given.double().numpy() @ each.weights.T + (0 if bias is None else bias.double().numpy())
            assert off(layer(given), wanted) < 1e-5
    assert len(calls) == 2
    again = layers[1](given)  # of an input that all have had, alone and with another between
    layers[0](seeded(1, 1, INPUTS))
    assert torch.equal(layers[1](given), again)
    assert len(calls) == 5


def test_only_matrices_that_are_packed_alike_are_joined() -> None:
    four, six = sample(Packing("affine", 4, 64), 8).packed, sample(Packing("affine", 6, 64), 8).packed
    attention, mlp = "model.layers.0.self_attn.", "model.layers.0.mlp."
    names = {f"{attention}{kind}_proj.weight": four for kind in "vkqo"} | {f"{attention}v_proj.weight": six}
    names |= {f"{mlp}{kind}_proj.weight": four for kind in ("up", "down", "gate")} | {"lm_head.weight": four}
    assert with_same_input(names) == [
        ("lm_head.weight",),
        (f"{mlp}down_proj.weight",),
        (f"{mlp}gate_proj.weight", f"{mlp}up_proj.weight"),
        (f"{attention}k_proj.weight", f"{attention}q_proj.weight"),
        (f"{attention}o_proj.weight",),
        (f"{attention}v_proj.weight",),
    ]


@pytest.mark.parametrize("packing", [Packing("affine", 4, 64), Packing("affine", 8, 64), FP_PACKINGS["mxfp8"]], ids=str)
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "default"])
def test_experts_multiply_what_was_chosen(packing: Packing, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several sessions, the last one not full; experts without rows among them."""
    monkeypatch.setattr("backends.on_torch.kernels._STACK", 2 * 40 * INPUTS * packing.bits)
    made = sample(packing, 5 * 40)
    experts = quantized_experts(as_experts(made.packed, 5), Precision(torch.float32, CPU, exact))
    rows = {0: seeded(3, INPUTS), 1: seeded(1, INPUTS), 4: seeded(7, INPUTS)}
    found = experts(rows)
    assert set(found) == set(rows)
    for expert, given in rows.items():
        weights = made.weights[40 * expert : 40 * (expert + 1)]
        assert off(found[expert], given.double().numpy() @ weights.T) < (1e-5 if exact else 2e-2)


def test_made_up_experts_differ() -> None:
    """ONNX Runtime holds equal ones once, and a processor's cache would have them all: times would be too short."""
    words = made_up(Packing("affine", 4, 64), (64, 1024, 2048), torch.float32, CPU).words
    assert len(words.flatten(1).unique(dim=0)) == 64


def test_projections_of_experts_are_one_below_another() -> None:
    packing = PACKINGS[0]
    made = [sample(packing, 3 * outputs) for outputs in (8, 5)]
    parts = [as_experts(each.packed, 3) for each in made]
    both = StackedExperts(parts)
    wanted = np.concatenate([each.weights.reshape(3, -1, INPUTS) for each in made], axis=1)
    assert both.shape == wanted.shape
    assert off(both.read(1, 3).weights(torch.float32), wanted[1:]) < 1e-7


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_an_embedding_looks_rows_up(packing: Packing) -> None:
    made, ids = sample(packing), torch.tensor([[5, 332, 5]])
    assert off(QuantizedEmbedding(made.packed, torch.float32, None)(ids), made.weights[ids.numpy()]) < 1e-7
    scaled = QuantizedEmbedding(made.packed, torch.float32, torch.tensor(3.0))(ids)
    assert off(scaled, 3 * made.weights[ids.numpy()]) < 1e-6


def test_plain_experts_load_stacked(tmp_path: Path) -> None:
    """As a checkpoint that was converted for MLX, and not quantized, has them."""
    plain = make_checkpoint(tmp_path / "plain", "qwen3_moe")
    folder = Path(shutil.copytree(plain, tmp_path / "stacked"))
    tensors = load_file(folder / "model.safetensors")
    for layer, kind in product((0, 2, 3), ("gate_proj", "up_proj", "down_proj")):
        start = f"model.layers.{layer}.mlp."
        each = [tensors.pop(f"{start}experts.{expert}.{kind}.weight") for expert in range(4)]
        tensors[f"{start}switch_mlp.{kind}.weight"] = np.stack(each)
    save_file(tensors, folder / "model.safetensors")
    ring = Chain([load_shard(folder, "torch", LayerRange(0, 1)), load_shard(folder, "torch", LayerRange(1, 4))])
    assert_close(ring.logits(row(new_sequence(), 0, PROMPT)), reference_logits(plain, PROMPT))


def test_a_session_keeps_what_it_reads_and_no_more() -> None:
    """Whatever the processor: what it has in a form of its own may change, and what it was given is gone."""
    packing = Packing("affine", 4, 64)
    made = sample(packing)
    for exact in (True, False):
        kernel, given = NBits(made.packed, exact=exact), seeded(3, INPUTS)
        before = kernel(given)
        (session,) = kernel._stack._sessions
        (left,) = session.given
        assert set(left) == _read_later(4, INPUTS, 64, exact=exact) < {CODES, SCALES, ZEROS}
        for array, _ in left.values():
            array[...] = 0
        assert torch.equal(kernel(given), before) == (not left)


_HELD = """
import psutil, torch
from backends.on_torch.nbits import NBits
from backends.on_torch.packed import made_up
from together.planning.held import held_bits
from together.processes import return_large_memory, trim_memory
from together.types import Packing
PACKING, SHAPE, COUNT = Packing("affine", {bits}, 64), (4096, 2048), 8
def kernel():
    return NBits(made_up(PACKING, SHAPE, torch.bfloat16, torch.device("cpu")), exact={exact})
return_large_memory(2**20)
kernel()
trim_memory()
before = psutil.Process().memory_info().rss
kernels = [kernel() for _ in range(COUNT)]
trim_memory()
print((psutil.Process().memory_info().rss - before) / (COUNT * SHAPE[0] * SHAPE[1] * held_bits(PACKING, "torch") / 8))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems return freed memory when they like")
@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.full)])
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "default"])
def test_plans_count_what_sessions_hold(bits: int, exact: bool) -> None:
    code = _HELD.format(bits=bits, exact=exact)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.85 < float(run.stdout) < 1.05
