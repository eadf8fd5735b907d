"""Rings of real stage processes, torch and MLX, against the unsplit transformers model: the last word on exactness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from _pytest.mark import ParameterSet
from scipy.stats import chisquare

from tests.support.cluster import until
from tests.support.families import (
    BY_NAME,
    LAYERS,
    make_checkpoint,
    prompt_ids,
    reference_greedy,
    reference_logits,
)
from tests.support.lightest import LIGHTEST
from together.head.loopback import LocalRing, Place, local_ring
from together.models.config import FAMILIES
from together.models.spec import read_spec
from together.types import Batch, Frame, LayerRange, Row, Sampled, SampleRequest, Sampling, Threads

PAIRS = [("torch", "torch"), ("mlx", "mlx"), ("torch", "mlx"), ("mlx", "torch")]
GREEDY = Sampling(temperature=0.0)
PROMPT = 21
ANSWER = 6
CUT = 1  # inside Gemma 3's layer pattern
CONTEXT = 256
VOCAB = 160
SHORT = {("llama", PAIRS[2]), ("gemma3_text", ("mlx", "mlx"))}
FIRST_OF = {BY_NAME[name].family: name for name in reversed(BY_NAME)}


class Driver:
    """Steps a bare ring by hand, one frame at a time."""

    def __init__(self, ring: LocalRing) -> None:
        self._client = ring.client
        self._steps = count(1)

    async def step(self, *rows: Row) -> dict[int, tuple[Sampled, ...]]:
        """By sequence, what was drawn; no row may be refused and the step may not fail."""
        await self._client.push(Frame(next(self._steps), Batch(rows)))
        answer = await self._client.receive()
        assert answer.failure is None, answer.failure
        assert all(result.refusal is None for result in answer.results), answer.results
        return {result.sequence: result.sampled for result in answer.results}

    async def generate(self, sequence: int, prompt: Sequence[int], tokens: int, settings: Sampling) -> list[Sampled]:
        """Prefill in two chunks, then decode; every token with all its log-probabilities."""
        half = len(prompt) // 2
        await self.step(Row(sequence, 0, tuple(prompt[:half])))
        position, ids = half, tuple(prompt[half:])
        drawn: list[Sampled] = []
        while len(drawn) < tokens:
            ask = SampleRequest((len(ids) - 1,), settings, len(prompt), top_logprobs=VOCAB)
            drawn.append((await self.step(Row(sequence, position, ids, ask)))[sequence][0])
            position, ids = position + len(ids), (drawn[-1].token_id,)
        return drawn


def places(first: str, last: str, layers: int = LAYERS, joined: tuple[int, ...] = ()) -> tuple[Place, ...]:
    cut = next(layer for layer in range(CUT, layers) if layer not in joined)
    return (Place(first, _device(first), LayerRange(0, cut)), Place(last, _device(last), LayerRange(cut, layers)))


def _device(backend: str) -> str:
    if backend != "mlx":
        return "cpu"
    import mlx.core as mx

    return "gpu" if mx.metal.is_available() else "cpu"


def every_ring() -> list[ParameterSet]:
    """One order of Llama, and Gemma 3's layer pattern; the rest, seconds each, are the long form.

    tests/backends/test_conformance.py has every family without processes.
    """
    rings = []
    for family in FAMILIES:
        for pair in PAIRS:
            marks = () if (family, pair) in SHORT else pytest.mark.full
            rings.append(pytest.param(family, pair, id="-".join((family, *pair)), marks=marks))
    return rings


@pytest.mark.parametrize(("family", "pair"), every_ring())
async def test_a_ring_of_processes_equals_the_unsplit_model(family: str, pair: tuple[str, str], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, FIRST_OF[family])
    await check_ring(folder, folder, pair)


@pytest.mark.parametrize("pair", [pytest.param(pair, marks=pytest.mark.full) for pair in PAIRS], ids="-".join)
async def test_what_later_layers_take_travels_between_processes(pair: tuple[str, str], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "gemma4-shared")
    await check_ring(folder, folder, pair)


@pytest.mark.full  # tests/backends/test_on_torch_threads.py has the choice without processes
async def test_stages_choose_their_threads_by_how_many_share_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what a trial found before: two threads are worth it alone, and not where two stages would have two each."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    folder = make_checkpoint(tmp_path, "llama")
    whole = (Place("torch", "cpu", LayerRange(0, LAYERS)),)
    for ring in (whole, places("torch", "torch")):
        assert None not in await chosen_threads(folder, tmp_path, ring)
    (file,) = (tmp_path / "kernels").glob("threads-*.json")
    kept = json.loads(file.read_text())
    found = {"counts": (1, 2), "few": (1.0, 0.87), "many": (1.0, 0.6), "busy": 0.0, "at": 0.0}
    file.write_text(json.dumps(kept | {"times": dict.fromkeys(kept["times"], found)}))
    assert await chosen_threads(folder, tmp_path, whole) == [Threads(2, 2)]
    assert await chosen_threads(folder, tmp_path, places("torch", "torch")) == [Threads(1, 2)] * 2


async def chosen_threads(folder: Path, home: Path, stages: tuple[Place, ...]) -> list[Threads | None]:
    async with local_ring(folder, home, stages, "fp32", CONTEXT) as ring:
        await until(lambda: all(stage.status.threads for stage in ring.stages))
        return [stage.status.threads for stage in ring.stages]


QUANTIZED = [
    ("mixed", "qwen3_moe", ("torch", "mlx")),
    ("affine-4", "gemma3_text", ("mlx", "torch")),
    ("nvfp4", "llama", ("torch", "torch")),
    ("mxfp4", "qwen2", ("mlx", "mlx")),
]


@pytest.mark.full  # tests/backends/test_quantized.py has them without processes
@pytest.mark.parametrize(("form", "name", "pair"), QUANTIZED)
async def test_a_quantized_ring_is_exact_where_it_is_asked_to_be(
    form: str, name: str, pair: tuple[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("mlx.core")
    from tests.support.mlx_folders import FORMS, make_plain, write_judge, write_mlx

    plain = make_plain(tmp_path / "plain", name, "bf16")
    folder = write_mlx(plain, tmp_path / "mlx", FORMS[form], files=2)
    await check_ring(folder, write_judge(folder, plain, tmp_path / "judge"), pair)


async def check_ring(folder: Path, judge: Path, pair: tuple[str, str]) -> None:
    """The ring of `folder` answers as transformers does of `judge`."""
    prompt = prompt_ids(PROMPT)
    spec = read_spec(folder)
    ranges = places(*pair, spec.layers, spec.joined)
    async with local_ring(folder, folder.parent, ranges, "fp32", CONTEXT, exact=True) as ring:
        drawn = await Driver(ring).generate(1, prompt, ANSWER, GREEDY)
    answer = tuple(token.token_id for token in drawn)
    assert answer == reference_greedy(judge, prompt, ANSWER)
    wanted = reference_logits(judge, (*prompt, *answer))[PROMPT - 1 : -1]
    for token, logits in zip(drawn, wanted, strict=True):
        assert_logprobs_close(token, logits)


def assert_logprobs_close(token: Sampled, logits: npt.NDArray[np.float32]) -> None:
    """Log-probabilities are logits less one number; within 1e-5 of the largest logit each, so 2e-5 for a difference."""
    wide = logits.astype(np.float64)
    wanted = wide - np.log(np.exp(wide - wide.max()).sum()) - wide.max()
    found = np.array([value for _, value in sorted(token.top)])
    assert np.abs(found - wanted).max() <= 2e-5 * np.abs(logits).max()


SETTINGS = [
    Sampling(temperature=0.8, top_k=20, top_p=0.9),
    Sampling(temperature=1.4, top_p=0.95),
    Sampling(temperature=1.0, top_k=5),
]
ROWS = 100


@pytest.mark.timeout(400)  # in the long form 30,000 draws through real stages
@pytest.mark.parametrize("draws", [1_000, pytest.param(10_000, marks=pytest.mark.full)])
async def test_settings_reach_the_last_stage(tmp_path: Path, draws: int) -> None:
    """The last prompt token is sent again and again, each time with another seed: one exact distribution."""
    folder = make_checkpoint(tmp_path, FIRST_OF["llama"])
    prompt = prompt_ids(5)
    logits = reference_logits(folder, prompt)[-1]
    async with local_ring(folder, folder.parent, places(LIGHTEST, LIGHTEST), "fp32", CONTEXT, users=2 * ROWS) as ring:
        driver = Driver(ring)
        await driver.step(*(Row(sequence, 0, prompt[:-1]) for sequence in range(ROWS)))
        for settings in SETTINGS:
            found = await draw(driver, prompt, settings, draws)
            wanted = exact_distribution(logits, settings) * draws
            assert (found[wanted == 0] == 0).all(), "a token that the settings forbid was drawn"
            likely = wanted >= 5  # the chi-square approximation needs five expected draws; the others count as one
            observed = np.append(found[likely], found[~likely].sum())
            expected = np.append(wanted[likely], wanted[~likely].sum())
            keep = expected > 0
            assert chisquare(observed[keep], expected[keep]).pvalue > 0.001, settings


async def draw(driver: Driver, prompt: tuple[int, ...], settings: Sampling, draws: int) -> npt.NDArray[np.int64]:
    """How often each token was drawn, `[vocab]`."""
    found = np.zeros(VOCAB, np.int64)
    for first in range(0, draws, ROWS):
        rows = [
            Row(i, len(prompt) - 1, prompt[-1:], SampleRequest((0,), with_seed(settings, first + i), len(prompt)))
            for i in range(ROWS)
        ]
        for sampled in (await driver.step(*rows)).values():
            found[sampled[0].token_id] += 1
    return found


def with_seed(settings: Sampling, seed: int) -> Sampling:
    return Sampling(settings.temperature, settings.top_k, settings.top_p, seed=seed)


def exact_distribution(logits: npt.NDArray[np.float32], settings: Sampling) -> npt.NDArray[np.float64]:
    """Temperature, then top-k, then top-p, written down a second time, slowly."""
    scaled = logits.astype(np.float64) / settings.temperature
    mass = np.exp(scaled - scaled.max())
    mass /= mass.sum()
    order = np.argsort(-mass)
    kept = order[: settings.top_k] if settings.top_k else order
    mass /= mass[kept].sum()
    reached, nucleus = 0.0, []
    for token in kept:
        nucleus.append(token)
        reached += mass[token]
        if reached >= settings.top_p:
            break
    result = np.zeros(len(mass))
    result[nucleus] = mass[nucleus] / mass[nucleus].sum()
    return result


@pytest.mark.full  # tests/test_sampling.py has the one code that draws
async def test_one_seed_draws_the_same_text_on_torch_and_on_mlx(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, FIRST_OF["llama"])
    settings = Sampling(temperature=1.0, top_k=50, top_p=0.95, seed=1234)
    texts = []
    for last in ("torch", "mlx"):
        async with local_ring(folder, folder.parent, places("mlx", last), "fp32", CONTEXT) as ring:
            drawn = await Driver(ring).generate(1, prompt_ids(PROMPT), 40, settings)
            texts.append([token.token_id for token in drawn])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 5  # it is a text, not one token again and again
