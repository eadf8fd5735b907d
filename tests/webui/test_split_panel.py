"""The Split panel in a real browser, on a really started app of two nodes."""

from __future__ import annotations

import re

import psutil
from playwright.sync_api import Page, expect

from tests.conftest import EVIL_NAME, LAYERS, NODE_NAMES, RealApp, until
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.patience import PATIENCE, PATIENCE_MS
from tests.webui.conftest import answers, ask, measurements, open_page, set_number

MEASURED = 2 * PATIENCE_MS  # two nodes of one machine measure one after another


def recommend(page: Page) -> None:
    page.locator("#split-recommend").click()
    expect(page.locator("#split-apply")).to_be_enabled(timeout=MEASURED)


def set_layers(page: Page, *counts: int) -> None:
    for index, count in enumerate(counts):
        page.locator(f"#split-layers-{index}").fill(str(count))


def ranges(page: Page, place: str) -> list[str]:
    return page.locator(f"{place} .layer-bar .segment-range").all_inner_texts()


def red(page: Page) -> str:
    """The sentences of what is wrong, which are red."""
    first = page.locator("#split-panel .wrong").first
    expect(first).to_be_visible()
    colour = first.evaluate("element => getComputedStyle(element).color")
    channels = [int(value) for value in re.findall(r"\d+", colour)]
    assert channels[0] > 180 > 80 > max(channels[1:3]), colour
    return page.locator("#split-panel .wrong").all_inner_texts()[0]


def choose_model(page: Page, name: str) -> None:
    page.locator("#split-model input").click()
    page.locator("#split-column [role=option]", has_text=name).click()


