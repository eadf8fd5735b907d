"""The page in a real browser, on a really started app."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from playwright.sync_api import Page, Route, expect

from tests.conftest import EVIL_NAME, NODE_NAMES, RealApp, until
from tests.support.patience import PATIENCE
from tests.webui.conftest import answers, ask, measurements, open_page, reads_well, set_number
from webui import gr
from webui.answers import Answers
from webui.conversation import thought, turn


def test_a_preset_question_is_answered(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    expect(page.locator("#max-tokens input")).to_have_value("2048")
    set_number(page, "#max-tokens", 20)
    page.get_by_text("What is the capital of France?").click()
    line = measurements(page)
    assert line.startswith("20 tokens · ")
    assert "tokens/s · first token after" in line
    assert "the answer was cut off at its limit of 20 tokens; to go on, write: continue" in line
    assert len(answers(page)) == 1


def test_a_conversation_goes_on_retries_and_clears(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    set_number(page, "#temperature", 0)
    page.locator("#system textarea").fill("S")
    ask(page, "Hello", 10)
    measurements(page)
    ask(page, "Again", 10)
    expect(page.locator("#chat .bot.message > .message.thought")).to_have_count(2)
    before = answers(page)
    turns = [("system", "S"), ("user", "Hello"), ("assistant", before[0]), ("user", "Again")]
    messages = [{"role": role, "content": text} for role, text in turns]
    body = {"messages": messages, "max_tokens": 10, "temperature": 0}
    said = real_app.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert len(before[1].strip()) <= len(said)  # markdown may take a character; the settings arrived
    set_number(page, "#max-tokens", 6)
    page.locator("#retry").click()
    expect(page.locator("#chat .bot.message > .message.thought").last).to_contain_text(re.compile(r"^6 tokens · "))
    again = answers(page)
    assert len(again) == 2
    assert before[1].startswith(again[1])  # greedy
    page.locator("#clear").click()
    expect(page.get_by_text("What is the capital of France?")).to_be_visible()


def test_a_chat_that_is_cleared_during_an_answer_stays_clear(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    for _ in range(2):
        ask(page, "Hello", 4000)
        until(lambda: real_app.serving()["running"] == 1, PATIENCE, "the answer is being made")
        page.locator("#clear").click()
        until(lambda: real_app.serving()["running"] == 0, PATIENCE, "the sequence is gone")
        expect(page.locator("#send")).to_be_visible()
        expect(page.locator("#chat .message")).to_have_count(0)
    assert page.evaluate("window.together.cleared")


def test_stop_leaves_a_chat_alone_that_it_does_not_change() -> None:
    """What it sent back could come after the click that cleared the chat."""
    answers = Answers(None)  # type: ignore[arg-type]  # no head is asked
    assert answers.stop([turn("user", "Hello"), turn("assistant", "Hi")])[0] == gr.skip()
    assert answers.stop([])[0] == [], "a cleared chat that a late part of its answer drew again is cleared again"
    thinking = [turn("user", "Hello"), thought("Hm", "Thinking… 2 s")]
    assert answers.stop(thinking)[0][-1]["metadata"]["title"] == "Thought for 2 s, stopped"


def test_stop_really_stops(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    ask(page, "Hello", 4000)
    before = real_app.generated_tokens()
    until(lambda: real_app.serving()["running"] == 1, PATIENCE, "the answer is being made")
    page.locator("#stop").click()
    until(lambda: real_app.serving()["running"] == 0, PATIENCE, "the sequence is gone")
    assert real_app.generated_tokens() - before < 4000
    expect(page.locator("#send")).to_be_visible()
    ask(page, "Again", 5)
    assert measurements(page).startswith("5 tokens")


def test_stop_holds_also_where_the_answer_ends_later(page: Page, real_app: RealApp) -> None:
    """On a busy machine: parts of the answer come after the click, until the server has heard of it."""
    open_page(page, real_app)
    page.route("**/cancel", later)
    ask(page, "Hello", 4000)
    until(lambda: real_app.serving()["running"] == 1, PATIENCE, "the answer is being made")
    page.locator("#stop").click()
    until(lambda: real_app.serving()["running"] == 0, PATIENCE, "the sequence is gone")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("#stop")).to_be_hidden()


def later(route: Route) -> None:
    time.sleep(1)
    route.continue_()


def test_a_closed_tab_stops_its_answer(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    ask(page, "Hello", 4000)
    before = real_app.generated_tokens()
    until(lambda: real_app.serving()["running"] == 1, PATIENCE, "the answer is being made")
    page.close()
    until(lambda: real_app.serving()["running"] == 0, PATIENCE, "the sequence is gone")
    assert real_app.generated_tokens() - before < 4000


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
    assert page.title() == "together"


def test_a_wrong_seed_and_a_long_prompt_are_sentences(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    page.locator("#seed input, #seed textarea").fill("seven")
    refused(page, "Hello", 5, "the seed is a whole number")
    expect(page.locator("#question textarea")).to_have_value("Hello")  # to be sent again
    page.locator("#seed input, #seed textarea").fill("")
    refused(page, "Hello", 0, "Max tokens is at least 1, or empty for 2048")
    page.locator("#seed input, #seed textarea").fill("7")
    refused(page, "x" * 5000, 5, "4096")


def refused(page: Page, text: str, max_tokens: int, sentence: str) -> None:
    """Asks until the notice says why there is no answer: the page may still be busy with the refusal before."""

    def said() -> bool:
        ask(page, text, max_tokens)
        try:
            expect(page.locator("#notice")).to_contain_text(sentence, timeout=5000)
        except AssertionError:
            return False
        return True

    until(said, PATIENCE, f"the notice says {sentence!r}")


def test_trouble_is_mended_or_said_and_the_model_loads_again(page: Page, lent_app: RealApp) -> None:
    open_page(page, lent_app)
    ask(page, "Hello", 4000)
    until(lambda: answers(page) and len(answers(page)[0]) > 20, PATIENCE, "the answer is being made")
    ring, before = lent_app.stage_pids(), answers(page)[0]
    os.kill(ring[1], signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    until(
        lambda: lent_app.serving()["state"] == "READY" and ring[1] not in lent_app.stage_pids(),
        PATIENCE,
        "the ring is mended",
    )
    until(lambda: len(answers(page)[0]) > len(before) + 20, PATIENCE, "the answer goes on")
    expect(page.locator("#notice")).to_be_empty()
    page.locator("#stop").click()
    expect(page.locator("#cluster-header .pill")).to_have_text("READY")

    lent_app.post("/control/unload", {})
    lent_app.post("/control/load", {"model": EVIL_NAME})
    expect(page.locator("#cluster-header .pill")).to_have_text("FAILED")
    expect(page.locator("#cluster-header .sentence")).to_contain_text("onerror=")
    ask(page, "Again", 5)
    expect(page.locator("#notice")).to_contain_text("no model answers now, for the reason at the top")
    reads_well(page)
    page.locator("#load-again").click()
    expect(page.locator("#cluster-header .pill")).to_have_text("READY")
    expect(page.locator("#notice")).to_be_hidden()  # it is about what is past
    ask(page, "Again", 5)
    expect(page.locator("#chat .bot.message > .message.thought").last).to_contain_text("5 tokens")
    assert page.title() == "together"


def test_a_stream_that_ends_is_said(page: Page, real_app: RealApp) -> None:
    page.route("**/events", lambda route: route.abort())
    page.goto(real_app.url)
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
