"""Questions about pictures over HTTP and a ring of two stages: the text that transformers answers, whatever happens."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.api.web import client_of
from tests.support.cluster import by_hand, running_cluster, until
from tests.support.vision import asked, photo, right_answer, write_seeing
from together.head.head import Head
from together.requests import Attached, Message
from together.view import ServingState

TOKENS = 12
CAT, DOG, TALL = photo(64, 40, 1), photo(64, 40, 2), photo(40, 96, 3)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeing(tmp_path_factory.mktemp("seeing") / "model")


def user(*parts: str | bytes) -> Message:
    text, pictures = "", []
    for part in parts:
        if isinstance(part, str):
            text += part
        else:
            pictures.append(Attached(len(text), part))
    return Message("user", text, pictures=tuple(pictures))


def said(text: str) -> Message:
    return Message("assistant", text)


def as_json(message: Message) -> dict[str, Any]:
    """As OpenAI's API has it."""
    parts: list[dict[str, Any]] = []
    begin = 0
    for each in message.pictures:
        assert isinstance(each.data, bytes)
        parts.append({"type": "text", "text": message.content[begin : each.at]})
        url = "data:image/png;base64," + b64encode(each.data).decode()
        parts.append({"type": "image_url", "image_url": {"url": url, "detail": "auto"}})
        begin = each.at
    parts.append({"type": "text", "text": message.content[begin:]})
    return {"role": message.role, "content": parts if message.pictures else message.content}


async def ask(client: httpx.AsyncClient, *messages: Message, tokens: int = TOKENS) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were not computed."""
    body = {"messages": [as_json(each) for each in messages], "max_tokens": tokens, "temperature": 0}
    reply = await client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    found = reply.json()
    return found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens_details"]["cached_tokens"]


def generated(head: Head) -> int:
    stats = head.stats()
    assert stats is not None
    return stats.generated_tokens


SETTINGS: dict[str, Any] = {"backend": "torch", "memory": "2GB", "dtype": "fp32", "exact": True}


async def test_answers_are_the_models(tmp_path: Path, seeing: Path) -> None:
    async with running_cluster(tmp_path, "anna", "berta", **SETTINGS) as (head, _):
        await head.load(seeing, by_hand("anna=0:2,berta=2:4"))
        async with client_of(head) as client:
            first = user("what is ", CAT, " this?")
            text, _ = await ask(client, first)
            assert text == right_answer(seeing, first)

            # Another picture of the same size: the same tokens, and not one of them may be shared.
            other = user("what is ", DOG, " this?")
            assert asked(seeing, other).ids == asked(seeing, first).ids
            found, reused = await ask(client, other)
            assert found == right_answer(seeing, other) != text
            assert reused < asked(seeing, other).pictures[0].offset

            # The next turn computes what is new; a picture comes in the middle, and a text goes on behind both.
            talk = [first, said(text), user("and ", TALL, "?")]
            found, reused = await ask(client, *talk)
            assert found == right_answer(seeing, *talk)
            assert reused > asked(seeing, first).pictures[0].offset + 40
            talk += [said(found), user("why?")]
            assert (await ask(client, *talk))[0] == right_answer(seeing, *talk)
            plain = user("hello world")
            assert (await ask(client, plain))[0] == right_answer(seeing, plain)

            # Several at once, and one whose chunks end within pictures: a frame holds 256 tokens.
            many = user(*(part for i in range(6) for part in (f"{i}: ", (CAT, DOG, TALL)[i % 3])), "which?")
            assert len(asked(seeing, many).ids) > 256
            questions = ([many], [user(DOG, CAT, "?")], [plain], [user(CAT, DOG, "?")])
            answers = await asyncio.gather(*(ask(client, *each) for each in questions))
            assert [each for each, _ in answers] == [right_answer(seeing, *each) for each in questions]


@pytest.mark.full  # half a minute of processes that start again; tests/engine/test_pictures.py has the rows
@pytest.mark.parametrize("place", [0, 2])
async def test_a_stage_is_killed_in_mid_answer(tmp_path: Path, seeing: Path, place: int) -> None:
    """What it saw is sent again."""
    async with running_cluster(tmp_path, "anna", "berta", **SETTINGS) as (head, _):
        await head.load(seeing, by_hand("anna=0:2,berta=2:4"))
        async with client_of(head) as client:
            stages = [stage for node in head.view().nodes for stage in node.stages]
            lost = next(stage for stage in stages if stage.layers.start == place)
            question = user(TALL, "and ", CAT, "?")
            answer = asyncio.create_task(ask(client, question, tokens=40))
            await until(lambda: generated(head) >= 3)
            psutil.Process(lost.pid).kill()
            assert (await answer)[0] == right_answer(seeing, question, tokens=40)
            assert head.view().serving.state is ServingState.READY


@pytest.mark.skipif(find_spec("mlx") is None, reason="MLX is not installed")
async def test_a_ring_that_begins_on_mlx_says_who_could_see(tmp_path: Path, seeing: Path) -> None:
    async with running_cluster(tmp_path, "anna", **SETTINGS | {"backend": "mlx"}) as (head, _):
        await head.load(seeing, by_hand("anna=0:4"))
        async with client_of(head) as client:
            body = {"messages": [as_json(user(CAT, "?"))], "max_tokens": 2}
            reply = await client.post("/v1/chat/completions", json=body)
            assert reply.status_code == 400
            error = reply.json()["error"]
            assert error["param"] == "messages.0.content"
            assert "the first layers run on anna by mlx, which has no vision tower here" in error["message"]
            assert "give layer 0 to a machine that runs torch" in error["message"]
            plain = user("hello world")
            assert (await ask(client, plain))[0] == right_answer(seeing, plain)
