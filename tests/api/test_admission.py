"""Who is let in, and what is said to the others: before any work, with the state and when to come back."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.api.conftest import Heads
from tests.api.web import client_of
from tests.conftest import RealApp
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import by_hand, until
from tests.support.patience import PATIENCE
from together.head.head import Head
from together.view import ServingState

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "temperature": 0}


def assert_come_back(reply: httpx.Response, status: int, code: str) -> str:
    """The refusal's message."""
    assert reply.status_code == status
    assert int(reply.headers["retry-after"]) >= 1
    error = reply.json()["error"]
    assert (error["code"], error["param"]) == (code, None)
    return str(error["message"])


async def refusals_until_served(client: httpx.AsyncClient) -> list[str]:
    """What is said until a request is served again."""
    said = []
    async with asyncio.timeout(PATIENCE):
        while (reply := await client.post(CHAT, json=HELLO)).status_code != 200:
            said.append(assert_come_back(reply, 503, "model_not_ready"))
            await asyncio.sleep(0.02)
    return said


async def test_the_state_is_said_while_nothing_serves(tmp_path: Path, head_with: Heads) -> None:
    toy = make_checksum_model(tmp_path / "toy", quiet_ids=(*QUIET, EOS), step_ms=2)
    async with head_with() as head, client_of(head) as client:
        for path, body in ((CHAT, HELLO), (TEXT, {"prompt": "x", "model": "gpt-4"})):
            assert "no model" in assert_come_back(await client.post(path, json=body), 503, "model_not_ready")
        loading = asyncio.create_task(head.load(toy, by_hand("0:2,2:4")))
        said = await refusals_until_served(client)
        await loading
        assert any(
            "is being loaded: " in sentence and sentence.endswith("; try again in a moment") for sentence in said
        )
        psutil.Process(_stage_pid(head)).kill()
        await until(lambda: head.view().serving.state is not ServingState.READY)
        health = await client.get("/health")
        assert (health.status_code, health.json()["state"]) == (503, "RECOVERING")
        assert any("is being mended" in sentence for sentence in await refusals_until_served(client))


def _stage_pid(head: Head) -> int:
    return next(stage.pid for node in head.view().nodes for stage in node.stages)


async def test_a_full_queue_is_429_and_those_before_are_served(tmp_path: Path, head_with: Heads) -> None:
    toy = make_checksum_model(tmp_path / "toy", quiet_ids=(*QUIET, EOS), step_ms=1)
    async with head_with(max_waiting=3, context=256, users=1) as head:
        await head.load(toy, by_hand("0:4"))
        async with client_of(head) as client:
            body = HELLO | {"max_tokens": 200}
            assert (await client.post(CHAT, json=HELLO)).status_code == 200  # the template is compiled now
            stage = psutil.Process(_stage_pid(head))
            stage.suspend()  # nobody leaves the queue
            asked = [asyncio.create_task(client.post(CHAT, json=body)) for _ in range(12)]
            await until(lambda: any(one.done() for one in asked))
            stage.resume()
            replies = await asyncio.gather(*asked)
            refused = [reply for reply in replies if reply.status_code != 200]
            texts = {reply.json()["choices"][0]["message"]["content"] for reply in replies if reply.status_code == 200}
            assert refused
            assert len(texts) == 1
            for reply in refused:
                assert "waiting already" in assert_come_back(reply, 429, "queue_full")
            assert (await client.post(CHAT, json=HELLO | {"n": 4})).status_code == 429
            metrics = (await client.get("/metrics")).text
    assert f'together_requests_total{{model="toy",result="queue_full",route="chat"}} {len(refused) + 1}.0' in metrics


# --- what a monitor and the log see -----------------------------------------------------------------------------------


def value(app: RealApp, name: str) -> float:
    """A sample of `/metrics`; 0 where it is not there yet."""
    lines = [line for line in app.get("/metrics").text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return float(lines[0].split()[-1]) if lines else 0.0


NAMES = """
together_requests_total together_prompt_tokens_total together_generated_tokens_total together_queue_length
together_time_to_first_token_seconds_bucket together_time_per_output_token_seconds_bucket together_running_sequences
together_kv_use_ratio together_kv_capacity_tokens together_stage_step_seconds together_link_bytes_total
together_links_step_seconds together_node_up together_serving_state together_request_seconds_sum
""".split()


def test_metrics_have_all_names(real_app: RealApp) -> None:
    real_app.post(CHAT, HELLO)
    reply = real_app.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    for name in NAMES:
        assert f"\n{name}" in reply.text, name
    counters = [line.split()[2] for line in reply.text.splitlines() if line.endswith(" counter")]
    assert counters
    assert all(name.endswith("_total") for name in counters)


def test_metrics_count_choices_and_the_shared_prompt(real_app: RealApp) -> None:
    names = ["prompt_tokens_total", "prompt_reused_tokens_total", "generated_tokens_total"]
    before = [value(real_app, f"together_{name}") for name in names]
    model = real_app.get("/v1/models").json()["data"][0]["id"]
    results = f'together_requests_total{{model="{model}",result="length",route="chat"}}'
    requests = value(real_app, results)
    body = HELLO | {"n": 4, "max_tokens": 5, "messages": [{"role": "user", "content": "Four of a kind. " * 20}]}
    usage = real_app.post(CHAT, body).json()["usage"]
    prompts, reused, generated = (
        value(real_app, f"together_{name}") - old for name, old in zip(names, before, strict=True)
    )
    assert usage["completion_tokens"] == generated == 20
    assert prompts == 4 * usage["prompt_tokens"]
    assert reused >= 3 * (usage["prompt_tokens"] - 1)
    assert value(real_app, results) == requests + 1
    assert value(real_app, "together_running_sequences") == 0


async def test_one_line_in_the_log_for_a_request_and_no_text(
    tmp_path: Path, head_with: Heads, caplog: pytest.LogCaptureFixture
) -> None:
    toy = make_checksum_model(tmp_path / "toy", quiet_ids=(*QUIET, EOS))
    async with head_with() as head:
        await head.load(toy, by_hand("0:4"))
        async with client_of(head) as client:
            with caplog.at_level(logging.INFO, "together.api"):
                secret = HELLO | {"messages": [{"role": "user", "content": "my secret"}], "stream": True}
                said = (await client.post(CHAT, json=secret)).text
                await client.post(CHAT, json=HELLO | {"temperature": 5})
    lines = [record.getMessage() for record in caplog.records if record.name == "together.api.stream"]
    assert len(lines) == 2
    first = said.split('"id":"')[1].split('"')[0]
    assert first in lines[0]
    for word in ("length", "answer 2 tokens", "first ", "total "):
        assert word in lines[0]
    assert lines[1] == "chat refused: invalid"
    assert not any("secret" in line for line in caplog.messages)
