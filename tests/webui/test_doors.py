"""One question through every door: page, terminal, chat route and completions route give one prompt and one sampling.

The toy's text depends on every token of the prompt and on how it is drawn, so equal texts say that both are equal.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import RealApp, serving_instead
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.webui.conftest import answers, ask, measurements, open_page
from together.requests import Message
from together.text.tokenizer import TextModel

QUESTION, SYSTEM, SEED, TOKENS = "Which door is it?", "Answer briefly.", 11, 24
AUTHORS = [{}, {"do_sample": True, "temperature": 1.2, "top_k": 9, "min_p": 0.01, "repetition_penalty": 1.3}]


def page_says(page: Page) -> str:
    page.locator("#system textarea").fill(SYSTEM)
    page.locator("#seed input, #seed textarea").fill(str(SEED))
    ask(page, QUESTION, TOKENS)
    measurements(page)
    return answers(page)[-1]


def words(text: str) -> str:
    """What is left of a text on a page, where markdown takes spaces and signs."""
    return "".join(letter for letter in text if letter.isalnum())


@pytest.mark.parametrize("author", AUTHORS, ids=["silent", "opinionated"])
def test_every_door_asks_the_same(page: Page, real_app: RealApp, tmp_path: Path, author: dict[str, object]) -> None:
    toy = make_checksum_model(tmp_path / "doors", quiet_ids=(*QUIET, EOS), seed=len(author))
    (toy / "generation_config.json").write_text(json.dumps(author))
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    prompt = TextModel.open(toy).template.render([Message(m["role"], m["content"]) for m in messages]).result()
    limits = {"seed": SEED, "max_tokens": TOKENS}
    with serving_instead(real_app, toy):
        chat = real_app.post("/v1/chat/completions", {"messages": messages, **limits}).json()
        completion = real_app.post("/v1/completions", {"prompt": prompt, **limits}).json()
        options = ("--system", SYSTEM, "--seed", str(SEED), "--max-tokens", str(TOKENS))
        terminal = real_app.command("chat", QUESTION, *options).stdout.removesuffix("\n")
        open_page(page, real_app)
        expect(page.locator("#cluster-header .model")).to_have_text("doors")
        expect(page.locator("#temperature input")).to_have_count(2)
        shown = page_says(page)
    said = chat["choices"][0]["message"]["content"]
    assert completion["choices"][0]["text"] == said
    assert completion["usage"]["prompt_tokens"] == chat["usage"]["prompt_tokens"]
    assert terminal == said
    assert words(shown) == words(said)
