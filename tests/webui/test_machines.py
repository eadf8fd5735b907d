"""The picture of the machines in a real browser, beside a ring of two stages and with one that is made up."""

from __future__ import annotations

import os
import re
import signal
import threading
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import EVIL_NAME, NODE_NAMES, RealApp, until
from tests.support.patience import PATIENCE
from tests.support.pictures import OVERLAPS, made_up
from tests.support.reading import faults
from tests.webui.conftest import ALL_TEXT, FITS


def open_machines(page: Page, app: RealApp) -> None:
    page.goto(f"{app.url}/machines")
    expect(page.locator(".machine")).to_have_count(2)


def test_the_picture_has_machines_layers_and_ways(page: Page, real_app: RealApp) -> None:
    open_machines(page, real_app)
    assert sorted(page.locator(".box-name").all_inner_texts()) == NODE_NAMES
    assert page.locator(".machines img").count() == 0
    assert page.title() == "Machines – together"
    ring = page.locator(".ring")
    expect(ring.locator(".pill")).to_have_text("ready")
    expect(page.locator(".strip-figures")).to_contain_text(["0:2", "2:4"])
    expect(page.locator(".way.tone-0")).to_have_count(3)  # from the app, between the two, and back
    expect(page.locator(".memory").first).to_have_attribute("aria-label", re.compile("weights of toy: .*, free: .* GB"))
    assert [fault for text in page.evaluate(ALL_TEXT) for fault in faults(text)] == []
    page.locator(".machine").first.focus()
    page.keyboard.press("Enter")
    detail = page.get_by_role("region", name="The chosen machine")
    expect(detail.get_by_role("heading")).to_contain_text(EVIL_NAME)
    expect(detail).to_contain_text("layers 0:2 of 4 on checksum/cpu")
    page.set_viewport_size({"width": 360, "height": 740})
    until(lambda: page.evaluate(FITS), PATIENCE, "all fits")
    expect(page.locator(".way")).to_have_count(3)


def answer(app: RealApp, done: list[str]) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 600}
    done.append(app.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"])


def test_an_answer_and_a_recovery_are_seen_as_they_happen(page: Page, lent_app: RealApp) -> None:
    open_machines(page, lent_app)
    done: list[str] = []
    asking = threading.Thread(target=answer, args=(lent_app, done))
    asking.start()
    expect(page.locator(".way.running")).to_have_count(3)
    expect(page.locator(".figures-line")).to_contain_text(re.compile(r"[\d.]+ tokens/s · [\d.]+ ms for a token"))
    lost = lent_app.stage_pids()[1]
    os.kill(lost, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    happened = page.get_by_role("region", name="What happened")
    expect(happened).to_contain_text(re.compile("lost"))  # the ring, its machine, or both, as quick as it was mended
    expect(happened.locator("li").first).to_contain_text("toy is ready on")
    expect(page.locator(".ring .pill")).to_have_text("ready")
    asking.join(PATIENCE)
    assert len(done) == 1
    expect(page.locator(".way.running")).to_have_count(0)

    lent_app.post("/control/unload", {})
    expect(page.locator(".offer")).to_contain_text("Last: toy on <img src=x")
    expect(happened).to_contain_text("toy was unloaded")
    page.locator("#load-last").focus()
    lent_app.post("/control/on-demand", {"on": True})
    expect(page.locator("#machines-on-demand")).to_be_checked()
    expect(page.locator("#load-last")).to_be_focused()  # drawn anew
    lent_app.post("/control/on-demand", {"on": False})
    page.locator("#load-last").click()
    expect(page.locator(".ring .pill")).to_have_text("ready")
    expect(page.locator(".offer")).to_have_count(0)
    assert page.locator(".machines img").count() == 0


@pytest.mark.parametrize("width", [1280, 360])
def test_many_machines_and_models_are_drawn_without_overlap(page: Page, real_app: RealApp, width: int) -> None:
    """Sixteen machines and three models, which have some of them in common and go to and fro."""
    page.set_viewport_size({"width": width, "height": 900})
    open_machines(page, real_app)
    found = page.evaluate(OVERLAPS, made_up(16))
    assert found == {"boxes": 16, "ways": 20, "over": []}
    page.set_viewport_size({"width": 1280, "height": 860})
