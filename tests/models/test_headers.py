"""Broken safetensors files are refused by name and reason, whatever is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.folders import write_raw, write_tensors
from together.errors import BrokenModel
from together.models.headers import MAX_HEADER, Headers


def entry(start: int, stop: int, shape: object = None, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


TWICE = b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": {}}'


def test_a_good_header(tmp_path: Path) -> None:
    header = Headers().read(write_tensors(tmp_path / "a.safetensors", {"b": (2, 3), "a": (), "empty": (0, 4)}, "F32"))
    by_name = {tensor.name: tensor for tensor in header.tensors}
    assert by_name["b"].shape == (2, 3)
    assert (by_name["b"].elements, by_name["b"].nbytes) == (6, 24)
    assert by_name["a"].start == by_name["b"].stop == 8 + len(header.raw) + 24
    assert by_name["empty"].nbytes == 0


@pytest.mark.parametrize(
    ("entries", "data", "reason"),
    [
        ({"a": entry(0, 8)}, 7, "end at byte"),
        ({"a": entry(0, 8)}, 9, "end at byte"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "overlaps"),
        ({"a": entry(0, 8), "b": entry(12, 16)}, 16, "gap"),
        ({"a": entry(8, 0, [2])}, 8, "bytes"),
        ({"a": entry(0, 8, [3])}, 8, "8 bytes"),
        ({"a": entry(0, 8, [-2])}, 8, "bad shape"),
        ({"a": entry(0, 8, [2.0])}, 8, "bad shape"),
        ({"a": entry(0, 8, [True, 2])}, 8, "bad shape"),
        ({"a": entry(0, 8, dtype="F33")}, 8, "F33"),
        ({"a": entry(0, 8, dtype=["F32"])}, 8, "dtype"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "offsets"),
        ({"a": 3}, 8, "not described"),
        ([1, 2], 8, "not a table"),
        ({"a": entry(0, 2**62, [2**60])}, 8, "end at byte"),
    ],
)
def test_bad_entries(tmp_path: Path, entries: object, data: int, reason: str) -> None:
    file = write_raw(tmp_path / "bad.safetensors", json.dumps(entries).encode(), bytes(data))
    with pytest.raises(BrokenModel, match=reason) as caught:
        Headers().read(file)
    assert "bad.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "length", "reason"),
    [
        (b"{", None, "not JSON"),
        (TWICE, None, "names 'a' twice"),
        (b'{"__metadata__": {"a": "1", "a": "2"}}', None, "names 'a' twice"),
        (b"{}", 2**63, f"more than {MAX_HEADER}"),
        (b"{}", MAX_HEADER + 1, f"more than {MAX_HEADER}"),
        (b"{}", 3, "the file has 10"),
        (b"[" * 100_000, None, "not JSON"),
        (b'\xff\xfe"', None, "not JSON"),
    ],
)
def test_bad_headers(tmp_path: Path, header: bytes, length: int | None, reason: str) -> None:
    with pytest.raises(BrokenModel, match=reason):
        Headers().read(write_raw(tmp_path / "bad.safetensors", header, length=length))


def test_files_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"1234567")
    for name in ("short", "missing"):
        with pytest.raises(BrokenModel, match=name):
            Headers().read(tmp_path / name)


@given(noise=st.binary(max_size=200))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_never_a_crash(tmp_path: Path, noise: bytes) -> None:
    for file in (tmp_path / "raw", write_raw(tmp_path / "framed", noise)):
        if file.name == "raw":
            file.write_bytes(noise)
        try:
            Headers().read(file)
        except BrokenModel:
            continue