def test_a_split_is_recommended_with_reasons_and_names_are_text(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    recommend(page)
    assert ranges(page, "#split-panel")[-1].endswith(f":{LAYERS}")
    assert sorted(page.locator("#split-panel td .node-name").all_inner_texts()) == NODE_NAMES
    expect(page.locator("#split-speed")).to_contain_text("tokens/s for one person alone")
    expect(page.locator("#split-speed")).to_contain_text("for 4 people together")
    expect(page.locator("#split-why")).to_contain_text("a token takes")
    assert page.locator("#split-why").inner_text().count(EVIL_NAME) >= 2
    assert page.locator("#split-panel img").count() == 0
    assert page.title() == "together"
    expect(page.locator("#split-reset")).to_be_disabled()


def test_an_edit_is_scored_as_it_is_made(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    recommend(page)
    before = page.locator("#split-speed").inner_text()
    counts = [int(page.locator(f"#split-layers-{index}").input_value()) for index in range(2)]
    giver = counts.index(max(counts))  # with two nodes of one machine it has them all
    edited = [counts[index] + (-1 if index == giver else 1) for index in range(2)]
    page.locator(f"#split-more-{1 - giver}").click()
    expect(page.locator("#split-wrong")).to_have_text(f"the layers add up to {LAYERS + 1}, the model has {LAYERS}")
    assert "the layers add up" in red(page)
    expect(page.locator("#split-apply")).to_be_disabled()
    page.locator(f"#split-less-{giver}").click()
    expect(page.locator("#split-apply")).to_be_enabled()
    expect(page.locator("#split-wrong")).to_be_empty()
    expect(page.locator("#split-speed")).not_to_have_text(re.compile(f"^({re.escape(before)})?$"))
    assert ranges(page, "#split-panel")[0] == f"0:{edited[0]}"
    page.locator("#split-layers-0").fill("")
    expect(page.locator("#split-wrong")).to_contain_text("its number of layers is missing")
    expect(page.locator("#split-apply")).to_be_disabled()
    page.locator("#split-reset").click()
    expect(page.locator("#split-apply")).to_be_enabled()
    expect(page.locator("#split-speed")).to_have_text(before)
    assert [page.locator(f"#split-layers-{index}").input_value() for index in range(2)] == list(map(str, counts))


def test_what_does_not_fit_is_said_with_what_would(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    set_number(page, "#split-users", 1_000_000)
    page.locator("#split-recommend").click()
    expect(page.locator("#split-panel .wrong")).to_contain_text("the model does not fit", timeout=MEASURED)
    expect(page.locator("#split-panel .advice")).to_contain_text("instead of 1000000 users at once")
    expect(page.locator("#split-apply")).to_have_count(0)


def test_a_wrong_wish_and_a_strange_model_are_sentences(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    page.locator("#split-strategy input").click()
    page.locator("#split-column [role=option]", has_text="By a ratio").click()
    page.locator("#split-ratio input, #split-ratio textarea").fill("three")
    page.locator("#split-recommend").click()
    expect(page.locator("#split-panel .wrong")).to_contain_text("'three' is not numbers", timeout=MEASURED)
    page.locator("#split-ratio input, #split-ratio textarea").fill("3:1")
    set_number(page, "#split-context", 5000)
    page.locator("#split-recommend").click()
    expect(page.locator("#split-panel .wrong")).to_contain_text("choose at most 4096", timeout=MEASURED)
    set_number(page, "#split-context", -1)
    page.locator("#split-recommend").click()
    expect(page.locator("#split-panel .wrong")).to_contain_text("-1 is less than 0")
    set_number(page, "#split-context", 0)
    page.locator("#split-model input").fill(EVIL_NAME)
    page.locator("#split-model input").press("Enter")
    page.locator("#split-recommend").click()
    expect(page.locator("#split-panel .wrong")).to_contain_text("there is no model")
    assert "onerror=" in red(page)
    assert page.locator("#split-column img").count() == 0
    assert page.title() == "together"


def test_models_of_this_machine_can_be_chosen(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    expect(page.locator("#split-model input")).to_have_value("toy (in service)")
    page.locator("#split-model input").click()
    expect(page.locator("#split-column [role=option]", has_text="demo_model")).to_be_visible()


def test_an_edited_split_is_applied_and_the_table_follows_machines(page: Page, own_app: RealApp) -> None:
    open_page(page, own_app)
    ask(page, "Hello", 10)
    measurements(page)
    recommend(page)
    set_layers(page, 3, 1)
    expect(page.locator("#split-wrong")).to_be_empty()
    expect(page.locator("#split-apply")).to_be_enabled()
    page.locator("#split-apply").click()
    expect(page.locator("#split-said .good")).to_contain_text("toy runs by this split", timeout=MEASURED)
    until(lambda: ranges(page, "#cluster-header") == ["0:3", "3:4"], PATIENCE, "the header shows the new split")
    stages = [stage["layers"] for node in own_app.status()["nodes"] for stage in node["stages"]]
    assert sorted((layers["start"], layers["stop"]) for layers in stages) == [(0, 3), (3, 4)]
    first = answers(page)
    ask(page, "Again", 5)
    expect(page.locator("#chat .bot.message > .message.thought")).to_have_count(2)
    assert answers(page)[0] == first[0]
    assert own_app.serving()["state"] == "READY"

    make_checksum_model(own_app.home / "models" / "slow", layers=6, load_ms=1500, seed=3, quiet_ids=(*QUIET, EOS))
    page.reload()
    choose_model(page, "slow")
    recommend(page)
    page.locator("#split-apply").click()
    expect(page.locator("#split-loading")).to_contain_text(re.compile(r"layers \d:\d of 6 · \d0 %"))
    expect(page.locator("#cluster-header .sentence")).to_contain_text("being loaded (loading, ")
    expect(page.locator("#split-said .good")).to_contain_text("slow runs by this split", timeout=MEASURED)
    expect(page.locator("#split-loading")).to_be_empty()
    expect(page.locator("#split-model input")).to_have_value("slow (in service)")

    known = {process.pid for process in own_app.tree()}
    own_app.post("/control/nodes", {"action": "start"})
    expect(page.locator("#cluster-nodes tbody tr")).to_have_count(3)
    expect(page.locator("#split-stale")).to_contain_text("recommend again")
    new = [process for process in own_app.tree() if process.pid not in known and "node" in process.cmdline()]
    assert len(new) == 1
    psutil.Process(new[0].pid).kill()
    lost = page.locator("#cluster-nodes tbody tr", has_text=f"{EVIL_NAME}-3")
    expect(lost.locator(".pill")).to_have_text("FAILED")
    expect(lost.locator(".cause")).to_contain_text("lost: ")
    expect(page.locator("#split-stale")).to_be_empty()  # the machines of the plan are all there are, again
