"""The parts of the HTTP side that need no running app: pauses, ports, errors."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.support.cluster import cluster_settings
from tests.support.patience import PATIENCE
from together.api.answers import ChatFormatter
from together.api.anthropic.answers import MessageFormatter
from together.api.failures import error_response
from together.api.metrics import Metrics
from together.api.openai_responses.answers import ResponseFormatter
from together.api.openai_responses.requests import ResponsesRequest
from together.api.responses import NotImplementedHere
from together.api.server import bind, serving, url_of
from together.api.stream import COMMENT, EventStream, RequestLog, stream
from together.api.visitors import is_local
from together.errors import LoadFailed, NotServing, QueueFull, RingBroken, Unreachable
from together.head.head import Head
from together.requests import AnswerChunk, CallDelta, Scored, TokenLogprob, Usage


class Answer:
    """A slow answer that knows whether it was closed."""

    def __init__(self, *steps: float | Exception | asyncio.Event) -> None:
        self.steps = steps
        self.closed = False

    async def pieces(self) -> AsyncGenerator[AnswerChunk, None]:
        try:
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                await (step.wait() if isinstance(step, asyncio.Event) else asyncio.sleep(step))
                yield AnswerChunk("é🗼")
            yield AnswerChunk("", finish="stop", usage=Usage(3, len(self.steps)))
        finally:
            self.closed = True


@pytest.fixture
async def log(tmp_path: Path) -> RequestLog:
    return RequestLog(Metrics(Head(cluster_settings(tmp_path))), "chat", "chatcmpl-1", 1)


def streamed(answer: Answer, log: RequestLog) -> AsyncGenerator[bytes, None]:
    return stream(answer.pieces(), log, ChatFormatter("toy", include_usage=True), 1)


async def sent_by(response: EventStream, paused: asyncio.Event) -> list[bytes]:
    """What a client that stays gets; `paused` is set after two comments."""
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if sent.count(COMMENT) == 2:
            paused.set()

    await response({"type": "http"}, asyncio.Event().wait, send)  # type: ignore[arg-type]  # no message ever comes
    return [part for part in sent if part]


async def test_a_pause_becomes_a_comment(log: RequestLog) -> None:
    paused = asyncio.Event()
    answer = streamed(Answer(0.0, paused, 0.0), log)
    events = await asyncio.wait_for(sent_by(EventStream(answer, pause=0.1), paused), PATIENCE)
    assert events.count(COMMENT) >= 2
    assert events[-1] == b"data: [DONE]\n\n"
    assert all(event.isascii() for event in events)  # nothing to split


async def test_an_error_in_the_stream_is_its_last_event(log: RequestLog) -> None:
    answer = Answer(0.0, RingBroken("node studio: stage 1 was killed"))
    events = [part async for part in streamed(answer, log)]
    assert b'{"error":{"message":"node studio: stage 1 was killed"' in events[-1]
    assert len(events) == 3


@pytest.mark.parametrize(
    ("formatter", "last"),
    [
        (
            MessageFormatter("toy", thinks=True, limit=8),
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"',
        ),
        (ResponseFormatter("toy", ResponsesRequest(), lambda _: None), b"event: response.failed\n"),
    ],
    ids=["messages", "responses"],
)
async def test_other_apis_end_a_stream_in_their_own_way(log: RequestLog, formatter: Any, last: bytes) -> None:
    answer = Answer(0.0, RingBroken("node studio: stage 1 was killed"))
    events = [part async for part in stream(answer.pieces(), log, formatter, 1)]
    assert events[-1].startswith(last)
    assert b"node studio: stage 1 was killed" in events[-1]


SCORE = TokenLogprob(Scored(1, b"{", -1.0))
MIXED = (
    AnswerChunk(
        "", tool_calls=(CallDelta(0, "call_1", "weather"), CallDelta(0, arguments='{"city": ')), logprobs=(SCORE,)
    ),
    AnswerChunk("", tool_calls=(CallDelta(0, arguments='"Oslo'),), logprobs=(SCORE,)),
    AnswerChunk("Both: ", tool_calls=(CallDelta(0, arguments='"}'), CallDelta(1, "call_2", "now")), logprobs=(SCORE,)),
    AnswerChunk("", tool_calls=(CallDelta(1, arguments="{}"),), finish="tool_calls", logprobs=(SCORE,)),
)


def test_a_call_keeps_its_arguments_whatever_comes_with_them() -> None:
    """Several tokens may come at once: the end of a call, text, and the next call."""
    made = ResponseFormatter("toy", ResponsesRequest(), lambda _: None).whole([MIXED], Usage(3, 9))
    assert [item.get("arguments") or item["content"][0]["text"] for item in made["output"]] == [
        '{"city": "Oslo"}',
        "Both: ",
        "{}",
    ]
    formatter = MessageFormatter("toy", thinks=False, limit=99)
    events = [json.loads(part.split(b"data: ")[1]) for piece in MIXED for part in formatter.chunks(piece)]
    blocks = [""] * 3
    for each in events:
        if each["type"] == "content_block_delta":
            blocks[each["index"]] += each["delta"].get("partial_json") or each["delta"]["text"]
    assert blocks == ['{"city": "Oslo"}', "Both: ", "{}"]


def test_what_is_there_of_a_cancelled_answer_stays() -> None:
    formatter = ResponseFormatter("toy", ResponsesRequest(background=True), lambda _: None)
    formatter.take(AnswerChunk("So far"))
    formatter.cancel()
    shown = formatter.shown()
    (item,) = shown["output"]
    assert (shown["status"], item["status"], item["content"][0]["text"]) == ("cancelled", "incomplete", "So far")


async def test_an_error_before_the_stream_is_raised(log: RequestLog) -> None:
    with pytest.raises(QueueFull):
        await anext(streamed(Answer(QueueFull("full")), log))


async def test_a_bug_in_the_stream_keeps_its_text_in_the_log(log: RequestLog, caplog: pytest.LogCaptureFixture) -> None:
    events = [part async for part in streamed(Answer(0.0, ZeroDivisionError("secret")), log)]
    assert b"secret" not in events[-1]
    assert b"internal_error" in events[-1]
    assert "secret" in caplog.text


@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_closing_the_stream_closes_the_answer(log: RequestLog, steps: int) -> None:
    answer = Answer(0.0, 60.0)
    events = streamed(answer, log)
    for _ in range(steps):
        await anext(events)
    await events.aclose()
    assert answer.closed or not steps


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (NotServing("loading", retry_after=0.2), 503, "1"),
        (QueueFull("full", retry_after=2.5), 429, "3"),
        (RingBroken("gone"), 503, "5"),
        (LoadFailed("no"), 503, "5"),
        (NotImplementedHere("no"), 404, None),
        (ValueError("bug"), 500, None),
    ],
)
def test_errors_have_their_status(error: Exception, status: int, retry: str | None) -> None:
    response = error_response(error, "/v1/models")
    assert (response.status_code, response.headers.get("retry-after")) == (status, retry)
    assert b"bug" not in bytes(response.body)


def test_the_next_free_port_is_taken() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", port) as second:
            assert second.getsockname()[1] > port
            assert url_of(second) == f"http://127.0.0.1:{second.getsockname()[1]}"


class Accepting(socket.socket):
    """A listener that remembers whom it accepted."""

    accepted: list[socket.socket]

    def accept(self) -> tuple[socket.socket, Any]:
        connection, address = super().accept()
        self.accepted.append(connection)
        return connection, address


@pytest.mark.skipif(os.name == "nt", reason="its event loop accepts without the listener")
async def test_no_answer_waits_for_an_acknowledgement() -> None:
    """Header and body are two packets: with Nagle's algorithm, the second waited 40 ms on an idle machine."""
    app = FastAPI()
    app.add_api_route("/", lambda: {"a": 1})
    with bind("127.0.0.1", 0) as bound:
        listener = Accepting(bound.family, bound.type, bound.proto, bound.detach())
    listener.accepted = []
    async with serving(app, listener), httpx.AsyncClient(base_url=url_of(listener), trust_env=False) as client:
        assert (await client.get("/")).json() == {"a": 1}
        (connection,) = listener.accepted
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_that_is_not_ours_is_a_sentence() -> None:
    with pytest.raises(Unreachable, match="no port of 5000"):
        bind("203.0.113.1", 5000)


def test_everywhere_is_opened_on_loopback() -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        assert url_of(listener).startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("client", "server", "local"),
    [
        (("127.0.0.1", 1), ("127.0.0.1", 2), True),
        (("::1", 1), ("::1", 2), True),
        (("192.168.1.5", 1), ("192.168.1.5", 2), True),  # this machine by its own network address
        (("192.168.1.6", 1), ("192.168.1.5", 2), False),
        (None, ("127.0.0.1", 2), False),
    ],
)
def test_control_is_for_this_machine(client: object, server: object, local: bool) -> None:
    assert is_local({"type": "http", "client": client, "server": server}) is local
