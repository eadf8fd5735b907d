"""Scores of texts on rings of the toy: begin tokens, windows, and texts that cannot be scored."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from functools import cache
from math import exp, inf
from pathlib import Path

import pytest

from tests.support.checksum import expected_scores
from tests.support.engines import at_rest, until
from tests.text.test_answers import chatting
from together.errors import BadRequest
from together.requests import Scored, ScoreRequest, TextScore
from together.text.scoring import score_text, windows

TEXT = "Who takes the hidden states where they go? Nobody knows, but everybody guesses: the last one does it — 🎈."
BEGIN = 256


@pytest.fixture(scope="module")
def beginning(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy, with a begin token before every text."""
    folder = shutil.copytree(toy, tmp_path_factory.mktemp("beginning") / "model")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"add_bos_token": True}))
    return folder


def logprobs(score: TextScore) -> list[float]:
    return [token.logprob for token in score.tokens]


def by_windows(folder: Path, ids: Sequence[int], begin: tuple[int, ...], size: int, stride: int) -> list[float]:
    """Token by token: which window reaches it first, and what the plain loop says of that window."""

    @cache
    def window_at(start: int) -> list[float]:
        nothing = [] if begin else [0.0]
        return [*nothing, *expected_scores(folder, (*begin, *ids[start : start + size - len(begin)]))]

    found = []
    for place in range(0 if begin else 1, len(ids)):
        start = next(start for start in range(0, len(ids), stride) if place < start + size - len(begin))
        found.append(window_at(start)[place - start])
    return found


async def test_a_text_is_scored_after_its_first_token(toy: Path) -> None:
    async with chatting(toy) as (engine, ring, model):
        score = await score_text(engine, model, ScoreRequest(TEXT))
        assert score.first + b"".join(token.data for token in score.tokens) == TEXT.encode()
        assert logprobs(score) == pytest.approx(expected_scores(toy, list(TEXT.encode())), abs=1e-5)
        assert (score.windows, score.window, score.stride) == (1, 4095, 2047)
        assert score.mean_logprob == pytest.approx(sum(logprobs(score)) / len(score.tokens))
        assert score.perplexity == pytest.approx(exp(-score.mean_logprob))
        by_ids = await score_text(engine, model, ScoreRequest(tuple(TEXT.encode())))
        assert by_ids.tokens == score.tokens
        await at_rest(engine, ring)


@pytest.mark.parametrize(("window", "stride"), [(40, None), (40, 39), (40, 11), (2, None), (500, 3)])
@pytest.mark.parametrize("begins", [False, True])
async def test_long_texts_are_scored_in_windows(
    toy: Path, beginning: Path, window: int, stride: int | None, begins: bool
) -> None:
    folder, begin = (beginning, (BEGIN,)) if begins else (toy, ())
    async with chatting(folder) as (engine, _, model):
        score = await score_text(engine, model, ScoreRequest(TEXT, window, stride))
    wanted = by_windows(folder, list(TEXT.encode()), begin, window, stride or window // 2)
    assert logprobs(score) == pytest.approx(wanted, abs=1e-5)
    assert bool(score.first) is not begins
    assert (score.window, score.stride) == (window, stride or window // 2)


def test_windows_score_every_token_once() -> None:
    for count in range(1, 30):
        for size in range(1, 12):
            for stride in range(1, size + 1):
                cuts = list(windows(count, size, stride, first=0))
                assert [place for cut in cuts for place in range(cut.scored, cut.stop)] == list(range(count))
                assert all(cut.start <= cut.scored < cut.stop <= cut.start + size for cut in cuts)


@pytest.mark.parametrize(
    ("request_", "param", "words"),
    [
        (ScoreRequest(""), "text", "the text is empty"),
        (ScoreRequest("a"), "text", "a single token"),
        (ScoreRequest(TEXT, window=1), "window", "window must be from 2 to 4095 tokens, not 1"),
        (ScoreRequest(TEXT, window=4096), "window", "not 4096"),
        (ScoreRequest(TEXT, window=10, stride=10), "stride", "stride must be from 1 to 9 tokens, not 10"),
        (ScoreRequest(TEXT, stride=0), "stride", "not 0"),
    ],
)
async def test_what_cannot_be_scored_is_refused(toy: Path, request_: ScoreRequest, param: str, words: str) -> None:
    async with chatting(toy) as (engine, _, model):
        with pytest.raises(BadRequest, match=words) as refusal:
            await score_text(engine, model, request_)
        assert refusal.value.param == param


async def test_a_single_token_has_a_score_after_a_begin_token(beginning: Path) -> None:
    async with chatting(beginning) as (engine, _, model):
        score = await score_text(engine, model, ScoreRequest("a"))
        assert logprobs(score) == pytest.approx(expected_scores(beginning, (BEGIN, 97)), abs=1e-5)
        with pytest.raises(BadRequest, match="empty"):
            await score_text(engine, model, ScoreRequest(""))


async def test_a_reader_who_leaves_frees_the_ring(toy: Path) -> None:
    async with chatting(toy) as (engine, ring, model):
        scoring = asyncio.ensure_future(score_text(engine, model, ScoreRequest(TEXT * 200, window=300)))
        await until(lambda: engine.stats().scored_tokens > 0)
        scoring.cancel()
        await at_rest(engine, ring)
        assert scoring.cancelled()


def test_what_is_impossible_has_infinite_perplexity() -> None:
    for logprob in (-inf, -1e4):
        assert TextScore(b"", (Scored(1, b"a", logprob),), 2, 1, 1).perplexity == inf
