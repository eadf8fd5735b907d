"""Whose a request is, over HTTP: caches and conversations of one key are nobody else's, by no route."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.conftest import Heads
from tests.api.web import client_from_elsewhere
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import by_hand
from tests.support.patience import PATIENCE
from together.api import access
from together.api.keys import KeyFile
from together.desktop.keys import owner_of
from together.head.head import Head

TEXT = "Once upon a time there was a long text that is worth keeping in a cache."
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 3},
    "/v1/completions": {"prompt": TEXT, "max_tokens": 3},
}


@dataclass(frozen=True, slots=True)
class Served:
    head: Head
    client: httpx.AsyncClient
    anna: dict[str, str]
    berta: dict[str, str]


@asynccontextmanager
async def served(head_with: Heads, folder: Path) -> AsyncIterator[Served]:
    toy = make_checksum_model(folder / "toy", quiet_ids=(*QUIET, EOS))
    async with head_with() as head:
        await head.load(toy, by_hand("one=0:4"))
        keys = KeyFile(head.settings.home_path)
        anna, berta = ({"x-api-key": keys.make(name)[1]} for name in ("anna", "berta"))
        async with client_from_elsewhere(head, "tg-own") as client:
            yield Served(head, client, anna, berta)


async def cached(client: httpx.AsyncClient, path: str, key: dict[str, str]) -> int:
    reply = await client.post(path, json=BODIES[path], headers=key)
    tokens: int = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    return tokens


async def test_a_text_of_one_owner_is_cached_for_no_other(head_with: Heads, tmp_path: Path) -> None:
    async with served(head_with, tmp_path) as it:
        own = {"Authorization": "Bearer tg-own"}
        for path in BODIES:
            found = [await cached(it.client, path, key) for key in (it.anna, it.berta, own, it.anna, it.berta, own)]
            assert found[:3] == [0, 0, 0]
            assert all(found[3:])
        score = {"prompt": TEXT, "max_tokens": 0, "echo": True, "logprobs": 0}
        for key in (it.anna, it.berta):
            assert (await it.client.post("/v1/completions", json=score, headers=key)).status_code == 200
        await it.client.post("/control/score", json={"text": TEXT}, headers=own)
        owners = {service.owner for service in it.head.services.only().engine._scheduler.prefixes.held.values()}  # type: ignore[union-attr]
        assert len(owners) == 3
        gone = (await it.client.post("/control/forget-texts", json={}, headers=own)).json()
        assert gone["caches"] >= 3
        assert [await cached(it.client, path, it.anna) for path in BODIES] == [0, 0]


async def test_a_conversation_of_one_owner_is_there_for_no_other_until_it_is_forgotten(
    head_with: Heads, tmp_path: Path
) -> None:
    async with served(head_with, tmp_path) as it:
        settings = {"max_tokens": 3, "temperature": 0}
        found = []
        for key in (it.anna, it.berta):
            made = await it.client.post("/conversations", json={"settings": settings}, headers=key)
            chat = made.json()["summary"]["id"]
            asked = await it.client.post(f"/conversations/{chat}/turns", json={"text": TEXT}, headers=key)
            assert asked.status_code == 201
            found.append(await answer_of(it.client, chat, key))
        assert [answer["said"]["figures"]["cached_tokens"] for answer in found] == [0, 0]
        assert (await it.client.get(f"/conversations/{chat}", headers=it.anna)).status_code == 404
        assert (await it.client.get(f"/conversations/{chat}")).status_code == 401
        body = {"owner": owner_of("berta", KeyFile(it.head.settings.home_path))}
        own = {"Authorization": "Bearer tg-own"}
        gone = (await it.client.post("/control/forget-texts", json=body, headers=own)).json()
        assert (gone["chats"], gone["caches"]) == (1, 1)
        assert (await it.client.get(f"/conversations/{chat}", headers=it.berta)).status_code == 404
        left = (await it.client.get("/conversations", headers=it.anna)).json()["conversations"]
        assert len(left) == 1
        gone = (await it.client.post("/control/forget-texts", json={}, headers=own)).json()
        assert gone["chats"] == 1


async def test_a_kept_answer_is_its_owners_and_ends_with_the_key(
    head_with: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "LOOK_EVERY", 0.01)  # the toy is faster than that of the app
    path, asked = "/v1/responses", {"input": TEXT, "max_output_tokens": 3}
    async with served(head_with, tmp_path) as it:
        name = (await it.client.post(path, json=asked, headers=it.anna)).json()["id"]
        for key, status in ((it.berta, 404), (it.anna, 200)):
            for found in (f"{path}/{name}", f"{path}/{name}/input_items"):
                assert (await it.client.get(found, headers=key)).status_code == status
        assert (await it.client.post(f"{path}/{name}/cancel", headers=it.berta)).status_code == 404
        assert (await it.client.delete(f"{path}/{name}", headers=it.berta)).status_code == 404
        more = asked | {"previous_response_id": name}
        assert (await it.client.post(path, json=more, headers=it.berta)).status_code == 400
        assert (await it.client.post(path, json=more, headers=it.anna)).status_code == 200
        whole = {"input": TEXT, "background": True}  # up to the end of the context
        assert (await it.client.post(path, json=whole, headers=it.berta)).status_code == 200
        KeyFile(it.head.settings.home_path).revoke("berta")
        works = [each.work for each in it.head.answers._held.values() if each.work is not None]
        await asyncio.wait_for(asyncio.gather(*works), PATIENCE)
        assert "cancelled" in {each.shown["status"] for each in it.head.answers._held.values()}


async def answer_of(client: httpx.AsyncClient, chat: str, key: dict[str, str]) -> dict[str, Any]:
    """The last turn, once it is whole."""
    async with asyncio.timeout(PATIENCE):
        while True:
            kept = (await client.get(f"/conversations/{chat}", headers=key)).json()
            if kept["turns"][-1]["state"] != "writing":
                turn: dict[str, Any] = kept["turns"][-1]
                return turn
            await asyncio.sleep(0.02)
