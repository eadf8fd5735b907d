"""The view of settings: what an export left out is said, and how others come in to an app that is not open."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
from playwright.sync_api import Page, Route, expect

from tests.support.axe import serious_faults
from tests.support.kept_chats import imported


def exported(chat: Page, button: str) -> list[str]:
    """The titles in the file that this button saves."""
    with chat.expect_download() as download:
        chat.get_by_role("button", name=button, exact=True).click()
    assert download.value.suggested_filename == "conversations.json"
    found = json.loads(Path(download.value.path()).read_text("utf-8"))
    return [each["conversation"]["summary"]["title"] for each in found["chats"]]


def test_an_export_says_what_it_left_out_and_goes_on(chat: Page, kept: httpx.Client) -> None:
    for title in ("old", "new"):
        imported(kept, title, "text")
    newest = kept.get("/conversations").json()["conversations"][0]

    def full(route: Route) -> None:
        """As if there was room for one conversation, and for none of its two files."""
        if "before" in route.request.url:
            route.continue_()
            return
        answer = route.fetch()
        found = answer.json()
        lacks = {"together-left-out": "1", "together-files-left-out": "2", "together-before": newest["id"]}
        found["chats"] = found["chats"][:1]
        route.fulfill(response=answer, json=found, headers={**answer.headers, **lacks})

    chat.route("**/conversations/export*", full)
    chat.goto(f"{kept.base_url}/settings")
    assert exported(chat, "Export") == [newest["title"]]
    expect(chat.locator(".toast")).to_contain_text("2 attached files did not fit and are not in it")
    dialog = chat.get_by_role("dialog")
    expect(dialog).to_contain_text("1 older one is not in it")
    assert exported(chat, "Export the rest") == ["old"]
    expect(dialog).to_have_count(0)


def test_an_app_that_is_not_open_says_how_to_open_it(chat: Page, kept: httpx.Client) -> None:
    chat.goto(f"{kept.base_url}/settings")
    expect(chat.locator("#closed")).to_contain_text("up --host 0.0.0.0")
    expect(chat.locator("#show-code")).to_be_hidden()
    expect(chat.get_by_role("link", name="Log out")).to_be_hidden()
    assert serious_faults(chat) == []
    for answer in (kept.get("/reach/machines"), kept.post("/reach/phones", json={"name": "phone"})):
        assert answer.status_code == 400
        assert "up --host 0.0.0.0" in answer.json()["error"]["message"]
