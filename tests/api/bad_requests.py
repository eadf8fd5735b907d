"""Requests that no server should honour, by hand: what is sent, and the status and `param` of the refusal.

Knows no app and no test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "Hello"}


@dataclass(frozen=True, slots=True)
class Bad:
    """`param` None: the refusal names no field; "*": any."""

    path: str
    body: bytes
    status: int = 400
    param: str | None = "*"
    method: str = "POST"

    @property
    def name(self) -> str:
        return f"{self.method} {self.path} {self.body[:60]!r}"


# --- fields that both kinds of request have: each value is wrong for its field ----------------------------------------

BOTH: dict[str, list[Any]] = {
    "temperature": [-0.1, 2.1, "hot", True, [], {}, 1e400],
    "top_p": [0, -1, 1.01, "1", False, [0.5]],
    "top_k": [-2, 0.5, "5", 2**31, True, {}],
    "min_p": [-0.1, 1.1, "0", [], True],
    "repetition_penalty": [0, -1, 11, "1", True, []],
    "presence_penalty": [-2.1, 2.1, "0", [], True],
    "frequency_penalty": [-2.1, 2.1, "0", {}, False],
    "logit_bias": [
        *(5, [], "x", {"x": 1}, {"-1": 1}, {"1.5": 1}, {"": 1}, {"65": 101}, {"65": "1"}, {"65": None}),
        *({"99999": 1}, {"65": -101}, {"９": 1}, {"1234567890": 1}, {"65": True}),
    ],
    "seed": [0.5, "1", True, [], 2**64, -(2**63) - 1, {}],
    "max_tokens": [0, -2, 1.5, "8", True, [], {}, 2**31],
    "stop": [5, True, {}, "", [""], ["a", ""], ["a"] * 17, [5], [None], [["a"]]],
    "n": [0, -1, 9, 1.5, "2", True, [], 10**30],
    "stream": ["yes", 1, 0, [], {}],
    "stream_options": [{"include_usage": True}, "x", 5, [], {"include_usage": "yes"}, {"include_usage": 1}],
    "user": [5, True, [], {}],
    "store": ["x", 1, []],
    "metadata": ["x", 5, [], True],
    "service_tier": [5, [], True],
    "ignore_eos": ["x", 1, []],
    "model": [5, [], {}, True],
    "suffix": ["x", 5, []],
    "echo": [True, "x", 1],
    "best_of": [2, "1", 1.5, -1, []],
}

WRONG_IN_FUNCTIONS: list[dict[str, Any]] = [
    *({"description": 5}, {"strict": "yes"}, {"strict": 1}, {"parameters": "x"}, {"parameters": []}),
    *({"parameters": {"type": "string"}}, {"parameters": {"type": 5}}, {"parameters": True}),
]


def function(name: Any) -> list[Any]:
    return [{"type": "function", "function": {"name": name}}]


CHAT_ONLY: dict[str, list[Any]] = {
    "max_completion_tokens": [0, -5, "8", 1.5, True],
    "logprobs": [1, "yes", [], 5],
    "top_logprobs": [21, -1, "5", 1.5, True, 3],
    "chat_template_kwargs": ["x", 5, [], True],
    "reasoning_effort": [5, [], True],
    "parallel_tool_calls": ["x", 1, [], {}],
    "response_format": [
        *("json", 5, {}, {"type": "json"}, {"type": 5}, [], {"type": "json_schema"}),
        *({"type": "json_object", "schema": {"type": "objekt"}}, {"type": "json_schema", "json_schema": {"name": ""}}),
    ],
    "tools": [
        *("x", 5, {}, True, [5], [None], [{}], ["f"], [{"type": "function"}], [{"type": "custom", "custom": {}}]),
        *([function(name) for name in ("", "a b", "é", "x" * 65, 5, None)]),
        *([{"type": "function", "function": {"name": "f", **more}}] for more in WRONG_IN_FUNCTIONS),
        *(function("f") * 2, function("f") * 129),
    ],
    "tool_choice": [
        *("some", 5, [], True, {}, "required", {"type": "function"}, {"type": "function", "function": {"name": "f"}}),
        *({"type": "function", "function": {"name": 5}}, {"type": "tool", "function": {"name": "f"}}),
    ],
    "modalities": ["text", 5, ["audio"], ["text", "audio"], [5]],
    "audio": [{}, "x", {"voice": "a"}],
    "moderation": [{}, "x"],
    "verbosity": [5, []],
    "safety_identifier": [5, []],
    "prompt_cache_key": [5, []],
    "prompt_cache_retention": [5, []],
    "prediction": [{}, "x", {"type": "content", "content": "a"}],
    "functions": [[], "x", [{"name": "f"}]],
    "function_call": ["auto", {}, 5],
    "web_search_options": [{}, "x"],
}

TEXT_ONLY: dict[str, list[Any]] = {
    "prompt": [
        *(5, None, True, {}, [], [[]], ["a", 5], [5, "a"], [-1], [1.5], [[1], "a"], [[-1]], [[1.5]], [None]),
        *([True], [[[1]]], [2**31], [2**20], ["a"] * 129, [{"text": "a"}]),
    ],
    "logprobs": [21, -1, "5", 1.5, True],
}

# --- messages, whole bodies, ways -------------------------------------------------------------------------------------


def picture(url: str, role: str = "user") -> dict[str, object]:
    return {"role": role, "content": [{"type": "image_url", "image_url": {"url": url}}]}


def called(call_id: Any, **more: Any) -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}, **more}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


MESSAGES: list[tuple[Any, str]] = [
    ([], "messages"),
    (None, "messages"),
    ("Hello", "messages"),
    ({}, "messages"),
    (5, "messages"),
    ([5], "messages.0"),
    (["Hello"], "messages.0"),
    ([None], "messages.0"),
    ([[]], "messages.0"),
    ([{}], "messages.0.role"),
    ([{"content": "x"}], "messages.0.role"),
    ([{"role": "robot", "content": "x"}], "messages.0.role"),
    ([{"role": 5, "content": "x"}], "messages.0.role"),
    ([{"role": None, "content": "x"}], "messages.0.role"),
    ([{"role": "", "content": "x"}], "messages.0.role"),
    ([{"role": "tool", "content": "x"}], "messages.0.tool_call_id"),
    ([{"role": "tool", "content": "x", "tool_call_id": ""}], "messages.0.tool_call_id"),
    ([{"role": "tool", "content": "x", "tool_call_id": 5}], "messages.0.tool_call_id"),
    ([USER, {"role": "tool", "content": "x", "tool_call_id": "a"}], "messages.1.tool_call_id"),
    ([USER, called("a"), {"role": "tool", "content": "x", "tool_call_id": "b"}], "messages.2.tool_call_id"),
    ([called("a") | {"role": "user"}], "messages.0.tool_calls"),
    ([USER, called(5)], "messages.1.tool_calls"),
    ([USER, called("")], "messages.1.tool_calls"),
    ([USER, called("a", type="custom")], "messages.1.tool_calls"),
    ([USER, called("a", function={"name": "f"})], "messages.1.tool_calls"),
    ([USER, called("a", function={"name": "f", "arguments": {}})], "messages.1.tool_calls"),
    ([USER, {"role": "assistant", "tool_calls": "x"}], "messages.1.tool_calls"),
    ([{"role": "user", "content": 5}], "messages.0.content"),
    ([{"role": "user", "content": True}], "messages.0.content"),
    ([{"role": "user", "content": {}}], "messages.0.content"),
    ([{"role": "user", "content": ["x"]}], "messages.0.content"),
    ([{"role": "user", "content": [{}]}], "messages.0.content"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content"),
    ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "messages.0.content"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "messages.0.content"),
    ([picture("https://example.org/cat.png")], "messages.0.content"),
    ([picture("file:///etc/passwd")], "messages.0.content"),
    ([picture("data:image/svg+xml;base64,AAAA")], "messages.0.content"),
    ([picture("data:image/png,AAAA")], "messages.0.content"),
    ([picture("data:image/png;base64,AAAA", "assistant")], "messages.0.content"),
    ([picture("data:image/png;base64,AAAA")], "messages.0.content"),  # of a model that sees nothing
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}], "messages.0.content"),
    ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "messages.0.content"),
    ([{"role": "user", "content": [{"type": "file", "file": {}}]}], "messages.0.content"),
    ([{"role": "user", "content": "x", "name": 5}], "messages.0.name"),
    ([{"role": "assistant", "content": "x", "reasoning_content": 5}], "messages.0.reasoning_content"),
    ([USER, {"role": "assistant", "content": "x", "tool_calls": [{}]}], "messages.1.tool_calls"),
    ([USER, {"role": "assistant", "content": "x", "function_call": {}}], "messages.1.function_call"),
    ([USER, {"role": "assistant", "content": "x", "function_call": {}}, {"role": "x"}], "messages.2.role"),
    ([USER, USER, {"role": "user", "content": [5]}], "messages.2.content"),
    ([{"role": "user", "content": "x" * 9000}], "messages"),
]

BODIES: list[bytes] = [
    b"",
    b" ",
    b"{",
    b"}",
    b"[]",
    b"null",
    b"true",
    b"5",
    b'"x"',
    b"{}",
    b"\xff\xfe",
    b"\x00",
    b"\xef\xbb\xbf{}",
    b'{"messages": NaN}',
    b'{"messages": [}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "user", "content": "\xff"}]}',
    b'{"messages": [{"role": "user", "content": "x"}],}',
    b"{'messages': []}",
    b'{"messages": [{"role": "user", "content": "x"}]} trailing',
    b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"a": ' * 5000,
    b"messages=Hello&model=toy",
    b"--boundary\r\nContent-Disposition: form-data\r\n\r\nx\r\n--boundary--",
]

WAYS: list[Bad] = [
    Bad("/v1/nothing", b"{}", 404),
    Bad("/v1/", b"{}", 404),
    Bad("/v1/chat", b"{}", 404),
    Bad("/v1/chat/completions/", b"{}", 404),
    Bad("/v1/chat/completions/more", b"{}", 404),
    Bad("/v1/engines/toy/completions", b"{}", 404),
    Bad("/v1/images/generations", b"{}", 404),
    Bad("/v1/audio/speech", b"{}", 404),
    Bad("/v1/responses", b"{}", 400, "input"),
    Bad("/v1/responses/resp_x", b"", 404, "response_id", "GET"),
    Bad("/v1/responses/resp_x/input_items?limit=many", b"", 400, "limit", "GET"),
    Bad("/v1/responses/resp_x/input_items?order=none", b"", 400, "order", "GET"),
    Bad("/v1/models/toy/more", b"", 404, "model", "GET"),
    Bad("/v1/models/../models/none", b"", 404, "*", "GET"),
    Bad("/v1/models/%00", b"", 404, "model", "GET"),
    Bad("/v1/models/%F0%9F%97%BC", b"", 404, "model", "GET"),
    Bad(CHAT, b"", 405, None, "GET"),
    Bad(CHAT, b"{}", 405, None, "PUT"),
    Bad(CHAT, b"", 405, None, "DELETE"),
    Bad(CHAT, b"{}", 405, None, "PATCH"),
    Bad(TEXT, b"", 405, None, "GET"),
    Bad("/v1/models", b"{}", 405, None, "POST"),
    Bad("/v1/models", b"", 405, None, "DELETE"),
    Bad("/v1/embeddings", b"", 405, None, "GET"),
    Bad("/v1/embeddings", b"{}", 404, None),
    Bad("/v1/embeddings", b"\xff", 404, None),
    Bad("/health", b"{}", 405, None, "POST"),
    Bad("/metrics", b"{}", 405, None, "POST"),
    Bad("/version", b"{}", 405, None, "PUT"),
]


def all_of_them() -> Iterator[Bad]:
    for path, usual in ((CHAT, {"messages": [USER]}), (TEXT, {"prompt": "Hello"})):
        more = CHAT_ONLY if path == CHAT else TEXT_ONLY
        for field, values in (BOTH | more).items():
            for value in values:
                yield Bad(path, _json({"max_tokens": 2, **usual, field: value}), param=_named(field))
    for messages, param in MESSAGES:
        yield Bad(CHAT, _json({"messages": messages}), param=param)
    for body in BODIES:
        yield Bad(CHAT, body)
        yield Bad(TEXT, body)
    for model in ("gpt-4", "", "toy ", "../toy"):
        yield Bad(CHAT, _json({"messages": [USER], "model": model}), 404, "model")
    yield from WAYS


def _named(field: str) -> str:
    return "*" if field == "stream_options" or field == "logit_bias" else field


def _json(body: object) -> bytes:
    return json.dumps(body).encode()
