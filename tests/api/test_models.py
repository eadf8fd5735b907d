"""Several models over HTTP: the request's `model` says which one answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.api.conftest import Heads
from tests.api.test_admission import CHAT, HELLO
from tests.api.web import client_of
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import right_answer


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
