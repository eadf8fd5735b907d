"""Bodies as large as the API takes that are refused: they leave no memory behind and are not repeated in the answer."""

from __future__ import annotations

import json
from typing import Any

import psutil
import pytest

from tests.conftest import RealApp, until
from tests.support.patience import PATIENCE
from together.api.guard import MAX_BODY

LEFT = 50 * 10**6  # bytes that six of them may leave
MESSAGE = 600  # characters of a refusal
TIMES = 6

BIG = "hello world, this is a text. " * (MAX_BODY // 29 - 40)
ONE = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
PROPERTIES = {f"p{index}": {"type": "string"} for index in range(90_000)}
CHAT, TEXT, LOAD = "/v1/chat/completions", "/v1/completions", "/control/load"


def tools(**more: object) -> list[dict[str, object]]:
    return [{"type": "function", "function": {"name": "f", "parameters": {"properties": PROPERTIES}, **more}}]


def schema() -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": {"properties": PROPERTIES}}}


BODIES: dict[str, tuple[str, Any]] = {
    "chat": (CHAT, ONE | {"messages": [{"role": "user", "content": BIG}]}),
    "system": (CHAT, ONE | {"messages": [{"role": "system", "content": BIG}, {"role": "user", "content": "x"}]}),
    "parts": (CHAT, ONE | {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello "}] * 90_000}]}),
    "text": (TEXT, {"prompt": BIG}),
    "texts": (TEXT, {"prompt": [BIG[:32_000]] * 120}),
    "ids": (TEXT, {"prompt": [5] * (2**20 - 9)}),
    "lists": (TEXT, {"prompt": [[5] * 8000] * 128}),
    "bias": (CHAT, ONE | {"logit_bias": {str(index): 1 for index in range(280_000)}}),
    "key": (CHAT, ONE | {"logit_bias": {BIG: 1}}),
    "value": (CHAT, ONE | {"logit_bias": {BIG: "x"}}),
    "offered": (CHAT, ONE | {"tools": tools()}),
    "strict": (CHAT, ONE | {"tools": tools(strict=True)}),
    "schema": (CHAT, ONE | {"response_format": schema()}),
    "model": (CHAT, ONE | {"model": BIG}),
    "call": (CHAT, ONE | {"messages": [{"role": "tool", "content": "x", "tool_call_id": BIG}]}),
    "part": (CHAT, ONE | {"messages": [{"role": "user", "content": [{"type": BIG}]}]}),
    "folder": (LOAD, {"model": BIG}),
    "layers": (LOAD, {"layers": BIG}),
    "strategy": (LOAD, {"strategy": BIG}),
    "field": (LOAD, {BIG: 1}),
    "digits": ("/control/plan", {"layers": "0:" + "9" * 5000}),
    "node": ("/control/drain", {"node": BIG}),
    "action": ("/control/nodes", {"action": BIG}),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_large_body_that_is_refused_leaves_nothing(real_app: RealApp, name: str) -> None:
    path, body = BODIES[name]
    head, before = psutil.Process(real_app.process.pid), 0
    for _ in range(2):
        answer = real_app.post(path, body)
        assert answer.status_code in (400, 404), answer.text[:1000]
        assert len(answer.json()["error"]["message"]) < MESSAGE
        assert len(json.dumps(answer.json())) < 2 * MESSAGE
        before = before or head.memory_info().rss  # the first one of a kind loads what it needs
    until(lambda: head.memory_info().rss < before + LEFT, PATIENCE, "the memory is given back")


def test_six_long_texts_leave_the_head_as_it_was(real_app: RealApp) -> None:
    """They are refused by their length alone: `tests/text/test_long_texts.py` has those that are tokenized first."""
    real_app.post(CHAT, ONE)
    head = psutil.Process(real_app.process.pid)
    before = head.memory_info().rss
    for path, body in (BODIES["chat"], BODIES["text"]) * (TIMES // 2):
        answer = real_app.post(path, body).json()
        assert answer["error"]["code"] == "context_length_exceeded"
        assert "has at least" in answer["error"]["message"]
    until(lambda: head.memory_info().rss < before + LEFT, PATIENCE, "the memory is given back")
