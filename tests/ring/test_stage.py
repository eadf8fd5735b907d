"""Stage processes and what strangers send them (R16): refused with a reason, and the ring answers as before."""

from __future__ import annotations

import random
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from tests.ring.stages import RawRing, raw_ring, running_stages
from tests.ring.test_wire import field, inside, message
from tests.support.checksum import expected_tokens, make_checksum_model
from tests.support.cluster import GREEDY
from together.cluster.supervisor import StageProcess
from together.cluster_types import Endpoint
from together.errors import EpochRefused, FrameRefused
from together.ring import rpc, wire
from together.ring.links import Outlet
from together.ring.stage import MOST_MISSED
from together.types import (
    Activation,
    Batch,
    Continuation,
    Fork,
    Frame,
    LayerRange,
    NamedTensor,
    Orders,
    Row,
    SampleRequest,
    Sampling,
    StreamKey,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIDTH = 8
PROMPT = (256, 72, 105, 33)
RANGES = (LayerRange(0, 2), LayerRange(2, 4))
STATES = struct.pack("<8f", *range(8))
DEEP = NamedTensor("deep", "fp32", 1, bytes(4))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checksum_model(tmp_path_factory.mktemp("toy") / "model", context=256)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stages(toy: Path) -> AsyncIterator[list[StageProcess]]:
    async with running_stages(toy, *RANGES) as running:
        pids = [stage.status.pid for stage in running]
        yield running
        assert [stage.status.pid for stage in running] == pids
        assert [stage.status.state for stage in running] == ["READY", "READY"]


@pytest_asyncio.fixture(loop_scope="module")
async def ring(stages: list[StageProcess], toy: Path) -> AsyncIterator[RawRing]:
    """Before and after each test the control prompt is answered, and the same processes do it."""
    async with raw_ring(stages) as ring:
        await _join_next(ring)
        yield ring
        await ring.join()
        assert await ring.generate(PROMPT, 4) == expected_tokens(toy, PROMPT, 4, GREEDY)


_epochs = iter(range(10, 10**6, 10))


async def _join_next(ring: RawRing, first: int = 0) -> None:
    ring.epoch = next(_epochs)
    await ring.join(first)


def frame(*rows: Row, step: int = 1, activation: Activation | None = None, orders: Orders = Orders()) -> Frame:
    return Frame(step, Batch(rows, orders), activation)


def row(*tokens: int, position: int = 0, offsets: tuple[int, ...] = ()) -> Row:
    return Row(9, position, tokens, SampleRequest(offsets, GREEDY, 1) if offsets else None)


def scoring(offset: int, token_id: int) -> Row:
    return Row(9, 0, (65,), SampleRequest((), GREEDY, 1, score=(Continuation(offset, token_id),)))


def cause(answer: Frame) -> str:
    assert answer.failure is not None, answer
    assert not answer.results
    return answer.failure.cause


async def test_the_control_prompt(ring: RawRing, toy: Path) -> None:
    for sequence in (1, 2):
        assert await ring.generate(PROMPT, 12, sequence) == expected_tokens(toy, PROMPT, 12, GREEDY)


async def test_settings_reach_the_last_stage(ring: RawRing, toy: Path) -> None:
    settings = Sampling(temperature=1.3, top_k=20, top_p=0.9, seed=5)
    request = SampleRequest((len(PROMPT) - 1,), settings, len(PROMPT))
    answer = await ring.step(Row(1, 0, PROMPT, request))
    assert [s.token_id for s in answer.results[0].sampled] == expected_tokens(toy, PROMPT, 1, settings)
    assert len(answer.timings) == len(RANGES)


# --- bytes that are no frame ------------------------------------------------------------------------------------------


async def test_random_bytes_are_refused_and_every_one_is_answered(ring: RawRing) -> None:
    source = random.Random(0)
    for _ in range(60):
        answer = await ring.ask(source.randbytes(source.randrange(1, 200)))
        assert "refused the frame" in cause(answer)


@pytest.mark.parametrize(
    "data",
    [
        message(tokens=3),
        message(dtype="fp64"),
        message(tokens=2**32 - 1, width=2**32 - 1),
        inside(3, inside(1, b"fp32") + field(2, -1) + field(3, -1)),
        field(1, 1) + inside(2, inside(1, field(1, 9) + field(2, -1) + field(3, 65))),  # position -1
        field(1, 1) + inside(2, inside(1, field(1, 9) + field(3, -1))),  # token -1
        field(1, 1) + inside(2, inside(1, field(1, 9) + field(3, 65) + inside(4, field(1, -1)))),  # offset -1
    ],
)
async def test_impossible_sizes_are_refused(ring: RawRing, data: bytes) -> None:
    assert "refused the frame" in cause(await ring.ask(data))


async def test_a_message_beyond_the_limit_ends_its_stream_and_not_the_stage(
    ring: RawRing, stages: list[StageProcess]
) -> None:
    """Our own sender refuses it already, so this one speaks gRPC without our options."""
    await _join_next(ring)
    await ring.leave()
    endpoint = stages[0].status.endpoint
    assert endpoint is not None
    unlimited = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{endpoint.port}", options=unlimited) as channel:
        metadata = (("ring", "ring"), ("epoch", str(ring.epoch)), ("sender", "-1"))
        stub: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(rpc.PUSH)
        stream = stub(metadata=metadata)
        await stream.write(bytes(rpc.MESSAGE_LIMIT + 1))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stream
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_empty_message_is_a_frame_without_a_step(ring: RawRing) -> None:
    assert "step 0 came after step 0" in cause(await ring.ask(b""))


# --- frames that do not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (frame(row(65), row(66)), "a sequence has two rows"),
        (frame(row()), "has no tokens"),
        (frame(row(65, 66, offsets=(2,))), "sampling offsets outside"),
        (frame(row(65, offsets=(2**32 - 1,))), "sampling offsets outside"),
        (frame(row(65), activation=Activation("fp32", 1, WIDTH, STATES)), "takes token ids"),
        (frame(activation=Activation("fp32", 0, WIDTH, b"")), "takes token ids"),
        (frame(row(2**32 - 1)), "a token outside the vocabulary"),
        (frame(row(65, position=2**32 - 1)), "outside the context"),
        (frame(row(*[65] * 257)), "outside the context"),
        (frame(scoring(1, 65)), "scoring offsets outside its 1 tokens"),
        (frame(scoring(0, 2**32 - 1)), "a token to score outside the vocabulary"),
        (frame(replace(row(65), positions=((0,), (4,)))), "positions on 2 axes, and this model takes none"),
        (frame(replace(row(65), adapter="poet")), "the adapter 'poet', and this stage has none"),
    ],
)
async def test_a_frame_that_does_not_fit_the_first_stage_is_refused(ring: RawRing, bad: Frame, reason: str) -> None:
    answer = await ring.ask(wire.FRAME.encode(bad))
    assert answer.step == 1
    assert answer.failure is not None
    assert (answer.failure.node, answer.failure.stage) == ("node0", 0)
    assert reason in cause(answer)


