"""Conversations of many megabytes are written and read on threads: the event loop answers others meanwhile."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from tests.api.conftest import Heads
from tests.api.web import client_of
from tests.support.cluster import until
from tests.support.kept_chats import turn
from together.chats.exchange import FORMAT

TEXT = "A paragraph of an answer, with **words**.\n\n" * 5_000  # 200 kB


def large() -> bytes:
    turns = [turn(f"t{n}", f"t{n - 1}" if n else "", "assistant" if n % 2 else "user", TEXT) for n in range(20)]
    summary = {"id": "x", "title": "large", "pinned": False, "created": 1.0, "changed": 1.0}
    chats = [{"conversation": {"summary": summary, "leaf": "t19", "turns": turns}}]
    return json.dumps({"format": FORMAT, "chats": chats}).encode()


async def test_others_are_answered_while_a_large_conversation_is_written_or_read(head_with: Heads) -> None:
    async with head_with() as head, client_of(head) as client:
        (made,) = (await client.post("/conversations/import", content=large())).raise_for_status().json()
        path = f"/conversations/{made['id']}"

        async def first_event() -> str:
            async with client.stream("GET", f"{path}/events") as answer:
                return await anext(line async for line in answer.aiter_lines())

        pool, free = ThreadPoolExecutor(1), Event()
        asyncio.get_running_loop().set_default_executor(pool)
        pool.submit(free.wait)
        works = [client.get(path), client.get(f"{path}/export"), client.patch(path, json={"pinned": True})]
        works += [client.post("/conversations/import", content=large()), client.post(f"{path}/duplicate")]
        tasks = [asyncio.create_task(work) for work in works]
        event = asyncio.create_task(first_event())
        try:
            await until(lambda: pool._work_queue.qsize() >= len(works) + 1)  # all wait for the one thread
            assert (await client.get("/version")).status_code == 200
            assert (await client.get("/conversations")).json()["conversations"][0]["title"] == "large"
            assert not any(task.done() for task in (*tasks, event))
        finally:
            free.set()
        for task in tasks:
            (await task).raise_for_status()
        kept = (await tasks[0]).json()
        assert [each["said"]["text"] for each in kept["turns"]] == [TEXT] * 20
        told = json.loads((await event).removeprefix("data: "))
        assert told["chat"]["turns"] == kept["turns"]
        assert len(told["shown"]) == 10
