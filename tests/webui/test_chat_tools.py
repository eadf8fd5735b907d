"""Tools on the chat's page in a real browser: a server of the tests, functions, JSON by a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.support.axe import serious_faults
from tests.support.tool_servers import serving_tools
from tests.webui.conftest import FITS, ask, with_answer

ONE = '{"name": "pick", "parameters": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}}'


@pytest.fixture(scope="module")
def tools() -> Iterator[str]:
    with serving_tools() as url:
        yield url


@pytest.fixture
def served(chat: Page, kept: httpx.Client, tools: str) -> Iterator[Page]:
    """The page with a server of tools that was added on it, and the settings of a chat open."""
    settings(chat)
    chat.locator("#server-name").fill("ours")
    chat.locator("#server-url").fill(tools)
    chat.get_by_role("button", name="Add", exact=True).click()
    expect(chat.locator(".servers > li")).to_contain_text("ours")
    yield chat
    kept.delete("/tool-servers/ours").raise_for_status()


def settings(chat: Page) -> None:
    chat.locator(".sidebar").get_by_role("link", name="Settings").click()
    expect(chat.locator("#server-name")).to_be_visible()


def drawer(chat: Page) -> None:
    """The settings of a new chat, with its tools."""
    chat.locator("#new-chat").click()
    chat.locator("#show-settings").click()
    chat.locator("#drawer .tool-fields summary").click()


@pytest.mark.full  # a minute; the flow is that of a function, whose test is below
def test_a_call_of_a_server_is_asked_for_made_and_gone_on_from(served: Page, kept: httpx.Client) -> None:
    chat = served
    row = chat.locator(".servers > li")
    row.get_by_role("button", name="Tools", exact=True).click()
    expect(row).to_contain_text("evil <b>name</b>")
    assert serious_faults(chat) == []
    drawer(chat)
    chat.locator("#drawer").get_by_label("ours").check()
    chat.locator("#drawer").get_by_label("Calls").select_option("required")
    chat.locator("#drawer").get_by_label("Max tokens").fill("160")
    chat.locator("#drawer").get_by_label("Temperature").fill("0")
    chat.keyboard.press("Escape")
    ask(chat, "what is one and two?")
    card = chat.locator(".call.asking")
    expect(card).to_contain_text("of ours")
    assert serious_faults(chat) == []
    chat.set_viewport_size({"width": 360, "height": 740})
    assert chat.evaluate(FITS)
    chat.set_viewport_size({"width": 1280, "height": 860})
    chat.reload()
    card.get_by_role("button", name="Always allow").click()
    expect(chat.locator(".turn.assistant")).to_have_count(2)
    expect(chat.locator("#send")).to_be_visible()
    (listed,) = kept.get("/conversations").json()["conversations"]
    turns = kept.get(f"/conversations/{listed['id']}").json()["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "assistant"]
    assert (turns[2]["state"], turns[2]["said"]["server"]) == ("done", "ours")
    expect(chat.locator(".call .arguments")).to_contain_text(re.compile(r"\w"))
    chat.locator(".call-result summary").click()
    expect(chat.locator(".call-result .plain")).to_have_text(turns[2]["said"]["text"])
    settings(chat)
    with chat.expect_response("**/allowed"):
        chat.get_by_role("button", name="Ask for each call again").click()
    assert [each["allowed"] for each in kept.get("/tool-servers").json()] == [[]]


def test_a_function_has_its_result_from_the_user_and_json_its_schema(chat: Page, kept: httpx.Client) -> None:
    drawer(chat)
    functions = chat.locator("#drawer").get_by_label("Functions")
    functions.fill('[{"name": "pick",}]')
    wrong = chat.locator("#drawer [data-field=functions] .wrong")
    expect(wrong).to_contain_text("no JSON in line 1, letter 18")
    functions.fill(f"[{ONE}]")
    expect(wrong).to_be_hidden()
    chat.locator("#drawer").get_by_label("Calls").select_option("required")
    schema = {
        "type": "object",
        "properties": {"sum": {"enum": [3]}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    chat.locator("#drawer").get_by_label("JSON by a schema").fill("[]")
    expect(chat.locator("#drawer [data-field=json_schema] .wrong")).to_contain_text("is an object")
    chat.locator("#drawer").get_by_label("JSON by a schema").fill(json.dumps(schema))
    expect(chat.locator("#drawer [data-field=json_schema] .wrong")).to_be_hidden()
    assert serious_faults(chat) == []
    chat.keyboard.press("Escape")
    ask(chat, "pick one")
    card = chat.locator(".call.asking")
    expect(card).to_contain_text("pick")
    card.get_by_label("Result of this function").fill("<b>sun</b>")
    card.get_by_role("button", name="Send the result").click()
    expect(chat.locator(".call-result")).to_have_count(1)
    expect(chat.locator(".turn.assistant")).to_have_count(2)
    chat.locator("#show-settings").click()
    with_answer(chat, lambda: chat.locator("#drawer").get_by_label("Functions").fill(""))
    chat.keyboard.press("Escape")
    if chat.locator("#stop").is_visible():
        chat.locator("#stop").click()
    expect(chat.locator("#send")).to_be_visible()
    ask(chat, "as JSON")
    expect(chat.locator(".turn.assistant")).to_have_count(3)
    expect(chat.locator("#send")).to_be_visible()
    (listed,) = kept.get("/conversations").json()["conversations"]
    found = kept.get(f"/conversations/{listed['id']}").json()
    assert found["turns"][2]["said"]["text"] == "<b>sun</b>"
    assert json.loads(found["turns"][-1]["said"]["text"]) == {"sum": 3}
