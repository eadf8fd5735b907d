"""A real browser for the page's tests, and what a person does in it. Knows no test."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.conftest import RealApp, until
from tests.support.patience import PATIENCE, PATIENCE_MS
from tests.support.reading import faults, repeated

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
expect.set_options(timeout=PATIENCE_MS)  # a busy machine draws late


@pytest.fixture(scope="module")
def context() -> Iterator[BrowserContext]:
    """Of one file: while Playwright runs, no test of the same process can have a loop of its own.

    Its tabs share what the browser keeps of the page's scripts, which saves a third of what opening the page costs.
    """
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found.new_context(viewport={"width": 1280, "height": 860})
        found.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A new tab that may load nothing from elsewhere, and may not report an error."""
    tab = context.new_page()
    tab.set_default_timeout(PATIENCE_MS)
    foreign: list[str] = []
    errors: list[str] = []
    tab.on("request", lambda request: foreign.append(request.url) if _is_foreign(request.url) else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    yield tab
    if not tab.is_closed():
        tab.close()
    assert foreign == []
    assert errors == []


def _is_foreign(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1"


@pytest.fixture
def kept(real_app: RealApp) -> Iterator[httpx.Client]:
    """The routes of an app without a conversation."""
    with httpx.Client(base_url=real_app.url, timeout=PATIENCE, trust_env=False) as client:
        client.delete("/conversations").raise_for_status()
        yield client
        client.delete("/conversations").raise_for_status()


@pytest.fixture
def chat(page: Page, kept: httpx.Client) -> Iterator[Page]:
    """A tab of the chat's page that reports no error, also none of its policy."""
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{kept.base_url}/chat")
    expect(page.locator(".served")).to_have_text("toy")
    yield page
    assert errors == []


def open_page(page: Page, app: RealApp) -> None:
    page.goto(app.url)
    expect(page.locator("#cluster-nodes tbody tr")).to_have_count(2)
    expect(page.locator("#top-p")).to_contain_text(re.compile("Default|Set by"))  # else these would come after ours


def ask(page: Page, text: str, max_tokens: int) -> None:
    set_number(page, "#max-tokens", max_tokens)
    page.locator("#question textarea").fill(text)
    until(lambda: _asks(page), PATIENCE, "the browser sends the question")


def _asks(page: Page) -> bool:
    """Whether Enter made an event. It does not while the one before it still ends, after its last word is drawn."""
    try:
        with page.expect_request(lambda request: "/queue/join" in request.url, timeout=2000):
            page.locator("#question textarea").press("Enter")
    except PlaywrightTimeout:
        return False
    return True


def set_number(page: Page, control: str, value: float) -> None:
    field = page.locator(f"{control} input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def answers(page: Page) -> list[str]:
    """The texts of all answers; a bubble is there a moment before its text is drawn."""
    found = page.locator("#chat .bot.message > .message:not(.thought)")
    for answer in found.all():
        expect(answer).to_have_text(re.compile(r"\S"))
    return found.all_inner_texts()


def measurements(page: Page) -> str:
    line = page.locator("#chat .bot.message > .message.thought").last
    expect(line).to_be_visible()
    return line.inner_text()


# All text of the page that a person can come across: what stands there, apart from what the toy says in the chat, and
# what fields and drawings say of themselves.
ALL_TEXT = """() => {
  const said = (each) => [each.placeholder, each.title, each.getAttribute("aria-label")];
  const apart = (each) => !each.closest("#chat .message");
  const aside = [...document.querySelectorAll("[placeholder], [title], [aria-label]")].filter(apart).flatMap(said);
  const messages = [...document.querySelectorAll("#chat .message")];
  const before = messages.map((each) => each.style.display);
  messages.forEach((each) => each.style.display = "none");
  const shown = document.body.innerText;
  messages.forEach((each, index) => each.style.display = before[index]);
  return [shown, ...aside.filter(Boolean)];
}"""


def reads_well(page: Page) -> None:
    """Nothing on the page is wrong in the ways of `tests.support.reading`, and no sentence stands there twice."""
    shown, *aside = page.evaluate(ALL_TEXT)
    assert [fault for text in (shown, *aside) for fault in faults(text)] == []
    assert repeated(shown.splitlines()) == []
