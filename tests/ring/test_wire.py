"""The codec: every word survives the wire, and nothing else is taken for one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ring import words
from tests.support.patience import PATIENCE
from together.errors import FrameRefused
from together.ring import together_pb2, wire
from together.types import Activation, Batch, Frame, Row, SampleRequest, Sampling

WORDS: list[tuple[wire.Codec[Any], st.SearchStrategy]] = [
    (wire.FRAME, words.frames),
    (wire.STAGE_LINK, words.stage_links),
    (wire.STAGE_ORDER, words.stage_orders),
    (wire.STAGE_STATUS, words.stage_statuses),
    (wire.NODE_STATUS, words.node_statuses),
    (wire.CALLER, words.callers),
    (wire.RING_NAME, words.ring_names),
    (wire.MODEL_REF, words.models),
    (wire.ENDPOINT, words.endpoints),
    (wire.BLOB, words.blobs),
    (wire.HOLDING, words.holdings),
    (wire.UNIT_REQUEST, words.unit_requests),
    (wire.UNIT_DIGEST, words.unit_digests),
    (wire.MEASURE_ORDER, words.measure_orders),
    (wire.DEVICE_PROFILE, words.device_profiles),
    (wire.LINK_ORDER, words.link_orders),
    (wire.LINK_SPEED, words.link_speeds),
]
FRAME = Frame(
    7,
    Batch((Row(1, 5, (10, 11), SampleRequest((1,), Sampling(temperature=0.5), 3)),)),
    Activation("bf16", 2, 4, bytes(range(16))),
)

SETTINGS = together_pb2.Sampling(temperature=0.5, top_p=1, repetition_penalty=1)


@pytest.mark.parametrize(("codec", "strategy"), WORDS, ids=lambda value: getattr(value, "_word", type(value)).__name__)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_word_survives_the_wire(codec: wire.Codec[Any], strategy: st.SearchStrategy, data: st.DataObject) -> None:
    word = data.draw(strategy)
    assert codec.decode(codec.encode(word)) == word


def test_an_empty_mask_and_an_empty_refusal_are_not_none() -> None:
    request = replace(FRAME.batch.rows[0].sample or SampleRequest((), Sampling(), 0), allowed=b"")
    frame = Frame(1, Batch((Row(1, 0, (1,), request),)))
    sample = wire.FRAME.decode(wire.FRAME.encode(frame)).batch.rows[0].sample
    assert sample is not None
    assert sample.allowed == b""


def test_what_is_absent_costs_nothing_on_the_wire() -> None:
    """A frame of one tensor, without positions, adapter or scores, is byte for byte what it was before they came."""
    sample = together_pb2.SampleRequest(offsets=[1], prompt_length=3, top_logprobs=-1, settings=SETTINGS)
    plain = together_pb2.Frame(
        step=7,
        batch=together_pb2.Batch(
            rows=[together_pb2.Row(sequence=1, position=5, token_ids=[10, 11], sample=sample)],
            orders=together_pb2.Orders(),
        ),
        activation=together_pb2.Activation(dtype="bf16", tokens=2, width=4, data=bytes(range(16))),
    )
    assert wire.FRAME.encode(FRAME) == plain.SerializeToString()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64))
def test_random_bytes_are_a_frame_or_refused(data: bytes) -> None:
    for codec, _ in WORDS:
        try:
            codec.decode(data)
        except FrameRefused as refusal:
            assert "not a valid" in str(refusal)  # noqa: PT017  # most random bytes raise, not all


@settings(max_examples=100, deadline=None)
@given(words.frames, st.data())
def test_a_flipped_byte_is_a_frame_or_refused(frame: Frame, data: st.DataObject) -> None:
    sent = bytearray(wire.FRAME.encode(frame))
    if sent:
        sent[data.draw(st.integers(0, len(sent) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decoded = wire.FRAME.decode(bytes(sent))
    except FrameRefused:
        return
    assert decoded.activation is None or len(decoded.activation.data) == decoded.activation.nbytes


def test_every_cut_of_a_frame_is_refused_or_has_a_whole_activation() -> None:
    sent = wire.FRAME.encode(FRAME)
    refused = 0
    for length in range(len(sent)):
        try:
            activation = wire.FRAME.decode(sent[:length]).activation
            assert activation is None or len(activation.data) == activation.nbytes
        except FrameRefused:
            refused += 1
    assert refused > len(sent) // 2


def message(
    dtype: str = "fp32",
    tokens: int = 2,
    width: int = 4,
    data: bytes = bytes(32),
    others: tuple[tuple[str, int, bytes], ...] = (),
) -> bytes:
    activation = together_pb2.Activation(dtype=dtype, tokens=tokens, width=width, data=data)
    for name, wide, held in others:
        activation.others.add(name=name, dtype="fp32", width=wide, data=held)
    return together_pb2.Frame(step=1, activation=activation).SerializeToString()


def varint(value: int) -> bytes:
    """A negative number as protobuf writes it: ten bytes of two's complement."""
    value %= 2**64
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def inside(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


@pytest.mark.parametrize(
    "data",
    [
        message(dtype="fp64"),
        message(dtype=""),
        message(tokens=3),
        message(width=5),
        message(width=0, data=b""),
        message(tokens=2**32 - 1, width=2**32 - 1),
        message(dtype="bf16"),
        inside(3, inside(1, b"fp32") + field(2, -1) + field(3, 4) + inside(4, bytes(32))),
        inside(3, inside(1, b"fp32") + field(2, 2) + field(3, -4) + inside(4, bytes(32))),
        message(others=(("", 1, bytes(8)),)),
        message(others=(("hidden", 1, bytes(8)),)),
        message(others=(("deep", 1, bytes(8)), ("deep", 1, bytes(8)))),
        message(others=(("deep", 1, bytes(4)),)),
        message(others=(("deep", 0, b""),)),
        inside(3, inside(1, b"\xff\xfe")),
        inside(2, inside(1, inside(4, inside(2, b"\xff" * 9)))),
    ],
)
def test_frames_that_contradict_themselves_are_refused(data: bytes) -> None:
    with pytest.raises(FrameRefused, match="not a valid Frame"):
        wire.FRAME.decode(data)


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -1.0])
def test_what_no_machine_can_have_measured_is_refused(figure: float) -> None:
    """A plan with one such figure failed, or gave everything to whom it spoke of."""
    for codec, sent in (
        (wire.DEVICE_PROFILE, together_pb2.DeviceProfile(ms_per_layer=figure)),
        (wire.LINK_SPEED, together_pb2.LinkSpeed(hop_ms=figure)),
    ):
        with pytest.raises(FrameRefused, match="not a valid"):
            codec.decode(sent.SerializeToString())


