"""types.py and cluster_types.py ↔ protobuf bytes; no other module touches the generated messages.

Every message mirrors a dataclass field by field (together.proto), so one codec, built from the type hints, serves all.
Decoding is strict: bytes that do not make a valid dataclass raise FrameRefused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from enum import StrEnum
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf.message import DecodeError, Message

from together import cluster_types, types
from together.errors import FrameRefused
from together.ring import together_pb2 as pb
from together.wording import cut, quoted

PROTOCOL = 6
OLDEST = 6  # the oldest one that this program still speaks: raise it where an older one's frames mean something else


def agrees(protocol: int, oldest: int) -> bool:
    """Whether a program of that protocol, which speaks any from `oldest` on, and this one have one in common."""
    return max(OLDEST, oldest or protocol) <= min(PROTOCOL, protocol)


# Most bytes of a message that is read; 2^16 where nothing is said. Nobody's name or list fills another one's memory.
LARGEST: dict[type, int] = {
    types.Frame: 2**26,
    cluster_types.Blob: 2**26,
    cluster_types.NodeStatus: 2**20,
    cluster_types.StageOrder: 2**20,
    cluster_types.StageStatus: 2**20,
    cluster_types.Holding: 2**20,
    cluster_types.MeasureOrder: 2**21,
}

T = TypeVar("T")
Encode = Callable[[Any], Any]  # a Python value → what the message's constructor takes
Decode = Callable[[Any], Any]  # a message's field → a Python value


class Codec(Generic[T]):
    """Encodes one dataclass to bytes and decodes it."""

    def __init__(self, kind: type[T], message: type[Message]) -> None:
        self._kind = kind
        self._message = message
        self._most = LARGEST.get(kind, 2**16)
        hints = get_type_hints(kind)
        self._fields: list[tuple[str, Encode, Decode, bool]] = []
        for item in fields(kind):  # type: ignore[arg-type]  # it is a dataclass
            hint, is_optional = _strip_optional(hints[item.name])
            encode, decode = _converters(hint)
            self._fields.append((item.name, encode, decode, is_optional))
        assert {name for name, *_ in self._fields} == set(message.DESCRIPTOR.fields_by_name), kind

    def encode(self, value: T) -> bytes:
        return self.to_message(value).SerializeToString()

    def decode(self, data: bytes) -> T:
        """Raises FrameRefused for bytes that are not this message or whose values do not fit together."""
        if len(data) > self._most:
            kind = self._kind.__name__
            raise FrameRefused("a {kind} of {size} bytes is none", kind=kind, size=len(data))
        message = self._message()
        try:
            message.ParseFromString(data)
            return self.from_message(message)
        except (DecodeError, ValueError, TypeError) as error:
            reason = cut(str(error))
            raise FrameRefused("not a valid {kind}: {reason}", kind=self._kind.__name__, reason=reason) from error

    def to_message(self, value: T) -> Message:
        filled: dict[str, Any] = {}
        for name, encode, _, _ in self._fields:
            item = getattr(value, name)
            if item is not None and item != ():  # what is absent costs nothing
                filled[name] = encode(item)
        return self._message(**filled)

    def from_message(self, message: Message) -> T:
        values: dict[str, Any] = {}
        for name, _, decode, optional in self._fields:
            values[name] = None if optional and not message.HasField(name) else decode(getattr(message, name))
        return self._kind(**values)


def _strip_optional(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0], len(kinds) < len(get_args(hint))
    return hint, False


def _same(value: Any) -> Any:
    return value


def _converters(kind: Any) -> tuple[Encode, Decode]:
    if kind in (int, float, str, bool):
        return _same, _same
    if kind is bytes:
        return bytes, _same
    if get_origin(kind) is Literal:
        return _same, _one_of(get_args(kind))
    if get_origin(kind) is tuple:
        return _tuple_converters(get_args(kind)[0])
    if issubclass(kind, StrEnum):
        return str, kind
    codec = _codec(kind)
    return codec.to_message, codec.from_message


def _tuple_converters(item: Any) -> tuple[Encode, Decode]:
    if item in (int, float, str):
        return _same, tuple
    if item == tuple[int, ...]:
        return _axes_to_messages, _axes_from_messages
    if get_origin(item) is tuple:  # (token id, value) pairs
        return _pairs_to_messages, _pairs_from_messages
    codec = _codec(item)
    to_message, from_message = codec.to_message, codec.from_message
    return lambda values: [to_message(value) for value in values], lambda items: tuple([from_message(i) for i in items])


def _pairs_to_messages(pairs: Iterable[tuple[int, float]]) -> list[Message]:
    return [pb.TokenValue(token_id=token_id, value=value) for token_id, value in pairs]


def _pairs_from_messages(items: Iterable[Any]) -> tuple[tuple[int, float], ...]:
    return tuple((item.token_id, item.value) for item in items)


def _axes_to_messages(axes: Iterable[tuple[int, ...]]) -> list[Message]:
    return [pb.Axis(values=values) for values in axes]


def _axes_from_messages(items: Iterable[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple([tuple(item.values) for item in items])


def _one_of(allowed: tuple[str, ...]) -> Decode:
    def check(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"{quoted(value)} is not one of {', '.join(allowed)}")
        return value

    return check


_CODECS: dict[type, Codec[Any]] = {}


def _codec(kind: type[T]) -> Codec[T]:
    if kind not in _CODECS:
        _CODECS[kind] = Codec(kind, getattr(pb, kind.__name__))
    return _CODECS[kind]


FRAME = _codec(types.Frame)
STAGE_LINK = _codec(cluster_types.StageLink)
STAGE_ORDER = _codec(cluster_types.StageOrder)
STAGE_STATUS = _codec(cluster_types.StageStatus)
NODE_STATUS = _codec(cluster_types.NodeStatus)
CALLER = _codec(cluster_types.Caller)
RING_NAME = _codec(cluster_types.RingName)
MODEL_REF = _codec(types.ModelRef)
ENDPOINT = _codec(cluster_types.Endpoint)
BLOB = _codec(cluster_types.Blob)
HOLDING = _codec(cluster_types.Holding)
UNIT_REQUEST = _codec(cluster_types.UnitRequest)
UNIT_DIGEST = _codec(cluster_types.UnitDigest)
MEASURE_ORDER = _codec(cluster_types.MeasureOrder)
DEVICE_PROFILE = _codec(cluster_types.DeviceProfile)
LINK_ORDER = _codec(cluster_types.LinkOrder)
LINK_SPEED = _codec(cluster_types.LinkSpeed)
