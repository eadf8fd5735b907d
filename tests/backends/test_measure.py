"""What backends say of their own speed: every family, from config.json alone; parts add up to what a stage takes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from torch.utils.flop_counter import FlopCounterMode

from backends.base import LoadRequest, open_backend
from backends.measuring import (
    HEAD_BYTES,
    SPAN_BYTES,
    Extent,
    StepParts,
    batched,
    check_tail,
    experts_to_time,
    extent,
    fastest,
    period,
    shared_part,
)
from backends.on_torch.kernels import fastest_kernel
from backends.on_torch.onnx_graph import nbits_model
from tests.backends.conftest import Checkpoints
from tests.support.case import Case
from tests.support.checksum import make_checksum_model
from tests.support.families import CASES, MORE, make_checkpoint
from together.cluster_types import DeviceProfile
from together.desktop.bench.shapes import SHAPES, random_checkpoint
from together.errors import BrokenModel, NotEnoughMemory, UnsupportedModel
from together.models.packing import FP_PACKINGS
from together.models.spec import read_shape, read_spec
from together.models.state import KeysValues, Nothing, Recurrent
from together.types import Batch, Dtype, LayerRange, PackedAs, Packing, Row, SampleRequest, Sampling
from together.weights.find import BUNDLED

GIB = 2**30
QUICK = ("llama", "qwen3_moe")  # by default; others differ in configurations, which test_conformance.py reads


def measured(backend: str, config: Path, folder: Path, dtype: str = "fp32") -> DeviceProfile:
    """What a backend says of a folder that has nothing but this config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes((config / "config.json").read_bytes())
    return open_backend(backend).measure(folder, "cpu", dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if str(case) in QUICK else pytest.mark.full) for case in CASES], ids=str
)
@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_every_family_is_measured_by_its_config_alone(
    backend: str, case: object, checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.measuring._STEPS_SECONDS", 0.0)  # the values are not looked at here: be quick
    monkeypatch.setattr("backends.measuring._SPEEDS_SECONDS", 0.0)
    found = measured(backend, checkpoint(str(case)), tmp_path / "shape")
    assert min(found.ms_per_layer, found.ms_per_stage) > 0
    assert found.ms_per_head >= 0
    assert 0 <= found.shared <= 1
    assert min(found.memory_bytes_per_s, found.matrix_flops_per_s) > 0
    assert 10e6 < found.overhead_bytes < 16e9


PACKED = [Packing("affine", 4, 64), Packing("affine", 3, 32), Packing("affine", 6, 16), *FP_PACKINGS.values()]
WIDE = {"hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128}


@pytest.mark.parametrize(
    ("backend", "family"),
    [
        pytest.param("torch", "qwen3_moe", marks=pytest.mark.full),
        ("mlx", "llama"),
        pytest.param("torch", "llama", marks=pytest.mark.full),
        pytest.param("mlx", "qwen3_moe", marks=pytest.mark.full),
    ],
)
def test_layers_are_measured_as_they_will_be_packed(
    backend: str, family: str, checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps refuse states that are no numbers, so the made-up codes and scales are some."""
    monkeypatch.setattr("backends.measuring._STEPS_SECONDS", 0.0)
    monkeypatch.setattr("backends.measuring._SPEEDS_SECONDS", 0.0)
    sizes: list[int] = []

    def noted(name: str, layers: int, layer_bytes: int, *rest: int, every: int) -> Extent:
        sizes.append(layer_bytes)
        return extent(name, layers, layer_bytes, *rest, every=every)

    monkeypatch.setattr("backends.measuring.extent", noted)
    config = json.loads((checkpoint(family) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: WIDE[key] for key in WIDE if key in config}))
    measure = open_backend(backend).measure
    for packing in (None, *PACKED):
        found = measure(tmp_path, "cpu", "fp32", PackedAs(packing, packing))
        assert min(found.ms_per_layer, found.ms_per_stage) > 0
    plain, four, *_ = sizes
    assert four < plain / 4
    assert len(set(sizes)) >= 4


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case.name == "glm4_moe" else pytest.mark.full) for case in MORE], ids=str
)
@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_later_families_are_measured_plain_and_packed(
    backend: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend not in case.backends:
        pytest.skip("does not run there")
    monkeypatch.setattr("backends.measuring._STEPS_SECONDS", 0.0)
    monkeypatch.setattr("backends.measuring._SPEEDS_SECONDS", 0.0)
    folder = make_checkpoint(tmp_path / "tiny", case, **{**WIDE, **case.wide, "intermediate_size": 256})
    for packing in (None, Packing("affine", 4, 32)):
        assert open_backend(backend).measure(folder, "cpu", "fp32", PackedAs(packing, packing)).ms_per_layer > 0


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "default"])
@pytest.mark.parametrize("family", ["llama", pytest.param("qwen3_moe", marks=pytest.mark.full)])
def test_products_are_timed_in_the_mode_that_will_run(
    family: str, exact: bool, checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the precision that ONNX Runtime is asked for in each session."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("backends.measuring._STEPS_SECONDS", 0.0)
    monkeypatch.setattr("backends.measuring._SPEEDS_SECONDS", 0.0)
    levels: set[int] = set()

    def noted(count: int, outputs: int, inputs: int, bits: int, group: int, level: int, elsewhere: str) -> bytes:
        levels.add(level)
        return nbits_model(count, outputs, inputs, bits, group, level, elsewhere)

    monkeypatch.setattr("backends.on_torch.nbits.nbits_model", noted)
    monkeypatch.setattr("backends.on_torch.kernels.Int4.takes", lambda packing, inputs: False)
    fastest_kernel.cache_clear()
    config = json.loads((checkpoint(family) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: WIDE[key] for key in WIDE if key in config}))
    open_backend("torch").measure(tmp_path, "cpu", "fp32", PackedAs(PACKED[0], PACKED[0], exact))
    fastest_kernel.cache_clear()
    assert levels == {1 if exact else 4}


def test_a_model_that_is_timed_whole_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed has no embedding, also where programs take a token's steps."""
    monkeypatch.setattr("backends.measuring._STEPS_SECONDS", 0.0)
    monkeypatch.setattr("backends.measuring._SPEEDS_SECONDS", 0.0)
    assert measured("torch", BUNDLED, tmp_path / "shape").ms_per_layer > 0


def test_the_toy_draws_on_its_last_stage(tmp_path: Path) -> None:
    found = measured("checksum", make_checksum_model(tmp_path / "toy", step_ms=5), tmp_path / "shape")
    assert found.ms_per_layer > 2.5
    assert found.ms_per_head > 0
    assert 10e6 < found.overhead_bytes < 16e9


@pytest.mark.full  # it compares times; `bench estimate` shows them
@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_the_parts_add_up_to_a_real_step(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threefold slack for a busy machine; layers, stage and head are of the same order, so each of them counts."""
    monkeypatch.setattr("backends.measuring._STEPS_SECONDS", 0.5)
    monkeypatch.setitem(SHAPES, "small", replace(SHAPES["tiny"], hidden=512, intermediate=2048, heads=8, vocab=16384))
    folder = random_checkpoint("small", "fp32", tmp_path)
    found = measured(backend, folder, tmp_path / "shape")
    estimate = found.ms_per_stage + SHAPES["small"].layers * found.ms_per_layer + found.ms_per_head
    assert estimate / 3 < step_ms(backend, folder, "fp32") < 3 * estimate
    assert found.ms_per_head > found.ms_per_layer / 3


def step_ms(backend: str, folder: Path, dtype: Dtype) -> float:
    """The fastest step of one token through all of the model, by a shard that read it."""
    spec = read_spec(folder)
    request = LoadRequest(
        folder,
        LayerRange(0, spec.layers),
        "cpu",
        dtype,
        spec.stage_bytes(LayerRange(0, spec.layers), dtype) + GIB,
        folder.parent,
    )
    shard = open_backend(backend).load(request)
    shard.step(Batch((Row(1, 0, (3,) * 8),)), None)
    ask = SampleRequest((0,), Sampling(temperature=0.0), 8)
    times = []
    for position in range(8, 24):
        began = time.perf_counter()
        shard.step(Batch((Row(1, position, (5,), ask),)), None)
        times.append(1e3 * (time.perf_counter() - began))
    shard.close()
    return median(times[2:])


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_estimate_of_a_1b_model_is_within_a_quarter(tmp_path: Path) -> None:
    """The best of three: another program may slow one of the two."""
    folder = random_checkpoint("llama-3.2-1b", "bf16", tmp_path)
    off = []
    for attempt in range(3):
        found = measured("torch", folder, tmp_path / f"shape{attempt}", "bf16")
        estimate = found.ms_per_stage + 16 * found.ms_per_layer + found.ms_per_head
        off.append(abs(estimate / step_ms("torch", folder, "bf16") - 1))
        if off[-1] < 0.25:
            break
    assert min(off) < 0.25, off


# --- what of a model is made up ---------------------------------------------------------------------------------------


def test_experts_that_are_not_used_take_no_time(
    checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((checkpoint("qwen3_moe") / "config.json").read_text())
    products = []
    for experts in (8, 512):
        folder = tmp_path / str(experts)
        folder.mkdir()
        changed = config | {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
        (folder / "config.json").write_text(json.dumps(changed))
        products.append(operations_of(monkeypatch, folder))
    assert products[1] == products[0] > 0


def operations_of(monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """Floating-point operations of one turn of each action that is timed to measure a folder."""
    counted: list[int] = []

    def count(*actions: Callable[[], object], seconds: float, pause: float = 0.0) -> tuple[float, ...]:
        with FlopCounterMode(display=False) as counter:
            for action in actions:
                action()
        counted.append(counter.get_total_flops())
        return fastest(*actions, seconds=0.0)

    monkeypatch.setattr("backends.measuring.fastest", count)
    open_backend("torch").measure(folder, "cpu", "fp32")
    return counted[0]  # the steps; what follows are the machine's speeds


@pytest.mark.parametrize(
    ("one", "many", "shared"),
    [(10.0, 10.0, 1.0), (10.0, 40.0, 0.0), (10.0, 17.5, 0.75), (10.0, 50.0, 0.0), (10.0, 9.0, 1.0)],
)
def test_what_rows_of_a_step_share(one: float, many: float, shared: float) -> None:
    """Noise cannot make it more than all, or less than nothing."""
    assert shared_part(one, many, 4) == pytest.approx(shared)


def test_a_whole_model_has_more_layers_and_more_head_than_what_was_timed() -> None:
    one, many = batched((1.0, 5.0, 3.0, 2.0, 6.0, 2.0))
    assert (one, many) == (StepParts(1.0, 4.0, 2.0), StepParts(2.0, 4.0, 0.0))
    assert one.of_all(3.0, 2.0) == 1 + 12 + 4


def test_experts_to_time() -> None:
    assert experts_to_time(128, 8) == 32
    assert experts_to_time(8, 2) == 8
    assert experts_to_time(4, 2) == 4


def test_so_many_layers_that_no_cache_holds_them() -> None:
    found = extent("m", 16, 120 * 2**20, 128_000, 4096, 100 * GIB)
    assert found.layers * 120 * 2**20 >= SPAN_BYTES
    assert found.layers < 16
    assert found.vocabulary == 128_000


def test_a_small_model_is_timed_whole_as_it_may_live_in_a_cache() -> None:
    assert extent("m", 4, 2**20, 1000, 512, GIB).layers == 4


def test_large_layers_are_at_least_two_and_one_where_memory_is_short() -> None:
    assert extent("m", 80, 2 * GIB, 1000, 512, 100 * GIB).layers == 2
    assert extent("m", 80, 2 * GIB, 1000, 512, 5 * GIB).layers == 1


def test_each_kind_of_layer_is_timed_as_often_as_the_model_has_it() -> None:
    state, cache = Recurrent(4, 16, 24, 160, 3), KeysValues(2, 32, 32)
    assert period((state, state, state, cache) * 3) == 4
    assert period((cache,) * 5) == period((cache,)) == 1
    assert period((cache, state, cache)) == 2
    assert period((state, cache, cache)) == 3
    assert period((Nothing(), state, Nothing(), cache) * 2) == 4
    odd = [state if layer in (3, 20) else Nothing() for layer in range(40)]
    assert period(odd) == 16, "kinds that follow in no order"
    assert extent("m", 80, 2 * GIB, 1000, 512, 100 * GIB, every=4).layers == 4
    assert extent("m", 80, GIB // 8, 1000, 512, 100 * GIB, every=4).layers % 4 == 0
    assert extent("m", 80, 2 * GIB, 1000, 512, 5 * GIB, every=4).layers == 1


def test_a_large_head_is_timed_by_a_part() -> None:
    found = extent("m", 80, GIB, 256_000, 16384, 100 * GIB)
    assert found.vocabulary == HEAD_BYTES // 16384


def test_memory_for_not_even_one_layer_is_refused_with_both_numbers() -> None:
    with pytest.raises(NotEnoughMemory, match=r"one layer and the LM head need 2\.1 GB and 1\.0 GB are free"):
        extent("m", 80, 2 * 10**9, 1000, 100_000, 10**9)


def test_layers_that_are_timed_together_need_memory_together(tmp_path: Path) -> None:
    spec = read_shape(make_checkpoint(tmp_path / "tiny", "gemma4-shared"))
    size = Extent(spec.tail(1), 160)
    check_tail(spec, size, 10**9, 10**9)
    with pytest.raises(NotEnoughMemory, match=r"its last 4 layers, which cannot be parted, .* 2\.0 GB and 1\.0 GB"):
        check_tail(spec, size, 2 * 10**9, 10**9)


def test_actions_take_turns_after_one_to_warm_up() -> None:
    order: list[str] = []
    found = fastest(lambda: order.append("a"), lambda: order.append("b"), seconds=0.0)
    assert order == ["a", "b"] * 4
    assert min(found) >= 0


class Watch:
    """A clock that goes on by what each turn is said to take."""

    def __init__(self, turns: Iterable[float]) -> None:
        self.now = 0.0
        self._turns = iter(turns)

    def __call__(self) -> float:
        return self.now

    def turn(self) -> None:
        self.now += next(self._turns)


@pytest.mark.parametrize(
    ("turns", "fast", "passed"),
    [
        ([10] * 99, 10, 50),  # they agree: no longer than asked for
        ([9, 5, 9, 1, 7, 9, 9, 1, 99], 1, 50),  # only the last one shows that the fastest was no accident
        ([99, *range(30, 0, -2)], 22, 99 + 130),  # ever faster: nobody knows what it would be undisturbed
    ],
)
def test_turns_go_on_for_a_while_until_the_two_fastest_agree(
    turns: list[float], fast: float, passed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(turns)
    monkeypatch.setattr("backends.measuring.perf_counter", watch)
    assert fastest(watch.turn, seconds=40, clock=watch) == (fast,)
    assert watch.now == passed


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "mlx", "checksum"])
def test_what_is_no_known_model_is_refused(backend: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UnsupportedModel, match="gpt2"):
        open_backend(backend).measure(tmp_path, "cpu", "fp32")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BrokenModel, match=r"config\.json"):
        open_backend(backend).measure(tmp_path, "cpu", "fp32")
