"""A real browser for the page's tests, and what a person does in it. Knows no test."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect, sync_playwright

from tests.conftest import RealApp
from tests.support.kept_chats import without_chats
from tests.support.patience import PATIENCE_MS
from tests.support.reading import faults, repeated

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FITS = "document.documentElement.scrollWidth <= innerWidth"
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


def open_page(page: Page, app: RealApp) -> None:
    """The page with the Split panel, with what its fields mean when they are empty: else that would come after ours."""
    page.goto(f"{app.url}/split")
    expect(page.locator("#cluster-nodes tbody tr")).to_have_count(2)
    expect(page.locator("#split-users :is(input, textarea)")).to_have_attribute("placeholder", re.compile(r"\d"))


@pytest.fixture
def kept(real_app: RealApp) -> Iterator[httpx.Client]:
    with without_chats(real_app.url) as client:
        yield client


@pytest.fixture
def chat(page: Page, kept: httpx.Client, real_app: RealApp) -> Iterator[Page]:
    """A tab that reports no error, also none of its policy."""
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    open_chat(page, real_app)
    yield page
    assert errors == []


# --- a chat -----------------------------------------------------------------------------------------------------------


def open_chat(page: Page, app: RealApp, model: str = "toy") -> None:
    page.goto(app.url)
    expect(page.locator(".served")).to_have_text(model)


def ask(page: Page, text: str) -> None:
    page.locator("#question").fill(text)
    page.locator("#question").press("Enter")


def set_chat(page: Page, **fields: object) -> None:
    """Settings of the chat that is shown, by their names there with `_` for a space."""
    page.locator("#show-settings").click()
    for name, value in fields.items():
        with_answer(page, partial(page.locator("#drawer").get_by_label(name.replace("_", " ")).fill, str(value)))
    page.keyboard.press("Escape")
    expect(page.locator("#drawer")).to_be_hidden()


def with_answer(page: Page, deed: Callable[[], object]) -> None:
    """Do what changes the settings of a kept conversation, and wait until the app has them."""
    if re.search(r"/chat/\w+$", page.url) is None:
        deed()
        return
    with page.expect_response(lambda answer: answer.request.method == "PATCH"):
        deed()


def answers(page: Page) -> Locator:
    return page.locator(".turn.assistant")


def figures(page: Page) -> str:
    """What stands under the last answer, once that is whole."""
    line = answers(page).last.locator(".figures")
    expect(line).to_be_visible()
    return line.inner_text()


# --- what a page says -------------------------------------------------------------------------------------------------

# All text of the page that a person can come across: what stands there, and what fields and drawings say of themselves.
ALL_TEXT = """() => {
  const said = (each) => [each.placeholder, each.title, each.getAttribute("aria-label")];
  const aside = [...document.querySelectorAll("[placeholder], [title], [aria-label]")].flatMap(said);
  return [document.body.innerText, ...aside.filter(Boolean)];
}"""


def reads_well(page: Page) -> None:
    """Nothing on the page is wrong in the ways of `tests.support.reading`, and no sentence stands there twice."""
    shown, *aside = page.evaluate(ALL_TEXT)
    assert [fault for text in (shown, *aside) for fault in faults(text)] == []
    assert repeated(shown.splitlines()) == []
