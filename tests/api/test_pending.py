"""What is told of answers without text, with a real app: how much of a long prompt was read, places in the queue."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.api.test_conversations import ask, events, new, settled
from tests.conftest import RealApp
from tests.support.kept_chats import without_chats

LONG = "x" * 3600  # a token is a byte, and a frame has at most 256


@pytest.fixture
def client(real_app: RealApp) -> Iterator[httpx.Client]:
    with without_chats(real_app.url) as made:
        yield made


def test_a_long_prompt_is_followed_until_its_first_token(client: httpx.Client) -> None:
    chat = new(client, max_tokens=5)
    with events(client, f"/conversations/{chat}/events") as steps:
        next(steps)
        _, answer = ask(client, chat, LONG)
        told = []
        for step in steps:
            if "pending" in step:
                told.append(step["pending"])
            elif "grown" in step:
                break
    assert {each["turn"] for each in told} == {answer["id"]}
    reads = [each["progress"]["read"] for each in told if not each["progress"]["place"]]
    assert reads == sorted(reads)
    assert reads[-1] > 0
    prompt = told[-1]["progress"]["prompt"]
    assert len(LONG) < prompt < len(LONG) + 50
    settled(client, chat)
    with events(client, f"/conversations/{chat}/events") as steps:
        next(steps)
        ask(client, chat, "short", answer["id"])  # the caches have all but this
        step = next(step for step in steps if "chat" not in step)
    assert "grown" in step


def test_questions_that_wait_for_room_have_places(client: httpx.Client, real_app: RealApp) -> None:
    settings = real_app.serving()
    fits = settings["plan"]["context"] * settings["plan"]["users"] // len(LONG)
    chats = [new(client, max_tokens=-1) for _ in range(fits + 3)]
    answers = {chat: ask(client, chat, f"{place:03}{LONG}")[1]["id"] for place, chat in enumerate(chats)}
    last = chats[-1]
    with events(client, f"/conversations/{last}/events") as steps:
        place = next(step["pending"]["progress"]["place"] for step in steps if "pending" in step)
        assert place > 1
        before = chats[-2]
        client.post(f"/conversations/{before}/turns/{answers[before]}/stop", json={}).raise_for_status()
        places = (step["pending"]["progress"]["place"] for step in steps if "pending" in step)
        assert next(places) < place  # others may have ended meanwhile, too
