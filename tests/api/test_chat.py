"""`/v1/chat/completions` over HTTP on a really started app: shapes, rules of the stream, cancelling."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import RealApp, until
from tests.support.patience import PATIENCE

PATH = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}


def stream(app: RealApp, **body: object) -> bytes:
    reply = app.post(PATH, HELLO | {"stream": True} | body)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    return reply.content


def chunks_of(raw: bytes) -> list[dict[str, Any]]:
    """The JSON of every event; checks the framing byte by byte."""
    assert raw.endswith(b"data: [DONE]\n\n")
    events = raw.removesuffix(b"data: [DONE]\n\n").split(b"\n\n")
    assert events.pop() == b""
    assert all(event.startswith(b"data: {") and b"\n" not in event for event in events)
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])


def test_a_whole_answer_has_openais_shape(real_app: RealApp) -> None:
    answer = real_app.post(PATH, HELLO).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "toy"
    assert answer["id"].startswith("chatcmpl-")
    choice = answer["choices"][0]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert len(choice["message"]["content"]) == 8  # the toy says one character per token
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 8


def test_the_stream_keeps_the_rules(real_app: RealApp) -> None:
    chunks = chunks_of(stream(real_app))
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], "toy", "chat.completion.chunk")
    }
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all("role" not in delta for delta in deltas[1:])
    assert all(delta["content"] for delta in deltas[1:-1])
    assert deltas[-1] == {}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert not any("usage" in chunk for chunk in chunks)
    assert text_of(chunks) == real_app.post(PATH, HELLO).json()["choices"][0]["message"]["content"]


def test_every_choice_of_a_stream_has_its_beginning_and_end(real_app: RealApp) -> None:
    asked: dict[str, object] = {"n": 3, "temperature": 1.5, "seed": 4}
    chunks = chunks_of(stream(real_app, **asked, stream_options={"include_usage": True}))
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    whole = real_app.post(PATH, HELLO | asked).json()
    *said, usage = chunks
    for index in range(3):
        choices = [chunk["choices"][0] for chunk in said if chunk["choices"][0]["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert choices[-1]["delta"] == {}
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
        text = "".join(choice["delta"]["content"] for choice in choices[:-1])
        assert text == whole["choices"][index]["message"]["content"]
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 24
    assert usage["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


def test_a_stream_of_an_older_completion_keeps_the_rules(real_app: RealApp) -> None:
    asked = {"prompt": "Hello", "max_tokens": 8, "temperature": 0, "logprobs": 1}
    reply = real_app.post("/v1/completions", asked | {"stream": True})
    chunks = chunks_of(reply.content)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    choices = [chunk["choices"][0] for chunk in chunks]
    whole = real_app.post("/completions", asked).json()["choices"][0]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert [word for choice in choices for word in choice["logprobs"]["tokens"]] == whole["logprobs"]["tokens"]
    assert (choices[-1]["text"], choices[-1]["finish_reason"]) == ("", "length")
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    assert len(real_app.post("/v1/completions", {"prompt": "Hello"}).json()["choices"][0]["text"]) == 16


def test_usage_comes_last_and_only_when_asked(real_app: RealApp) -> None:
    chunks = chunks_of(stream(real_app, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    assert [chunk["choices"] == [] for chunk in chunks].count(True) == 1


def test_a_stop_text_is_never_shown(real_app: RealApp) -> None:
    whole = real_app.post(PATH, HELLO | {"max_tokens": 40}).json()["choices"][0]["message"]["content"]
    stop = whole[10:13]
    before = whole[: whole.index(stop)]
    chunks = chunks_of(stream(real_app, max_tokens=40, stop=[stop, "never said"]))
    assert text_of(chunks) == before
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_max_completion_tokens_wins(real_app: RealApp) -> None:
    answer = real_app.post(PATH, HELLO | {"max_completion_tokens": 3}).json()
    assert answer["usage"]["completion_tokens"] == 3


def test_the_same_seed_gives_the_same_text_and_none_a_fresh_one(real_app: RealApp) -> None:
    def said(**more: object) -> str:
        body = HELLO | {"temperature": 2, "max_tokens": 24} | more
        return str(real_app.post(PATH, body).json()["choices"][0]["message"]["content"])

    assert said(seed=5) == said(seed=5) != said(seed=6)
    assert said() != said()


def test_roles_and_parts_reach_the_template(real_app: RealApp) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    system = {"role": "system", "content": "S"}
    plain = real_app.post(PATH, HELLO | {"messages": [system, {"role": "user", "content": "Hello"}]}).json()
    other = {"messages": [system | {"role": "developer"}, {"role": "user", "content": parts}]}
    assert real_app.post(PATH, HELLO | other).json()["choices"] == plain["choices"]


ACCEPTED: list[dict[str, object]] = [
    {"user": "me", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "low"},
    {"parallel_tool_calls": True, "n": 1, "tools": [], "tool_choice": "none", "response_format": {"type": "text"}},
    {"best_of": 1, "echo": False, "suffix": None, "top_logprobs": 0, "max_tokens": 1, "chat_template_kwargs": {"a": 1}},
    {"some_name_of_another_server": [1, 2], "logprobs": False, "modalities": ["text"]},
    {"top_k": -1, "top_p": 1, "min_p": 0, "repetition_penalty": 1.0, "presence_penalty": -2, "frequency_penalty": 2},
    {"logit_bias": {"65": -100}, "stop": None, "seed": -1, "model": "toy"},
]


@pytest.mark.parametrize("more", ACCEPTED)
def test_what_is_harmless_is_accepted(real_app: RealApp, more: dict[str, object]) -> None:
    assert real_app.post(PATH, HELLO | more).status_code == 200


REFUSED: list[tuple[dict[str, object], str]] = [  # more of them in bad_requests.py
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "8"}, "max_tokens"),
    ({"stop": [""]}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"seed": 0.5}, "seed"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"messages": []}, "messages"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
        "messages.0.content",
    ),
    ({"n": 9}, "n"),
    ({"n": 2, "best_of": 3}, "best_of"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"response_format": {"type": "json"}}, "response_format.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": []}, "functions"),
    ({"chat_template_kwargs": {"bos_token": 5, "messages": 1, "range": 2}, "temperature": 3}, "temperature"),
    ({"audio": {}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
]


@pytest.mark.parametrize(("more", "param"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(real_app: RealApp, more: dict[str, object], param: str) -> None:
    reply = real_app.post(PATH, HELLO | more)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_the_context_error_has_both_numbers(real_app: RealApp) -> None:
    for streamed in (False, True):
        body = HELLO | {"messages": [{"role": "user", "content": "x" * 5000}], "stream": streamed}
        reply = real_app.post(PATH, body)
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "context_length_exceeded"
        assert "4096" in reply.json()["error"]["message"]


def test_an_unknown_model_is_404(real_app: RealApp) -> None:
    reply = real_app.post(PATH, HELLO | {"model": "gpt-4"})
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"messages": NaN}'])
def test_a_broken_body_is_400(real_app: RealApp, body: bytes) -> None:
    reply = httpx.post(real_app.url + PATH, content=body, timeout=PATIENCE)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_a_huge_body_is_413(real_app: RealApp) -> None:
    reply = httpx.post(real_app.url + PATH, content=b" " * (17 * 2**20), timeout=PATIENCE)
    assert reply.status_code == 413


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_ends_its_sequence(real_app: RealApp, streamed: bool) -> None:
    body = HELLO | {"max_tokens": 4000, "stream": streamed}
    before = real_app.generated_tokens()
    with pytest.raises(httpx.ReadTimeout):
        _read_for_a_second(real_app, body)
    until(lambda: real_app.serving()["running"] == 0, PATIENCE, "the sequence is gone")
    assert real_app.generated_tokens() - before < 4000  # it did not go on to its end


def _read_for_a_second(app: RealApp, body: dict[str, object]) -> None:
    with httpx.stream("POST", app.url + PATH, json=body, timeout=httpx.Timeout(PATIENCE, read=1.0)) as reply:
        until(lambda: app.serving()["running"] == 1, PATIENCE, "the answer is being made")
        for _ in zip(reply.iter_bytes(), range(20), strict=False):
            pass
        raise httpx.ReadTimeout("enough")


def test_the_openai_package_works_unchanged(real_app: RealApp) -> None:
    client = openai.OpenAI(base_url=f"{real_app.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["toy"]
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    whole = client.chat.completions.create(model="toy", messages=messages, max_tokens=8, temperature=0)
    parts = client.chat.completions.create(model="toy", messages=messages, max_tokens=8, temperature=0, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="toy", messages=messages, n=9)
