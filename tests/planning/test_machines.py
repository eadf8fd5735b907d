"""Kinds of machines, quantities with units, and from both to a planner's problem."""

from __future__ import annotations

from math import inf

import pytest

from together.cluster_types import DeviceProfile
from together.errors import BadSetting, BrokenModel, TogetherError, UnsupportedModel
from together.models.summary import summarize_config
from together.planning.demand import Demand, demand_of
from together.planning.kinds import find_kind
from together.planning.kinds_table import KINDS
from together.planning.machines import LEAST_LAYER_MS, REACHED, Machine, problem_of, prompt_seconds
from together.planning.network import OWN_HOP_MS, WIRES, Way, Wire, hop_ms, wire_of
from together.planning.problem import Assignment, Split
from together.planning.shapes import SHAPES, shape_named
from together.planning.units import BYTES, GB_PER_S, GBIT_PER_S, GIGABYTES, MS, TFLOPS, Quantity
from together.types import LayerRange


def demand(name: str, bits: int | None = None) -> Demand:
    return demand_of(name, summarize_config(name, SHAPES[name]), bits)


@pytest.mark.parametrize(
    ("unit", "text", "number"),
    [
        (BYTES, "120MB", 120e6),
        (BYTES, "1 GiB", 2**30),
        (BYTES, "7", 7),
        (GIGABYTES, "24 GB", 24),
        (GIGABYTES, "24", 24),
        (GIGABYTES, "512mb", 0.512),
        (GIGABYTES, "1.5 TB", 1500),
        (GB_PER_S, "936 GB/s", 936),
        (GB_PER_S, "4.8TB/s", 4800),
        (GBIT_PER_S, "1 Gbit/s", 1),
        (GBIT_PER_S, "300 Mbit", 0.3),
        (GBIT_PER_S, "2.5Gb/s", 2.5),
        (GBIT_PER_S, "1 GB/s", 8),
        (MS, "0.3 ms", 0.3),
        (MS, "300 us", 0.3),
        (TFLOPS, "500 GFLOPS", 0.5),
        (GIGABYTES, "24 XB", None),
        (GIGABYTES, "GB", None),
        (GIGABYTES, "-3 GB", None),
        (GIGABYTES, "1e9999 GB", None),
        (MS, "ms 3", None),
        (MS, "", None),
    ],
)
def test_quantities(unit: Quantity, text: str, number: float | None) -> None:
    assert unit.read(text) == (number if number is None else pytest.approx(number))


def test_every_kind_has_a_source_and_is_found_by_its_names() -> None:
    assert len({kind.name for kind in KINDS}) >= 30
    for kind in KINDS:
        assert "https://" in kind.source or "JEDEC" in kind.source, kind.name
        assert kind.gb_per_s > 0
        assert kind.tflops > 0
        for name in (kind.name, *kind.other_names):
            found = find_kind(f"{name} {kind.sizes[0]:g} GB" if kind.sizes else name, KINDS)
            assert found is not None
            assert found.kind == kind


@pytest.mark.parametrize(
    ("text", "name", "gb", "gb_per_s"),
    [
        ("Mac mini M4 16 GB", "M4", 16, 120),
        ("Mac Studio M2 Ultra 64 GB", "M2 Ultra", 64, 800),
        ("MacBook Pro M4 Pro 24GB", "M4 Pro", 24, 273),
        ("MacBook Pro M4 Max 36 GB", "M4 Max", 36, 410),
        ("Apple M4 Max 128 GB", "M4 Max", 128, 546),
        ("RTX 3090", "RTX 3090", 24, 936),
        ("NVIDIA GeForce RTX 4090 24 GB", "RTX 4090", 24, 1008),
        ("rtx4060ti 8gb", "RTX 4060 Ti", 8, 288),
        ("RTX 4060 Ti", "RTX 4060 Ti", None, 288),
        ("AMD Radeon RX 7900 XTX", "RX 7900 XTX", 24, 960),
        ("AMD Ryzen AI Max+ 395 128 GB", "Ryzen AI Max 395", 128, 256),
        ("DDR4-3200 16 GB", "DDR4-3200 dual channel", 16, 51.2),
        ("2 cores AVX2", "2 cores AVX2", None, 32),
        ("8 cores AVX-512 32 GB", "8 cores AVX-512", 32, 51.2),
    ],
)
def test_what_a_person_calls_a_machine(text: str, name: str, gb: float | None, gb_per_s: float) -> None:
    found = find_kind(text, KINDS)
    assert found is not None
    assert (found.kind.name, found.gb, found.kind.gb_per_s) == (name, gb, gb_per_s)


