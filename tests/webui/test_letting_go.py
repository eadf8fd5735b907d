"""What a full cache let go, on the page, in `status` and in the app's terminal."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import start_app, until
from tests.support.mlx_folders import make_plain
from tests.support.patience import PATIENCE
from tests.support.suppliers import fetcher, quiet, source
from tests.webui.conftest import open_page, reads_well
from together.cluster_types import Endpoint
from together.models.manifest import describe
from together.models.names import layer_unit
from together.types import LayerRange
from together.weights.converting import make_units
from together.weights.store import Store, begin_form, known_model

FOUR, EIGHT = "mlx-affine-4-g64@1", "mlx-affine-8-g64@1"
GONE = "the cache was full: tiny in 4 bit was let go, "


def make_form(home: Path) -> tuple[Path, int]:
    """A model with a form in the cache; what the cache may have so that its other form fits and both do not."""
    plain, store = make_plain(home / "models" / "tiny", "llama", "bf16", num_hidden_layers=1), Store(home)
    folder = begin_form(plain, describe(plain), FOUR, store)
    make_units(store, plain, folder.name, [layer_unit(0)], lambda done: None)
    other = describe(plain).in_form(EIGHT)
    return folder, sum(unit.size for unit in other.units.values()) + known_model(folder, home).bytes // 2


@pytest.mark.full  # short in test_offers.py; tests/cluster/test_letting_go.py has what goes
def test_what_was_let_go_is_on_the_page_and_in_terminals(page: Page, tmp_path: Path) -> None:
    """Another machine asks for a form that this one makes."""
    form, cache = make_form(tmp_path / "home")
    plain = tmp_path / "home" / "models" / "tiny"
    with start_app(tmp_path, TOGETHER_CACHE=f"{cache}B") as app:
        open_page(page, app)
        expect(page.locator("#split-gone p")).to_have_count(0)
        model = replace(describe(plain).in_form(EIGHT).ref(), path="/no/such/folder")
        node = app.status()["nodes"][0]
        supplier = source(Endpoint(tuple(node["endpoint"]["addresses"]), node["endpoint"]["port"]), plain)
        asked = fetcher(tmp_path / "laptop").fetch(model, LayerRange(0, 1), (supplier,), quiet)
        with ThreadPoolExecutor(1) as thread:  # while Playwright runs, this one has no loop of its own
            thread.submit(asyncio.run, asked).result(PATIENCE)
        assert not form.exists()
        expect(page.locator("#split-gone p")).to_have_text([f"{node['name']}: {gone_text(app.status()['nodes'][0])}"])
        assert page.title() != "hacked"
        reads_well(page)
        assert f"{node['name']}: {GONE}" in app.command("status").stdout
        until(lambda: f"{node['name']}: {GONE}" in (tmp_path / "log").read_text(), PATIENCE, "the terminal says it")
        assert (tmp_path / "log").read_text().count(GONE) == 1


def gone_text(node: dict[str, Any]) -> str:
    (gone,) = node["let_go"]
    text: str = gone["sentence"]
    assert text.startswith(GONE)
    return text
