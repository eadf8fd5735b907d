"""Pictures in a chat of the page: dropped, shown in the turn, asked about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import RealApp, run_up
from tests.support.vision import photo, right_answer, write_seeing
from tests.webui.conftest import ask, figures, open_chat, set_chat
from together.requests import Attached, Message


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeing(tmp_path_factory.mktemp("seeing") / "model")


@pytest.fixture(scope="module")
def seeing_app(tmp_path_factory: pytest.TempPathFactory, seeing: Path) -> Iterator[RealApp]:
    more = ("--model", str(seeing), "--backend", "torch", "--dtype", "fp32", "--exact", "--layers", "0:2,2:4")
    with run_up(tmp_path_factory.mktemp("app"), *more) as app:
        yield app


DROP = """bytes => {
  const given = new DataTransfer();
  given.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
  document.querySelector("main").dispatchEvent(new DragEvent("drop", { dataTransfer: given, bubbles: true }));
}"""


@pytest.mark.full  # tests/webui/test_chat_page.py has files without a model that sees
def test_a_picture_is_dropped_into_a_kept_conversation(page: Page, seeing_app: RealApp, seeing: Path) -> None:
    open_chat(page, seeing_app, "model")
    set_chat(page, Temperature=0, Max_tokens=6)
    page.evaluate(DROP, list(photo(64, 40)))
    expect(page.locator(".chip")).to_contain_text("a.pngpicture")
    ask(page, "what?")
    assert figures(page).startswith("6 tokens")
    shown = page.locator(".turn.user img")
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    question = Message("user", "what?", pictures=(Attached(0, photo(64, 40)),))
    assert page.locator(".turn.assistant .text").inner_text().strip() in right_answer(seeing, question, tokens=6)
    page.request.delete(f"{seeing_app.url}/conversations")
