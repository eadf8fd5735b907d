"""Images of the app's views with the bundled model: `python -m tests.support.chat_shots asserts`. Knows no test.

All four, in light and dark, on a wide screen and on a phone; look at each one before it is committed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Literal

import httpx
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import run_up
from tests.support.patience import PATIENCE, PATIENCE_MS
from tests.support.sizes import ROOT
from tests.webui.conftest import CHROMIUM

SIZES = {"wide": (1280, 800), "phone": (360, 740)}
COLOURS: tuple[Literal["light", "dark"], ...] = ("light", "dark")
QUESTIONS = ("What is a node?", "How many meters are in 3 kilometers?", "What is the capital of France?")


def chat(client: httpx.Client) -> str:
    """A conversation of all questions, with others beside it in the list; returns its id."""
    for question in QUESTIONS:
        made = str(client.post("/conversations", json={}).raise_for_status().json()["summary"]["id"])
        _ask(client, made, question)
    for question in QUESTIONS[:2]:
        _ask(client, made, question)
    return made


def _ask(client: httpx.Client, name: str, question: str) -> None:
    leaf = client.get(f"/conversations/{name}").json()["leaf"]
    client.post(f"/conversations/{name}/turns", json={"parent": leaf, "text": question}).raise_for_status()
    with client.stream("GET", f"/conversations/{name}/events") as events:
        for line in events.iter_lines():
            if line.startswith('data: {"chat"') and '"state":"writing"' not in line:
                return


def shoot(browser: Browser, url: str, name: str, folder: Path) -> None:
    for colours in COLOURS:
        for size, (width, height) in SIZES.items():
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=colours)
            context.set_default_timeout(PATIENCE_MS)
            page = context.new_page()
            page.goto(f"{url}/chat/{name}")
            expect(page.locator(".figures")).to_have_count(len(QUESTIONS))
            _shot(page, folder / f"chat-{size}-{colours}.png")
            for view in ("machines", "models", "settings"):
                page.goto(f"{url}/{view}")
                expect(page.locator(".preferences:visible")).to_be_visible()
                expect(page.locator(".machine")).to_have_count(2 if view == "machines" else 0)
                _shot(page, folder / f"{view}-{size}-{colours}.png")
            context.close()


def _shot(page: Page, file: Path) -> None:
    expect(page.locator(".chat-item")).to_have_count(len(QUESTIONS))
    page.mouse.move(0, 0)
    page.screenshot(path=file, animations="disabled")
    print(file)


def main(folder: Path) -> None:
    arguments = ("--model", str(ROOT / "examples" / "demo_model"), "--layers", "0:4,4:8")
    with tempfile.TemporaryDirectory() as home, run_up(Path(home), *arguments, TOGETHER_NAME="studio") as app:
        with httpx.Client(base_url=app.url, timeout=PATIENCE, trust_env=False) as client:
            name = chat(client)
            client.post("/control/plan", json={}).raise_for_status()  # so that the links are known
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            shoot(browser, app.url, name, folder)
            browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
