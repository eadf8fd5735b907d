"""The settings of a chat in a real browser: the served model's defaults, a reset to them, and another model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import RealApp, serving_instead
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.webui.conftest import open_chat

AUTHOR = {"do_sample": True, "temperature": 0.35, "top_k": 300, "top_p": 0.001}


@pytest.fixture(scope="module")
def opinionated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy whose author sets values that no usual slider offers."""
    toy = make_checksum_model(tmp_path_factory.mktemp("model") / "opinionated", quiet_ids=(*QUIET, EOS), seed=3)
    (toy / "generation_config.json").write_text(json.dumps(AUTHOR))
    return toy


def shows(page: Page, **usual: str) -> None:
    """What empty fields of the chat's settings say."""
    for name, text in usual.items():
        field = page.locator("#drawer").get_by_label(name.replace("_", "-"), exact=True)
        expect(field).to_have_attribute("placeholder", text)


def test_another_model_brings_its_own_and_a_reset_goes_back(page: Page, real_app: RealApp, opinionated: Path) -> None:
    open_chat(page, real_app)
    page.locator("#show-settings").click()
    shows(page, Temperature="0.7", Top_p="0.95")
    with serving_instead(real_app, opinionated):
        authors = {"Temperature": "0.35 (the author's)", "Top_k": "300 (the author's)", "Top_p": "0.001 (the author's)"}
        shows(page, **authors)
        temperature = page.locator("#drawer").get_by_label("Temperature")
        temperature.fill("1.5")
        page.get_by_role("button", name="Restore the model's defaults").click()
        expect(temperature).to_have_value("")
        page.reload()
        page.locator("#show-settings").click()
        shows(page, **authors)
    shows(page, Temperature="0.7")