def test_rows_that_share_more_than_a_step_are_refused() -> None:
    """A step of many rows would take less than no time."""
    with pytest.raises(FrameRefused, match="cannot share more than all of a step"):
        wire.DEVICE_PROFILE.decode(together_pb2.DeviceProfile(shared=1.1).SerializeToString())


def test_a_layer_range_that_is_empty_is_refused() -> None:
    order = together_pb2.StageOrder(dtype="fp32", stage=together_pb2.StagePlan(layers={"start": 4, "stop": 4}))
    with pytest.raises(FrameRefused, match="4:4 is empty"):
        wire.STAGE_ORDER.decode(order.SerializeToString())


def test_the_committed_messages_are_made_from_the_proto_file(tmp_path: Path) -> None:
    folder = Path(together_pb2.__file__).parent
    made = tmp_path / "descriptors"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"--descriptor_set_out={made}"]
    subprocess.run([*command, "together.proto"], check=True, timeout=PATIENCE)
    now = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file[0]
    committed = descriptor_pb2.FileDescriptorProto.FromString(together_pb2.DESCRIPTOR.serialized_pb)
    assert _essence(now) == _essence(committed)


def _essence(proto: descriptor_pb2.FileDescriptorProto) -> list[str]:
    """Without the folder that protoc was started in and the JSON names, which one of its two outputs leaves out."""
    return [line for line in str(proto).splitlines() if "json_name:" not in line and not line.startswith("name:")]
