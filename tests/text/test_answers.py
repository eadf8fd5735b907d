"""Choices, log-probabilities, constraints and reasoning, from tokens to chunks, on rings of the toy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as Steps

from tests.support.checksum import VOCABULARY, expected_text, expected_tokens, make_checksum_model
from tests.support.engines import LAYERS, at_rest, loads, serving, until
from tests.support.loopback import LoopbackRing
from tests.support.patience import PATIENCE
from tests.support.tokenizers import byte_fallback, byte_level, write_text_files
from tests.text.test_thinking import parted
from together.engine.engine import Engine
from together.errors import BadRequest, BrokenModel, ContextTooLong, QueueFull, RingBroken
from together.requests import AnswerChunk, ChatRequest, CompletionRequest, GenerateRequest, Message, Usage, cut_short
from together.sampling import choice_seed
from together.sentences import NOTHING, say
from together.text.answers import answer_chat, answer_prompts, generate_text
from together.text.parser import AnswerParser, StopFilter
from together.text.thinking import ReasoningParser
from together.text.tokenizer import TextModel, TokenBytes
from together.types import Sampling

QUESTION = (Message("user", "Where do hidden states go, and who takes them there?"),)


@asynccontextmanager
async def chatting(folder: Path, max_waiting: int = 100) -> AsyncIterator[tuple[Engine, LoopbackRing, TextModel]]:
    model = TextModel.open(folder)
    async with LoopbackRing(loads(folder, (2, 4))) as ring:
        engine = Engine(ring, model.eos, max_waiting)
        async with serving(engine):
            yield engine, ring, model


def of_choice(pieces: Sequence[AnswerChunk], index: int) -> tuple[str, AnswerChunk]:
    own = [piece for piece in pieces if piece.index == index]
    return "".join(piece.text for piece in own), own[-1]


def said(folder: Path, prompt: Sequence[int], count: int, sampling: Sampling) -> str:
    """`count` tokens of the toy as text, past its end-of-text, which is never shown."""
    return "".join(chr(token) for token in expected_tokens(folder, prompt, count, sampling) if token < 256)


# --- choices ----------------------------------------------------------------------------------------------------------


async def test_choices_share_the_prompts_prefill_and_have_their_own_seeds(toy: Path) -> None:
    settings = Sampling(1.0, seed=7)
    async with chatting(toy) as (engine, ring, model):
        request = ChatRequest(QUESTION, settings, max_tokens=30, choices=4, ignore_eos=True)
        pieces = [piece async for piece in answer_chat(engine, model, request)]
        stats, prompt = engine.stats(), model.prompt_ids(QUESTION)
        await at_rest(engine, ring)
    for index in range(4):
        text, last = of_choice(pieces, index)
        alone = Sampling(1.0, seed=choice_seed(7, index))
        assert text == said(toy, prompt, 30, alone)
        assert (last.finish, last.usage and last.usage.prompt_tokens) == ("length", len(prompt))
    assert stats.prompt_tokens == 4 * len(prompt)
    assert stats.prefilled_tokens == len(prompt) + 3  # the others compute their last token only
    assert stats.reused_tokens == 3 * (len(prompt) - 1)


async def test_prompts_as_text_and_as_ids_are_told_apart_by_index(toy: Path) -> None:
    async with chatting(toy) as (engine, ring, model):
        ids = model.encode("hello there")
        request = CompletionRequest(("hello there", ids, (65, 66)), Sampling(0.0), 10, choices=2, ignore_eos=True)
        pieces = [piece async for piece in answer_prompts(engine, model, request)]
        await at_rest(engine, ring)
    texts = [of_choice(pieces, index)[0] for index in range(6)]
    assert texts[:4] == [said(toy, ids, 10, Sampling(0.0))] * 4
    assert texts[4:] == [said(toy, (65, 66), 10, Sampling(0.0))] * 2


async def test_leaving_ends_all_choices(toy: Path) -> None:
    async with chatting(toy) as (engine, ring, model):
        request = ChatRequest(QUESTION, Sampling(0.0), 3000, ignore_eos=True, choices=3)
        async with aclosing(answer_chat(engine, model, request)) as pieces:
            await anext(pieces)
            assert engine.running + engine.waiting == 3
        assert engine.running + engine.waiting == 0
        await at_rest(engine, ring)


async def test_all_choices_are_queued_or_none(toy: Path) -> None:
    async with chatting(toy, max_waiting=4) as (engine, ring, model):
        with pytest.raises(QueueFull):
            await anext(answer_chat(engine, model, ChatRequest(QUESTION, choices=5)))
        with pytest.raises(ContextTooLong) as caught:
            await anext(answer_prompts(engine, model, CompletionRequest(("hello", (65,) * 5000), max_tokens=9)))
        assert caught.value.param == "prompt"
        await at_rest(engine, ring)


async def test_a_full_queue_is_said_before_the_template_is_rendered(tmp_path: Path) -> None:
    folder = make_checksum_model(tmp_path / "toy", layers=LAYERS)
    config = folder / "tokenizer_config.json"
    broken = json.loads(config.read_text()) | {"chat_template": "{{ raise_exception('rendered') }}"}
    config.write_text(json.dumps(broken))
    async with chatting(folder, max_waiting=0) as (engine, _, model):
        with pytest.raises(QueueFull):
            await anext(answer_chat(engine, model, ChatRequest(QUESTION)))
        engine._scheduler.max_waiting = 1
        with pytest.raises(BadRequest, match="rendered"):
            await anext(answer_chat(engine, model, ChatRequest(QUESTION)))


@pytest.mark.parametrize("times", [0, 1, 500])
async def test_a_text_is_encoded_aside_to_the_same_ids(times: int, toy: Path) -> None:
    model = TextModel.open(toy)
    text = "hidden states é🗼 " * times
    assert await model.encode_aside(text) == model.encode(text)


async def test_a_tokenizer_that_takes_long_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    tokenizer = byte_level()
    slow = Split(Regex("(?=(a+)+b)x"), "isolated")  # exponential in the letters; the library gives up at 10^7 steps
    tokenizer.pre_tokenizer = Steps([slow, ByteLevel(add_prefix_space=False)])
    model = TextModel.open(write_text_files(tmp_path / "slow", tokenizer))
    loop, ticks = asyncio.get_running_loop(), []
    waiting = asyncio.create_task(model.encode_aside("a" * 200))
    while not waiting.done():
        ticks.append(loop.time())
        await asyncio.sleep(0.005)
    with pytest.raises(BrokenModel, match="tokenizer of slow cannot read this text"):
        waiting.result()
    assert len(ticks) > 3


# --- log-probabilities ------------------------------------------------------------------------------------------------


async def test_every_token_has_its_own_logprob_bytes_and_offset(tmp_path: Path) -> None:
    """The toy writes any byte; joined, the bytes of its tokens are those of the answer."""
    folder = make_checksum_model(tmp_path / "bytes", layers=LAYERS, quiet_ids=tuple(range(256, VOCABULARY)))
    async with chatting(folder) as (engine, _, model):
        prompt = model.prompt_ids(QUESTION)
        request = GenerateRequest(prompt, Sampling(1.0, seed=2), 80, ignore_eos=True, top_logprobs=3)
        pieces = [piece async for piece in generate_text(engine, model, request)]
    found = [token for piece in pieces for token in piece.logprobs]
    wanted = expected_tokens(folder, prompt, 80, request.sampling)
    assert [token.drawn.token_id for token in found] == wanted
    assert b"".join(token.drawn.data for token in found) == bytes(wanted)
    text = "".join(piece.text for piece in pieces)
    assert all(len(token.top) == 3 and token.drawn.logprob <= token.top[0].logprob <= 0 for token in found)
    alone = [token for before, token in pairwise(found) if (before.drawn.data + token.drawn.data).isascii()]
    assert len(alone) > 10
    assert all(text[token.offset] == token.drawn.data.decode() for token in alone)


@pytest.mark.parametrize("length", [1, 3])
async def test_no_logprob_tells_of_a_stop_string(toy: Path, length: int) -> None:
    async with chatting(toy) as (engine, _, model):
        prompt = model.prompt_ids(QUESTION)
        plain = expected_text(toy, prompt, 60, Sampling(0.0))
        request = GenerateRequest(prompt, Sampling(0.0), 3000, (plain[20 : 20 + length],), top_logprobs=0)
        pieces = [piece async for piece in generate_text(engine, model, request)]
    said = b"".join(token.drawn.data for piece in pieces for token in piece.logprobs)
    assert said.decode() == "".join(piece.text for piece in pieces) == plain[: plain.index(plain[20 : 20 + length])]


async def test_without_the_wish_nothing_is_asked_of_the_stages(toy: Path) -> None:
    async with chatting(toy) as (engine, ring, model):
        request = GenerateRequest(model.prompt_ids(QUESTION), Sampling(0.0), 5)
        pieces = [piece async for piece in generate_text(engine, model, request)]
        asked = [row.sample for frame in ring.pushed for row in frame.batch.rows if row.sample]
    assert {(ask.top_logprobs, ask.allowed) for ask in asked} == {(-1, None)}
    assert not any(piece.logprobs for piece in pieces)


def test_bytes_of_tokens_are_those_of_their_text() -> None:
    for tokenizer in (byte_level(), byte_fallback()):
        text = "hello the é🗼 story"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert b"".join(map(TokenBytes(tokenizer).of, ids)).decode().strip() == text
        assert TokenBytes(tokenizer).of(10**6) == b""
        special = tokenizer.token_to_id("<|im_end|>")
        assert special is not None
        assert TokenBytes(tokenizer).of(special) == b"<|im_end|>"


# --- constraints ------------------------------------------------------------------------------------------------------


class Spelling:
    """Allows one text and then end-of-text, token by token."""

    def __init__(self, text: bytes, eos: int) -> None:
        self.wanted = (*text, eos)
        self.asked: list[int] = []

    def allowed(self, answer: Sequence[int]) -> bytes | None:
        assert tuple(answer) == self.wanted[: len(answer)]
        self.asked.append(len(answer))
        mask = np.zeros(VOCABULARY, np.uint8)
        mask[self.wanted[len(answer)]] = 1
        return np.packbits(mask, bitorder="little").tobytes()


@pytest.mark.parametrize("temperature", [0.0, 2.0])
async def test_a_constraint_decides_which_tokens_may_come(toy: Path, temperature: float) -> None:
    async with chatting(toy) as (engine, ring, model):
        spelling = Spelling(b"exactly this", *model.eos)
        settings = Sampling(temperature, seed=1)
        request = GenerateRequest(model.prompt_ids(QUESTION), settings, 100, constraint=spelling)
        pieces = [piece async for piece in generate_text(engine, model, request)]
        await at_rest(engine, ring)
    assert "".join(piece.text for piece in pieces) == "exactly this"
    assert pieces[-1].finish == "stop"
    assert spelling.asked == list(range(13))


# --- thoughts ---------------------------------------------------------------------------------------------------------


def thinking_toy(folder: Path, special: bool) -> Path:
    """A toy that sometimes writes the closing tag, an added token; its template may open the reasoning."""
    quiet = tuple(i for i in range(VOCABULARY) if not (32 <= i < 127 or i == 262))
    make_checksum_model(folder, layers=LAYERS, quiet_ids=quiet)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(tag, special=special, normalized=False) for tag in ("<think>", "</think>")])
    assert tokenizer.token_to_id("</think>") == 262
    tokenizer.save(str(folder / "tokenizer.json"))
    config = folder / "tokenizer_config.json"
    read = json.loads(config.read_text())
    read["chat_template"] += "{% if thinking is not defined or thinking %}<think>\n{% endif %}"
    config.write_text(json.dumps(read))
    return folder


@pytest.mark.parametrize("special", [False, True])
async def test_thoughts_are_parted_where_the_template_opens_them(tmp_path: Path, special: bool) -> None:
    folder = thinking_toy(tmp_path / "toy", special)
    settings = Sampling(1.0, seed=3, logit_bias=((262, 3.0),))
    async with chatting(folder) as (engine, _, model):
        request = ChatRequest(QUESTION, settings, 60, ignore_eos=True)
        pieces = [piece async for piece in answer_chat(engine, model, request)]
        plain = [piece async for piece in answer_chat(engine, model, _without_thinking(request))]
        prompt = model.encode(model.template.render(QUESTION).result())
    ids = expected_tokens(folder, prompt, 60, settings)
    text = "".join("</think>" if token == 262 else chr(token) for token in ids)
    # a special token that comes again is never shown, as all of them
    thought, answer = parted(text, opened=True)
    assert "".join(piece.reasoning for piece in pieces) == thought != ""
    assert "".join(piece.text for piece in pieces) == answer
    usage = pieces[-1].usage
    assert usage is not None
    assert (usage.completion_tokens, usage.reasoning_tokens) == (60, ids.index(262) + 1)
    assert not any(piece.reasoning for piece in plain)
    assert plain[-1].usage is not None
    assert plain[-1].usage.reasoning_tokens == 0


def _without_thinking(request: ChatRequest) -> ChatRequest:
    return ChatRequest(request.messages, request.sampling, request.max_tokens, template={"thinking": False})


async def test_what_an_assistant_thought_reaches_the_template(tmp_path: Path) -> None:
    folder = make_checksum_model(tmp_path / "toy", layers=LAYERS)
    config = folder / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m.content }}{{ m.reasoning_content }}{% endfor %}"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    model = TextModel.open(folder)
    assert model.prompt_ids([Message("assistant", "a", "b"), Message("user", "c")]) == model.encode("abc")


async def test_a_slow_reader_of_choices_gets_everything(toy: Path) -> None:
    async with chatting(toy) as (engine, _, model):
        request = ChatRequest(QUESTION, Sampling(0.0), 40, ignore_eos=True, choices=2, top_logprobs=0)
        answers = answer_chat(engine, model, request)
        pieces = [await anext(answers)]
        await until(lambda: engine.running == 0)
        pieces += [piece async for piece in answers]
    for index in range(2):
        own = [piece for piece in pieces if piece.index == index]
        assert sum(len(piece.token_ids) for piece in own) == sum(len(piece.logprobs) for piece in own) == 40


@pytest.mark.parametrize("choices", [1, 2])
async def test_a_slow_reader_sees_the_error_that_ended_its_answer(choices: int, toy: Path) -> None:
    async with chatting(toy) as (engine, _, model), asyncio.timeout(PATIENCE):
        request = ChatRequest(QUESTION, Sampling(0.0), 3000, ignore_eos=True, choices=choices)
        async with aclosing(answer_chat(engine, model, request)) as answers:
            await anext(answers)
            known = engine.stats().generated_tokens
            await until(lambda: engine.stats().generated_tokens > known + 4 * choices)
            engine.drop(RingBroken("stage 1 is gone"))
            with pytest.raises(RingBroken, match="stage 1 is gone"):
                [piece async for piece in answers]


# --- stop texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stops", "text", "thought", "said"),
    [
        (["\n\n"], "a\n\nb</think>c d", "a\n\nb", "c d"),
        (["b"], "a b</think>c b d", "a b", "c "),
        (["k>c"], "a</think>c", "a", "c"),  # a tag is no part of the answer
        (["c"], "a</think>c", "a", ""),
        (["<t"], "a</think><tool", "a", ""),
        (["END"], "never closed END", "never closed END", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_stop_text_ends_the_answer_and_not_the_thoughts(
    stops: list[str], text: str, thought: str, said: str, size: int
) -> None:
    parter = AnswerParser(ReasoningParser(opened=True), StopFilter(stops))
    parts = [parter.push(text[i : i + size]) for i in range(0, len(text), size)] + [parter.flush()]
    assert "".join(part.reasoning for part in parts) == thought
    assert "".join(part.text for part in parts) == said
    assert bool(parter.stopped) == (said != text.partition("</think>")[2])


def test_letters_are_withheld_until_they_are_no_stop_text() -> None:
    parter = AnswerParser(None, StopFilter(["STOP"]))
    assert (parter.push("a ST").text, parter.withheld) == ("a ", 2)
    assert (parter.push("AR").text, parter.withheld) == ("STAR", 0)
    assert (parter.push(" STOP more").text, parter.withheld) == (" ", 9)
    assert (parter.push("on").text, parter.withheld) == ("", 11)


def test_what_cut_an_answer_off_is_said() -> None:
    used, longer = Usage(prompt_tokens=20, completion_tokens=44), say("longer_on_page")
    limit = str(cut_short("length", used, 44, longer))
    assert limit == f"the answer was cut off at its limit of 44 tokens; {longer}"
    for asked in (None, 100):
        context = str(cut_short("length", used, asked, longer))
        assert context.startswith("the answer was cut off after 44 tokens: the context of 64 tokens is full")
    assert cut_short("stop", used, 44, longer) == NOTHING
