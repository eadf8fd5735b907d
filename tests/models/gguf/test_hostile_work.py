"""A GGUF file that lies is refused after little work, whatever it claims: bytes, ranges and calls are counted."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.gguf_bytes import array, entry, header, tensor, text
from tests.support.work import calls_of, peak_bytes
from tests.weights.test_hostile_gguf import BYTES, FILE, HEAD
from together.errors import TogetherError
from together.models.gguf.header import FIRST, MAX_TENSORS, parse_header
from together.weights.imports import described

CALLS = 4_000_000  # that take less than two seconds on a machine of 2020: 3.0 million took 0.7 s on two cores


def calls(file: Path) -> int:
    """Until the file is refused."""
    refusals = list[TogetherError]()

    def act() -> None:
        try:
            described([file], "tiny")
        except TogetherError as error:
            refusals.append(error)

    count = calls_of(act)
    assert refusals, "it is no lie"
    return count


def read(file: Path) -> list[int]:
    """The bytes of each range that its header costs."""
    sizes, data = list[int](), file.read_bytes()

    def source(start: int, stop: int) -> bytes:
        sizes.append(stop - start)
        return data[start:stop]

    with suppress(TogetherError):
        parse_header(file, source, len(data))
    return sizes


@pytest.mark.parametrize("lie", BYTES)
def test_a_lie_costs_next_to_nothing(tmp_path: Path, lie: str) -> None:
    """Whatever it claims, also 10^9 tensors, keys or words: one range of the file, and no loop over its claims."""
    file = tmp_path / FILE
    file.write_bytes(BYTES[lie][0])
    assert calls(file) < 1000
    assert read(file) in ([], [min(FIRST, file.stat().st_size)])


def listed(file: Path, count: int, last: bytes) -> Path:
    """Of so many tensors the last one lies."""
    tensors = [*(tensor(f"blk.{index}.x", (8,), 32 * index) for index in range(count - 1)), last]
    file.write_bytes(header(HEAD, tensors) + bytes(32 * count))
    return file


@pytest.mark.parametrize(
    "last", [tensor("u", (64,)), tensor("u", (8,), 2**40)], ids=["an overlap", "an offset beyond the end"]
)
def test_many_tensors_cost_as_much_each(tmp_path: Path, last: bytes) -> None:
    """What is found at the end only, of as many tensors as a file may have."""
    some, more = (calls(listed(tmp_path / FILE, count, last)) for count in (1000, 2000))
    each = (more - some) / 1000
    assert some < 1000 * each + 1000, "the work grows no faster than the tensors"
    assert MAX_TENSORS * each < CALLS
    assert peak_bytes(lambda: calls(tmp_path / FILE)) < 2000 * 2000
    sizes = read(tmp_path / FILE)
    assert sum(sizes) <= (tmp_path / FILE).stat().st_size


def test_words_that_end_cost_as_much_as_the_words(tmp_path: Path) -> None:
    """A file that was cut within its words."""
    found, file = list[int](), tmp_path / FILE
    for count in (10_000, 20_000):
        words = b"".join(text(f"w{index}") for index in range(count))
        file.write_bytes(header([*HEAD, entry("tokenizer.ggml.tokens", 9, array(8, count + 1) + words)]))
        found.append(calls(file))
    assert found[1] - found[0] < 1.01 * found[0]
    assert 300_000 * found[1] / 20_000 < CALLS, "of the largest vocabularies"


def test_what_is_read_of_a_long_header_at_most_doubles(tmp_path: Path) -> None:
    """A cut file is read once, in ranges that grow."""
    file, words = tmp_path / FILE, b"".join(text(f"word {index}") for index in range(200_000))
    file.write_bytes(header([*HEAD, entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 200_001) + words)]))
    sizes = read(file)
    assert sizes[0] == FIRST
    assert sum(sizes) <= file.stat().st_size
    assert len(sizes) <= 3