def activation(tokens: int = 1, width: int = WIDTH, value: float = 7.0) -> Activation:
    return Activation("fp32", tokens, width, struct.pack("<f", value) * tokens * width)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (frame(row(65)), "takes hidden states, and the frame has none"),
        (frame(row(65), activation=activation(2)), "hidden states are (fp32, 2, 8), this stage takes (fp32, 1, 8)"),
        (frame(row(65), activation=activation(width=WIDTH + 1)), "refused the frame"),
        (frame(row(65), activation=Activation("bf16", 1, WIDTH, bytes(16))), "refused the frame"),
        (frame(row(65), activation=activation(value=float("nan"))), "refused the frame"),
        (frame(row(65), activation=activation(value=float("inf"))), "refused the frame"),
        (frame(row(65), activation=activation(value=-1.0)), "refused the frame"),
        (frame(row(65), activation=replace(activation(), others=(DEEP,))), "the tensor 'deep', and this stage takes"),
    ],
)
async def test_an_activation_that_does_not_fit_is_refused(ring: RawRing, bad: Frame, reason: str) -> None:
    await _join_next(ring, first=1)
    assert reason in cause(await ring.ask(wire.FRAME.encode(bad)))
    good = await ring.ask(wire.FRAME.encode(frame(row(65, offsets=(0,)), step=2, activation=activation())))
    assert good.failure is None
    assert len(good.results[0].sampled) == 1


async def test_a_repeated_step_is_refused_and_changes_nothing(ring: RawRing, toy: Path) -> None:
    tokens = expected_tokens(toy, PROMPT, 1, GREEDY)
    first = frame(Row(1, 0, PROMPT, SampleRequest((3,), GREEDY, 1)), step=5)
    assert (await ring.ask(wire.FRAME.encode(first))).results[0].sampled[0].token_id == tokens[0]
    for step in (5, 4, 0):
        answer = await ring.ask(wire.FRAME.encode(replace(first, step=step)))
        assert f"step {step} came after step 5" in cause(answer)
    again = frame(Row(1, len(PROMPT), (tokens[0],), SampleRequest((0,), GREEDY, 1)), step=6)
    answer = await ring.ask(wire.FRAME.encode(again))
    assert answer.results[0].sampled[0].token_id == expected_tokens(toy, PROMPT, 2, GREEDY)[1]


async def test_a_refused_frame_does_not_use_up_its_step(ring: RawRing) -> None:
    assert "no tokens" in cause(await ring.ask(wire.FRAME.encode(frame(row(), step=2**63))))
    assert (await ring.ask(wire.FRAME.encode(frame(row(65), step=1)))).failure is None


