"""The view of models in a real browser, beside a ring of two stages and a hub on loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from tests.conftest import RealApp, start_app, until
from tests.support.axe import serious_faults
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.folders import write_tensors
from tests.support.hub import HubServer, serve_hub
from tests.support.made_up import write_made_up
from tests.support.patience import PATIENCE
from tests.support.reading import faults
from tests.webui.conftest import FITS
from together.desktop.bench.shapes import SHAPES

EVIL = "<img src=x onerror=\"document.title='hacked'\">"

REPO = "acme/tiny-chat"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with serve_hub() as server:
        yield server


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, hub: HubServer) -> Iterator[RealApp]:
    """One that asks this hub, without the person's own models and token."""
    folder = tmp_path_factory.mktemp("library")
    own = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(folder / "hf"), "HF_TOKEN_PATH": str(folder / "token")}
    own |= {"HF_TOKEN": "", "HOME": str(folder), "HF_HUB_DISABLE_TELEMETRY": "1"}
    write_made_up(folder / "home" / "models" / "large", SHAPES["llama-3.1-8b"])
    make_checksum_model(folder / "home" / "models" / "quick", seed=3, quiet_ids=(*QUIET, EOS))
    published = write_made_up(folder / "published", SHAPES["tiny"])
    write_tensors(published / "model.safetensors", SHAPES["tiny"].tensors())
    (published / "tokenizer.json").write_text("{}")
    hub.add(REPO, published)
    hub.licences[REPO] = "apache-2.0"
    with start_app(folder, **own) as started:
        yield started


@pytest.fixture
def view(page: Page, app: RealApp) -> Iterator[Page]:
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{app.url}/models")
    expect(page.locator("#here .model").first).to_be_visible()
    yield page
    assert [error for error in errors if "status of 4" not in error] == []


def local(view: Page, name: str) -> Locator:
    return view.locator(f"#here .model[data-model='{name}']")


def on_hub(view: Page, name: str = REPO) -> Locator:
    return view.locator(f"#hub .model[data-hub='{name}']")


def search(view: Page, words: str) -> None:
    view.locator("#find-model").fill(words)
    view.locator("#find-model").press("Enter")


def test_a_model_is_loaded_kept_called_otherwise_and_unloaded(view: Page, app: RealApp) -> None:
    toy = view.locator("#loaded .model[data-model=toy]")
    expect(toy).to_contain_text("toy is ready on 2 stages")
    expect(local(view, "large").locator(".fit")).to_have_count(4)
    expect(local(view, "large").locator(".fit.no")).to_have_count(4)
    expect(local(view, "demo_model")).to_contain_text("Comes with the app")
    large = local(view, "large").locator(".fit").first
    expect(large).to_have_text("as published · does not fit")
    large.press("Enter")
    expect(large).to_have_attribute("aria-expanded", "true")
    expect(local(view, "large").locator(".fit-why")).to_contain_text("The model does not fit: the nodes hold")
    expect(local(view, "large").get_by_role("button", name="Load as published")).to_have_count(0)
    view.locator("#find-model").fill("QUICK")
    expect(view.locator("#here .model")).to_have_count(1)
    local(view, "quick").get_by_role("button", name="Load", exact=True).press("Enter")
    expect(view.get_by_role("menuitem")).to_have_text(["Load in place of toy", "Load beside what is loaded"])
    view.keyboard.press("ArrowDown")
    view.keyboard.press("Enter")
    quick = view.locator("#loaded .model[data-model=quick]")
    expect(quick).to_have_attribute("data-state", "READY")
    expect(local(view, "quick").locator(".tag")).to_have_text("loaded")
    more = quick.get_by_role("button", name="More for quick")
    more.click()
    view.get_by_role("menuitem", name="Keep it in memory").click()
    expect(quick).to_contain_text("kept in memory")
    more.click()
    view.get_by_role("menuitem", name="Give it another name").click()
    view.locator("#asked").fill(EVIL)
    view.get_by_role("dialog").get_by_role("button", name="Give it").click()
    expect(quick).to_contain_text(f"also called {EVIL}")
    view.locator("#on-demand").check()
    until(lambda: app.status()["on_demand"], PATIENCE, "models are loaded on demand")
    view.locator("#on-demand").uncheck()
    until(lambda: not app.status()["on_demand"], PATIENCE, "no model is loaded on demand")
    more.click()
    view.get_by_role("menuitem", name="Give up the name").click()
    expect(quick).not_to_contain_text("also called")
    quick.get_by_role("button", name="Unload").click()
    expect(quick).to_have_count(0)
    expect(local(view, "quick").locator(".tag")).to_have_count(0)
    assert view.title() == "Models – together"


