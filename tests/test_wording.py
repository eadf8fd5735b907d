"""Numbers that a sentence compares are told apart in it, whatever their size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.measuring import extent
from together.cluster.grants import MemoryGrants
from together.cluster_types import Device, StageOrder
from together.errors import NotEnoughMemory
from together.planning.problem import ModelSize, NodeProfile, Problem
from together.planning.request import PlanRequest, plan_for
from together.settings import Settings
from together.types import LayerRange, ModelRef, StagePlan
from together.wording import cells, padded, reason_of, sizes_text, times_text

GB = 10**9


@pytest.mark.parametrize(
    ("sizes", "shown"),
    [
        ((9.1e9, 7.8e9), ("9.1 GB", "7.8 GB")),
        ((0.2 * GB, 0.2 * GB), ("0.2 GB", "0.2 GB")),
        ((0.204 * GB, 0.196 * GB), ("0.204 GB", "0.196 GB")),
        ((2.5e6, 2.46e6), ("2.50 MB", "2.46 MB")),
        ((8 * GB + 1, 8 * GB), ("8,000,000,001 bytes", "8,000,000,000 bytes")),
        ((300, 2), ("300 bytes", "2 bytes")),
        ((9 * GB, 200), ("9.0 GB", "200 bytes")),
        ((0, 23 * GB), ("nothing", "23.0 GB")),
    ],
)
def test_sizes(sizes: tuple[float, ...], shown: tuple[str, ...]) -> None:
    assert sizes_text(*sizes) == shown


@given(st.integers(0, 2**42), st.integers(0, 2**42))
def test_other_sizes_read_otherwise_and_in_order(one: int, other: int) -> None:
    first, second = sizes_text(one, other)
    assert (first == second) is (one == other)
    assert (value(first) < value(second)) is (one < other)


def value(text: str) -> float:
    """Bytes."""
    if text == "nothing":
        return 0.0
    number, unit = text.split()
    return float(number.replace(",", "")) * {"GB": 1e9, "MB": 1e6, "bytes": 1}[unit]


def test_times() -> None:
    assert times_text(3.04, 2.96) == ("3.04 ms", "2.96 ms")
    assert times_text(12.0, 3.0) == ("12.0 ms", "3.0 ms")


def differ(sentence: str) -> bool:
    """Whether the two sizes in a sentence read differently."""
    first, second = re.findall(r"[\d.,]+ (?:GB|MB|bytes)", sentence)[:2]
    return bool(first != second)


def test_what_a_node_lacks_can_be_read(tmp_path: Path) -> None:
    need = 204 * 10**6
    settings = Settings(claims=str(tmp_path), memory=f"{need - 10**5}B")
    book = MemoryGrants.of(settings, "studio", (Device("torch", "cpu", "", GB, GB),))
    plan = StagePlan("", "torch", "cpu", LayerRange(0, 4), need)
    with pytest.raises(NotEnoughMemory) as caught:
        book.take(StageOrder("ring", "head", 0, ModelRef("toy", "", "", 4), plan, "fp32"))
    assert differ(str(caught.value))


def test_what_a_plan_lacks_can_be_read() -> None:
    nodes = tuple(NodeProfile(name, 1.0, free_bytes=204 * 10**6 - 1000) for name in ("anna", "berta"))
    problem = Problem(ModelSize((102e6,) * 4), nodes, users=1, context=1)
    found = plan_for(PlanRequest("uniform"), problem)
    assert "need 204,000,000 bytes" in str(getattr(found, "error", ""))
    assert differ(str(getattr(found, "error", "")))


def test_what_measuring_lacks_can_be_read() -> None:
    with pytest.raises(NotEnoughMemory) as caught:
        extent("toy", 4, 204 * 10**6, 1000, 1, 204 * 10**6)
    assert differ(str(caught.value))


@pytest.mark.parametrize(("text", "columns"), [("mini", 4), ("büro", 4), ("bu\u0308ro", 4), ("厨房", 4), ("😀 x", 4)])
def test_a_table_knows_the_columns_that_a_name_takes(text: str, columns: int) -> None:
    assert cells(text) == columns
    assert padded(text, 6) == f"{text}  "


def test_a_reason_of_the_system_names_no_number_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        (tmp_path / "none").read_text()
    assert reason_of(missing.value) == missing.value.strerror
    assert reason_of(OSError("no words of the system")) == "no words of the system"
    assert reason_of(ValueError("wrong")) == "wrong"