@pytest.mark.parametrize(
    "text", ["", "RTX 309", "RTX 4090 laptop", "cores AVX2", "0 cores AVX2", "2 cores", "x" * 10**6]
)
def test_what_is_no_kind(text: str) -> None:
    assert find_kind(text, KINDS) is None


def test_a_size_that_a_kind_is_not_sold_with() -> None:
    with pytest.raises(BadSetting, match=r"^RTX 4090 comes with 24 GB, not with 48 GB; .*memory = \"48 GB\""):
        find_kind("RTX 4090 48 GB", KINDS)
    found = find_kind("RTX 4090", KINDS, 48)  # said beside the kind
    assert found is not None
    assert found.gb == 48


PUBLISHED = {  # billions of parameters, from the models' cards
    "Llama-3.2-1B": 1.24,
    "Llama-3.2-3B": 3.21,
    "Llama-3.1-8B": 8.03,
    "Llama-3.3-70B": 70.6,
    "Llama-3.1-405B": 406,
    "Qwen2.5-7B": 7.61,
    "Qwen2.5-14B": 14.7,
    "Qwen2.5-32B": 32.5,
    "Qwen2.5-72B": 72.7,
    "Qwen3-8B": 8.2,
    "Qwen3-14B": 14.8,
    "Qwen3-32B": 32.8,
    "Qwen3-30B-A3B": 30.5,
    "Qwen3-235B-A22B": 235,
    "Mistral-7B-v0.3": 7.25,
    "Mistral-Small-24B-2501": 23.6,
    "Gemma-3-27B": 27.0,
}


def test_the_known_shapes_have_their_published_sizes() -> None:
    assert set(SHAPES) == set(PUBLISHED)
    for name, config in SHAPES.items():
        summary = summarize_config(name, config)
        assert sum(part.params for part in summary.parts) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)
    active = sum(part.active_params for part in summarize_config("x", SHAPES["Qwen3-235B-A22B"]).parts)
    assert active / 1e9 == pytest.approx(22, rel=0.01)
    assert shape_named("llama-3.3-70b-Instruct") == "Llama-3.3-70B"
    assert shape_named("Llama-3.3") is None


def test_what_a_model_demands() -> None:
    whole, small = demand("Llama-3.3-70B"), demand("Llama-3.3-70B", 4)
    layer = 855_654_400  # parameters
    assert whole.size.layer_bytes == (2 * layer,) * 80
    assert whole.size.kv_bytes_per_token_per_layer == 2 * 8 * 128 * 2
    assert small.size.layer_bytes == (layer * 4.5 / 8,) * 80
    assert small.size.embed_bytes == whole.size.embed_bytes == 2 * 128256 * 8192
    assert small.layer_flops == 2 * layer
    assert demand("Llama-3.3-70B", 16).size == whole.size
    experts = demand("Qwen3-30B-A3B")
    assert experts.read_bytes < experts.size.layer_bytes[0] / 10
    with pytest.raises(BadSetting, match="weights of 7 bits are not known; choose one of 2, 3, 4"):
        demand("Llama-3.3-70B", 7)
    with pytest.raises(UnsupportedModel, match="has 2000 layers, and plans are for at most 1000"):
        demand_of("deep", summarize_config("deep", SHAPES["Llama-3.2-1B"] | {"num_hidden_layers": 2000}))


