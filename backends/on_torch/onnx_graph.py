"""A model of MatMulNBits alone, as ONNX Runtime reads it. By hand: the package onnx is 20 MB for these few fields.

Field numbers are those of onnx.proto3; com.microsoft.MatMulNBits is described in ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

_FLOAT, _UINT8 = 1, 2  # TensorProto.DataType
_INT = 2  # AttributeProto.AttributeType
_EXTERNAL = 1  # TensorProto.DataLocation
_OPSET, _IR = 17, 8
INPUT, OUTPUT, CODES, SCALES, ZEROS = "rows", "product", "codes", "scales", "zeros"


def nbits_model(count: int, outputs: int, inputs: int, bits: int, group: int, level: int, elsewhere: str) -> bytes:
    """`count` products of one shape: `rows0 [n, inputs]` in fp32 → `product0 [n, outputs]`, and so on.

    Codes, scales and zero points are given by whoever runs it. They must stand for themselves in the graph: as data of
    the file `elsewhere`, which may be empty. `level`: accuracy_level, 4 for int8 activations, 1 for fp32.
    """
    groups = inputs // group
    given = {
        CODES: (_UINT8, (outputs, groups, group * bits // 8)),
        SCALES: (_FLOAT, (outputs, groups)),
        ZEROS: (_UINT8, (outputs, -(-groups * bits // 8))),
    }
    options = {"K": inputs, "N": outputs, "bits": bits, "block_size": group, "accuracy_level": level}
    places = range(count)
    graph = (
        b"".join(_field(1, _node(place, (INPUT, *given), options)) for place in places)
        + _field(2, "products")
        + b"".join(_field(5, _absent(f"{name}{i}", *what, elsewhere)) for i in places for name, what in given.items())
        + b"".join(_field(11, _value(INPUT, place, inputs)) for place in places)
        + b"".join(_field(12, _value(OUTPUT, place, outputs)) for place in places)
    )
    domains = (("", _OPSET), ("com.microsoft", 1))
    sets = b"".join(_field(8, _field(1, domain) + _field(2, version)) for domain, version in domains)
    return _field(1, _IR) + _field(7, graph) + sets


def _node(place: int, takes: tuple[str, ...], options: dict[str, int]) -> bytes:
    return (
        b"".join(_field(1, f"{name}{place}") for name in takes)
        + _field(2, f"{OUTPUT}{place}")
        + _field(4, "MatMulNBits")
        + b"".join(_field(5, _attribute(*option)) for option in options.items())
        + _field(7, "com.microsoft")
    )


def _attribute(name: str, value: int) -> bytes:
    return _field(1, name) + _field(3, value) + _field(20, _INT)


def _value(name: str, place: int, width: int) -> bytes:
    """fp32 `[n, width]`; each product has an n of its own."""
    shape = _field(1, _field(2, f"n{place}")) + _field(1, _field(1, width))
    return _field(1, f"{name}{place}") + _field(2, _field(1, _field(1, _FLOAT) + _field(2, shape)))


def _absent(name: str, kind: int, shape: tuple[int, ...], elsewhere: str) -> bytes:
    place = _field(13, _field(1, "location") + _field(2, elsewhere))
    return (
        b"".join(_field(1, size) for size in shape) + _field(2, kind) + _field(8, name) + place + _field(14, _EXTERNAL)
    )


def _field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes((*found, value))
