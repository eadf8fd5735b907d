"""Units cover what a model has exactly once, are the same everywhere, and resume at any byte."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from itertools import groupby
from math import prod
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from tests.support.folders import SHAPES, without
from tests.support.pieces import random_model
from together.errors import BrokenModel
from together.models.headers import ELEMENT_BYTES, FileHeader, Headers
from together.models.manifest import describe
from together.models.names import EMBED, HEAD, NORM, unit_of
from together.models.units import ByteRange, Unit, layer_ranges, units_for, units_of, words
from together.types import LayerRange

Files = dict[str, bytes]  # whole files, by name
NAMES = (
    EMBED,
    NORM,
    HEAD,
    "model.embed_tokens.scales",
    "model.layers.1.self_attn.rotary_emb.inv_freq",
    "vision.patch.weight",
    *(f"model.layers.{layer}.{part}.weight" for layer in (0, 1, 2, 10) for part in ("a", "b", "c")),
)


@st.composite
def checkpoints(draw: st.DrawFn) -> Files:
    """Some tensors of any dtype and shape, in one to three files, with random bytes."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    places = {name: draw(st.sampled_from("xyz")) for name in names}
    files = {}
    for place, inside in groupby(sorted(names, key=lambda name: places[name]), key=lambda name: places[name]):
        header, data = {}, b""
        for name in inside:
            dtype = draw(st.sampled_from(sorted(ELEMENT_BYTES)))
            shape = draw(st.lists(st.integers(0, 4), max_size=2))
            content = random.Random(name).randbytes(prod(shape) * ELEMENT_BYTES[dtype])
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
            data += content
        raw = json.dumps(header).encode()
        files[f"{place}.safetensors"] = struct.pack("<Q", len(raw)) + raw + data
    return files


def headers_of(files: Files) -> list[FileHeader]:
    return [
        Headers().check(Path(name), content[8 : 8 + int.from_bytes(content[:8], "little")], len(content))
        for name, content in sorted(files.items())
    ]


def content_of(files: Files, unit: Unit, offset: int = 0) -> bytes:
    def parts() -> Iterator[bytes]:
        for span in unit.spans(offset):
            yield files[span.file][span.start : span.stop] if isinstance(span, ByteRange) else span

    return b"".join(parts())


@given(files=checkpoints())
@settings(max_examples=150, deadline=None)
def test_units_have_each_tensor_once_with_its_bytes(files: Files) -> None:
    headers, found = headers_of(files), {}
    for unit in units_of(headers).values():
        content = content_of(files, unit)
        assert len(content) == unit.size
        assert len(unit.header) % 8 == 0
        for name, facts in deserialize(content):  # the reference implementation reads every unit's file
            assert name not in found
            found[name] = (unit.name, facts["dtype"], tuple(facts["shape"]), bytes(facts["data"]))
    tensors = [tensor for header in headers for tensor in header.tensors]
    assert found == {
        t.name: (unit_of(t.name), t.dtype, t.shape, files[t.file.name][t.start : t.stop])
        for t in tensors
        if unit_of(t.name) is not None
    }


@given(files=checkpoints(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_spans_go_on_at_any_byte(files: Files, data: st.DataObject) -> None:
    for unit in units_of(headers_of(files)).values():
        offset = data.draw(st.integers(0, unit.size))
        assert content_of(files, unit, offset) == content_of(files, unit)[offset:]
        assert all(span if isinstance(span, bytes) else span.size for span in unit.spans(offset))


def test_tensors_stay_aligned_where_dtypes_mix() -> None:
    raw = json.dumps(
        {
            "model.layers.0.a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
            "model.layers.0.b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
        }
    ).encode()
    unit = units_of([Headers().check(Path("x.safetensors"), raw, 8 + len(raw) + 11)])["layer-00000.safetensors"]
    tensors = Headers().check(Path(unit.name), unit.header[8:], unit.size).tensors
    assert [(tensor.name[-1], tensor.start % 4) for tensor in tensors] == [("b", 0), ("a", 0)]


def test_neighbours_are_one_piece(tmp_path: Path) -> None:
    shapes = {f"model.layers.0.{part}.weight": (4,) for part in "abc"} | SHAPES
    units = describe(random_model(tmp_path / "m", shapes)).units
    assert len(units["layer-00000.safetensors"].pieces) == 2  # a, b and c; up_proj lies behind the embedding


def test_what_a_stage_needs(tmp_path: Path) -> None:
    model = describe(random_model(tmp_path / "m"))
    assert list(model.units) == [
        "embed.safetensors",
        "layer-00000.safetensors",
        "layer-00001.safetensors",
        "norm.safetensors",
        "head.safetensors",
    ]
    assert words(u.name for u in units_for(model, LayerRange(0, 1))) == "embed, layers 0:1"
    assert words(u.name for u in units_for(model, LayerRange(1, 2))) == "layers 1:2, norm, head"
    tied = describe(random_model(tmp_path / "t", without(HEAD)))
    assert words(u.name for u in units_for(tied, LayerRange(1, 2))) == "embed, layers 1:2, norm"
    assert len(units_for(tied, LayerRange(0, 2))) == len(tied.units)


def test_what_a_model_does_not_have(tmp_path: Path) -> None:
    model = describe(random_model(tmp_path / "m", without("model.layers.0.mlp.up_proj.weight")))
    with pytest.raises(BrokenModel, match="layers 0:1"):
        units_for(model, LayerRange(0, 2))
    with pytest.raises(BrokenModel, match="has 2 layers, not 1:3"):
        units_for(model, LayerRange(1, 3))


def test_words_for_units() -> None:
    names = ["layer-00007.safetensors", "norm.safetensors", "layer-00000.safetensors", "layer-00001.safetensors"]
    assert words(names) == "layers 0:2, layers 7:8, norm"
    assert layer_ranges(names) == (LayerRange(0, 2), LayerRange(7, 8))
    assert words([]) == "nothing"
