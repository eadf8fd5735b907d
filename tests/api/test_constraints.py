"""Fields of other servers that hold an answer to something: honoured on both routes, or refused by name."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.api.test_chat import PATH as CHAT
from tests.conftest import RealApp

SCHEMA = {
    "type": "object",
    "properties": {"unit": {"enum": ["c", "f"]}},
    "required": ["unit"],
    "additionalProperties": False,
}
RULES = 'root ::= "yes " digit "!"\ndigit ::= [0-9]'
ASKED: dict[str, Any] = {"temperature": 1, "max_tokens": 40}
UNIT = r'\{"unit": ?"[cf]"\}'


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_json": SCHEMA}, UNIT),
        ({"guided_json": json.dumps(SCHEMA)}, UNIT),
        ({"json_schema": SCHEMA}, UNIT),
        ({"structured_outputs": {"json": SCHEMA}}, UNIT),
        ({"guided_regex": "[a-c]{3}/[0-9]"}, "[a-c]{3}/[0-9]"),
        ({"structured_outputs": {"regex": "x+y"}}, "x+y"),
        ({"guided_choice": ['a "b"', "ü/c"]}, 'a "b"|ü/c'),
        ({"structured_outputs": {"choice": ["one"]}}, "one"),
        ({"guided_grammar": RULES}, "yes [0-9]!"),
        ({"grammar": RULES}, "yes [0-9]!"),
        ({"structured_outputs": {"grammar": RULES}}, "yes [0-9]!"),
    ],
    ids=lambda value: f"{value!s:.40}",
)
def test_an_answer_matches(demo_app: RealApp, fields: dict[str, Any], pattern: str) -> None:
    choice = demo_app.post(CHAT, {"messages": [{"role": "user", "content": "Say."}], **ASKED, **fields}).json()[
        "choices"
    ][0]
    assert re.fullmatch(pattern, choice["message"]["content"]), choice
    choice = demo_app.post("/v1/completions", {"prompt": "Say.", **ASKED, **fields}).json()["choices"][0]
    assert re.fullmatch(pattern, choice["text"]), choice


def test_any_object(demo_app: RealApp) -> None:
    fields = {"structured_outputs": {"json_object": True}, "max_tokens": 300, "temperature": 0}
    text = demo_app.post("/v1/completions", {"prompt": "{", **fields}).json()["choices"][0]["text"]
    assert text.startswith("{")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": "[]"}, "guided_json"),
        ({"guided_json": {"type": "nothing"}}, "guided_json"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"grammar": "root :="}, "grammar"),
        ({"grammar": "root ::= nowhere"}, "grammar"),
        ({"grammar": ""}, "grammar"),
        ({"grammar": "root ::= " + "(" * 10_000}, "grammar"),
        ({"grammar": "x" * 20_000}, "grammar"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
    ids=lambda value: f"{value!s:.40}",
)
def test_what_cannot_be_honoured_is_refused_by_name(demo_app: RealApp, fields: dict[str, Any], param: str) -> None:
    reply = demo_app.post(CHAT, {"messages": [{"role": "user", "content": "Say."}], **ASKED, **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
