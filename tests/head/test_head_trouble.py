"""A head whose ring breaks, whose people leave, that shares its nodes, and that stops in the middle of things."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from tests.reliability.watching import engine_of
from tests.support.checksum import EOS as END
from tests.support.checksum import QUIET, make_checksum_model
from tests.support.cluster import (
    GREEDY,
    Node,
    ask,
    right_answer,
    running_cluster,
    until,
)
from tests.support.patience import PATIENCE
from together.errors import NotServing, RingBroken
from together.head.head import Head
from together.requests import AnswerChunk, ChatRequest, Message
from together.view import ServingState

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDLESS = (*QUIET, END)
TOKENS = 400
LONG = ChatRequest((Message("user", "tell me everything"),), GREEDY, TOKENS)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checksum_model(tmp_path_factory.mktemp("toy") / "model", quiet_ids=ENDLESS)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Takes its time for each token, and has room for two sequences: its blocks are huge."""
    folder = tmp_path_factory.mktemp("toy") / "slow"
    return make_checksum_model(folder, quiet_ids=ENDLESS, step_ms=5, block=3 * 2**17)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Head, list[Node]]]:
    """Each node has room for one stage: what is not given back at once is missed at the next load."""
    async with running_cluster(tmp_path_factory.mktemp("home"), "anna", "berta", memory="20MB") as cluster:
        yield cluster


@pytest.fixture
def head(cluster: tuple[Head, list[Node]]) -> Head:
    return cluster[0]


@pytest.fixture
def nodes(cluster: tuple[Head, list[Node]]) -> list[Node]:
    return cluster[1]


# --- breaking ---------------------------------------------------------------------------------------------------------


async def test_a_step_that_always_fails_ends_its_request_with_node_and_cause_and_no_other(
    head: Head, tmp_path: Path
) -> None:
    weak = make_checksum_model(tmp_path / "weak", fail_at_position=40, fail_at_layer=3, quiet_ids=ENDLESS)
    await head.load(weak)
    with pytest.raises(RingBroken, match=r"stage 1 failed \(RuntimeError: the checksum toy was told to fail at"):
        await ask(head, tokens=100)
    await until(lambda: head.view().serving.state is ServingState.READY)
    assert await ask(head, tokens=4) == right_answer(weak, tokens=4)


async def _collect(head: Head) -> str:
    return "".join([piece.text async for piece in head.chat(LONG)])


# --- leaving ----------------------------------------------------------------------------------------------------------


async def test_a_closed_chat_leaves_no_sequence_on_any_stage(head: Head, slow: Path) -> None:
    """Two sequences fill the toy's blocks: what a closed chat left behind would refuse the next ones."""
    await head.load(slow)
    before = engine_of(head).stats().generated_tokens
    for _ in range(2):
        chats = [head.chat(LONG) for _ in range(2)]
        for chat in chats:
            await anext(chat)
        assert head.view().serving.running == 2
        for chat in chats:
            await chat.aclose()
        await until(lambda: head.view().serving.running == head.view().serving.waiting == 0, PATIENCE)
    assert engine_of(head).stats().generated_tokens - before < TOKENS  # none of four went on to its end
    answers = await asyncio.gather(*(ask(head, text, 4) for text in ("one", "two", "three")))
    assert list(answers) == [right_answer(slow, text, 4) for text in ("one", "two", "three")]


async def test_a_chat_that_is_cancelled_while_it_waits_leaves_the_queue(head: Head, slow: Path) -> None:
    await head.load(slow)
    before = engine_of(head).stats().generated_tokens
    running = [asyncio.create_task(_collect(head)) for _ in range(3)]
    await until(lambda: (head.view().serving.running, head.view().serving.waiting) == (2, 1))
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await until(lambda: head.view().serving.running == head.view().serving.waiting == 0, PATIENCE)
    assert engine_of(head).stats().generated_tokens - before < TOKENS


async def test_stopping_in_the_middle_of_everything_is_silent(
    head: Head, slow: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Local nodes, an open chat, a second model being loaded: all of it ends with the head."""
    loop = asyncio.get_running_loop()
    unheard: list[dict[str, object]] = []
    loop.set_exception_handler(lambda loop, context: unheard.append(context))
    before = _children()
    busy = Head(replace(head.settings, cluster="silent"), local_nodes=2)
    await busy.start()
    await busy.load(slow)
    chat = busy.chat(LONG)
    await anext(chat)
    waiting = asyncio.create_task(anext(chat))
    assert len(_children() - before) >= 4
    async with asyncio.timeout(PATIENCE):
        await busy.stop()
    with pytest.raises((NotServing, RingBroken)):
        await _rest(waiting, chat)
    gc.collect()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert _children() <= before
    assert unheard == []
    assert capfd.readouterr().err == ""
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []  # ready stages are news


async def test_stopping_while_loading_leaves_no_stage(head: Head, nodes: list[Node], tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "unhurried", load_ms=20_000)
    await head.unload()
    second = Head(head.settings, tuple(node.endpoint for node in nodes))
    await second.start()
    loading = asyncio.create_task(second.load(toy))
    await until(lambda: all(node.stages() for node in nodes))
    await second.stop()
    await asyncio.gather(loading, return_exceptions=True)
    await until(lambda: [node.stages() for node in nodes] == [[], []], PATIENCE)


async def _rest(waiting: asyncio.Task[AnswerChunk], chat: AsyncGenerator[AnswerChunk, None]) -> None:
    await waiting
    async for _ in chat:
        pass


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}
