"""One question through every door: page, terminal, script, chat and completions route have one prompt and one sampling.

The toy's text depends on every token of the prompt and on how it is drawn, so equal texts say that both are equal.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import RealApp, serving_instead
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.webui.conftest import answers, ask, figures, open_chat, set_chat
from together.requests import Message
from together.scripting import PartitionStrategy, partition
from together.text.tokenizer import TextModel

QUESTION, SYSTEM, SEED, TOKENS = "Which door is it?", "Answer briefly.", 11, 24
AUTHORS = [{}, {"do_sample": True, "temperature": 1.2, "top_k": 9, "min_p": 0.01, "repetition_penalty": 1.3}]


def page_says(page: Page) -> str:
    set_chat(page, System_prompt=SYSTEM, Seed=SEED, Max_tokens=TOKENS)
    ask(page, QUESTION)
    figures(page)
    return answers(page).locator(".text").inner_text()


def script_says(toy: Path, home: Path, messages: list[dict[str, str]]) -> str:
    how = PartitionStrategy(num_partitions=1, strategy_type="uniform", backend="checksum", context=256, users=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOGETHER_HOME", str(home))
        with partition(toy, how) as model:
            return model.generate(messages, seed=SEED, max_tokens=TOKENS)


def words(text: str) -> str:
    """What is left of a text on a page, where markdown takes spaces and signs."""
    return "".join(letter for letter in text if letter.isalnum())


@pytest.mark.parametrize(
    "author", [pytest.param(AUTHORS[0], marks=pytest.mark.full), AUTHORS[1]], ids=["silent", "opinionated"]
)
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
        open_chat(page, real_app, "doors")
        shown = page_says(page)
        page.request.delete(f"{real_app.url}/conversations")
    said = chat["choices"][0]["message"]["content"]
    assert completion["choices"][0]["text"] == said
    assert completion["usage"]["prompt_tokens"] == chat["usage"]["prompt_tokens"]
    assert terminal == said
    assert words(shown) == words(said)
    assert script_says(toy, tmp_path / "home", messages) == said


@pytest.mark.full  # 2,048 tokens; test_chat_page.py and tests/desktop/test_running.py have shorter answers
def test_terminal_and_page_say_what_cut_an_answer_off(page: Page, real_app: RealApp, tmp_path: Path) -> None:
    endless = make_checksum_model(tmp_path / "endless", quiet_ids=(*QUIET, EOS))
    with serving_instead(real_app, endless):
        usual = real_app.command("chat", "Hello").stderr
        open_chat(page, real_app, "endless")
        expect(page.locator("#drawer").get_by_label("Max tokens")).to_have_attribute("placeholder", "2048")
        set_chat(page, Max_tokens=7)
        ask(page, "Hello")
        said = "The answer was cut off at its limit of 7 tokens; to go on, write: continue"
        expect(page.locator(".ending")).to_contain_text(said)
        page.request.delete(f"{real_app.url}/conversations")
    assert usual == "(the answer was cut off at its limit of 2048 tokens; for a longer one add: --max-tokens 4096)\n"


@pytest.mark.full  # tests/text/test_answers.py has the sentence
def test_terminal_and_page_say_that_the_context_is_full(page: Page, real_app: RealApp, tmp_path: Path) -> None:
    narrow = make_checksum_model(tmp_path / "narrow", context=64, quiet_ids=(*QUIET, EOS), seed=2)
    with serving_instead(real_app, narrow):
        answer = real_app.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        made, context = answer["usage"]["completion_tokens"], answer["usage"]["total_tokens"]
        short = f"the answer was cut off after {made} tokens: the context of {context} tokens is full"
        limitless = real_app.command("chat", "Hello", "--max-tokens", "-1")
        assert limitless.stderr.startswith(f"({short}")
        assert real_app.command("chat", "Hello").stderr == limitless.stderr
        assert "\n" not in limitless.stdout.removesuffix("\n")
        open_chat(page, real_app, "narrow")
        ask(page, "Hello")
        expect(page.locator(".ending")).to_contain_text(short[1:])
        page.request.delete(f"{real_app.url}/conversations")
