"""Strategies as scripts write them: the split of a model without loading it, and every sentence that refuses one.

The toy's one device is the CPU, which may be named several times. No stage is started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.checksum import make_checksum_model
from together.cluster_types import UNKNOWN_PROFILE, Device
from together.errors import BadPlan, BadSetting, NotEnoughMemory, TogetherError
from together.head.plan import open_model
from together.planning.explain import Infeasible
from together.planning.problem import Sizing
from together.planning.request import PlanRequest
from together.scripting import PartitionStrategy
from together.scripting.strategy import choose_places, plan_here
from together.settings import load_settings
from together.types import LayerRange

LAYERS = 8
CPU = ["cpu", "cpu"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checksum_model(tmp_path_factory.mktemp("toy"), layers=LAYERS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: what devices there are is asked once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def own_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TOGETHER_HOME", str(home))
    before = set(psutil.Process().children(recursive=True))  # other tests' apps, of this worker
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


def strategy(**values: Any) -> PartitionStrategy:
    return PartitionStrategy(**{"backend": "checksum", **values})


SPLITS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["0:8"]),
    ({"num_partitions": 1, "strategy_type": "uniform"}, ["0:8"]),
    ({"num_partitions": 3, "strategy_type": "uniform"}, ["0:3", "3:6", "6:8"]),
    ({"num_partitions": 8, "strategy_type": "uniform"}, [f"{layer}:{layer + 1}" for layer in range(8)]),
    ({"target_devices": CPU, "strategy_type": "uniform"}, ["0:4", "4:8"]),
    ({"target_devices": CPU, "strategy_type": "memory"}, ["0:4", "4:8"]),
    ({"strategy_type": "ratio", "ratio": [3, 1]}, ["0:7", "7:8"]),  # the toy's weight is at its ends
    ({"strategy_type": "ratio", "ratio": "12:4"}, ["0:7", "7:8"]),
    ({"strategy_type": "ratio", "ratio": [1, 3]}, ["0:1", "1:8"]),
    ({"strategy_type": "custom", "custom_boundaries": [(0, 5), (6, 7)], "target_devices": CPU}, ["0:6", "6:8"]),
    ({"strategy_type": "custom", "custom_boundaries": [(0, 0), (1, 7)], "num_partitions": 2}, ["0:1", "1:8"]),
    ({"strategy_type": "custom", "custom_boundaries": [LayerRange(0, 6), LayerRange(6, 8)]}, ["0:6", "6:8"]),
]


@pytest.mark.parametrize(("values", "ranges"), SPLITS)
def test_a_strategy_splits(toy: Path, values: dict[str, Any], ranges: list[str]) -> None:
    assert [str(item) for item in strategy(**values).ranges(toy)] == ranges


@pytest.mark.parametrize("kind", ["compute", "mixed", "recommend"])
def test_strategies_by_speed_measure_it_and_cover_every_layer(toy: Path, kind: str) -> None:
    plan = strategy(strategy_type=kind, num_partitions=2).plan(toy)
    assert sorted(layer for item in plan.ranges for layer in range(item.start, item.stop)) == list(range(LAYERS))
    assert 1 <= len(plan.partitions) <= 2
    assert any("ms" in sentence for sentence in plan.why)


def test_a_plan_says_who_holds_what(toy: Path) -> None:
    plan = strategy(num_partitions=2, strategy_type="uniform", context=512, users=1).plan(str(toy))
    assert (plan.context, plan.users, plan.dtype) == (512, 1, "fp32")
    assert "partition 1: layers 4:8 on cpu (checksum), " in str(plan)
    assert plan.partitions[0].memory_bytes > 4 * 512 * 8  # KV of its four layers


WRONG: list[tuple[dict[str, Any], type[TogetherError], str]] = [
    ({"strategy_type": "best"}, BadSetting, "no strategy_type 'best'; choose one of recommend, uniform"),
    ({"num_partitions": 0}, BadSetting, "num_partitions must be a whole number, at least 1, not 0"),
    ({"num_partitions": "2"}, BadSetting, "num_partitions must be a whole number, at least 1, not '2'"),
    ({"context": -1}, BadSetting, "context must be a whole number"),
    ({"users": 1.5}, BadSetting, "users must be a whole number"),
    ({"target_devices": "cpu"}, BadSetting, r"a list of names, as \['cpu'\]"),
    ({"strategy_type": "custom"}, BadSetting, "'custom' needs custom_boundaries"),
    ({"strategy_type": "ratio"}, BadSetting, "'ratio' needs ratio"),
    ({"custom_boundaries": [(0, 7)]}, BadSetting, "custom_boundaries is for strategy_type 'custom', not 'recommend'"),
    ({"ratio": [1, 1], "strategy_type": "uniform"}, BadSetting, "ratio is for strategy_type 'ratio', not 'uniform'"),
    ({"strategy_type": "custom", "custom_boundaries": []}, BadPlan, "custom_boundaries is empty"),
    (
        {"strategy_type": "custom", "custom_boundaries": [(3, 1)]},
        BadPlan,
        r"\(3, 1\) is neither a first and a last layer",
    ),
    ({"strategy_type": "custom", "custom_boundaries": [(-1, 7)]}, BadPlan, r"\(-1, 7\) is neither"),
    ({"strategy_type": "custom", "custom_boundaries": ["0-7"]}, BadPlan, "'0-7' is neither a first and a last layer"),
    ({"strategy_type": "ratio", "ratio": "3:x"}, BadPlan, "ratio '3:x' is not numbers above 0"),
    ({"strategy_type": "ratio", "ratio": [3, 0]}, BadPlan, r"ratio \[3, 0\] is not numbers above 0"),
    ({"strategy_type": "ratio", "ratio": [1, float("nan")]}, BadPlan, "is not numbers above 0"),
    ({"max_memory_per_partition": "4 gigs"}, BadSetting, "'4 gigs' is not a size; write it as 4GB"),
    (
        {"strategy_type": "custom", "custom_boundaries": [(0, 3), (4, 5), (6, 7)], "num_partitions": 2},
        BadPlan,
        "num_partitions for 2, custom_boundaries for 3; give one per partition",
    ),
    (
        {"strategy_type": "ratio", "ratio": "2:1:1", "target_devices": CPU},
        BadPlan,
        "target_devices for 2, ratio for 3",
    ),
]


@pytest.mark.parametrize(("values", "kind", "sentence"), WRONG)
def test_a_strategy_that_contradicts_itself_is_refused_at_once(
    values: dict[str, Any], kind: type[TogetherError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        strategy(**values)


SHORT = r"may use 1000 bytes|does not fit"
UNFIT: list[tuple[dict[str, Any], type[TogetherError], str]] = [
    ({"num_partitions": 9, "strategy_type": "uniform"}, BadPlan, "has 8 layers, too few for 9 partitions"),
    ({"target_devices": ["cuda:0"]}, BadPlan, "there is no device 'cuda:0' here for checksum; choose among cpu"),
    ({"strategy_type": "custom", "custom_boundaries": [(0, 2), (4, 7)]}, BadPlan, "layers 3:4 are in no range"),
    ({"strategy_type": "custom", "custom_boundaries": [(0, 4), (4, 7)]}, BadPlan, "layers 4:5 are in two ranges"),
    (
        {"strategy_type": "custom", "custom_boundaries": [(0, 3), (4, 6)]},
        BadPlan,
        "layers 7:8 are in no range; right would be 0:4,4:8",
    ),
    ({"strategy_type": "custom", "custom_boundaries": [(0, 3), (4, 8)]}, BadPlan, "no layers 8:9: the model has 8"),
    (
        {"strategy_type": "custom", "custom_boundaries": [(0, 7)], "max_memory_per_partition": "1KB"},
        NotEnoughMemory,
        SHORT,
    ),
    ({"max_memory_per_partition": "1KB"}, NotEnoughMemory, "the model does not fit"),
    ({"num_partitions": 2, "strategy_type": "uniform", "max_memory_per_partition": "1KB"}, NotEnoughMemory, SHORT),
    ({"context": 5000}, BadPlan, "a context of 4096 tokens, not 5000"),
    ({"dtype": "int4"}, BadSetting, "no dtype 'int4'"),
    ({"backend": "onnx"}, BadSetting, "no backend 'onnx'"),
]


@pytest.mark.parametrize(("values", "kind", "sentence"), UNFIT)
def test_a_split_that_does_not_fit_is_refused_with_a_sentence(
    toy: Path, values: dict[str, Any], kind: type[TogetherError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        strategy(**values).plan(toy)


def test_partitions_in_one_memory_are_counted_together(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_hand = strategy(strategy_type="custom", custom_boundaries=[(0, 0), (1, 7)], context=256, users=1)
    need = sum(partition.memory_bytes for partition in by_hand.plan(toy).partitions)
    monkeypatch.setenv("TOGETHER_MEMORY", f"{need}B")
    assert [str(item) for item in by_hand.ranges(toy)] == ["0:1", "1:8"]
    monkeypatch.setenv("TOGETHER_MEMORY", f"{need - 1000}B")
    with pytest.raises(
        NotEnoughMemory, match=r"in this machine's memory need 25\.381 MB together .* they may use 25\.380 MB"
    ):
        by_hand.plan(toy)


def device(name: str, free: int = 2**40) -> Device:
    return Device("torch", name, "", free, free)


CHOICES: list[tuple[list[str], list[str], int, list[str]]] = [
    (["cuda:0", "cpu"], [], 0, ["cuda:0", "cpu"]),
    (["cuda:0", "cpu"], [], 1, ["cuda:0"]),
    (["cuda:0", "cpu"], [], 3, ["cuda:0 (partition 0)", "cpu", "cuda:0 (partition 2)"]),
    (["cuda:0", "cuda:1", "cpu"], ["cpu", "cuda:1"], 2, ["cpu", "cuda:1"]),
    (["cuda:0", "cpu"], ["cuda"], 0, ["cuda:0"]),
    (["mps", "cpu"], [], 2, ["mps (partition 0)", "mps (partition 1)"]),  # one memory, and the CPU is slower
    (["gpu", "cpu"], ["mps", "cpu"], 2, ["gpu", "cpu"]),
]


@pytest.mark.parametrize(("here", "names", "partitions", "seats"), CHOICES)
def test_devices_are_those_named_or_the_best(
    here: list[str], names: list[str], partitions: int, seats: list[str]
) -> None:
    assert [seat.name for seat in choose_places(names, partitions, [device(name) for name in here])] == seats


def test_a_gpu_without_room_is_named_where_equal_parts_are_wanted(toy: Path) -> None:
    places = choose_places([], 2, [device("cuda:0", free=1000), device("cpu")])
    settings = load_settings()
    opened = asyncio.run(open_model(toy, settings))
    profiles = {place.device: UNKNOWN_PROFILE for place in places}
    found = plan_here(opened, PlanRequest("uniform"), Sizing(256, 1, "fp32"), places, profiles, settings)
    assert isinstance(found, Infeasible)
    assert str(found.error) == "cuda:0 cannot hold a single layer; free memory there, or ask for fewer partitions"


def test_a_model_that_is_not_here_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"neither config\.json nor"):
        strategy().plan(tmp_path)
