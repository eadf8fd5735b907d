"""The memory of the processes: a stage without its weights, a head, a node."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import RealApp, start_app
from together.desktop.bench.estimate import bench_estimate
from together.desktop.bench.rings import BenchRequest, bench_ring
from together.desktop.bench.setups import peak_memory
from together.settings import default_home
from together.types import Dtype

pytestmark = pytest.mark.usefixtures("started_anew")

STAGE, HEAD, NODE = 500e6, 500e6, 150e6  # bytes
PROMPT, NEW = 512, 8  # tokens


async def stages_above_their_weights(shape: str, dtype: Dtype, home: Path) -> list[float]:
    """Peak resident bytes of two stages, less weights and KV cache, after a prompt and some tokens."""
    async with bench_ring(BenchRequest(shape, dtype, "torch", "cpu"), home, PROMPT + NEW, users=1) as ring:
        await ring.generate(PROMPT, NEW)
        stages, spec = [stage.status for stage in ring.stages], ring.spec
        return [
            peak_memory(stage.pid)
            - spec.stage_bytes(stage.layers, dtype)
            - (PROMPT + NEW) * spec.kv_bytes_per_token(stage.layers, dtype)
            for stage in stages
        ]


@pytest.mark.full  # the test below has a stage of MLX, tests/backends/test_on_torch.py a load
async def test_a_stage_weighs_little_more_than_its_weights(tmp_path: Path) -> None:
    assert max(await stages_above_their_weights("tiny", "fp32", tmp_path)) <= STAGE


@pytest.mark.full
@pytest.mark.timeout(600)
async def test_a_stage_of_half_a_1b_model_weighs_little_more_than_its_weights() -> None:
    assert max(await stages_above_their_weights("llama-3.2-1b", "bf16", default_home())) <= STAGE


@pytest.mark.full  # tests/backends has what a load and its sessions take
@pytest.mark.parametrize("backend", ["mlx", pytest.param("torch", marks=pytest.mark.full)])
async def test_what_the_planner_expects_of_small_stages_they_take(tmp_path: Path, backend: str) -> None:
    await expect_what_is_measured("tiny", backend, tmp_path)


@pytest.mark.full
@pytest.mark.timeout(400)  # MLX on a CPU takes a second for each billion products
@pytest.mark.parametrize(
    ("shape", "backend"),
    [
        ("smollm2-135m", "torch"),
        ("smollm2-135m", "mlx"),
        ("qwen2.5-0.5b", "torch"),
        ("qwen2.5-0.5b", "mlx"),
        ("llama-3.2-1b", "torch"),
    ],
)
async def test_what_the_planner_expects_of_stages_they_take(shape: str, backend: str) -> None:
    await expect_what_is_measured(shape, backend, default_home())


async def expect_what_is_measured(shape: str, backend: str, home: Path) -> None:
    """A prompt of more than a frame, and some tokens, by two stages."""
    if backend == "mlx":
        pytest.importorskip("mlx.core")
    request = BenchRequest(shape, "bf16", backend, "cpu", prompt=300, new=4)
    found = await bench_estimate(request, home)
    assert all(0.9 <= ratio <= 1.1 for ratio in found.bytes_ratios), found


def test_a_head_and_a_node_are_light(tmp_path: Path) -> None:
    with start_app(tmp_path) as app:  # that all tests share may be forked
        check_memory(app)


def check_memory(real_app: RealApp) -> None:
    real_app.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20})
    app, *others = real_app.tree()
    nodes = [process for process in others if process.ppid() == app.pid and "node" in process.cmdline()]
    assert len(nodes) == 2
    assert app.memory_info().rss <= HEAD
    assert max(node.memory_info().rss for node in nodes) <= NODE
