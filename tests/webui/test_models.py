"""Two models in one app: the page and the commands show both, and let a user choose which one answers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import RealApp, until
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import right_answer
from tests.support.patience import PATIENCE
from tests.webui.conftest import ask, figures, open_chat, open_page, reads_well, set_chat


@pytest.mark.full
def test_both_are_shown_and_the_chosen_one_answers(page: Page, real_app: RealApp, tmp_path: Path) -> None:
    second = make_checksum_model(tmp_path / "second", seed=5, quiet_ids=(*QUIET, EOS))
    open_chat(page, real_app)
    loaded = real_app.command("load", str(second), "--beside")
    assert "second is ready at" in loaded.stdout, loaded.stderr
    try:
        page.locator("#show-settings").click()
        page.locator("#drawer").get_by_label("Model").select_option("second")
        expect(page.locator(".served")).to_have_text("second")
        page.locator("#show-settings").click()
        set_chat(page, Max_tokens=12)
        ask(page, "hello")
        assert figures(page).startswith("12 tokens")
        assert 'together_generated_tokens_total{model="second"} 12.0' in real_app.get("/metrics").text
        page.request.delete(f"{real_app.url}/conversations")
        page.get_by_role("link", name="Models").click()
        expect(page.locator("#loaded .model h3")).to_have_text(["toy", "second"])
        open_page(page, real_app)
        expect(page.locator("#cluster-header .service")).to_contain_text("second is ready on")
        reads_well(page)
        page.locator("#split-model input").click()
        page.get_by_role("option", name="second (in service)").click()
        page.locator("#split-recommend").click()
        expect(page.locator("#split-panel")).to_contain_text("a token takes")
        expect(page.locator("#split-panel")).to_contain_text("toy computes on ")
        status = real_app.command("status").stdout
        assert "second is ready on" in status
        assert "toy is ready on" in status
        for said in (status, page.locator("#split-pace").inner_text()):
            assert "toy and second share " in said
            assert "second and toy share " in said
        served = json.loads(real_app.command("ps", "--json").stdout)["models"]
        assert [model["model"] for model in served] == ["toy", "second"]
        unnamed = real_app.command("unload")
        assert "several models serve here: toy and second; name one of them" in unnamed.stderr
        chosen = real_app.command("chat", "hello", "--model", "second", "--temperature", "0", "--max-tokens", "12")
        assert chosen.stdout.strip() == right_answer(second).strip()
    finally:
        assert real_app.command("unload", "second").stdout == "unloaded\n"
    switch = page.locator("#on-demand input")

    def switched(wanted: bool) -> bool:
        return bool(real_app.status()["on_demand"]) is wanted

    for wanted in (True, False):
        switch.set_checked(wanted)
        until(partial(switched, wanted), PATIENCE, "the head knows")
