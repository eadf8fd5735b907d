"""Row R14: people leave while they are answered, or wait, or while their prompt is computed; nothing of them stays.

Through HTTP, on real nodes; what the stages hold is what they themselves say with every answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.reliability.watching import at_rest, books_agree, engine_of
from tests.reliability.web import chat_body, web
from tests.support.checksum import EOS as END
from tests.support.checksum import QUIET, make_checksum_model
from tests.support.cluster import Node, ask, right_answer, running_cluster, until
from tests.support.patience import PATIENCE
from together.head.head import Head

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDLESS = (*QUIET, END)
LONG = "word " * 600  # 12 chunks


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checksum_model(tmp_path_factory.mktemp("toy") / "toy", quiet_ids=ENDLESS, step_ms=2)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has room for two sequences: its blocks are huge."""
    return make_checksum_model(tmp_path_factory.mktemp("toy") / "narrow", quiet_ids=ENDLESS, step_ms=5, block=3 * 2**17)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fifth of a second for each chunk of a prompt, on each of two stages."""
    return make_checksum_model(tmp_path_factory.mktemp("toy") / "slow", quiet_ids=ENDLESS, step_ms=100)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Head, list[Node], str]]:
    home = tmp_path_factory.mktemp("home")
    async with running_cluster(home, "anna", "berta", memory="20MB", context=4096) as (head, nodes), web(head) as url:
        yield head, nodes, url


@pytest.fixture
def head(cluster: tuple[Head, list[Node], str]) -> Head:
    return cluster[0]


@pytest_asyncio.fixture(loop_scope="module")
async def client(cluster: tuple[Head, list[Node], str]) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=cluster[2], timeout=PATIENCE, limits=httpx.Limits(max_connections=None)
    ) as client:
        yield client


async def begin(stack: AsyncExitStack, client: httpx.AsyncClient, text: str) -> None:
    """A streamed chat whose first words are there; it ends with the stack, by closing its connection."""
    request = client.stream("POST", "/v1/chat/completions", json=chat_body(text, 4000))
    response = await stack.enter_async_context(request)
    lines = response.aiter_lines()
    stack.push_async_callback(lines.aclose)  # type: ignore[attr-defined]  # it is a generator: its end is the response's
    seen = ""
    while '"content":"' not in seen.replace('"content":""', ""):
        seen += await anext(lines)


async def tasks_at_work(head: Head) -> int:
    """How many tasks there are once the engine has all of its own."""
    await ask(head, tokens=2)
    await asyncio.sleep(0.1)
    return len(asyncio.all_tasks())


async def leaves_nothing(head: Head, tasks: int) -> None:
    """Sequences, slots and streams are where they were, on every stage and here."""
    await until(lambda: books_agree(engine_of(head).stats()))
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    await at_rest(head)


async def test_while_streaming(head: Head, client: httpx.AsyncClient, toy: Path) -> None:
    await head.load(toy)
    tasks, before = await tasks_at_work(head), engine_of(head).stats().generated_tokens
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(begin(stack, client, f"number {i}") for i in range(3)))
        assert engine_of(head).stats().running == 3
        await until(lambda: set(engine_of(head).stats().stage_sequences) == {3})
    await leaves_nothing(head, tasks)
    assert engine_of(head).stats().generated_tokens - before < 3 * 4000  # none went on to its end
    assert await ask(head) == right_answer(toy)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_while_waiting_in_the_queue(head: Head, client: httpx.AsyncClient, narrow: Path, stream: bool) -> None:
    await head.load(narrow)
    tasks = await tasks_at_work(head)
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(begin(stack, client, f"number {i}") for i in range(2)))
        third = asyncio.create_task(client.post("/v1/chat/completions", json=chat_body("third", 4000, stream)))
        await until(lambda: engine_of(head).stats().waiting == 1)
        third.cancel()
        await until(lambda: engine_of(head).stats().waiting == 0)
        assert engine_of(head).stats().running == 2  # the others go on
    await leaves_nothing(head, tasks)
    answers = await asyncio.gather(*(ask(head, text, 4) for text in ("one", "two", "three")))
    assert list(answers) == [right_answer(narrow, text, 4) for text in ("one", "two", "three")]


async def test_while_the_prompt_is_computed(head: Head, client: httpx.AsyncClient, slow: Path) -> None:
    await head.load(slow)
    tasks, before = await tasks_at_work(head), engine_of(head).stats()
    await at_rest(head)
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=chat_body(LONG, 4)))
    await until(lambda: max(engine_of(head).stats().stage_sequences, default=0) == 1)  # a first chunk was computed
    asking.cancel()
    await leaves_nothing(head, tasks)
    after = engine_of(head).stats()
    assert after.generated_tokens == before.generated_tokens
    assert after.prefilled_tokens - before.prefilled_tokens < len(LONG)  # the rest of the prompt was not computed


async def test_while_the_whole_answer_is_made(head: Head, client: httpx.AsyncClient, toy: Path) -> None:
    await head.load(toy)
    tasks, before = await tasks_at_work(head), engine_of(head).stats().generated_tokens
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=chat_body("hello", 4000, stream=False)))
    await until(lambda: engine_of(head).stats().generated_tokens > before + 3)
    asking.cancel()
    await leaves_nothing(head, tasks)
    assert engine_of(head).stats().generated_tokens < before + 3000