def test_a_gated_model_of_the_hub_is_downloaded_with_pauses(view: Page, app: RealApp, hub: HubServer) -> None:
    hub.gated.add(REPO)
    search(view, "no such words")
    expect(view.locator("#hub")).to_contain_text("The hub has no model that writes text under “no such words”.")
    search(view, "tiny")
    card = on_hub(view)
    expect(card).to_contain_text("licence apache-2.0")
    expect(card.locator(".tag")).to_have_text(["gated"])
    expect(card.locator(".refusal")).to_contain_text("is gated: accept its licence at")
    view.get_by_role("button", name="Give a token").click()
    view.locator("#asked").fill("hf_right")
    view.get_by_role("dialog").get_by_role("button", name="Keep it").click()
    expect(view.locator("#hub")).to_contain_text("Gated models come with your token.")
    search(view, "tiny")
    expect(card.locator(".fit.fits")).to_have_count(4)
    hub.bytes_per_s, hub.cuts = 60_000.0, [20_000, 30_000]
    card.get_by_role("button", name="Download").click()
    job = view.locator("#jobs .job")
    expect(job).to_contain_text(f"Download of {REPO}")
    expect(job).to_contain_text(re.compile(r"kB of \d+ kB · .* a second"))
    job.get_by_role("button", name="Pause").click()
    expect(job).to_have_attribute("data-state", "paused")
    view.reload()
    expect(job).to_have_attribute("data-state", "paused")
    part = local(view, REPO)
    expect(part.locator(".part")).to_contain_text("% of it are here")
    expect(view.locator("#disk")).to_contain_text("a download that is not whole")
    hub.bytes_per_s = 0.0
    job.get_by_role("button", name="Go on").click()
    expect(job.locator(".said")).to_contain_text("All of acme/tiny-chat is here")
    expect(part.locator(".part")).to_have_count(0)
    part.locator(".fit", has_text="4 bit").click()
    part.get_by_role("button", name="Quantize to 4 bit now").click()
    made = view.locator("#jobs .job", has_text="Quantizing")
    expect(made.locator(".said")).to_contain_text("Now acme/tiny-chat is here in 4 bit")
    expect(view.locator("#disk")).to_contain_text("it can be made again here")
    for row in (job.first, made):
        row.get_by_role("button", name="Take it from the list").click()
    expect(view.locator("#jobs")).to_be_hidden()
    part.first.get_by_role("button", name="More for").click()
    view.get_by_role("menuitem", name="Inspect").click()
    expect(view.get_by_role("dialog")).to_contain_text("llama, runs on torch, mlx")
    view.keyboard.press("Escape")
    for left in (1, 0):
        part.first.get_by_role("button", name="More for").click()
        view.get_by_role("menuitem", name="Delete").click()
        view.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(part).to_have_count(left)
    (Path(app.home).parent / "token").unlink()
    hub.gated.clear()


def test_hostile_names_small_screens_and_who_is_elsewhere(
    view: Page, app: RealApp, hub: HubServer, context: BrowserContext
) -> None:
    long = "x" * 90
    hub.found = [
        {"id": f"evil/{long}", "tags": ["safetensors", f"license:{EVIL}"], "config": {"model_type": EVIL}},
        {"id": "evil/files", "tags": ["gguf"], "gguf": {"architecture": EVIL}},
    ]
    search(view, "tiny")
    card = on_hub(view, f"evil/{long}")
    expect(card).to_contain_text(f"licence {EVIL}")
    expect(card).to_contain_text(f"{EVIL}, which does not run here")
    on_hub(view, "evil/files").get_by_role("button", name="Show its files").click()
    expect(view.locator(".toast.error")).to_contain_text("evil/files")
    view.locator(".toast .icon-button").click()
    expect(on_hub(view).locator(".fit")).to_have_count(4)
    assert [fault for text in view.locator("main").all_inner_texts() for fault in faults(text)] == []
    for width in (1280, 360):
        view.set_viewport_size({"width": width, "height": 740})
        until(lambda: view.evaluate(FITS), PATIENCE, "all fits")
        assert serious_faults(view) == []
    view.set_viewport_size({"width": 1280, "height": 860})
    assert view.title() == "Models – together"
    hub.found = []

    def elsewhere(route: Route) -> None:
        body = json.loads(route.fetch().body())
        route.fulfill(json=body | {"here": False, "hub": None})

    view.route(f"{app.url}/library", elsewhere)
    view.reload()
    expect(view.locator("#here .model").first).to_be_visible()
    expect(view.get_by_text("open this page there")).to_be_visible()
    expect(view.locator("#hub")).to_be_hidden()
    expect(view.locator("#here button")).to_have_count(0)
    expect(view.locator("#loaded button")).to_have_count(0)
