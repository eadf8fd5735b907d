"""The sampling controls in a real browser: the served model's defaults, a reset to them, and another model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import RealApp, serving_instead
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.webui.conftest import open_page, set_number

AUTHOR = {"do_sample": True, "temperature": 0.35, "top_k": 300, "top_p": 0.001}


@pytest.fixture(scope="module")
def opinionated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy whose author sets values that no usual slider offers."""
    toy = make_checksum_model(tmp_path_factory.mktemp("model") / "opinionated", quiet_ids=(*QUIET, EOS), seed=3)
    (toy / "generation_config.json").write_text(json.dumps(AUTHOR))
    return toy


def shows(page: Page, control: str, value: str, info: str) -> None:
    expect(page.locator(f"{control} input[type=number]")).to_have_value(value)
    expect(page.locator(control)).to_contain_text(info)


def test_another_model_brings_its_own_and_a_reset_goes_back(page: Page, real_app: RealApp, opinionated: Path) -> None:
    open_page(page, real_app)
    shows(page, "#temperature", "0.7", "Default: 0.7")
    shows(page, "#top-p", "0.95", "Default: 0.95")
    with serving_instead(real_app, opinionated):
        shows(page, "#temperature", "0.35", "Set by the model author: 0.35")
        shows(page, "#top-k", "300", "Set by the model author: 300")
        shows(page, "#top-p", "0.001", "Set by the model author: 0.001")
        set_number(page, "#temperature", 1.5)
        page.locator("#reset-sampling").click()
        shows(page, "#temperature", "0.35", "Set by the model author: 0.35")
        page.reload()
        shows(page, "#top-p", "0.001", "Set by the model author: 0.001")
    shows(page, "#temperature", "0.7", "Default: 0.7")
