"""`/v1/responses` with OpenAI's own client and on raw bytes, against the bundled model on a ring of two stages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.api.test_chat import PATH as CHAT
from tests.api.test_tools import WEATHER
from tests.conftest import RealApp, until
from tests.support.patience import PATIENCE
from together.api.openai_responses.requests import ResponsesRequest

MODEL = "demo_model"
PATH = "/v1/responses"
JSON = {"Content-Type": "application/json"}
ASKED = "What is the capital of France?"
TOOLS: list[Any] = [{"type": "function", "name": "weather", "description": "The weather.", "parameters": WEATHER}]
NAMED: Any = {"type": "function", "name": "weather"}
CUSTOM: Any = {"type": "custom", "name": "note", "description": "Notes a text."}


@pytest.fixture(scope="module")
def client(demo_app: RealApp) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo_app.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": ASKED, "max_output_tokens": 24, "temperature": 0} | more


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.responses.create(**body(**more))


def streamed(app: RealApp, **more: Any) -> list[dict[str, Any]]:
    """The data of all events; checks their framing, names and numbers."""
    reply = app.post(PATH, body(stream=True, **more))
    assert reply.status_code == 200
    found = []
    parts = [part for part in reply.text.removesuffix("\n\n").split("\n\n") if not part.startswith(":")]
    for number, part in enumerate(parts):
        name, data = part.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert (event["type"], event["sequence_number"]) == (name.removeprefix("event: "), number)
        found.append(event)
    return found


def chat_text(app: RealApp, *messages: tuple[str, str]) -> str:
    turns = [{"role": role, "content": content} for role, content in messages]
    answer = app.post(CHAT, {"messages": turns, "max_tokens": 24, "temperature": 0}).json()
    return str(answer["choices"][0]["message"]["content"])


# --- text -------------------------------------------------------------------------------------------------------------


def test_an_answer_is_that_of_a_chat(demo_app: RealApp, client: openai.OpenAI) -> None:
    answer = ask(client, instructions="Be kind.", metadata={"a": "b"})
    assert answer.output_text == chat_text(demo_app, ("system", "Be kind."), ("user", ASKED))
    assert (answer.object, answer.status, answer.model, answer.metadata) == ("response", "completed", MODEL, {"a": "b"})
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 10


def test_items_are_a_conversation(demo_app: RealApp, client: openai.OpenAI) -> None:
    turns: list[Any] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hello."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]},
        {"role": "user", "content": ASKED},
    ]
    same = [("system", "Be kind."), ("user", "Hello."), ("assistant", "Hi."), ("user", ASKED)]
    assert ask(client, input=turns).output_text == chat_text(demo_app, *same)


def test_a_stream_says_the_same_in_the_published_order(demo_app: RealApp, client: openai.OpenAI) -> None:
    events = streamed(demo_app)
    kinds = [event["type"].removeprefix("response.") for event in events]
    before = ["created", "in_progress", "output_item.added", "content_part.added"]
    after = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert (kinds[:4], kinds[-4:], set(kinds[4:-4])) == (before, after, {"output_text.delta"})
    text = "".join(event.get("delta", "") for event in events)
    assert text == events[-1]["response"]["output"][0]["content"][0]["text"] == ask(client).output_text
    with client.responses.stream(**{k: v for k, v in body().items() if k != "stream"}) as stream:
        assert stream.until_done().get_final_response().output_text == text


def test_an_answer_that_is_cut_is_incomplete(demo_app: RealApp, client: openai.OpenAI) -> None:
    answer = ask(client, max_output_tokens=1)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert streamed(demo_app, max_output_tokens=1)[-1]["type"] == "response.incomplete"


def test_log_probabilities_come_where_they_are_asked_for(client: openai.OpenAI) -> None:
    answer = ask(client, include=["message.output_text.logprobs"], top_logprobs=2)
    scores = answer.output[0].content[0].logprobs
    assert "".join(score.token for score in scores) == answer.output_text
    assert {len(score.top_logprobs) for score in scores} == {2}


class Answer(BaseModel):
    city: Literal["Paris", "Rome"]
    days: bool


def test_an_answer_by_a_schema(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(model=MODEL, input=ASKED, text_format=Answer, temperature=0, max_output_tokens=200)
    assert isinstance(parsed.output_parsed, Answer)


def test_the_context_is_kept_by_leaving_out_old_turns(demo_app: RealApp, client: openai.OpenAI) -> None:
    long = "word " * 2200
    first = ask(client, input=long, max_output_tokens=1)
    with pytest.raises(openai.BadRequestError, match="context"):
        ask(client, input=long, previous_response_id=first.id)
    assert ask(client, input=long, previous_response_id=first.id, truncation="auto", max_output_tokens=1).id


# --- tools ------------------------------------------------------------------------------------------------------------


def test_a_call_and_its_result(demo_app: RealApp, client: openai.OpenAI) -> None:
    answer = ask(client, tools=TOOLS, tool_choice=NAMED, max_output_tokens=200)
    (call,) = answer.output
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    jsonschema.validate(json.loads(call.arguments), WEATHER)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    said = ask(client, input=[result], previous_response_id=answer.id, tools=TOOLS, tool_choice="none")
    again: Any = [{"role": "user", "content": ASKED}, call.model_dump(exclude_none=True), result]
    assert said.output_text == ask(client, input=again, tools=TOOLS, tool_choice="none").output_text
    events = streamed(demo_app, tools=TOOLS, tool_choice="required", max_output_tokens=200)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[2] == "output_item.added"
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    assert set(kinds[3:-3]) == {"function_call_arguments.delta"}
    assert "".join(event.get("delta", "") for event in events) == events[-3]["arguments"]


def test_a_custom_tool_gets_free_text(demo_app: RealApp, client: openai.OpenAI) -> None:
    named = {"type": "custom", "name": "note"}
    answer = ask(client, tools=[CUSTOM], tool_choice=named, max_output_tokens=60)
    (call,) = answer.output
    assert (call.type, call.name) == ("custom_tool_call", "note")
    kinds = [event["type"] for event in streamed(demo_app, tools=[CUSTOM], tool_choice=named, max_output_tokens=60)]
    assert "response.custom_tool_call_input.done" in kinds


def test_a_tool_of_a_namespace_is_called_by_its_own_name(client: openai.OpenAI) -> None:
    space: Any = {"type": "namespace", "name": "home", "description": "At home.", "tools": TOOLS}
    tools: Any = [space, {"type": "web_search", "external_web_access": False}]
    answer = ask(client, tools=tools, tool_choice="required", max_output_tokens=200)
    (call,) = answer.output
    assert (call.namespace, call.name) == ("home", "weather")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    again: Any = [{"role": "user", "content": ASKED}, call.model_dump(exclude_none=True), result]
    said = [
        ask(client, tools=tools, tool_choice="none", **how).output_text
        for how in ({"input": again}, {"input": [result], "previous_response_id": answer.id})
    ]
    assert said[0] == said[1]


def test_only_allowed_tools_are_called(client: openai.OpenAI) -> None:
    allowed: Any = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]}
    answer = ask(client, tools=[*TOOLS, {"type": "function", "name": "now"}], tool_choice=allowed, max_output_tokens=99)
    assert {call.name for call in answer.output} == {"now"}


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_an_answer_is_kept_until_it_is_deleted(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert client.responses.retrieve(answer.id).output_text == answer.output_text
    items: Any = client.responses.input_items.list(answer.id).data
    assert [(item.role, item.content) for item in items] == [("user", ASKED)]
    with pytest.raises(openai.BadRequestError, match="are not kept"):
        client.responses.retrieve(answer.id, stream=True)
    with pytest.raises(openai.BadRequestError, match="only an answer in the background"):
        client.responses.cancel(answer.id)
    client.responses.delete(answer.id)
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            gone(answer.id)
    with pytest.raises(openai.BadRequestError, match="no answer of that name"):
        ask(client, previous_response_id=answer.id)


def test_the_items_of_a_request_come_in_pages(client: openai.OpenAI) -> None:
    turns: list[Any] = [{"role": "user", "content": text} for text in "abc"]
    name = ask(client, input=turns, max_output_tokens=1).id
    for order, found in (("asc", "abc"), ("desc", "cba")):
        pages = client.responses.input_items.list(name, limit=2, order=order)  # type: ignore[arg-type]
        assert "".join(item.content for item in pages) == found  # type: ignore[union-attr,misc]
    with pytest.raises(openai.BadRequestError, match="none of the items"):
        client.responses.input_items.list(name, after="x")


def test_an_answer_that_is_not_to_be_kept_is_not(demo_app: RealApp, client: openai.OpenAI) -> None:
    answer = ask(client, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)
    last = streamed(demo_app, store=False)[-1]["response"]
    assert demo_app.get(f"{PATH}/{last['id']}").status_code == 404


def test_an_answer_in_the_background(client: openai.OpenAI) -> None:
    begun = ask(client, background=True)
    assert begun.status == "in_progress"
    until(lambda: client.responses.retrieve(begun.id).status == "completed", PATIENCE, "the answer is there")
    assert client.responses.retrieve(begun.id).output_text == ask(client).output_text


def test_an_answer_in_the_background_is_cancelled(real_app: RealApp) -> None:
    with openai.OpenAI(base_url=f"{real_app.url}/v1", api_key="none", max_retries=0) as client:
        begun = client.responses.create(input=ASKED, background=True)  # the toy would go on to the end of its context
        for _ in range(2):  # nothing goes on from half an answer
            with pytest.raises(openai.BadRequestError, match="not whole"):
                client.responses.create(input=ASKED, previous_response_id=begun.id)
            assert client.responses.cancel(begun.id).status == "cancelled"
        assert client.responses.retrieve(begun.id).status == "cancelled"
        until(lambda: real_app.get("/status").json()["serving"]["running"] == 0, PATIENCE, "the engine is free")


# --- errors -----------------------------------------------------------------------------------------------------------


FOREIGN = {"type": "input_image", "image_url": "http://x/"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [{"role": "robot", "content": ""}]}, "input.0.role"),
    ({"input": [{"type": "computer_call_output"}]}, "input.0"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "x"}]}, "messages.0.tool_call_id"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x/"}]}]},
        "input.0.content.0",
    ),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.name"),
    ({"tools": [{"type": "namespace", "name": "home"}]}, "tools.0"),
    ({"tools": [{"type": "namespace", "name": "home", "tools": [{"type": "mcp"}]}]}, "tools.0.tools.0.type"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "tools.1.name"),
    ({"tools": [TOOLS[0] | {"defer_loading": True}]}, "tools.0.defer_loading"),
    ({"tools": [TOOLS[0] | {"parameters": {"type": "string"}}]}, "tools.0.parameters"),
    ({"tools": [CUSTOM | {"format": {"type": "grammar"}}]}, "tools.0.format"),
    ({"tool_choice": NAMED}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "mcp"}}, "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "x"}]}}, "tool_choice.tools"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}}, "text.format"),
    ({"background": True, "stream": True}, "background"),
    ({"background": True, "store": False}, "background"),
    ({"previous_response_id": "resp_x"}, "previous_response_id"),
    ({"conversation": "conv_x"}, "conversation"),
    ({"prompt": {"id": "x"}}, "prompt"),
    ({"moderation": {"model": "x"}}, "moderation"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"background_options": {"completion_window": "2h"}}, "background_options"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_logprobs": 99}, "top_logprobs"),
    ({"truncation": "some"}, "truncation"),
]


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ('"metadata": {"a": 1e999}', "metadata"),
        ('"tools": [{"type": "function", "name": "x", "parameters": {"maximum": 1e999}}]', "tools.0"),
    ],
)
def test_a_number_that_no_answer_can_repeat_is_refused(demo_app: RealApp, field: str, named: str) -> None:
    reply = httpx.post(demo_app.url + PATH, content=f'{{"input": "a", {field}}}', headers=JSON)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, named)


@pytest.mark.parametrize(("fields", "named"), REFUSED, ids=[f"{fields!s:.60}" for fields, _ in REFUSED])
def test_what_cannot_be_honoured_is_refused_by_name(demo_app: RealApp, fields: dict[str, Any], named: str) -> None:
    reply = demo_app.post(PATH, body(**fields))
    assert reply.status_code == 400
    assert str(reply.json()["error"]["param"]).startswith(named)


HONOURED: dict[str, Any] = {
    "reasoning": {"effort": "none", "summary": "auto"},
    "include": ["reasoning.encrypted_content", "file_search_call.results"],
    "stream_options": {"include_obfuscation": False},
    "max_tool_calls": 3,
    "user": "x",
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "access_programs": {},
    "image": {},
    "parallel_tool_calls": False,
}


def test_every_field_is_honoured_or_refused(demo_app: RealApp) -> None:
    known = {name for fields, _ in REFUSED for name in fields} | set(HONOURED)
    assert (
        set(ResponsesRequest.model_fields) - known == {"model", "instructions", "stream", "store", "metadata"} - known
    )
    assert demo_app.post(PATH, body(**HONOURED)).status_code == 200
