"""The views of the app in a real browser: their addresses, what they say while nothing serves, models, settings."""

from __future__ import annotations

import re

import httpx
from playwright.sync_api import Page, expect

from tests.conftest import RealApp, until
from tests.support.kept_chats import imported
from tests.support.patience import PATIENCE
from tests.support.reading import faults
from tests.webui.conftest import FITS, answers, ask, open_chat


def test_views_have_addresses_and_the_way_back(page: Page, kept: httpx.Client, real_app: RealApp) -> None:
    """Also from the Split panel and back, whose page is made otherwise; where views were leads where they are."""
    open_chat(page, real_app)
    name = imported(kept, "old", "text")
    views = page.get_by_role("navigation", name="Views")
    current = views.locator("[aria-current=page]")
    expect(current).to_have_text("Chat")
    page.locator(f"[data-chat='{name}'] a").click()
    views.get_by_role("link", name="Models").click()
    expect(page).to_have_url(f"{real_app.url}/models")
    expect(current).to_have_text("Models")
    expect(page.locator("#loaded .model")).to_contain_text("toy is ready on 2 stages")
    assert [fault for text in page.locator("body").all_inner_texts() for fault in faults(text)] == []
    page.get_by_role("link", name="See their layers on Machines").click()
    expect(current).to_have_text("Machines")
    page.get_by_role("link", name="Split and load a model").click()
    expect(current).to_have_text("Machines")
    expect(page.locator("#cluster-header .model")).to_have_text("toy")
    views.get_by_role("link", name="Settings").click()
    expect(page.locator(".preferences:visible")).to_contain_text("Colours")
    for place in ("split", "machines", "models", f"chat/{name}", ""):
        page.go_back()
        expect(page).to_have_url(f"{real_app.url}/{place}")
    expect(page.locator(".empty")).to_be_visible()
    page.go_forward()
    expect(answers(page)).to_contain_text("text")
    for old, new in (("/chat", "/"), ("/chat/settings", "/settings")):
        page.goto(f"{real_app.url}{old}")
        expect(page).to_have_url(f"{real_app.url}{new}")


def test_the_split_panel_has_the_colours_and_the_width_of_the_other_views(page: Page, real_app: RealApp) -> None:
    open_chat(page, real_app)
    for colours, named in (("dark", re.compile("dark")), ("light", re.compile("^((?!dark).)*$"))):
        page.evaluate("colours => localStorage.setItem('together.theme', colours)", colours)
        page.goto(f"{real_app.url}/split")
        expect(page.locator("#cluster-header .model")).to_have_text("toy")
        expect(page.locator("body")).to_have_class(named)
    page.evaluate("localStorage.clear()")
    page.set_viewport_size({"width": 360, "height": 740})
    expect(page.get_by_role("navigation", name="Views").get_by_role("link")).to_have_text(
        ["Chat", "Machines", "Models", "Settings"]
    )
    until(lambda: page.evaluate(FITS), PATIENCE, "all fits")


def test_what_cannot_be_answered_says_why(chat: Page, kept: httpx.Client) -> None:
    ask(chat, "x" * 5000)
    expect(chat.locator(".ending.failed")).to_contain_text("4096")
    imported(kept, "thoughtful", "So.", reasoning="Hm.", thought=2.0)
    chat.locator(".chat-item", has_text="thoughtful").get_by_role("link").click()
    thoughts = chat.locator(".thoughts")
    expect(thoughts.locator("summary")).to_have_text("Thought for 2.0 s")
    expect(thoughts.locator(".thought")).to_be_hidden()
    thoughts.locator("summary").click()
    expect(thoughts.locator(".thought")).to_have_text("Hm.")
