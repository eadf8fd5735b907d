"""What a model's author says of sampling holds over HTTP wherever a request is silent, and a request's fields win."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.conftest import Heads
from tests.api.web import client_of
from tests.support.checksum import expected_tokens, make_checksum_model
from tests.support.cluster import by_hand
from together.requests import Message
from together.text.tokenizer import TextModel
from together.types import Sampling

AUTHOR = {"do_sample": True, "temperature": 1.3, "top_k": 7, "top_p": 0.9, "repetition_penalty": 1.2}
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 30, "seed": 5}


def toy_with(folder: Path, **generation: object) -> Path:
    toy = make_checksum_model(folder)
    (toy / "generation_config.json").write_text(json.dumps(generation))
    return toy


async def said(client: httpx.AsyncClient, **more: object) -> str:
    answer = (await client.post("/v1/chat/completions", json=BODY | {"ignore_eos": True} | more)).json()
    return str(answer["choices"][0]["message"]["content"])


async def completed(client: httpx.AsyncClient, prompt: list[int], **more: object) -> str:
    body = {"prompt": prompt, "max_tokens": 30, "seed": 5, "ignore_eos": True}
    return str((await client.post("/v1/completions", json=body | more)).json()["choices"][0]["text"])


def expected(toy: Path, sampling: Sampling) -> str:
    text = TextModel.open(toy)
    prompt = text.prompt_ids([Message("user", "Hello")])
    return text.tokenizer.decode(expected_tokens(toy, prompt, 30, sampling))


@pytest.mark.parametrize(
    ("mode", "silent"),
    [("default", Sampling(1.3, 7, 0.9, 0.0, 1.2, seed=5)), ("plain", Sampling(seed=5))],
)
async def test_silent_requests_get_them(tmp_path: Path, head_with: Heads, mode: str, silent: Sampling) -> None:
    toy = toy_with(tmp_path / "toy", **AUTHOR)
    prompt = list(TextModel.open(toy).prompt_ids([Message("user", "Hello")]))
    async with head_with(sampling=mode) as head:
        await head.load(toy, by_hand("0:4"))
        async with client_of(head) as client:
            entry = (await client.get("/v1/models/toy")).json()
            assert entry["sampling_defaults"]["temperature"] == silent.temperature
            assert await said(client) == await completed(client, prompt) == expected(toy, silent)
            own = {"temperature": 0.9, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
            assert await said(client, **own) == await completed(client, prompt, **own)
            assert await said(client, **own) == expected(toy, Sampling(0.9, seed=5))


async def test_do_sample_false_is_greedy_until_a_request_wants_otherwise(tmp_path: Path, head_with: Heads) -> None:
    toy = toy_with(tmp_path / "toy", do_sample=False, temperature=0.6)
    async with head_with() as head:
        await head.load(toy, by_hand("0:4"))
        async with client_of(head) as client:
            assert await said(client) == expected(toy, Sampling(0.0))
            assert await said(client, temperature=1.0) == expected(toy, Sampling(1.0, seed=5))
