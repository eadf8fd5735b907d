"""What a conversation's next turn computes on a ring whose caches cannot go back: a copy is kept where it begins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.checksum import expected_text, make_checksum_model
from tests.support.engines import LAYERS, at_rest, loads, serving
from tests.support.loopback import LoopbackRing
from together.engine.engine import Engine
from together.requests import ChatRequest, Message
from together.text.answers import answer_chat, chat_ids
from together.text.tokenizer import TextModel
from together.types import Sampling

_TURNS = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>OPENING{% endif %}"
)
TEMPLATES = {
    "plain": _TURNS.replace("OPENING", ""),
    "drops thoughts": _TURNS.replace("OPENING", "<think>\n"),
    "empty thoughts": _TURNS.replace("OPENING", "<think>\n\n</think>\n\n"),
}
CHUNK = 32
ANSWER = 40


@asynccontextmanager
async def chatting(folder: Path, capacity: int = 8192) -> AsyncIterator[tuple[Engine, LoopbackRing, TextModel]]:
    model = TextModel.open(folder)
    async with LoopbackRing(loads(folder, (2, 4), capacity), chunk=CHUNK) as ring:
        engine = Engine(ring, model.eos)
        async with serving(engine):
            yield engine, ring, model


def toy_with(folder: Path, template: str, rewind: int | None) -> Path:
    made = make_checksum_model(folder, layers=LAYERS, rewind=rewind, context=4096)
    (made / "chat_template.jinja").write_text(template, encoding="utf-8")
    return made


async def answered(engine: Engine, model: TextModel, messages: tuple[Message, ...]) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were computed for it."""
    before = engine.stats().prefilled_tokens
    request = ChatRequest(messages, Sampling(0.0), ANSWER)
    text = "".join([piece.reasoning + piece.text async for piece in answer_chat(engine, model, request)])
    return text, engine.stats().prefilled_tokens - before


@pytest.mark.parametrize("rewind", [0, pytest.param(8, marks=pytest.mark.full)])
@pytest.mark.parametrize("template", TEMPLATES)
async def test_ten_turns_compute_only_what_is_new(tmp_path: Path, template: str, rewind: int) -> None:
    folder = toy_with(tmp_path / "toy", TEMPLATES[template], rewind)
    async with chatting(folder) as (engine, ring, model):
        messages: tuple[Message, ...] = ()
        known = 0  # tokens of the turn before that this one has too
        for turn in range(10):
            messages = (*messages, Message("user", f"Turn {turn}: where do hidden states go, and who takes them?"))
            prompt = model.prompt_ids(messages)
            text, computed = await answered(engine, model, messages)
            assert text.strip() == expected_text(folder, prompt, ANSWER, Sampling(0.0)).strip()
            if template == "plain":  # then the answer is there again, too
                assert computed <= len(prompt) - known
            else:
                assert computed == len(prompt) - known
            opened = len(model.encode(TEMPLATES[template].partition("<assistant>")[2].partition("{%")[0]))
            known = len(prompt) - opened - len("<assistant>")
            messages = (*messages, Message("assistant", text))
        await at_rest(engine, ring)


async def test_without_a_copy_each_turn_would_compute_all(tmp_path: Path) -> None:
    """What the copies are for: a template whose prompt is no beginning of the next one, and nothing kept."""
    always = TEMPLATES["drops thoughts"].replace("{% if add_generation_prompt %}", "").replace("{% endif %}", "")
    folder = toy_with(tmp_path / "toy", always, 0)
    async with chatting(folder) as (engine, _, model):
        first = (Message("user", "Where do hidden states go?"),)
        text, _ = await answered(engine, model, first)
        more = (*first, Message("assistant", text), Message("user", "And then?"))
        _, computed = await answered(engine, model, more)
        assert computed == len(model.prompt_ids(more))


async def test_two_choices_and_a_second_try_begin_with_the_copy(tmp_path: Path) -> None:
    folder = toy_with(tmp_path / "toy", TEMPLATES["drops thoughts"], 0)
    async with chatting(folder) as (engine, ring, model):
        messages = (Message("user", "Where do hidden states go, and who takes them there?"),)
        prompt, opened = model.prompt_ids(messages), len("<assistant><think>\n")
        request = ChatRequest(messages, Sampling(0.0), ANSWER, choices=3)
        pieces = [piece async for piece in answer_chat(engine, model, request)]
        wanted = expected_text(folder, prompt, ANSWER, Sampling(0.0))
        for index in range(3):
            assert "".join(piece.reasoning for piece in pieces if piece.index == index) == wanted
        assert engine.stats().prefilled_tokens == len(prompt) + 2 * opened
        again, computed = await answered(engine, model, messages)
        assert (again, computed) == (wanted, opened)
        await at_rest(engine, ring)


async def test_little_room_costs_time_and_not_the_text(tmp_path: Path) -> None:
    folder = toy_with(tmp_path / "toy", TEMPLATES["drops thoughts"], 0)
    async with chatting(folder, capacity=160) as (engine, ring, model):
        messages: tuple[Message, ...] = (Message("user", "Where?"),)
        for turn in range(2):
            text, _ = await answered(engine, model, messages)
            assert text == expected_text(folder, model.prompt_ids(messages), ANSWER, Sampling(0.0))
            messages = (*messages, Message("assistant", "There."), Message("user", f"And then, {turn}?"))
        await at_rest(engine, ring)


async def test_an_answer_goes_on_right_after_words_that_the_template_writes_too(tmp_path: Path) -> None:
    folder = toy_with(tmp_path / "toy", TEMPLATES["plain"], 0)
    async with chatting(folder) as (engine, ring, model):
        for begun in ("end", "<", "n"):  # all are found in what closes a message
            request = ChatRequest((Message("user", "Go."), Message("assistant", begun)), continues=True)
            ids = await model.encode_aside(f"<user>Go.</end>\n<assistant>{begun}")
            assert await chat_ids(engine, model, request) == tuple(ids)
        await at_rest(engine, ring)
