"""The page with the Split panel in a real browser, on a really started app."""

from __future__ import annotations

import os
import signal

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import EVIL_NAME, NODE_NAMES, RealApp, until
from tests.support.patience import PATIENCE
from tests.webui.conftest import answers, ask, open_chat, open_page, reads_well


def test_header_and_table_say_who_holds_what(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    expect(page.locator("#cluster-header .model")).to_have_text("toy")
    expect(page.locator("#cluster-header .pill")).to_have_text("READY")
    expect(page.locator("#cluster-header .link")).to_have_text("live")
    assert page.locator("#cluster-header .layer-bar .segment-range").all_inner_texts() == ["0:2", "2:4"]
    row = page.locator("#cluster-nodes tbody tr").first
    assert "READY" in row.inner_text()
    assert "checksum/cpu" in row.inner_text()
    assert "GB free" in row.inner_text()
    expect(page.locator("#load-again")).to_be_hidden()
    reads_well(page)
    names_are_text(page)
    page.set_viewport_size({"width": 390, "height": 800})
    until(lambda: page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), PATIENCE, "all fits")


def names_are_text(page: Page) -> None:
    """Also of other machines."""
    assert sorted(page.locator("table.nodes .node-name").all_inner_texts()) == NODE_NAMES
    assert sorted(page.locator("#cluster-header .layer-bar .segment-name").all_inner_texts()) == NODE_NAMES
    assert page.locator("#cluster-nodes img, #cluster-header img").count() == 0
    assert page.title() == "Split – together"


def test_trouble_is_mended_or_said_and_the_model_loads_again(page: Page, lent_app: RealApp) -> None:
    open_chat(page, lent_app)
    ask(page, "Hello")
    until(lambda: len(answers(page).inner_text()) > 40, PATIENCE, "the answer is being made")
    ring, before = lent_app.stage_pids(), len(answers(page).inner_text())
    os.kill(ring[1], signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    until(
        lambda: lent_app.serving()["state"] == "READY" and ring[1] not in lent_app.stage_pids(),
        PATIENCE,
        "the ring is mended",
    )
    until(lambda: len(answers(page).inner_text()) > before + 20, PATIENCE, "the answer goes on")
    expect(page.locator(".composer .notice")).to_be_hidden()
    page.locator("#stop").click()
    until(lambda: lent_app.serving()["running"] == 0, PATIENCE, "the engine to be free")

    lent_app.post("/control/unload", {})
    lent_app.post("/control/load", {"model": EVIL_NAME})
    expect(page.locator(".composer .notice")).to_contain_text("onerror=")
    page.get_by_role("link", name="Models").click()
    expect(page.locator("#loaded")).to_contain_text("onerror=")
    assert page.locator(".notice img, #loaded img").count() == 0
    page.go_back()
    page.locator(".composer .notice").get_by_role("link", name="Open Machines").click()
    expect(page.locator(".ring.failed")).to_contain_text("onerror=")
    assert page.locator(".machines img").count() == 0
    page.get_by_role("link", name="Split and load a model").click()
    expect(page.locator("#cluster-header .pill")).to_have_text("FAILED")
    expect(page.locator("#cluster-header .sentence")).to_contain_text("onerror=")
    reads_well(page)
    page.locator("#load-again").click()
    expect(page.locator("#cluster-header .pill")).to_have_text("READY")
    assert page.title() == "Split – together"
    page.go_back()
    expect(page.locator(".ring .pill")).to_have_text("ready")
    page.go_back()
    expect(page.locator(".served")).to_have_text("toy")
    expect(page.locator(".composer .notice")).to_be_hidden()  # it is about what is past
    page.request.delete(f"{lent_app.url}/conversations")


def test_a_stream_that_ends_is_said(page: Page, real_app: RealApp) -> None:
    page.route("**/events", lambda route: route.abort())
    page.goto(f"{real_app.url}/split")
    expect(page.locator("#cluster-header .link")).to_have_text("disconnected")


@pytest.mark.full  # above is what the page says, in tests/reliability what ends with an app
def test_a_page_whose_app_is_killed_says_so(page: Page, own_app: RealApp) -> None:
    open_page(page, own_app)
    expect(page.locator("#cluster-header .link")).to_have_text("live")
    family = own_app.tree()
    own_app.process.kill()  # the head goes while the page is open
    expect(page.locator("#cluster-header .link")).to_have_text("disconnected")
    until(
        lambda: not any(process.is_running() for process in family[1:]), PATIENCE, "nodes and stages end with their app"
    )
    assert own_app.command("status").returncode == 1  # the port file is stale, and nobody believes it
