"""What models are offered of what servers list and users write, and whose a server is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from together.errors import AppError, BadRequest
from together.requests import Tool
from together.tools.offers import MOST_SCHEMA, answer_schema, functions_of, offers, usable
from together.tools.servers import MOST_SERVERS, NoSuchServer, ServerFile, ToolServer

PLAIN: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}}
ONE = ToolServer("one", "local", url="http://127.0.0.1:1/mcp")


def test_names_are_such_that_a_model_can_say_them() -> None:
    listed = [
        (ONE, (Tool("add"), Tool("evil <b>name</b>"), Tool("weather"))),
        (replace(ONE, name="two"), (Tool("add"), Tool("two_add"), Tool("ä" * 90))),
    ]
    made = offers(listed, (Tool("weather"),))
    assert [(each.tool.name, each.server, each.name) for each in made] == [
        ("weather", "", "weather"),
        ("add", "one", "add"),
        ("evil__b_name__b_", "one", "evil <b>name</b>"),
        ("one_weather", "one", "weather"),
        ("two_add", "two", "add"),
        ("two_two_add", "two", "two_add"),
        ("_" * 64, "two", "ä" * 90),
    ]


def test_what_was_allowed_is_asked_again_when_it_changes(tmp_path: Path) -> None:
    servers, tool = ServerFile(tmp_path), Tool("add", "The sum.", PLAIN)
    servers.add(ONE)
    assert [each.asks for each in offers([(servers.find("local", "one"), (tool,))], ())] == [True]
    servers.allow("local", "one", tool)
    kept = servers.find("local", "one")
    assert [each.asks for each in offers([(kept, (tool, Tool("other")))], ())] == [False, True]
    assert [each.asks for each in offers([(kept, (replace(tool, description="Deletes all."),))], ())] == [True]
    servers.ask_again("local", "one")
    assert not servers.find("local", "one").allowed


def test_tools_that_no_model_can_be_held_to_are_left_out() -> None:
    good, bad = {"name": "good", "parameters": PLAIN}, {"name": "x", "parameters": {"type": "string"}}
    large = {"name": "large", "parameters": {"type": "object", "description": "x" * MOST_SCHEMA}}
    odd = {"name": "odd", "parameters": {"type": "object", "properties": {"a": {"type": "no type"}}}}
    found, left = usable([good, bad, large, odd, good, {"name": ""}, {"name": "n", "parameters": 1}])
    assert [tool.name for tool in found] == ["good"]
    assert left == ("x", "large", "odd", "good", "", "n")


def test_functions_as_a_user_writes_them() -> None:
    bare = '[{"name": "weather", "description": "d", "parameters": {"type": "object"}}]'
    assert functions_of(bare) == (Tool("weather", "d", {"type": "object"}),)
    assert functions_of('{"type": "function", "function": {"name": "now"}}') == (Tool("now"),)
    assert functions_of(" ") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"name": "a",}]', "line 1, letter 15"),
        ("7", "as \\[{"),
        ('[{"name": "a b"}]', "function 1 needs a name"),
        ('[{"name": "a"}, {"name": "a"}]', "rename one"),
        ('[{"name": "a", "description": 7}]', "is a text"),
        ('[{"name": "a", "parameters": []}]', "no object"),
        ('[{"name": "a", "parameters": {"type": "array"}}]', "no schema that a model can be held to"),
        ("[" * 100_000, "nested too deeply|no JSON"),
    ],
)
def test_functions_that_are_wrong(text: str, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        functions_of(text)


def test_schemas_of_answers() -> None:
    assert answer_schema("") is None
    grammar = answer_schema('{"type": "object"}')
    assert grammar is not None
    assert grammar.kind == "json_schema"
    for text, said in (("[1]", "is an object"), ("{", "line 1"), ('{"type": "no type"}', "cannot be held")):
        with pytest.raises(BadRequest, match=said):
            answer_schema(text)


def test_servers_belong_to_their_owners(tmp_path: Path) -> None:
    servers = ServerFile(tmp_path)
    servers.add(ONE)
    servers.add(replace(ONE, owner="12345678", key="secret"))
    with pytest.raises(BadRequest, match="already"):
        servers.add(ONE)
    assert [each.owner for each in servers.of("local")] == ["local"]
    assert os.name == "nt" or (tmp_path / "tool_servers.json").stat().st_mode & 0o777 == 0o600
    servers.remove("local", "one")
    with pytest.raises(NoSuchServer):
        servers.find("local", "one")
    assert servers.find("12345678", "one").key == "secret"
    assert servers.forget("12345678") == 1
    for number in range(MOST_SERVERS):
        servers.add(replace(ONE, name=f"s{number}"))
    with pytest.raises(BadRequest, match="remove one"):
        servers.add(ONE)
    (tmp_path / "tool_servers.json").write_text("{")
    with pytest.raises(AppError, match="delete it"):
        servers.of("local")


@pytest.mark.parametrize(
    "wrong",
    [
        replace(ONE, name="a b"),
        replace(ONE, name=""),
        replace(ONE, url="file:///etc/passwd"),
        replace(ONE, url="http://"),
        replace(ONE, url="http://a b/"),
        replace(ONE, url="http://a:99999999/"),
        replace(ONE, key="a\nb"),
        ToolServer("one", "12345678", command=("/bin/sh",)),
    ],
    ids=str,
)
def test_what_is_no_server(wrong: ToolServer, tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        ServerFile(tmp_path).add(wrong)


def test_an_address_is_shown_without_its_secrets() -> None:
    assert replace(ONE, url="https://me:pass@a.org:1/mcp?key=x#y").shown == "https://a.org:1/mcp"
