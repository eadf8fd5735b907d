"""Tools over HTTP with real clients, against the bundled model on a ring of two stages: calls, streams, round trips.

The bundled model was taught no tools, so its calls are forced. That calls are read where a model writes them by itself
is shown by the engine's own tests (`tests/text/test_tool_answers.py`).
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Iterator
from typing import Annotated, Any

import jsonschema
import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr

from tests.api.test_chat import PATH, chunks_of
from tests.conftest import ROOT, RealApp
from together.requests import Message, Tool
from together.text.parser import ToolCallParser
from together.text.tokenizer import TextModel
from together.text.tool_formats import HERMES

MODEL = "demo_model"
ASKED: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 20},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["c", "f"]},
    },
    "required": ["city", "unit"],
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


@pytest.fixture(scope="module")
def client(demo_app: RealApp) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo_app.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, **more: Any) -> Any:
    asked: dict[str, Any] = {"model": MODEL, "messages": ASKED, "tools": TOOLS, "temperature": 1, "max_tokens": 200}
    return client.chat.completions.create(**(asked | more))


def assert_weather(call: Any) -> None:
    assert (call.type, call.function.name) == ("function", "weather")
    assert call.id.startswith("call_")
    jsonschema.validate(json.loads(call.function.arguments), WEATHER)


# --- openai -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_named_tool_is_called_with_valid_arguments(client: openai.OpenAI, seed: int) -> None:
    answer = chat(client, tool_choice=NAMED, seed=seed)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert_weather(call)
    assert 0 < answer.usage.completion_tokens < 200


def test_a_required_tool_is_any_of_them(client: openai.OpenAI) -> None:
    answer = chat(client, tool_choice="required", n=4, seed=3, parallel_tool_calls=False)
    calls = [call for choice in answer.choices for call in choice.message.tool_calls]
    assert len({call.id for call in calls}) == len(calls) == 4
    assert {call.function.name for call in calls} <= {"weather", "now"}
    for call in calls:
        schema = WEATHER if call.function.name == "weather" else {"maxProperties": 0}
        jsonschema.validate(json.loads(call.function.arguments), schema)
    assert {choice.finish_reason for choice in answer.choices} == {"tool_calls"}


def test_a_stream_of_a_call_has_openais_shape_and_the_same_call(demo_app: RealApp, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"tool_choice": NAMED, "seed": 5}
    body = {"messages": ASKED, "tools": TOOLS, "temperature": 1, "max_tokens": 200, "stream": True} | asked
    chunks = chunks_of(demo_app.post(PATH, body | {"stream_options": {"include_usage": True}}).content)
    *said, usage = chunks
    choices = [chunk["choices"][0] for chunk in said]
    first, head, *parts, last = choices
    assert first["delta"] == {"role": "assistant", "content": ""}
    (begun,) = head["delta"]["tool_calls"]
    assert set(begun) == {"index", "id", "type", "function"}
    assert (begun["index"], begun["type"], begun["function"]) == (0, "function", {"name": "weather", "arguments": ""})
    assert len(parts) > 3
    for part in parts:
        (more,) = part["delta"]["tool_calls"]
        assert set(more) == {"index", "function"}
        assert set(more["function"]) == {"arguments"}
    assert (last["delta"], last["finish_reason"]) == ({}, "tool_calls")
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    whole = chat(client, **asked)
    arguments = "".join(part["delta"]["tool_calls"][0]["function"]["arguments"] for part in parts)
    assert arguments == whole.choices[0].message.tool_calls[0].function.arguments
    assert usage["usage"]["completion_tokens"] == whole.usage.completion_tokens


async def test_the_async_client_streams_calls_of_several_choices(demo_app: RealApp) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": ASKED, "tools": TOOLS, "tool_choice": NAMED, "max_tokens": 200}
    async with openai.AsyncOpenAI(base_url=f"{demo_app.url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.chat.completions.create(**asked, n=2, seed=1)
        async with client.chat.completions.stream(**asked, n=2, seed=1) as events:
            streamed = await events.get_final_completion()
    for one, other in zip(whole.choices, streamed.choices, strict=True):
        assert one.finish_reason == other.finish_reason == "tool_calls"
        for choice in (one, other):
            assert choice.message.tool_calls is not None
            assert_weather(choice.message.tool_calls[0])
        calls: Any = (one.message.tool_calls, other.message.tool_calls)
        assert calls[0][0].function.arguments == calls[1][0].function.arguments


def test_a_round_trip(client: openai.OpenAI) -> None:
    """Call, the tool's answer, the model's answer: the prompt is what the model's template makes of all of it."""
    called = chat(client, tool_choice=NAMED, seed=2).choices[0].message
    result = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "Sunny, 21 °C."}
    messages = [*ASKED, called, result]
    answer = chat(client, messages=messages, temperature=0, max_tokens=30)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.choices[0].message.content
    dumped = [*ASKED, called.model_dump(), result]
    assert chat(client, messages=dumped, temperature=0, max_tokens=30).choices == answer.choices
    again = chat(client, messages=messages, tool_choice=NAMED, seed=2)
    assert_weather(again.choices[0].message.tool_calls[0])
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages=[*ASKED, called, result | {"tool_call_id": "call_other"}])
    assert caught.value.param == "messages.2.tool_call_id"


