"""Row R17: many users at once, in the long form a hundred. Each gets the right text or is told to wait.

The app stays awake. It is a process of its own; only the users are in this one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import RealApp, start_app
from tests.reliability.web import chat_body
from tests.support.cluster import right_answer
from tests.support.patience import PATIENCE

TOKENS = 24
MOST_PIECES = 500  # between two answers of `/health`: a fifth of all, and many times what it is


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    text: str
    seconds: float


@pytest.fixture(params=[pytest.param(count, marks=pytest.mark.full) for count in (40, 100)])
def users(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def crowded_app(tmp_path: Path, users: int) -> Iterator[RealApp]:
    """Its queue is short, so that some are sent away."""
    with start_app(tmp_path, TOGETHER_MAX_WAITING=str(6 * users // 10)) as app:
        yield app


async def one(client: httpx.AsyncClient, person: int) -> Outcome:
    """One person's streamed chat; all questions are equally long."""
    began = time.monotonic()
    body = chat_body(f"I am number {person:03}.", TOKENS)
    text = ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if response.status_code == 200 and line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: "))["choices"]
                text += "".join(choice["delta"].get("content") or "" for choice in choices)
    return Outcome(response.status_code, text, time.monotonic() - began)


async def health(client: httpx.AsyncClient, stop: asyncio.Event) -> list[float]:
    """Seconds that `/health` took, again and again until `stop`."""
    times = []
    while not stop.is_set():
        began = time.monotonic()
        assert (await client.get("/health")).status_code == 200
        times.append(time.monotonic() - began)
        await asyncio.sleep(0.01)
    return times


async def test_many_users_at_once(crowded_app: RealApp, users: int, tmp_path: Path) -> None:
    toy = tmp_path / "toy"
    right = [right_answer(toy, f"I am number {person:03}.", TOKENS) for person in range(users)]
    stop, limits = asyncio.Event(), httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=crowded_app.url, timeout=PATIENCE, limits=limits) as client:
        watching = asyncio.create_task(health(client, stop))
        outcomes = await asyncio.gather(*(one(client, person) for person in range(users)))
        stop.set()
        times = sorted(await watching)
        answered = [outcome for outcome in outcomes if outcome.status == 200]
        for outcome, text in zip(outcomes, right, strict=True):
            assert outcome.status in (200, 429, 503)
            assert outcome.text == (text if outcome.status == 200 else "")
        assert len(answered) > users // 5
        p99 = times[round(0.99 * (len(times) - 1))]
        spread = max(o.seconds for o in answered) / min(o.seconds for o in answered)
        print(f"{len(answered)} of {users} answered, slowest/fastest {spread:.2f}, health p99 {1e3 * p99:.0f} ms")
        assert len(times) > sum(len(o.text) for o in answered) / MOST_PIECES
        assert (await one(client, 7)).text == right[7]  # and afterwards all is as before
