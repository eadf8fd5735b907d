"""Every text under load is the text alone: 32 requests at random times, a third given up, real stage processes."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.reliability.watching import books_agree
from tests.ring.test_real_rings import FIRST_OF, _device
from tests.support.checksum import expected_tokens, make_checksum_model
from tests.support.cluster import GREEDY, until
from tests.support.engines import collect
from tests.support.families import LAYERS, VOCAB, make_checkpoint, prompt_ids, reference_greedy
from tests.support.patience import PATIENCE
from together.engine.engine import Engine
from together.head.loopback import Place, local_engine
from together.requests import GenerateRequest
from together.types import LayerRange, Sampled

REQUESTS = 32
GIVEN_UP = 0.3
LONGEST = 24  # tokens of an answer
CONTEXT = 256

CUTS = {2: (0, 1, LAYERS), 3: (0, 1, 2, LAYERS)}
TOYS = [("checksum",) * stages for stages in CUTS]
REAL = [
    *(("torch",) * stages for stages in CUTS),
    *(("mlx",) * stages for stages in CUTS),
    ("torch", "mlx"),
    ("mlx", "torch", "mlx"),
]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: when it comes, in seconds, and after how many tokens its reader leaves (None: never)."""

    request: GenerateRequest
    at: float
    given_up: int | None


@functools.cache
def crowd() -> tuple[Asked, ...]:
    """The same for every ring."""
    rng, asked = random.Random(0), []
    for seed in range(REQUESTS):
        tokens = rng.randrange(1, LONGEST + 1)
        request = GenerateRequest(prompt_ids(rng.randrange(1, 60), seed), GREEDY, tokens)
        asked.append(Asked(request, rng.random(), rng.randrange(tokens) if rng.random() < GIVEN_UP else None))
    return tuple(asked)


def places(backends: tuple[str, ...]) -> tuple[Place, ...]:
    ranges = [LayerRange(*pair) for pair in pairwise(CUTS[len(backends)])]
    return tuple(Place(name, _device(name), layers) for name, layers in zip(backends, ranges, strict=True))


@pytest.mark.parametrize("backends", TOYS, ids="-".join)
async def test_under_load_the_toys_texts_are_those_alone(tmp_path: Path, backends: tuple[str, ...]) -> None:
    toy = make_checksum_model(tmp_path / "toy", layers=LAYERS, step_ms=1)
    alone = [expected_tokens(toy, each.request.prompt, each.request.max_tokens or 0, GREEDY) for each in crowd()]
    await check_load(toy, backends, alone)


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3_text"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """A tiny checkpoint of a family, and transformers' own answers to the crowd, by full passes."""
    folder = make_checkpoint(tmp_path_factory.mktemp(request.param), FIRST_OF[request.param])
    return folder, [list(reference_greedy(folder, a.request.prompt, a.request.max_tokens or 0)) for a in crowd()]


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("backends", REAL, ids="-".join)
async def test_under_load_the_texts_are_those_alone(
    real: tuple[Path, list[list[int]]], backends: tuple[str, ...]
) -> None:
    await check_load(real[0], backends, real[1])


BF16_SLACK = 0.1


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3_text"])
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param), FIRST_OF[request.param], "bf16")


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("backends", REAL, ids="-".join)
async def test_in_bf16_log_probabilities_under_load_are_those_alone(half: Path, backends: tuple[str, ...]) -> None:
    """Teacher forcing: the tokens drawn under load are drawn again, one request after the other."""
    async with local_engine(half, half.parent, places(backends), "bf16", CONTEXT, users=6) as (engine, _):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(scored(engine, asked)) for asked in crowd()]
        crowded = [task.result() for task in tasks]
        engine.drop_cache()
        alone = [
            await scored(engine, forced(asked, drawn)) for asked, drawn in zip(crowd(), crowded, strict=True) if drawn
        ]
    errors = [abs(a - b) for a, b in zip(values(crowded), values(alone), strict=True)]
    assert len(errors) > REQUESTS * LONGEST / 4
    assert max(errors) <= BF16_SLACK, (max(errors), sorted(errors)[len(errors) // 2])


@dataclass(frozen=True, slots=True)
class Forced:
    """A constraint that leaves no choice."""

    tokens: list[int]

    def allowed(self, answer: Sequence[int]) -> bytes:
        return (1 << self.tokens[len(answer)]).to_bytes(VOCAB // 8, "little")


def forced(asked: Asked, drawn: list[Sampled]) -> Asked:
    tokens = [each.token_id for each in drawn]
    return Asked(replace(asked.request, max_tokens=len(tokens), constraint=Forced(tokens)), 0, None)


async def scored(engine: Engine, asked: Asked) -> list[Sampled]:
    await asyncio.sleep(asked.at)
    stream, drawn = engine.submit(replace(asked.request, top_logprobs=0)), list[Sampled]()
    try:
        async for tokens in stream:
            drawn += tokens.sampled
            if asked.given_up is not None and len(drawn) > asked.given_up:
                break
    finally:
        stream.cancel()
    return drawn


def values(answers: list[list[Sampled]]) -> list[float]:
    return [each.logprob for drawn in answers for each in drawn if each.logprob is not None]


async def check_load(folder: Path, backends: tuple[str, ...], alone: list[list[int]]) -> None:
    async with local_engine(folder, folder.parent, places(backends), "fp32", CONTEXT, users=6) as (engine, _):
        async with asyncio.TaskGroup() as group:
            for asked, text in zip(crowd(), alone, strict=True):
                group.create_task(one(engine, asked, text))
        await until(lambda: books_agree(engine.stats()), PATIENCE)


async def one(engine: Engine, asked: Asked, alone: list[int]) -> None:
    await asyncio.sleep(asked.at)
    found = await collect(engine.submit(asked.request), asked.given_up)
    assert found == (alone if asked.given_up is None else alone[: len(found)])
