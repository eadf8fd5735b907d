"""What the page with the Split panel offers by itself: the last plan, and a better split. In a real browser."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Page, expect

from tests.conftest import RealApp, run_up, until
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.patience import PATIENCE
from tests.webui.conftest import open_page

MARKUP = "anna is slow; with <img src=x onerror=\"document.title='hacked'\"> 0:1 it would be 35% faster"
# What the head says, with advice added: a real one takes a machine that is slow for a while (see the long form below).
WITH_ADVICE = """text => {
  const parse = JSON.parse;
  JSON.parse = (...all) => {
    const value = parse(...all);
    return value && value.serving ? Object.assign(value, { advice: text }) : value;
  };
}"""

WITH_LIMIT = """text => {
  const parse = JSON.parse;
  JSON.parse = (...all) => {
    const value = parse(...all);
    if (!value || !value.serving || value.nodes.length < 2) return value;
    Object.assign(value.nodes[0], { let_go: [{ sentence: text }] });
    const older = { node: value.nodes[1].id, kind: "version", text: `older ${text}` };
    const notes = [{ node: value.nodes[1].id, kind: "memory", text: `${text} too` }, older];
    return Object.assign(value, { limits: [{ node: value.nodes[0].id, text }], notes });
  };
}"""


# --- the last plan ----------------------------------------------------------------------------------------------------


def test_the_last_plan_is_offered_and_loaded(page: Page, lent_app: RealApp) -> None:
    open_page(page, lent_app)
    expect(page.locator("#cluster-header .pill")).to_have_text("READY")
    expect(page.locator("#offer")).to_be_hidden()
    lent_app.post("/control/unload", {})
    expect(page.locator("#offer")).to_contain_text("Last: toy on <img src=x")
    expect(page.locator("#offer")).to_contain_text("-2 2:4.")
    assert page.locator("#offer img").count() == 0
    page.locator("#load-last").click()
    expect(page.locator("#cluster-header .pill")).to_have_text("READY")
    expect(page.locator("#offer")).to_be_hidden()
    expect(page.locator("#notice")).to_be_empty()
    assert page.locator("#cluster-header .layer-bar .segment-range").all_inner_texts() == ["0:2", "2:4"]
    config = lent_app.home.parent / "toy" / "config.json"
    config.rename(config.with_suffix(".gone"))
    lent_app.post("/control/unload", {})
    page.locator("#load-last").click()
    expect(page.locator("#cluster-header .sentence")).to_contain_text("has neither config.json")
    expect(page.locator("#notice")).to_be_empty()  # nothing is said twice
    config.with_suffix(".gone").rename(config)
    assert page.title() == "Split – together"


# --- a better split ---------------------------------------------------------------------------------------------------


def test_advice_stands_beside_the_nodes_with_a_button(page: Page, real_app: RealApp) -> None:
    page.add_init_script(f"({WITH_ADVICE})({MARKUP!r})")
    open_page(page, real_app)
    expect(page.locator("#nodes-column #advice")).to_contain_text(f"A better split: {MARKUP}.")
    assert page.locator("#advice img").count() == 0
    page.locator("#rebalance").click()  # this head knows of none
    expect(page.locator("#notice")).to_contain_text("the machines do as planned")
    assert page.title() == "Split – together"


def test_what_a_node_ran_out_of_and_let_go_is_said(page: Page, real_app: RealApp) -> None:
    page.add_init_script(f"({WITH_LIMIT})({MARKUP!r})")
    open_page(page, real_app)
    rows = page.locator("#cluster-nodes tbody tr")
    expect(rows.nth(0).locator("[data-label=Memory] .cause")).to_have_text(MARKUP)
    expect(rows.nth(1).locator("[data-label=Memory] .cause")).to_have_text(f"{MARKUP} too")
    expect(rows.nth(1).locator("[data-label=Node] .cause")).to_have_text(f"older {MARKUP}")
    expect(page.locator("#split-gone p")).to_have_text([f"{real_app.status()['nodes'][0]['name']}: {MARKUP}"])
    expect(page.locator("#cluster-header .link")).to_have_text("live")
    expect(page.locator("#advice")).to_be_hidden()  # there is none
    expect(page.locator("#rebalance")).to_be_hidden()
    assert rows.locator("img").count() == 0
    assert page.title() == "Split – together"


@pytest.mark.full
def test_a_machine_that_became_slow_gets_fewer_layers_by_the_button(page: Page, tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy", layers=12, quiet_ids=(*QUIET, EOS), step_ms=4)
    with run_up(tmp_path, "--model", str(toy), "--backend", "checksum", "--users", "4", "--context", "256") as app:
        before = layers(app)
        assert len(before) == 2
        stop = threading.Event()
        jobs = [threading.Thread(target=keep_busy, args=(app, stop)) for _ in range(2)]
        jobs.append(threading.Thread(target=hinder, args=(psutil.Process(app.stage_pids()[1]), stop)))
        for job in jobs:
            job.start()
        try:
            open_page(page, app)
            expect(page.locator("#advice")).to_contain_text("slower than planned", timeout=80_000)
            assert "better: " in app.command("status").stdout
            page.locator("#rebalance").click()
            until(lambda: app.serving()["state"] == "READY" and layers(app) != before, PATIENCE, "layers have moved")
        finally:
            stop.set()
            for job in jobs:
                job.join(30)
        assert min(layers(app).values()) < min(before.values())


def layers(app: RealApp) -> dict[str, int]:
    """How many layers each node holds."""
    held = {node["id"]: [stage["layers"] for stage in node["stages"]] for node in app.status()["nodes"]}
    return {node: sum(each["stop"] - each["start"] for each in ranges) for node, ranges in held.items() if ranges}


def keep_busy(app: RealApp, stop: threading.Event) -> None:
    body = {"messages": [{"role": "user", "content": "work"}], "max_tokens": 100}
    while not stop.is_set():
        app.post("/v1/chat/completions", body)


def hinder(process: psutil.Process, stop: threading.Event) -> None:
    """Take two thirds of a process's time."""
    while not stop.is_set() and process.is_running():
        process.suspend()
        stop.wait(0.04)
        process.resume()
        stop.wait(0.02)
