"""Rows R1 to R4 on three machines with a real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.namespaces import permitted, run_scenario
from tests.support.smollm2 import smollm2_folder


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not permitted(), reason="needs Linux's network namespaces")
def test_killed_and_frozen_parts_cost_a_pause_and_no_text(tmp_path: Path) -> None:
    smollm2_folder()  # made here, where there is a network
    print(run_scenario("tests.reliability.real_model:harms", tmp_path, timeout=7000))


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not permitted(), reason="needs Linux's network namespaces")
@pytest.mark.parametrize("way", ["exact", "usual"])
def test_kills_cost_no_answer_of_quantized_weights(tmp_path: Path, way: str) -> None:
    smollm2_folder()
    print(run_scenario(f"tests.reliability.real_model:{way}_kills", tmp_path, timeout=7000))
