"""A phone's browser: the page that asks for a key, the link that has one, a chat, and the end of a revoked key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, ViewportSize, expect

from tests.conftest import RealApp, start_app
from tests.support.axe import serious_faults
from tests.support.patience import PATIENCE_MS
from tests.webui.conftest import answers, ask, figures, set_chat
from together.api.keys import KeyFile
from together.api.reach import squares

PHONE: ViewportSize = {"width": 360, "height": 740}
WIDTHS = "[document.documentElement.scrollWidth, window.innerWidth]"


@pytest.fixture(scope="module")
def open_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealApp]:
    with start_app(tmp_path_factory.mktemp("open"), TOGETHER_HOST="0.0.0.0") as app:
        yield app


@pytest.fixture
def door(open_app: RealApp) -> str:
    """Where other machines find the page."""
    port = json.loads((open_app.home / "app.json").read_text())["network"]
    return f"https://127.0.0.1:{port}"


@pytest.fixture
def phone(context: BrowserContext) -> Iterator[Page]:
    """A browser of another machine, as far as the app can tell, that loads nothing from elsewhere."""
    browser = context.browser
    assert browser is not None
    own = browser.new_context(
        viewport=PHONE, extra_http_headers={"X-Forwarded-For": "203.0.113.9"}, ignore_https_errors=True
    )
    own.set_default_timeout(PATIENCE_MS)
    tab = own.new_page()
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    yield tab
    own.close()
    assert [url for url in asked if not url.startswith(("https://127.0.0.1:", "data:", "blob:"))] == []


def test_a_phone_is_asked_for_a_key_and_chats_until_it_is_revoked(phone: Page, open_app: RealApp, door: str) -> None:
    keys = KeyFile(open_app.home)
    key = keys.make("phone")[1]
    phone.goto(door)
    expect(phone.get_by_role("alert")).to_have_text("This app asks for a key.")
    wide, window = phone.evaluate(WIDTHS)
    assert wide <= window
    assert phone.get_by_role("button").bounding_box()["height"] >= 44  # type: ignore[index]  # it is drawn
    phone.get_by_label("Key").fill("tg-wrong")
    phone.get_by_role("button").click()
    expect(phone.get_by_role("alert")).to_contain_text("This key is wrong")
    phone.get_by_label("Key").fill(key)
    phone.get_by_role("button").click()
    expect(phone.locator(".served")).to_have_text("toy")
    assert phone.url == door + "/"
    set_chat(phone, Max_tokens=5)
    ask(phone, "Hello")
    figures(phone)
    expect(answers(phone)).to_have_count(1)
    keys.revoke("phone")
    expect(phone.get_by_role("button", name="Open the page")).to_be_visible()
    key = keys.make("phone again")[1]
    phone.get_by_label("Key").fill(key)
    phone.get_by_role("button").click()
    phone.goto(f"{door}/split")
    expect(phone.locator("#cluster-header .model")).to_have_text("toy")
    keys.revoke("phone again")
    expect(phone).to_have_url(re.compile("/login$"))
    expect(phone.get_by_role("button")).to_have_text("Open the page")


def test_a_link_opens_the_page_and_leaves_no_key_in_its_address(phone: Page, open_app: RealApp, door: str) -> None:
    key = KeyFile(open_app.home).make("link")[1]
    phone.goto(f"{door}/?key={key}")
    expect(phone.locator(".served")).to_have_text("toy")
    assert phone.url == door + "/"
    assert key not in phone.content()
    assert key not in phone.evaluate("document.cookie")
    phone.reload()
    expect(phone.locator(".served")).to_have_text("toy")


def test_a_clicked_link_of_another_page_asks_before_it_logs_in(phone: Page, open_app: RealApp, door: str) -> None:
    """The cookie is strict: it stays away from such a request, and is found by the next, of our own page."""
    key = KeyFile(open_app.home).make("mail")[1]
    mail = f'<a href="{door}/?key={key}">open</a>'
    phone.goto(f"data:text/html,{mail}")
    phone.get_by_text("open").click()
    expect(phone.get_by_role("button")).to_have_text("Open the page with this key")
    assert phone.context.cookies() == []
    phone.get_by_role("button").click()
    expect(phone.locator(".served")).to_have_text("toy")
    assert phone.url == door + "/"
    mail = f'<a href="{door}">again</a>'
    phone.goto(f"data:text/html,{mail}")
    phone.get_by_text("again").click()
    expect(phone.locator(".served")).to_have_text("toy")
    phone.goto(f"{door}/logout")
    phone.get_by_role("button").click()
    expect(phone.get_by_role("alert")).to_have_text("This app asks for a key.")


def test_the_page_lets_others_in_where_it_is_here_alone(page: Page, phone: Page, open_app: RealApp, door: str) -> None:
    page.goto(f"{open_app.url}/settings")
    code = open_app.command("join-code").stdout.strip()
    shown = page.locator(".invitation")
    expect(page.locator("#show-code")).to_be_visible()
    expect(shown).to_be_hidden()
    assert code not in page.content()
    page.locator("#show-code").click()
    expect(shown.locator("code").first).to_have_text(code)
    expect(shown.locator("code").last).to_have_text(re.compile(f"join {code} node --host 0.0.0.0 --peer \\S+:\\d+$"))
    assert serious_faults(page) == []
    page.locator("#show-code").click()
    expect(shown).to_be_hidden()
    page.locator("#add-phone").click()
    page.get_by_label("Name of its key").fill("by QR code")
    page.get_by_role("button", name="Make the link").click()
    link = shown.locator("code").inner_text()
    drawn = page.get_by_role("img", name="QR code of the link").locator("path").get_attribute("d")
    assert squares_of(drawn or "") == {
        (x, y) for y, row in enumerate(squares(link)) for x, dark in enumerate(row) if dark == "1"
    }
    assert serious_faults(page) == []
    phone.goto(door + link[link.index("/?key=") :])
    phone.goto(f"{door}/settings")
    expect(phone.get_by_role("link", name="Log out")).to_be_visible()
    expect(phone.locator("#show-code")).to_be_hidden()
    assert phone.evaluate("fetch('/reach/machines').then(answer => answer.status)") == 403
    phone.get_by_role("link", name="Log out").click()
    phone.get_by_role("button", name="Leave").click()
    expect(phone.get_by_role("alert")).to_have_text("This app asks for a key.")
    page.reload()
    expect(page.locator("#add-phone")).to_be_visible()
    expect(shown).to_be_hidden()


def squares_of(path: str) -> set[tuple[int, int]]:
    """Where a drawing of runs is dark."""
    runs = re.findall(r"M(\d+) (\d+)h(\d+)v1h-\d+z", path)
    return {(int(x) + step, int(y)) for x, y, length in runs for step in range(int(length))}
