"""A model with recurrent layers, served by real stages: conversations, eight at once, and a stage that is killed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.cluster import GREEDY, by_hand, running_cluster
from tests.support.families import make_checkpoint, reference_greedy
from tests.support.tokenizers import byte_level, write_text_files
from together.head.head import Head
from together.requests import ChatRequest, Message
from together.text.tokenizer import TextModel
from together.view import ServingState

TOKENS = 24
TURNS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)


@pytest.fixture(scope="module", params=["qwen3_5", "granite4-experts", "nemotron_h"])
def hybrid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hybrid") / "model"
    make_checkpoint(folder, request.param, vocab_size=330, eos_token_id=1)
    return write_text_files(folder, byte_level(), TURNS, eos=1)


def right_answer(folder: Path, *messages: Message) -> str:
    """Of transformers, unsplit and without caches."""
    model = TextModel.open(folder)
    drawn = reference_greedy(folder, model.prompt_ids(messages), TOKENS)
    drawn = drawn[: drawn.index(1)] if 1 in drawn else drawn
    return model.tokenizer.decode(drawn)


async def answer(head: Head, *messages: Message, harm: Callable[[], None] = lambda: None) -> tuple[str, int]:
    """The text, and how many tokens of the prompt were not computed; `harm` happens after some pieces."""
    text, reused, count = "", 0, 0
    async for piece in head.chat(ChatRequest(messages, GREEDY, TOKENS)):
        text, count = text + piece.text, count + 1
        reused = piece.usage.cached_tokens if piece.usage else reused
        if count == 3:
            harm()
    return text, reused


@pytest.mark.full  # half a minute of processes that start; tests/text/test_next_turns.py has the toy's conversations
async def test_what_it_says_is_the_models_whatever_happens(tmp_path: Path, hybrid: Path) -> None:
    async with running_cluster(tmp_path, "anna", "berta", backend="torch", memory="2GB", dtype="fp32", exact=True) as (
        head,
        _,
    ):
        await head.load(hybrid, by_hand("anna=0:2,berta=2:4"))

        asked = [Message("user", f"{number}: who takes the hidden states, and where?") for number in range(8)]
        found = await asyncio.gather(*(answer(head, message) for message in asked))
        assert [text for text, _ in found] == [right_answer(hybrid, message) for message in asked]

        said, known = [asked[0]], 0
        for turn in range(3):  # each begins where the one before it stood before its answer
            text, reused = await answer(head, *said)
            assert text == right_answer(hybrid, *said)
            assert reused >= known
            opened = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
            model = TextModel.open(hybrid)
            known = len(model.prompt_ids(said)) - len(model.encode(opened))
            said += [Message("assistant", text), Message("user", f"And then, {turn}?")]

        last = next(stage for node in head.view().nodes for stage in node.stages if stage.layers.stop == 4)
        text, _ = await answer(head, *said, harm=psutil.Process(last.pid).kill)
        assert text == right_answer(hybrid, *said)
        assert head.view().serving.state is ServingState.READY