def test_a_billion_experts_are_refused_at_once() -> None:
    with pytest.raises(BrokenModel, match="num_experts = 1000000000"):
        summarize_config("huge", SHAPES["Qwen3-30B-A3B"] | {"num_experts": 10**9})


def test_a_layer_takes_the_time_to_read_it_or_to_compute_it() -> None:
    fast = Machine.published("a", 10, 100, 1000)
    assert fast.layer_time(1e9, 0) == pytest.approx(1e3 * 1e9 / (100e9 * REACHED))
    assert fast.layer_time(1e3, 0) == LEAST_LAYER_MS
    assert Machine.published("a", 10, 100, 0.001).layer_time(1e9, 1e9) == pytest.approx(2000)


def test_a_measured_machine_takes_what_it_took() -> None:
    """And with other layers, what it takes on top of reading stays the same."""
    profile = DeviceProfile(5.0, 0.5, 3.0, 40e9, 1e12, overhead_bytes=7)
    machine = Machine.of_profile("a", profile, 1e10, 100e6)
    assert machine.layer_time(100e6, 0) == pytest.approx(5.0)
    assert machine.layer_time(500e6, 0) == pytest.approx(2.5 + 12.5)
    assert (machine.stage_ms, machine.overhead_bytes, machine.usable_bytes) == (0.5, 7, 1e10)


def test_the_network_between_machines() -> None:
    card = Machine.published("card", 24, 936, 71)
    pc, mini, far = (Machine.published(name, 24, 50, 1) for name in ("pc", "mini", "far"))
    machines = [pc, *(replaced(card, inside="pc"),), mini, replaced(far, wire=WIRES["wifi"])]
    model = demand("Llama-3.1-8B", 4)
    problem = problem_of(machines, model, [Way("card", "mini", 9.0), Way("mini", "far")])
    size = 2 * 4096
    assert problem.hop("pc", "card") == OWN_HOP_MS
    assert problem.hop("pc", "mini") == problem.hop("card", "mini") == 9.0  # a way to a PC is one to its card
    assert problem.hop("mini", "far") == inf
    gigabit, wifi = WIRES["gigabit ethernet"], WIRES["wifi"]
    assert problem.hop("pc", "far") == problem.hop("card", "far") == hop_ms(gigabit, wifi, size)
    assert hop_ms(gigabit, gigabit, 125e6) == pytest.approx(OWN_HOP_MS + gigabit.ms + 1000)
    assert problem.head == "pc"
    assert prompt_seconds(machines, Split((Assignment("pc", LayerRange(0, 32)),)), model, 100) > 0


def replaced(machine: Machine, **values: object) -> Machine:
    from dataclasses import replace

    return replace(machine, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        ("Wi-Fi", WIRES["wifi"]),
        ("Gigabit Ethernet", WIRES["gigabit ethernet"]),
        ("2.5 Gbit", Wire(2.5, 0.15)),
        ("40 Gbit/s ethernet", Wire(40, 0.15)),
        ({"bandwidth": "100 Mbit/s", "latency": "2 ms"}, Wire(0.1, 2)),
        ({"bandwidth": 5}, Wire(5, 0.15)),
    ],
)
def test_names_of_networks(value: object, wire: Wire) -> None:
    assert wire_of("network", value) == wire


@pytest.mark.parametrize("value", ["wify", "", 7, None, "0 Gbit", {"bandwidth": 0}, {"latency": 1}, {"speed": 1}, []])
def test_what_is_no_network(value: object) -> None:
    with pytest.raises(TogetherError, match=r"^network"):
        wire_of("network", value)


def test_the_advice_to_quantize_is_what_the_named_option_plans() -> None:
    plain = demand("Llama-3.3-70B")
    assert [(smaller.bits, smaller.option) for smaller in plain.smaller] == [(8, "--bits"), (4, "--bits")]
    for smaller in plain.smaller:
        assert demand("Llama-3.3-70B", smaller.bits).size == smaller.size
    assert [smaller.bits for smaller in demand("Llama-3.3-70B", 8).smaller] == [4]
    assert demand("Llama-3.3-70B", 4).smaller == ()
