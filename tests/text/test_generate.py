"""Text from the engine: chunks, stop strings, usage, and what an early end leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.support.checksum import expected_text, make_checksum_model
from tests.support.engines import LAYERS, at_rest, expected, loads, serving, until
from tests.support.loopback import LoopbackRing
from together.engine.engine import Engine
from together.errors import BadRequest
from together.requests import AnswerChunk, GenerateRequest, Message
from together.text.answers import generate_text
from together.text.tokenizer import TextModel
from together.types import Sampling

QUESTION = (Message("user", "Where do hidden states go?"),)


@asynccontextmanager
async def chatting(folder: Path) -> AsyncIterator[tuple[Engine, LoopbackRing, TextModel]]:
    model = TextModel.open(folder)
    async with LoopbackRing(loads(folder, (2, 4))) as ring:
        engine = Engine(ring, model.eos)
        async with serving(engine):
            yield engine, ring, model


async def pieces_of(folder: Path, **options: object) -> tuple[GenerateRequest, list[AnswerChunk]]:
    """A whole answer; afterwards the ring is empty."""
    async with chatting(folder) as (engine, ring, model):
        request = GenerateRequest(model.prompt_ids(QUESTION), **options)  # type: ignore[arg-type]
        pieces = [piece async for piece in generate_text(engine, model, request)]
        await at_rest(engine, ring)
    return request, pieces


def joined(pieces: list[AnswerChunk]) -> str:
    return "".join(piece.text for piece in pieces)


async def test_the_pieces_are_the_answer(toy: Path) -> None:
    request, pieces = await pieces_of(toy, sampling=Sampling(1.0, seed=3), max_tokens=60)
    assert joined(pieces) == expected_text(toy, request.prompt, 60, request.sampling)
    assert len(pieces) > 20
    *inner, last = pieces
    assert {piece.finish for piece in inner} == {None}
    assert last.finish in ("stop", "length")
    assert last.usage is not None
    assert last.usage.prompt_tokens == len(request.prompt)
    assert last.usage.completion_tokens == sum(len(piece.token_ids) for piece in pieces)
    assert last.timings is not None
    assert 0 < last.timings.first_token < last.timings.total


@pytest.mark.parametrize("length", [1, 2, 5])
async def test_a_stop_string_over_several_tokens_ends_the_answer_and_is_not_shown(toy: Path, length: int) -> None:
    plain = expected_text(toy, TextModel.open(toy).prompt_ids(QUESTION), 60, Sampling(0.0))
    stop = plain[20 : 20 + length]
    request, pieces = await pieces_of(toy, sampling=Sampling(0.0), max_tokens=1000, stop=("never said", stop))
    assert joined(pieces) == plain[: plain.index(stop)]
    assert pieces[-1].finish == "stop"
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == plain.index(stop) + length  # one token is one letter here
    tokens = [token for piece in pieces for token in piece.token_ids]
    assert tokens == expected(toy, request)[: len(tokens)]


async def test_after_a_stop_string_nothing_is_generated_or_counted(toy: Path) -> None:
    async with chatting(toy) as (engine, _, model):
        prompt = model.prompt_ids(QUESTION)
        plain = expected_text(toy, prompt, 60, Sampling(0.0))
        for slow_reader in (False, True):
            request = GenerateRequest(
                prompt, Sampling(0.0), max_tokens=60 if slow_reader else 3000, stop=(plain[10:12],)
            )
            pieces = generate_text(engine, model, request)
            text = (await anext(pieces)).text
            if slow_reader:
                await until(lambda: engine.running == 0)  # all 60 tokens are there before the second is read
            async for piece in pieces:
                text += piece.text
                if piece.usage is not None:
                    assert (engine.running, piece.usage.completion_tokens) == (0, plain.index(plain[10:12]) + 2)
            assert text == plain[: plain.index(plain[10:12])]


async def test_text_held_back_for_a_stop_string_comes_with_the_end(toy: Path) -> None:
    plain = expected_text(toy, TextModel.open(toy).prompt_ids(QUESTION), 20, Sampling(0.0))
    _, pieces = await pieces_of(toy, sampling=Sampling(0.0), max_tokens=20, stop=(plain[15:20] + "…",))
    assert joined(pieces) == plain
    assert pieces[-1].text.endswith(plain[15:20])


async def test_any_bytes_come_out_as_whole_characters(tmp_path: Path) -> None:
    """The toy writes any byte; the text shown equals decoding all tokens at once."""
    folder = make_checksum_model(tmp_path / "bytes", layers=LAYERS, quiet_ids=())
    request, pieces = await pieces_of(folder, sampling=Sampling(1.0, seed=1), max_tokens=200, ignore_eos=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert joined(pieces) == tokenizer.decode(expected(folder, request))
    assert pieces[-1].finish == "length"


async def test_leaving_early_cancels_the_sequence(toy: Path) -> None:
    async with chatting(toy) as (engine, ring, model):
        request = GenerateRequest(model.prompt_ids(QUESTION), Sampling(0.0), max_tokens=3000, ignore_eos=True)
        async with aclosing(generate_text(engine, model, request)) as pieces:
            await anext(pieces)
            assert engine.running == 1
        assert engine.running == 0
        await at_rest(engine, ring)
        assert ring.pushed[-1].batch.orders.drops == (1,)


async def test_what_is_wrong_with_a_request_comes_with_the_first_piece(toy: Path) -> None:
    async with chatting(toy) as (engine, _, model):
        with pytest.raises(BadRequest, match="empty"):
            await anext(generate_text(engine, model, GenerateRequest(())))
