"""`/tokenize` and `/detokenize`: the same tokens as a prompt has, and the same text again."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conftest import ROOT, RealApp
from together.requests import Message
from together.text.tokenizer import TextModel

TEXT = "Café 🗼, 7 plus 5?"
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def model() -> TextModel:
    return TextModel.open(ROOT / "examples" / "demo_model")


def test_a_text_becomes_tokens_and_a_text_again(demo_app: RealApp, model: TextModel) -> None:
    plain = demo_app.post("/tokenize", {"prompt": TEXT, "add_special_tokens": False}).json()
    assert tuple(plain["tokens"]) == model.encode(TEXT)
    assert plain["count"] == len(plain["tokens"]) < plain["max_model_len"]
    assert demo_app.post("/detokenize", {"tokens": plain["tokens"]}).json() == {"prompt": TEXT}


def test_a_conversation_becomes_the_tokens_of_its_prompt(demo_app: RealApp, model: TextModel) -> None:
    found = demo_app.post("/tokenize", {"messages": MESSAGES}).json()["tokens"]
    assert tuple(found) == model.prompt_ids([Message("user", TEXT)])
    huge = (
        '{"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": {"x": 1e999}}'  # JSON has no bound
    )
    assert httpx.post(f"{demo_app.url}/tokenize", content=huge, trust_env=False).status_code == 200
    begun = [*MESSAGES, {"role": "assistant", "content": "It is"}]
    more = demo_app.post("/tokenize", {"messages": begun, "continue_final_message": True}).json()["tokens"]
    assert more[: len(found)] == found
    assert len(more) > len(found)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
        ("/detokenize", {"tokens": []}, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(demo_app: RealApp, path: str, body: dict[str, Any], param: str) -> None:
    reply = demo_app.post(path, body)
    assert reply.status_code in (400, 404)
    assert reply.json()["error"]["param"] == param
