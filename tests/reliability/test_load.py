"""Every text under load is the text alone: 32 requests at random times, a third given up, real stage processes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.backends.families import LAYERS, make_checkpoint, prompt_ids, reference_greedy
from tests.engine.rings import collect, serving
from tests.reliability.watching import books_agree
from tests.ring.test_real_rings import FIRST_OF, _device
from tests.support.checksum import expected_tokens, make_checksum_model
from tests.support.cluster import GREEDY, until
from together.cluster.bare import Place, bare_ring
from together.engine.engine import Engine
from together.requests import GenerateRequest
from together.types import LayerRange

REQUESTS = 32
GIVEN_UP = 0.3
LONGEST = 40  # tokens of an answer
CONTEXT = 256
Answer = Callable[[Path, tuple[int, ...], int], list[int]]

CUTS = {2: (0, 1, LAYERS), 3: (0, 1, 2, LAYERS)}
TOYS = [("checksum",) * 2, ("checksum",) * 3]
REAL = [
    *(("torch",) * stages for stages in CUTS),
    *(("mlx",) * stages for stages in CUTS),
    ("torch", "mlx"),
    ("mlx", "torch", "mlx"),
]


def places(backends: tuple[str, ...]) -> tuple[Place, ...]:
    ranges = [LayerRange(*pair) for pair in pairwise(CUTS[len(backends)])]
    return tuple(Place(name, _device(name), layers) for name, layers in zip(backends, ranges, strict=True))


def ids_of(backends: tuple[str, ...]) -> str:
    return "-".join(backends)


@pytest.mark.parametrize("backends", TOYS, ids=ids_of)
async def test_under_load_the_toys_texts_are_those_alone(tmp_path: Path, backends: tuple[str, ...]) -> None:
    toy = make_checksum_model(tmp_path / "toy", layers=LAYERS, step_ms=1)
    await check_load(toy, backends, lambda folder, prompt, count: expected_tokens(folder, prompt, count, GREEDY))


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("backends", REAL, ids=ids_of)
async def test_under_load_the_texts_are_those_alone(tmp_path: Path, backends: tuple[str, ...], family: str) -> None:
    folder = make_checkpoint(tmp_path, FIRST_OF[family])
    await check_load(folder, backends, lambda folder, prompt, count: list(reference_greedy(folder, prompt, count)))


async def check_load(folder: Path, backends: tuple[str, ...], alone: Answer) -> None:
    rng = random.Random(len(backends))
    prompts = [prompt_ids(rng.randrange(1, 60), seed) for seed in range(REQUESTS)]
    right = {prompt: alone(folder, prompt, LONGEST) for prompt in prompts}
    async with bare_ring(folder, places(backends), "fp32", CONTEXT, users=6) as ring:
        engine = Engine(ring.client, frozenset())
        async with serving(engine):

            async def one(prompt: tuple[int, ...], delay: float, tokens: int, given_up: int | None) -> None:
                await asyncio.sleep(delay)
                found = await collect(engine.submit(GenerateRequest(prompt, GREEDY, tokens)), given_up)
                wanted = right[prompt][:tokens]
                assert found == (wanted if given_up is None else wanted[: len(found)])

            async with asyncio.TaskGroup() as group:
                for prompt in prompts:
                    tokens = rng.randrange(1, LONGEST + 1)
                    given_up = rng.randrange(tokens) if rng.random() < GIVEN_UP else None
                    group.create_task(one(prompt, rng.random(), tokens, given_up))
            await until(lambda: books_agree(engine.stats()), 5)
