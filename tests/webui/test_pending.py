"""What the chat's page shows of an answer without text: its place in the queue, how much of the prompt was read."""

from __future__ import annotations

import json

import httpx
from playwright.sync_api import Page, Route, expect

from tests.support.axe import serious_faults
from tests.support.kept_chats import imported


def test_an_answer_without_text_says_what_it_waits_for(chat: Page, kept: httpx.Client) -> None:
    name = imported(kept, "long", "")
    whole = kept.get(f"/conversations/{name}").json()
    whole["turns"][1]["state"] = "writing"
    told = {"place": 3, "read": 0, "prompt": 9000}

    def tell(route: Route) -> None:
        """The conversation while it is answered; the page asks again when the stream ends."""
        steps = ({"chat": whole, "shown": {}}, {"pending": {"turn": whole["turns"][1]["id"], "progress": told}})
        body = "".join(f"data: {json.dumps(step)}\n\n" for step in steps)
        route.fulfill(body=body, content_type="text/event-stream")

    chat.route("**/conversations/events?chat=*", tell)
    chat.goto(f"{kept.base_url}/chat/{name}")
    where = chat.locator(".where")
    expect(where).to_have_text("Place 3 in the queue")
    told |= {"place": 1}
    expect(where).to_have_text("Next in the queue")
    told |= {"place": 0, "read": 2560}
    expect(where).to_have_text("Reading: 2,560 of 9,000 tokens")
    assert chat.get_by_role("progressbar", name="Prompt read").get_attribute("value") == "2560"
    assert serious_faults(chat) == []
    told |= {"read": 0, "prompt": 0}
    expect(where).to_have_text("")
    whole["turns"][1] |= {"state": "done", "said": {**whole["turns"][1]["said"], "text": "42"}}
    expect(where).to_be_hidden()
