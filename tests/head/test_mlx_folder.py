"""A model as `mlx_lm.convert` wrote it, served by real nodes: the first half on torch, the second on MLX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("mlx.core")

from tests.support.cluster import ask, by_hand, cluster_settings, running_head, running_node
from tests.support.mlx_folders import convert
from together.weights.find import BUNDLED


@pytest.mark.full  # half a minute of processes that start; tests/backends/test_mlx_convert.py has its stages alone
async def test_it_answers_from_two_backends(tmp_path: Path) -> None:
    folder = convert(BUNDLED, tmp_path / "demo-4bit", q_bits=4)
    settings = cluster_settings(tmp_path / "home", memory="2GB", dtype="fp32")
    anna, berta = replace(settings, name="anna", backend="torch"), replace(settings, name="berta", backend="mlx")
    with running_node(anna) as first, running_node(berta) as second:
        async with running_head(settings, first, second) as head:
            await head.load(folder, by_hand("anna=0:4,berta=4:8"))
            plan = head.view().serving.plan
            assert plan is not None
            assert [stage.backend for stage in plan.stages] == ["torch", "mlx"]
            assert "Paris" in await ask(head, "What is the capital of France?", 20)