def test_the_prompt_counts_the_tools_and_none_offers_none(client: openai.OpenAI) -> None:
    text = TextModel.open(ROOT / "examples" / "demo_model")
    offered = [Tool("weather", "The weather.", WEATHER), Tool("now")]
    messages = [Message("user", ASKED[0]["content"])]
    free = chat(client, max_tokens=4)
    assert free.usage.prompt_tokens == len(text.encode(text.template.render(messages, offered).result()))
    without = chat(client, max_tokens=4, tool_choice="none")
    assert without.usage.prompt_tokens == len(text.prompt_ids(messages))
    assert without.choices[0].message.tool_calls is None
    assert "tool_calls" not in without.choices[0].message.model_fields_set


def test_a_call_that_is_cut_off_ends_with_length(client: openai.OpenAI) -> None:
    choice = chat(client, tool_choice=NAMED, seed=2, max_tokens=45).choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.content or choice.message.tool_calls


def test_the_clients_own_tools_parse(client: openai.OpenAI) -> None:
    """`pydantic_function_tool` makes a strict schema; `.parse` gives the arguments as an object."""

    class Weather(BaseModel):
        city: str = Field(max_length=20)
        celsius: bool

    parsed = client.chat.completions.parse(
        model=MODEL, messages=ASKED, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required",
        temperature=1, seed=1, max_tokens=200, parallel_tool_calls=False,
    )  # fmt: skip
    calls = parsed.choices[0].message.tool_calls
    assert calls is not None
    assert [type(call.function.parsed_arguments) for call in calls] == [Weather]


def test_logprobs_of_a_call_are_those_of_all_its_tokens(client: openai.OpenAI) -> None:
    answer = chat(client, tool_choice=NAMED, seed=5, logprobs=True)
    written = b"".join(bytes(token.bytes) for token in answer.choices[0].logprobs.content).decode()
    said, deltas = ToolCallParser(HERMES, ()).push(written)
    assert said == ""
    arguments = "".join(delta.arguments for delta in deltas)
    assert arguments == answer.choices[0].message.tool_calls[0].function.arguments


# --- LangChain --------------------------------------------------------------------------------------------------------


Small = Annotated[int, Field(ge=0, le=99)]  # a model that was taught no numbers would never end a larger one


@tool
def add(a: Small, b: Small) -> int:
    """Add two numbers."""
    return a + b


def test_langchain_binds_tools(demo_app: RealApp) -> None:
    model = ChatOpenAI(model=MODEL, base_url=f"{demo_app.url}/v1", api_key=SecretStr("none"), temperature=1, seed=7)
    bound = model.bind_tools([add], tool_choice="add", max_tokens=300)
    question = HumanMessage("What is 2 + 3?")
    reply = bound.invoke([question])
    (call,) = reply.tool_calls
    assert call["name"] == "add"
    assert set(call["args"]) == {"a", "b"}
    assert all(isinstance(value, int) for value in call["args"].values())
    parts = list(bound.stream([question]))  # its asynchronous clients are shared with other tests' event loops
    streamed: Any = functools.reduce(operator.add, parts)
    assert [each["args"] for each in streamed.tool_calls] == [call["args"]]
    result = ToolMessage(str(add.invoke(call["args"])), tool_call_id=call["id"])
    final = model.bind_tools([add]).invoke([question, reply, result], max_tokens=20)
    assert final.text or final.tool_calls
