"""Turns of a conversation on the chat's page: an answer that its user edits, a context that is full."""

from __future__ import annotations

from typing import Any

import httpx
from playwright.sync_api import Page, expect

from tests.support.axe import serious_faults
from tests.support.kept_chats import imported
from tests.support.reading import faults

FIGURES = {"prompt_tokens": 3900, "tokens": 90, "first_token": 0.5, "total": 2.0, "machines": ["one", "two"]}


def test_an_edited_answer_is_another_version_that_the_chat_goes_on_from(chat: Page, kept: httpx.Client) -> None:
    name = imported(kept, "old", "The moon is *green*.", "What colour?")
    chat.goto(f"{kept.base_url}/chat/{name}")
    answer = chat.locator(".turn.assistant")
    answer.get_by_role("button", name="Edit this answer").click()
    expect(chat.locator(".edit")).to_have_value("The moon is *green*.")
    chat.keyboard.press("Escape")
    expect(answer.locator("em")).to_have_text("green")
    answer.get_by_role("button", name="Edit this answer").click()
    chat.locator(".edit").fill("The moon is *grey*.")
    chat.keyboard.press("Enter")
    chat.keyboard.type("Indeed.")
    chat.keyboard.press("Control+Enter")
    expect(answer.locator("em")).to_have_text("grey")
    expect(answer).to_contain_text("Indeed.")
    expect(answer.locator(".versions")).to_have_text("2/2")
    expect(answer.locator(".figures")).to_have_text("Edited by hand")
    assert serious_faults(chat) == []
    answer.get_by_role("button", name="The version before").click()
    expect(answer.locator("em")).to_have_text("green")
    question, first, second = kept.get(f"/conversations/{name}").json()["turns"]
    assert first["parent"] == second["parent"] == question["id"]
    path = f"/conversations/{name}/turns"
    wrong: tuple[tuple[Any, str, int], ...] = ((question["id"], "x", 400), (first["id"], " ", 400), ("gone", "x", 404))
    for turn, text, code in wrong:
        assert kept.post(f"{path}/{turn}/edited", json={"text": text}).status_code == code


def test_a_full_context_says_what_to_do(chat: Page, kept: httpx.Client) -> None:
    name = imported(kept, "long", "text")
    whole = kept.get(f"/conversations/{name}").json()
    whole["turns"][1]["said"]["figures"] = {**FIGURES, "cached_tokens": 0, "reasoning_tokens": 0, "tokens_per_s": 9.0}
    export = {"format": "together.conversations.v1", "chats": [{"conversation": whole}]}
    (made,) = kept.post("/conversations/import", json=export).raise_for_status().json()
    chat.set_viewport_size({"width": 360, "height": 740})
    chat.goto(f"{kept.base_url}/chat/{made['id']}")
    meter = chat.locator(".context")
    expect(meter).to_contain_text("3,990 of 4,096 tokens: nearly full; begin a new chat, edit an earlier question")
    assert faults(meter.inner_text()) == []
    assert chat.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert serious_faults(chat) == []
    chat.set_viewport_size({"width": 1280, "height": 860})
