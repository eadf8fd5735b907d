"""A user of the chat's page who is quicker than its orders: nothing goes to another chat, and nothing is done twice."""

from __future__ import annotations

import re

import httpx
from playwright.sync_api import Locator, Page, Route, expect

from tests.conftest import RealApp, until
from tests.support.kept_chats import imported
from tests.support.patience import PATIENCE
from tests.webui.conftest import answers, open_chat


def item(chat: Page, name: str) -> Locator:
    return chat.locator(f"[data-chat='{name}'] a")


def settings(kept: httpx.Client, name: str) -> tuple[object, object]:
    found = kept.get(f"/conversations/{name}").json()["settings"]
    return found["temperature"], found["system"]


def test_settings_stay_with_the_chat_in_which_they_were_written(chat: Page, kept: httpx.Client) -> None:
    """Another chat is shown before they are sent; what cannot be sent is said, and keeps a question back."""
    first, second = imported(kept, "first", "text"), imported(kept, "second", "text")
    item(chat, first).click()
    drawer = chat.locator("#drawer")
    chat.locator("#show-settings").click()
    drawer.get_by_label("System prompt").fill("be short")
    drawer.get_by_label("Temperature").fill("0.5")
    item(chat, second).click()
    until(lambda: settings(kept, first) == (0.5, "be short"), PATIENCE, "the settings of the first chat")
    assert settings(kept, second) == (None, "")
    chat.locator("#show-settings").click()
    drawer.get_by_label("Temperature").fill("9")
    chat.locator("#question").fill("hello")
    chat.locator("#question").press("Enter")
    expect(chat.locator(".toast")).to_contain_text(re.compile("^Temperature: .* The settings were not changed."))
    expect(chat.locator("#question")).to_have_value("hello")
    expect(drawer.get_by_label("Temperature")).to_have_value("9")
    assert len(kept.get(f"/conversations/{second}").json()["turns"]) == 2
    item(chat, first).click()
    chat.locator("#show-settings").click()
    expect(drawer.get_by_label("Temperature")).to_have_value("0.5")
    chat.evaluate("localStorage.clear()")


def test_a_file_stays_with_the_chat_in_which_it_was_added(chat: Page, kept: httpx.Client) -> None:
    first, second = imported(kept, "first", "text"), imported(kept, "second", "text")
    item(chat, first).click()
    waiting: list[Route] = []
    chat.route(re.compile("/files.name="), lambda route: waiting.append(route))
    picker = chat.locator("#attach").locator("xpath=following-sibling::input")
    picker.set_input_files({"name": "secret.txt", "mimeType": "text/plain", "buffer": b"the code is 42"})
    expect(chat.locator(".chip.busy")).to_contain_text("secret.txt")
    item(chat, second).click()
    expect(chat.locator(".chip")).to_have_count(0)
    with chat.expect_response(re.compile("/files.name=")):
        waiting[0].continue_()
    item(chat, first).click()
    expect(chat.locator(".chip")).to_contain_text("secret.txt")
    item(chat, second).click()
    expect(chat.locator(".chip")).to_have_count(0)
    chat.evaluate("localStorage.clear()")


def test_twice_pressed_is_done_once(chat: Page, kept: httpx.Client) -> None:
    name = imported(kept, "old", "text")
    item(chat, name).click()
    copy = chat.get_by_role("button", name="Copy this answer")
    drawing = copy.inner_html()
    copy.click()
    expect(copy).to_have_attribute("data-copied", "yes")
    assert copy.inner_html() != drawing
    copy.click()
    expect(copy).not_to_have_attribute("data-copied", "yes")
    assert copy.inner_html() == drawing
    chat.get_by_role("button", name="Edit this question").click()
    chat.locator(".edit").fill("two")
    chat.evaluate("""() => {
      const enter = () => new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true });
      const field = document.querySelector(".edit");
      field.dispatchEvent(enter());
      field.dispatchEvent(enter());
    }""")
    expect(chat.locator(".turn.user .versions")).to_have_text("2/2")
    chat.locator("#stop").click()
    expect(answers(chat)).to_have_attribute("data-state", "stopped")
    assert len(kept.get(f"/conversations/{name}").json()["turns"]) == 4


def test_menus_and_questions_go_with_their_view(chat: Page, kept: httpx.Client) -> None:
    more = chat.get_by_role("button", name="More for all conversations")
    more.click()
    expect(chat.get_by_role("menu")).to_be_visible()
    more.click()
    expect(chat.get_by_role("menu")).to_have_count(0)
    expect(more).to_have_attribute("aria-expanded", "false")
    chat.get_by_role("link", name="Settings").click()
    chat.get_by_role("button", name="Delete everything").click()
    expect(chat.get_by_role("dialog")).to_be_visible()
    chat.go_back()
    expect(chat.get_by_role("dialog")).to_have_count(0)
    more.click()
    chat.go_forward()
    expect(chat.get_by_role("menu")).to_have_count(0)


def test_each_view_says_that_its_app_is_away(page: Page, kept: httpx.Client, real_app: RealApp) -> None:
    open_chat(page, real_app)
    for view in ("models", "settings"):
        page.route("**/conversations/**", lambda route: route.abort())
        page.route("**/version", lambda route: route.abort())
        page.goto(f"{real_app.url}/{view}")
        expect(page.locator(".lost")).to_be_visible()
        page.unroute("**/conversations/**")
        page.unroute("**/version")
        expect(page.locator(".lost")).to_be_hidden()


def test_the_keyboard_skips_the_list_in_each_view(page: Page, real_app: RealApp) -> None:
    open_chat(page, real_app)
    skip = page.locator(".skip")
    skip.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()
    page.goto(f"{real_app.url}/settings")
    expect(skip).to_have_text("Skip to the settings")
    skip.focus()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.locator("input[name=theme]").first).to_be_focused()
    assert page.url == f"{real_app.url}/settings"
    ids = "() => [...document.querySelectorAll('[id]')].map((each) => each.id)"
    found = page.evaluate(ids)
    assert sorted(found) == sorted(set(found))