async def test_a_row_that_skips_tokens_is_refused_alone(ring: RawRing, toy: Path) -> None:
    good = Row(1, 0, PROMPT, SampleRequest((3,), GREEDY, 1))
    answer = await ring.step(Row(2, 7, (65,), SampleRequest((0,), GREEDY, 1)), good)
    assert answer.failure is None
    results = {result.sequence: result for result in answer.results}
    assert "holds 0 tokens of the sequence, was asked to go on at 7" in (results[2].refusal or "")
    assert [s.token_id for s in results[1].sampled] == expected_tokens(toy, PROMPT, 1, GREEDY)


async def test_orders_about_unknown_sequences_do_nothing(ring: RawRing) -> None:
    orders = Orders((0, 2**64 - 1), (Fork(2**64 - 1, 3, 2**32 - 1), Fork(1, 1, 0)))
    answer = await ring.step(orders=orders)
    assert answer.failure is None
    assert answer.results == ()


@pytest.mark.parametrize(
    "settings",
    [
        Sampling(temperature=float("nan")),
        Sampling(temperature=-1.0),
        Sampling(top_p=float("nan")),
        Sampling(top_p=-3.0),
    ],
)
async def test_settings_that_no_head_would_send_are_answered(ring: RawRing, settings: Sampling) -> None:
    answer = await ring.step(Row(1, 0, PROMPT, SampleRequest((3,), settings, 1)))
    assert answer.failure is not None or len(answer.results) == 1


async def test_more_top_logprobs_than_tokens_are_answered(ring: RawRing) -> None:
    answer = await ring.step(Row(1, 0, PROMPT, SampleRequest((3,), GREEDY, 1, top_logprobs=2**31 - 1)))
    assert answer.failure is not None or len(answer.results) == 1


# --- streams that do not belong here ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("epoch", "sender", "reason"), [(-1, -1, "expects"), (1, -1, "expects"), (0, 5, "expects")])
async def test_a_stream_of_another_epoch_or_sender_is_refused(
    ring: RawRing, stages: list[StageProcess], epoch: int, sender: int, reason: str
) -> None:
    endpoint = stages[0].status.endpoint
    assert endpoint is not None
    with pytest.raises(FrameRefused, match=reason):
        await Outlet.open(endpoint, StreamKey("ring", ring.epoch + epoch, sender))
    with pytest.raises(FrameRefused, match="open already"):
        await Outlet.open(endpoint, StreamKey("ring", ring.epoch, -1))


async def test_an_old_epoch_cannot_connect(ring: RawRing) -> None:
    with pytest.raises(EpochRefused, match=f"epoch {ring.epoch - 1} is over: the ring is at epoch {ring.epoch}"):
        await ring.connect(0, Endpoint(("127.0.0.1",), 1), epoch=ring.epoch - 1)


async def test_an_epoch_far_ahead_cannot_connect(ring: RawRing) -> None:
    """Else whoever gives the last epoch there is keeps the ring from its next one for ever."""
    for ahead in (MOST_MISSED + 1, 2**63):
        with pytest.raises(EpochRefused, match=f"is too far from {ring.epoch}"):
            await ring.connect(0, Endpoint(("127.0.0.1",), 1), epoch=ring.epoch + ahead)


async def test_another_ring_cannot_connect(ring: RawRing) -> None:
    with pytest.raises(FrameRefused, match="belongs to ring ring, not other"):
        await ring.connect(0, Endpoint(("127.0.0.1",), 1), ring="other")


@pytest.mark.parametrize("other", [{"form": "mlx-affine-4-g64@1"}, {"fingerprint": "f" * 64}], ids=str)
async def test_a_ring_of_other_weights_is_refused_by_name(
    stages: list[StageProcess], ring: RawRing, other: dict[str, str]
) -> None:
    own = stages[0].launch.order.model
    wanted = replace(own, **other)  # type: ignore[arg-type]  # no number is among them
    with pytest.raises(FrameRefused, match=r"this stage has .* \(as published, .*, and the ring is of") as refused:
        await ring.connect(0, Endpoint(("127.0.0.1",), 1), model=wanted)
    assert ("4 bit" if "form" in other else "ffffffff") in str(refused.value)


async def test_random_bytes_as_a_call_are_refused(stages: list[StageProcess], ring: RawRing) -> None:
    endpoint = stages[0].status.endpoint
    assert endpoint is not None
    async with rpc.open_channel("127.0.0.1", endpoint.port) as channel:
        raw = rpc.Unary(rpc.CONNECT.path, _Bytes())  # type: ignore[arg-type]
        with pytest.raises(FrameRefused, match="not a valid StageLink"):
            await rpc.call(channel, raw, b"\xff\xff\xff", "stage")


class _Bytes:
    """A codec that does nothing, for what is no word."""

    def encode(self, value: bytes) -> bytes:
        return value
