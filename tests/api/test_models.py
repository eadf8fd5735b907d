"""Several models over HTTP: the request's `model` says which one answers."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from tests.api.conftest import Heads
from tests.api.test_admission import CHAT, HELLO, assert_come_back
from tests.api.web import client_of
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import right_answer, until
from together.api.answering import LOADS_WITHIN


async def test_the_model_of_a_request_answers(tmp_path: Path, head_with: Heads) -> None:
    toys = [make_checksum_model(tmp_path / name, seed=i, quiet_ids=(*QUIET, EOS)) for i, name in enumerate("ab")]
    async with head_with() as head, client_of(head) as client:
        await head.load(toys[0])
        await head.load(toys[1], beside=True)
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["a", "b"]

        async def answer(name: str) -> tuple[str, str]:
            body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 12}
            reply = (await client.post(CHAT, json=body | {"model": name})).json()
            return reply["model"], reply["choices"][0]["message"]["content"]

        found = await asyncio.gather(*map(answer, "abab"))
        assert found == [(toy.name, right_answer(toy)) for toy in (*toys, *toys)]
        other = await client.post(CHAT, json=HELLO | {"model": "c"})
        assert other.status_code == 404
        assert "the served models are 'a' and 'b'" in other.json()["error"]["message"]
        unnamed = await client.post(CHAT, json=HELLO)
        assert (unnamed.status_code, unnamed.json()["error"]["param"]) == (400, "model")
        metrics = (await client.get("/metrics")).text
        assert 'together_generated_tokens_total{model="a"} 24.0' in metrics
        assert 'together_requests_total{model="b",result="length",route="chat"} 2.0' in metrics
        await head.unload("a")
        assert (await client.post(CHAT, json=HELLO)).json()["model"] == "b"


async def test_any_name_may_mean_the_model_that_serves(tmp_path: Path, head_with: Heads) -> None:
    toys = [make_checksum_model(tmp_path / name, seed=i, quiet_ids=(*QUIET, EOS)) for i, name in enumerate("ab")]
    async with head_with(any_model=True) as head, client_of(head) as client:
        assert_come_back(await client.post(CHAT, json=HELLO | {"model": "gpt-4"}), 503, "model_not_ready")
        await head.load(toys[0])
        await head.load(toys[1], beside=True)
        for asked, meant in (("gpt-4", "a"), ("claude-x", "a"), ("b", "b")):
            assert (await client.post(CHAT, json=HELLO | {"model": asked})).json()["model"] == meant


async def test_a_request_loads_the_model_that_it_names(tmp_path: Path, head_with: Heads) -> None:
    folders = tmp_path / "home" / "models"
    quick = make_checksum_model(folders / "quick", quiet_ids=(*QUIET, EOS))
    slow = make_checksum_model(folders / "slow", seed=2, quiet_ids=(*QUIET, EOS), load_ms=6000)
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 12}
    async with head_with(on_demand=True, aliases="gpt-4o=quick") as head, client_of(head) as client:
        known = {model["id"] for model in (await client.get("/v1/models")).json()["data"]}
        assert known >= {"quick", "slow", "gpt-4o"}
        reply = (await client.post(CHAT, json=body | {"model": "gpt-4o"})).json()
        assert (reply["model"], reply["choices"][0]["message"]["content"]) == ("gpt-4o", right_answer(quick))
        assert (await client.post(CHAT, json=body | {"model": "slow", "top_p": 7})).status_code == 400
        assert list(head.services.by_name) == ["quick"]  # nothing is loaded for a wrong request
        assert (await client.post(CHAT, json=body | {"model": str(slow)})).status_code == 404

        async with client.stream("POST", CHAT, json=body | {"model": "slow", "stream": True}) as streamed:
            assert streamed.status_code == 200
            lines = streamed.aiter_lines()
            assert "assistant" in await anext(lines)
            assert "slow" not in head.services.by_name  # it has begun, and is kept alive until the model is there
            clock = time.monotonic
            waiting = asyncio.create_task(client.post(CHAT, json=body | {"model": "slow"}))
            await until(lambda: len(next(iter(head.demands.open.values())).holds) == 2)
            head.services.clock = lambda: clock() + LOADS_WITHIN
            late = await waiting
            assert late.headers["Retry-After"] == "5"
            assert "slow is being loaded" in assert_come_back(late, 503, "model_not_ready")
            events = [json.loads(line[6:]) async for line in lines if line.startswith("data: {")]
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
        assert text == right_answer(slow)
