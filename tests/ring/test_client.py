"""The head's end of a ring: answers in order, and the first cause that anybody gives when it breaks."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.ring.stages import running_stages
from tests.support.checksum import expected_tokens, make_checksum_model
from tests.support.cluster import GREEDY
from together.cluster.supervisor import StageProcess
from together.cluster_types import Endpoint, StageState, StageStatus
from together.errors import LoadFailed, RingBroken
from together.ring import rpc
from together.ring.client import CHUNK_BYTES, RingClient, chunk_tokens, join_ring, sharing
from together.ring.links import Inlets, Outlet
from together.sentences import template
from together.types import STEP_TOKENS, Batch, Frame, LayerRange, Row, SampleRequest

HALVES = (LayerRange(0, 2), LayerRange(2, 4))
PROMPT = (256, 72, 105, 33)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checksum_model(tmp_path_factory.mktemp("toy") / "model", rewind=32)


@asynccontextmanager
async def joined(stages: list[StageProcess], own_port: int | None = None) -> AsyncIterator[RingClient]:
    inlets = Inlets()
    server = rpc.make_server({rpc.PUSH: inlets.handler()})
    port = rpc.bind(server, "127.0.0.1", range(31_500, 32_500))
    await server.start()
    try:
        client = await join_ring(
            [stage.status for stage in stages],
            stages[0].launch.order.model,
            epoch=0,
            own=Endpoint(("127.0.0.1",), own_port or port),
            inlets=inlets,
            context=64,
            hidden_size=8,
            dtype="fp32",
            describe=lambda index: template("stage {index} of the test", index=index),
        )
        yield client
        await client.close()
    finally:
        await server.stop(0)


def frame(step: int, *tokens: int, position: int = 0) -> Frame:
    return Frame(step, Batch((Row(1, position, tokens, SampleRequest((len(tokens) - 1,), GREEDY, 1)),)))


async def test_the_client_knows_its_ring_and_answers_in_order(toy: Path) -> None:
    async with running_stages(toy, LayerRange(0, 1), LayerRange(1, 4)) as stages, joined(stages) as client:
        limits = client.limits
        assert (limits.stages, limits.block, limits.rewind, limits.context) == (2, 16, 32, 64)
        assert limits.capacity == stages[1].status.capacity < stages[0].status.capacity
        for step in (1, 2, 3):
            await client.push(Frame(step, Batch((Row(step, 0, PROMPT, SampleRequest((3,), GREEDY, 1)),))))
        answers = [await client.receive() for _ in range(3)]
        assert [answer.step for answer in answers] == [1, 2, 3]
        expected = expected_tokens(toy, PROMPT, 1, GREEDY)
        assert [[s.token_id for s in answer.results[0].sampled] for answer in answers] == [expected] * 3


async def test_the_first_cause_reaches_everybody_who_waits(toy: Path) -> None:
    async with running_stages(toy, *HALVES) as stages, joined(stages) as client:
        waiting = asyncio.create_task(client.receive())
        await asyncio.sleep(0)
        client.fail(RingBroken("the first cause", node="studio"))
        client.fail(RingBroken("a later one"))
        for work in (waiting, client.receive(), client.push(frame(1, 65))):
            with pytest.raises(RingBroken, match="the first cause"):
                await work


async def test_a_lost_last_stage_waits_a_moment_for_the_cause_that_its_node_knows(toy: Path) -> None:
    async with running_stages(toy, *HALVES) as stages, joined(stages) as client:
        waiting = asyncio.create_task(client.receive())
        psutil.Process(stages[1].status.pid).kill()
        await asyncio.sleep(0.2)
        assert not waiting.done()
        client.fail(RingBroken("node studio: its process was ended by SIGKILL"))
        with pytest.raises(RingBroken, match="SIGKILL"):
            await waiting


async def test_a_lost_ring_without_a_cause_is_broken_all_the_same(toy: Path) -> None:
    async with running_stages(toy, *HALVES) as stages, joined(stages) as client:
        for stage in stages:
            psutil.Process(stage.status.pid).kill()
        pushing = _for_ever(lambda: client.push(frame(1, 65)))
        answered, pushed = await asyncio.gather(client.receive(), pushing, return_exceptions=True)
        assert isinstance(answered, RingBroken)
        assert "closed its link" in str(answered)
        assert isinstance(pushed, RingBroken)
        assert "is gone" in str(pushed)


async def _for_ever(work: Callable[[], Awaitable[object]]) -> None:
    while True:
        await work()


async def test_stages_that_cannot_reach_the_head_do_not_join(toy: Path) -> None:
    async with running_stages(toy, *HALVES) as stages:
        with pytest.raises(LoadFailed, match=r"stage 1 of the test cannot take its place in the ring.*nothing answers"):
            async with joined(stages, own_port=1):
                raise AssertionError("joined")


async def test_failing_leaves_no_unheard_exception(toy: Path) -> None:
    unheard: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unheard.append(context))
    async with running_stages(toy, *HALVES) as stages, joined(stages) as client:
        work = [asyncio.create_task(_for_ever(client.receive))]
        work += [asyncio.create_task(_for_ever(lambda: client.push(frame(1, 65)))) for _ in range(2)]
        await asyncio.sleep(0.05)
        for stage in stages:
            psutil.Process(stage.status.pid).kill()
        client.fail(RingBroken("gone"))
        found = await asyncio.gather(*work, return_exceptions=True)
        assert [type(error) for error in found] == [RingBroken] * 3
    gc.collect()
    await asyncio.sleep(0)
    assert unheard == []


def test_chunks_keep_frames_small() -> None:
    assert chunk_tokens(64, "fp32") == STEP_TOKENS
    assert chunk_tokens(8192, "bf16") * 8192 * 2 <= CHUNK_BYTES
    assert chunk_tokens(10**6, "fp32") == 16


def stage_at(device: str, *addresses: str) -> StageStatus:
    endpoint = Endpoint(addresses, 47_000)
    return StageStatus("ring", 0, "head", "toy", 4, HALVES[0], device, StageState.READY, endpoint=endpoint)


def test_stages_of_one_device_of_one_machine_share_it() -> None:
    lan, other = ("192.168.1.20", "10.0.0.1"), ("192.168.1.21", "10.0.0.1")
    places = [("cpu", lan), ("cpu", other), ("cpu", tuple(reversed(lan))), ("cuda:0", lan), ("cpu", lan)]
    assert sharing([stage_at(f"torch/{device}", *addresses) for device, addresses in places]) == [3, 1, 3, 1, 3]


async def test_a_frame_is_sent_before_anything_else_gets_its_turn(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    send = Outlet.send

    async def noted(outlet: Outlet, data: bytes) -> None:
        order.append("sent")
        await send(outlet, data)

    monkeypatch.setattr(Outlet, "send", noted)
    async with running_stages(toy, *HALVES) as stages, joined(stages) as client:
        asyncio.get_running_loop().call_soon(order.append, "others")
        await client.push(frame(1, 65))
        assert order == ["sent", "others"]
        await client.receive()
