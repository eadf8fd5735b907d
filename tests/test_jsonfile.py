"""Files at rest: a reader sees old or new bytes, and a value only of the type it asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from together.jsonfile import BrokenFile, decode_json, read_json, recall_json, write_json, write_whole
from together.types import Dtype, LayerRange


@dataclass(frozen=True, slots=True)
class Stay:
    layers: LayerRange
    dtype: Dtype
    sizes: tuple[int, ...] = ()
    note: str | None = None


GOOD = Stay(LayerRange(0, 3), "bf16", (1, 2), "ä ☺")


def test_a_value_comes_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "stay.json"
    write_json(file, GOOD)
    write_json(file, GOOD)
    assert read_json(file, Stay) == recall_json(file, Stay) == GOOD
    assert list(file.parent.iterdir()) == [file]


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "stay.json", Stay) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 100_000, "recursion"),
        (b"{}", "layers: Field required"),
        (b'{"layers": {"start": 0, "stop": "3"}, "dtype": "bf16"}', "layers.stop: Input should be a valid integer"),
        (b'{"layers": {"start": 0, "stop": 3.0}, "dtype": "bf16"}', "layers.stop: Input should be a valid integer"),
        (b'{"layers": {"start": 3, "stop": 0}, "dtype": "bf16"}', "layers: "),
        (b'{"layers": {"start": 0, "stop": 3}, "dtype": "int3"}', "dtype: Input should be 'fp32', 'bf16' or 'fp16'"),
        (b'{"layers": {"start": 0, "stop": 3}, "dtype": "bf16", "sizes": [true]}', "sizes.0: "),
    ],
)
def test_a_broken_file_is_refused_with_its_reason(tmp_path: Path, text: bytes, reason: str) -> None:
    file = tmp_path / "stay.json"
    file.write_bytes(text)
    with pytest.raises(BrokenFile, match=rf"stay\.json cannot be read: .*{reason}"):
        read_json(file, Stay)
    with pytest.raises(ValueError, match=reason):
        decode_json(text, Stay)
    assert recall_json(file, Stay) is None


def test_a_file_that_is_too_large_is_not_parsed(tmp_path: Path) -> None:
    file = tmp_path / "stay.json"
    write_json(file, GOOD)
    size = file.stat().st_size
    assert read_json(file, Stay, size) == GOOD
    with pytest.raises(BrokenFile, match=f"more than {size - 1} bytes"):
        read_json(file, Stay, size - 1)


def test_a_folder_in_the_place_of_a_file_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenFile, match="cannot be read"):
        read_json(tmp_path, Stay)
    with pytest.raises(OSError):
        write_whole(tmp_path, b"")
    assert list(tmp_path.parent.glob("*.new")) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "stay.json"
    write_json(file, GOOD)

    def fail(descriptor: int) -> None:
        raise OSError("no room")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no room"):
        write_json(file, Stay(LayerRange(0, 1), "fp32"))
    assert read_json(file, Stay) == GOOD
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_of_today_is_read_after_a_field_was_added(tmp_path: Path) -> None:
    file = tmp_path / "stay.json"
    file.write_text('{"layers": {"start": 0, "stop": 1}, "dtype": "fp32", "later": 1}')
    assert read_json(file, Stay) == Stay(LayerRange(0, 1), "fp32")
