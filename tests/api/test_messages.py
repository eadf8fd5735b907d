"""`/v1/messages` with Anthropic's own client and on raw bytes, against the bundled model on a ring of two stages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import jsonschema
import pytest

from tests.api.test_chat import PATH as CHAT
from tests.api.test_tools import WEATHER
from tests.conftest import RealApp
from together.api.anthropic.requests import MessagesRequest

MODEL = "demo_model"
PATH = "/v1/messages"
ASKED: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
TOOLS: list[Any] = [{"name": "weather", "description": "The weather.", "input_schema": WEATHER}]
NAMED: Any = {"type": "tool", "name": "weather"}


@pytest.fixture(scope="module")
def client(demo_app: RealApp) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=demo_app.url, api_key="none", max_retries=0) as client:
        yield client


def asked(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": ASKED, "max_tokens": 24, "temperature": 0} | more


def ask(client: anthropic.Anthropic, **more: Any) -> Any:
    body = asked(**more)
    return client.messages.create(extra_body={"temperature": body.pop("temperature")}, **body)


def events_of(reply: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """Names and data, as they are on the wire."""
    found = []
    for part in reply.text.strip().split("\n\n"):
        name, data = part.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def streamed(app: RealApp, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    return events_of(app.post(PATH, asked(stream=True, **more)))


def chat_text(app: RealApp, messages: list[Any], **more: Any) -> Any:
    body = {"messages": messages, "max_tokens": 24, "temperature": 0, **more}
    return app.post(CHAT, body).json()["choices"][0]["message"]["content"]


# --- text -------------------------------------------------------------------------------------------------------------


def test_an_answer_is_that_of_a_chat(demo_app: RealApp, client: anthropic.Anthropic) -> None:
    answer = ask(client, system=[{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}])
    system = {"role": "system", "content": "Be kind."}
    assert [block.text for block in answer.content] == [chat_text(demo_app, [system, *ASKED])]
    assert (answer.type, answer.role, answer.model, answer.stop_reason) == ("message", "assistant", MODEL, "end_turn")
    assert answer.usage.input_tokens + answer.usage.cache_read_input_tokens > 10
    assert answer.usage.output_tokens > 0
    assert answer._request_id.startswith("req_")


def test_a_stream_says_the_same(client: anthropic.Anthropic) -> None:
    body = asked()
    with client.messages.stream(extra_body={"temperature": body.pop("temperature")}, **body) as stream:
        text = "".join(stream.text_stream)
        final: Any = stream.get_final_message()
    whole = ask(client)
    assert text == final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", whole.usage.output_tokens)
    counted = [usage.input_tokens + usage.cache_read_input_tokens for usage in (final.usage, whole.usage)]
    assert counted[0] == counted[1]


def test_events_come_in_the_published_order(demo_app: RealApp) -> None:
    events = streamed(demo_app)
    names = [name for name, _ in events]
    assert all(name == data["type"] for name, data in events)
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert events[0][1]["message"]["usage"]["input_tokens"] > 0


def test_an_answer_ends_at_a_stop_sequence_or_at_its_limit(demo_app: RealApp, client: anthropic.Anthropic) -> None:
    text = ask(client).content[0].text
    stopped = ask(client, stop_sequences=[text[4:7]])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", text[4:7])
    assert stopped.content[0].text == text[:4]
    limited = streamed(demo_app, max_tokens=2)
    assert [data["delta"]["stop_reason"] for name, data in limited if name == "message_delta"] == ["max_tokens"]


def test_an_answer_goes_on_with_what_the_assistant_began(demo_app: RealApp, client: anthropic.Anthropic) -> None:
    whole = ask(client).content[0].text
    words = whole.split(" ")
    begun = " ".join(words[:2])
    answer = ask(client, messages=[*ASKED, {"role": "assistant", "content": begun}])
    assert begun + answer.content[0].text == whole
    turns = [*ASKED, {"role": "assistant", "content": begun}]
    assert begun + chat_text(demo_app, turns, continue_final_message=True) == whole


def test_turns_of_one_role_are_one_turn(demo_app: RealApp, client: anthropic.Anthropic) -> None:
    parts = [{"role": "user", "content": "Hello."}, {"role": "user", "content": [{"type": "text", "text": "Who?"}]}]
    assert ask(client, messages=parts).content[0].text == chat_text(
        demo_app, [{"role": "user", "content": "Hello.\n\nWho?"}]
    )


def test_tokens_are_counted_without_an_answer(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=ASKED, system="Be kind.", tools=TOOLS)
    usage = ask(client, system="Be kind.", tools=TOOLS, max_tokens=1).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


# --- tools ------------------------------------------------------------------------------------------------------------


def test_a_named_tool_is_called_and_its_result_is_read(client: anthropic.Anthropic) -> None:
    answer = ask(client, tools=TOOLS, tool_choice=NAMED, max_tokens=200)
    (call,) = answer.content
    assert (answer.stop_reason, call.type, call.name) == ("tool_use", "tool_use", "weather")
    jsonschema.validate(call.input, WEATHER)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "Rain."}]}
    turns = [*ASKED, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    said = ask(client, messages=turns, tools=TOOLS, tool_choice={"type": "none"})
    assert said.stop_reason in ("end_turn", "max_tokens")


def test_a_streamed_call_is_a_block_of_its_own(demo_app: RealApp) -> None:
    events = streamed(demo_app, tools=TOOLS, tool_choice={"type": "any"}, max_tokens=200)
    begun = [data["content_block"] for name, data in events if name == "content_block_start"]
    assert [(block["type"], block["name"], block["input"]) for block in begun] == [("tool_use", "weather", {})]
    parts = [data["delta"] for name, data in events if name == "content_block_delta"]
    assert {part["type"] for part in parts} == {"input_json_delta"}
    jsonschema.validate(json.loads("".join(part["partial_json"] for part in parts)), WEATHER)


def test_an_answer_by_a_schema(client: anthropic.Anthropic) -> None:
    config: Any = {
        "effort": "low",
        "format": {"type": "json_schema", "schema": WEATHER | {"additionalProperties": False}},
    }
    answer = ask(client, output_config=config, max_tokens=200)
    jsonschema.validate(json.loads(answer.content[0].text), WEATHER)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_are_the_clients_own(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        ask(client, model="claude-x")
    assert unknown.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > \d+ maximum"):
        ask(client, messages=[{"role": "user", "content": "x " * 9000}])


PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": ""}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages.0.content.0.tool_use_id"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]}, "has a call"),
    ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages.0.content"),
    ({"messages": [{"role": "assistant", "content": [PICTURE]}]}, "messages.0.content.0"),
    ({"system": [PICTURE]}, "system.0"),
    ({"tools": [{"name": "a", "input_schema": {"type": "string"}}]}, "tools.0.input_schema"),
    ({"tools": [{"name": "bash", "type": "bash_20250124"}]}, "tools.0.type"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "tools.1.name"),
    ({"tools": [TOOLS[0] | {"defer_loading": True}]}, "tools.0.defer_loading"),
    ({"tool_choice": NAMED}, "tool_choice"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
    ({"container": "x"}, "container"),
    ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits.0.type"),
    ({"output_format": {"type": "json_schema", "schema": {"type": "nothing"}}}, "output_format"),
    ({"stop_sequences": [" "]}, "stop_sequences"),
    ({"temperature": 3}, "temperature"),
    ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
]


@pytest.mark.parametrize(("fields", "named"), REFUSED, ids=[f"{fields!s:.60}" for fields, _ in REFUSED])
def test_what_cannot_be_honoured_is_refused_by_name(demo_app: RealApp, fields: dict[str, Any], named: str) -> None:
    reply = demo_app.post(PATH, asked(**fields))
    assert reply.status_code == 400
    assert reply.json()["type"] == "error"
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert named in reply.json()["error"]["message"]


HONOURED: dict[str, Any] = {
    "thinking": {"type": "adaptive"},
    "cache_control": {"type": "ephemeral"},
    "speed": "standard",
    "user_profile_id": "x",
    "workspace_id": "x",
    "inference_geo": "eu",
    "diagnostics": {},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "metadata": {"user_id": "x"},
    "service_tier": "auto",
    "top_k": 5,
    "top_p": 0.9,
    "container": None,
    "mcp_servers": [],
    "output_format": None,
}


def test_every_field_is_honoured_or_refused(demo_app: RealApp) -> None:
    known = {name for fields, _ in REFUSED for name in fields} | set(HONOURED) | {"model", "stream", "output_config"}
    assert set(MessagesRequest.model_fields) <= known
    assert demo_app.post(PATH, asked(**HONOURED)).status_code == 200


def test_other_paths_answer_in_this_shape(demo_app: RealApp) -> None:
    assert demo_app.get(PATH).json()["error"]["type"] == "invalid_request_error"
    assert demo_app.post(f"{PATH}/batches", {}).json()["error"]["type"] == "not_found_error"
