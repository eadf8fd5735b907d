"""Answers by a schema over HTTP, on the bundled model over two stages: every one that finishes is valid JSON of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.api.test_chat import PATH, chunks_of, text_of
from tests.conftest import RealApp
from tests.support.schemas import random_schema

MODEL = "demo_model"
ASKED: list[Any] = [{"role": "user", "content": "Tell me about France as JSON."}]
AT_ONCE = 16


class City(BaseModel):
    name: str = Field(max_length=12)
    kind: Literal["capital", "port", "village"]
    rank: int = Field(ge=1, le=20)


class Country(BaseModel):
    """As programs describe what they want; the openai client makes the schema."""

    name: str = Field(max_length=12)
    cities: list[City] = Field(max_length=2)
    motto: str | None = Field(max_length=10)


def by_schema(schema: object, **more: object) -> dict[str, object]:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    return {"messages": ASKED, "response_format": wanted, "temperature": 1, "max_tokens": 512, "seed": 1} | more


def validated(text: str, schema: dict[str, Any]) -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))


async def finished(app: RealApp, count: int) -> int:
    """How many of so many random schemas are answered to the end; each of those answers is checked."""
    slots = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(base_url=app.url, timeout=300, trust_env=False) as client:

        async def is_finished(seed: int) -> bool:
            schema = random_schema(seed)
            async with slots:
                reply = await client.post(PATH, json=by_schema(schema, seed=seed))
            assert reply.status_code == 200, reply.text
            (choice,) = reply.json()["choices"]
            if choice["finish_reason"] == "stop":
                validated(choice["message"]["content"], schema)
            else:
                assert choice["finish_reason"] == "length"
            return bool(choice["finish_reason"] == "stop")

        return sum(await asyncio.gather(*map(is_finished, range(count))))


@pytest.mark.full  # as a thousand are; one of each kind is below
async def test_a_dozen_random_schemas(demo_app: RealApp) -> None:
    assert await finished(demo_app, 12) >= 11


@pytest.mark.full
@pytest.mark.timeout(400)
async def test_200_random_schemas(demo_app: RealApp) -> None:
    assert await finished(demo_app, 200) >= 180


def test_parse_of_the_openai_client(demo_app: RealApp) -> None:
    with openai.OpenAI(base_url=f"{demo_app.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.parse(
            model=MODEL, messages=ASKED, response_format=Country, max_tokens=512, seed=2, n=2
        )
        for choice in answer.choices:
            assert isinstance(choice.message.parsed, Country)
        with client.chat.completions.stream(
            model=MODEL, messages=ASKED, response_format=Country, max_tokens=512, seed=2
        ) as events:
            streamed = events.get_final_completion().choices[0].message
        assert streamed.content == answer.choices[0].message.content
        assert streamed.parsed == answer.choices[0].message.parsed
        with pytest.raises(openai.LengthFinishReasonError):
            client.chat.completions.parse(model=MODEL, messages=ASKED, response_format=Country, max_tokens=3)


def test_any_object_and_a_schema_in_llama_cpps_place(demo_app: RealApp) -> None:
    asked = {"messages": ASKED, "temperature": 0, "max_tokens": 300, "seed": 1}
    whole = demo_app.post(PATH, asked | {"response_format": {"type": "json_object"}}).json()["choices"][0]
    assert whole["message"]["content"].startswith("{")
    if whole["finish_reason"] == "stop":
        assert isinstance(json.loads(whole["message"]["content"]), dict)
    few = {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 3}
    for kind in ("json_object", "json_schema"):
        answer = demo_app.post(PATH, asked | {"response_format": {"type": kind, "schema": few}}).json()
        validated(answer["choices"][0]["message"]["content"], few)


def test_a_stream_says_the_same(demo_app: RealApp) -> None:
    schema = random_schema(3)
    whole = demo_app.post(PATH, by_schema(schema)).json()["choices"][0]
    chunks = chunks_of(demo_app.post(PATH, by_schema(schema, stream=True)).content)
    assert text_of(chunks) == whole["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


WRONG: list[tuple[object, str]] = [
    ({"type": "json"}, "response_format.type"),
    ({"type": "json_schema"}, "response_format.json_schema"),
    ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name"),
    ({"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}, "response_format.json_schema.name"),
    ({"type": "json_schema", "json_schema": {"name": "a", "schema": []}}, "response_format.json_schema.schema"),
    ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "objekt"}}}, "response_format"),
    ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}, "response_format"),
    ({"type": "json_object", "schema": {"enum": ["x" * 140_000]}}, "response_format"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("wanted", "param"), WRONG)
def test_what_cannot_be_enforced_is_refused(demo_app: RealApp, wanted: object, param: str, stream: bool) -> None:
    reply = demo_app.post(PATH, {"messages": ASKED, "response_format": wanted, "stream": stream})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert len(error["message"]) < 500
