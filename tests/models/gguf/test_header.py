"""GGUF headers are read as the package `gguf` writes them; whatever is broken is refused by name and reason."""

from __future__ import annotations

import hashlib
import random
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.support.gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    TEXT,
    U8,
    U32,
    array,
    entry,
    header,
    read_header,
    tensor,
    text,
    u32,
    u64,
)
from together.errors import BrokenModel
from together.models.gguf import header as module
from together.models.gguf.header import FIRST, MAX_HEADER, GgufHeader, parse_header

Source = Callable[[int, int], bytes]
MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)


def write(file: Path, fill: Callable[[gguf.GGUFWriter], Any]) -> Path:
    """A small file by the package `gguf`."""
    writer = gguf.GGUFWriter(file, "llama")
    fill(writer)
    writer.add_tensor("matrix", MATRIX)
    writer.add_tensor("vector", np.arange(5, dtype=np.float16))
    writer.add_tensor("blocks", np.zeros((4, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


VALUES: dict[str, tuple[str, object]] = {
    "u8": ("add_uint8", 255),
    "i8": ("add_int8", -128),
    "u16": ("add_uint16", 65535),
    "i16": ("add_int16", -5),
    "u32": ("add_uint32", 2**32 - 1),
    "i32": ("add_int32", -(2**31)),
    "u64": ("add_uint64", 2**64 - 1),
    "i64": ("add_int64", -(2**63)),
    "f32": ("add_float32", 0.25),
    "f64": ("add_float64", 0.1),
    "true": ("add_bool", True),
    "false": ("add_bool", False),
    "text": ("add_string", "ä\n\0🦙"),
    "words": ("add_array", ["a", "", "▁the", "🦙"]),
    "numbers": ("add_array", [1, -2, 3]),
    "scores": ("add_array", [0.5, -1.0]),
    "truths": ("add_array", [True, False]),
    "nested": ("add_array", [[1, 2], [3], [4]]),
}


def every_value(writer: gguf.GGUFWriter) -> None:
    for name, (method, value) in VALUES.items():
        getattr(writer, method)(f"test.{name}", value)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small.gguf", every_value)


def broken(tmp_path: Path, data: bytes) -> str:
    """Why a file of these bytes is refused."""
    file = tmp_path / "bad.gguf"
    file.write_bytes(data)
    with pytest.raises(BrokenModel) as caught:
        read_header(file)
    assert "bad.gguf" in str(caught.value)
    return str(caught.value)


def parsed(data: bytes) -> GgufHeader:
    return parse_header(Path("model/a.gguf"), lambda start, stop: data[start:stop], len(data))


def test_every_value_comes_back(small: Path) -> None:
    found = read_header(small)
    for name, (_, value) in VALUES.items():
        got = found.metadata[f"test.{name}"]
        assert (got, type(got)) == (value, type(value)), name
    assert found.metadata["general.architecture"] == "llama"
    assert found.version == 3


def test_tensors_are_those_that_the_package_reads(small: Path) -> None:
    found, judge = read_header(small), gguf.GGUFReader(small)
    assert found.data_start == judge.data_offset
    assert found.tensors
    for ours, theirs in zip(found.tensors, judge.tensors, strict=True):
        assert (ours.name, ours.kind) == (theirs.name, theirs.tensor_type)
        assert ours.shape == tuple(reversed(theirs.shape.tolist()))
        assert found.data_start + ours.offset == theirs.data_offset
    by_name = {tensor.name: tensor for tensor in found.tensors}
    assert by_name["matrix"].shape == (2, 3)  # rows first
    assert by_name["blocks"].shape == (4, 32)
    start = found.data_start + by_name["matrix"].offset
    assert small.read_bytes()[start : start + MATRIX.nbytes] == MATRIX.tobytes()


def test_the_hash_is_of_the_header_without_its_padding(small: Path) -> None:
    found, data = read_header(small), small.read_bytes()
    assert found.sha256 == hashlib.sha256(data[: found.size]).hexdigest()
    assert found.size < found.data_start == -(-found.size // 32) * 32
    assert parsed(data) == found


def test_alignment(tmp_path: Path) -> None:
    file = write(tmp_path / "wide.gguf", lambda writer: writer.add_custom_alignment(256))
    found = read_header(file)
    assert found.data_start == gguf.GGUFReader(file).data_offset
    assert found.data_start % 256 == 0
    assert all(tensor.offset % 256 == 0 for tensor in found.tensors)


def test_version_2_is_read_alike(small: Path) -> None:
    data = bytearray(small.read_bytes())
    data[4:8] = u32(2)
    old = parsed(bytes(data))
    assert (old.version, old.tensors) == (2, read_header(small).tensors)


def test_a_header_alone(tmp_path: Path) -> None:
    """A vocabulary without weights ends without padding."""
    found = parsed(header([entry("a", U32, u32(7))]))
    assert (found.metadata, found.tensors) == ({"a": 7}, ())


# --- what is refused --------------------------------------------------------------------------------------------------

ONE = tensor("w", [4], 0)
ALIGNED = [entry("general.alignment", U32, u32(64))]
BILLION = 10**9
REFUSED = {
    "nothing": (b"", "begins with b''"),
    "another file": (b"PK\x03\x04" + bytes(64), "no GGUF file"),
    "version 1": (header(begin=b"GGUF" + u32(1)), "version 1, which"),
    "version 4": (header(begin=b"GGUF" + u32(4)), "version 4, which"),
    "big-endian": (header(begin=b"GGUF\0\0\0\3"), r"version 3 \(big-endian\), which"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS"),
    "many tensors": (header(counts=(BILLION, 0)), "claims 1000000000 tensors"),
    "many entries": (header(counts=(0, BILLION)), "claims 1000000000 entries"),
    "most entries": (header(counts=(0, 2**64 - 1)), "claims 18446744073709551615 entries"),
    "more tensors than bytes": (header(counts=(200_000, 0)), "claims 200000 tensors"),
    "more entries than bytes": (header(counts=(0, 5_000)), "claims 5000 entries"),
    "more texts than bytes": (header([entry("a", ARRAY, array(TEXT, 10_000))]), "claims 10000 values of 'a'"),
    "many texts": (header([entry("a", ARRAY, array(TEXT, BILLION))]), "claims 1000000000 values of 'a'"),
    "many numbers": (header([entry("a", ARRAY, array(U8, 2**63))]), "values of 'a'"),
    "many arrays": (header([entry("a", ARRAY, array(ARRAY, BILLION))]), "values of 'a'"),
    "a long text": (header([entry("a", TEXT, u64(2**40) + b"abc")]), "ends within"),
    "a long text in a list": (header([entry("a", ARRAY, array(TEXT, 1, u64(2**63)))]), "ends within"),
    "a long key": (header([text("k" * 5000) + u32(U32) + u32(1)]), "key of 5000 bytes"),
    "a long name": (header([], [tensor("n" * 5000, [1])]), "name of 5000 bytes"),
    "a key twice": (header([entry("a", U32, u32(1)), entry("a", U32, u32(2))]), "names 'a' twice"),
    "a tensor twice": (header([], [ONE, ONE]) + bytes(64), "names 'w' twice"),
    "an unknown type": (header([entry("a", 13, u64(0))]), "unknown type 13"),
    "a list of an unknown type": (header([entry("a", ARRAY, array(99, 0))]), "unknown type 99"),
    "half a truth": (header([entry("a", BOOL, b"\2")]), "neither true nor false"),
    "a list of half truths": (header([entry("a", ARRAY, array(BOOL, 2, b"\1\2"))]), "neither true nor false"),
    "no UTF-8": (header([entry("a", TEXT, text(b"\xff"))]), "'a' is not text"),
    "a token that is no UTF-8": (header([entry("a", ARRAY, array(TEXT, 1, text(b"\xc3")))]), "'a' is not text"),
    "a key that is no UTF-8": (header([entry(b"\xff", U32, u32(1))]), "not text"),
    "deep": (header([entry("a", ARRAY, array(ARRAY, 1) * 5 + array(U8, 0))]), "nested too deep"),
    "no dimensions in it": (header([], [tensor("w", [4, 0])]) + bytes(64), r"the shape \[4, 0\]"),
    "huge": (header([], [tensor("w", [2**32, 2**32])]) + bytes(64), "the shape"),
    "five dimensions": (header([], [tensor("w", [1] * 5)]) + bytes(64), "5 dimensions"),
    "no alignment": (header([entry("general.alignment", U32, u32(0))], [ONE]) + bytes(64), "alignment is 0"),
    "an odd alignment": (header([entry("general.alignment", U32, u32(48))], [ONE]) + bytes(64), "alignment is 48"),
    "a text as alignment": (header([entry("general.alignment", TEXT, text("32"))]), "alignment is '32'"),
    "a number as alignment": (header([entry("general.alignment", F32, u32(0x42000000))]), "alignment is 32.0"),
    "askew": (header([], [tensor("w", [4], 8)]) + bytes(128), "begins at 8, no multiple of 32"),
    "askew by its own alignment": (header(ALIGNED, [tensor("w", [4], 32)]) + bytes(256), "multiple of 64"),
    "beyond the end": (header([], [tensor("w", [4], 2**20)]) + bytes(128), "begins at 1048576 of"),
    "without data": (header([], [tensor("w", [4], 0)]), "begins at 0 of 0 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(BrokenModel, match=reason):
        parsed(data)
    broken(tmp_path, data)


@pytest.mark.parametrize("claim", ["many tensors", "many entries", "many texts", "many numbers", "many arrays"])
def test_a_false_claim_takes_no_memory(claim: str) -> None:
    """Also in a file that is large enough to make it likely."""
    data, size = REFUSED[claim][0], 40 * 2**30
    tracemalloc.start()
    try:
        with pytest.raises(BrokenModel, match="claims"):
            parse_header(Path("m/a.gguf"), lambda start, stop: data.ljust(stop, b"\0")[start:stop], size)
        assert tracemalloc.get_traced_memory()[1] < 4 * FIRST
    finally:
        tracemalloc.stop()


def test_values_of_many_lists_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_VALUES", 8)
    five = [entry(name, ARRAY, array(U8, 4, bytes(4))) for name in ("a", "b")]
    assert parsed(header(five)).metadata == {"a": [0] * 4, "b": [0] * 4}
    with pytest.raises(BrokenModel, match="1 values of 'c'"):
        parsed(header([*five, entry("c", ARRAY, array(U8, 1, b"\0"))]))


def test_a_header_has_a_limit() -> None:
    data = header([entry("a", TEXT, u64(MAX_HEADER))])
    with pytest.raises(BrokenModel, match=f"more than {MAX_HEADER} bytes"):
        parse_header(Path("m/a.gguf"), lambda start, stop: data.ljust(stop, b"\0")[start:stop], 2**40)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.gguf"):
        with pytest.raises(BrokenModel, match="cannot be read"):
            read_header(path)


def test_every_truncation_is_refused(small: Path) -> None:
    data = small.read_bytes()
    end = read_header(small).data_start
    for length in range(end + 1):
        with pytest.raises(BrokenModel):
            parsed(data[:length])


def test_random_damage_is_refused_or_read(small: Path) -> None:
    """Nothing else than BrokenModel comes out, whatever is damaged."""
    data, chance, refused = small.read_bytes(), random.Random(15), 0
    end = read_header(small).data_start
    for _ in range(4000):
        spoilt = bytearray(data)
        for _ in range(chance.choice((1, 1, 1, 2, 8))):
            spoilt[chance.randrange(end)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        try:
            parsed(bytes(spoilt))
        except BrokenModel:
            refused += 1
    assert 400 < refused < 4000


# --- how it is read ---------------------------------------------------------------------------------------------------


def with_words(count: int) -> bytes:
    """As a model has them: tokens, scores and types, and then a tensor."""
    words = b"".join(text(f"▁word{index}") for index in range(count))
    entries = [
        entry("tokenizer.ggml.tokens", ARRAY, array(TEXT, count, words)),
        entry("tokenizer.ggml.scores", ARRAY, array(F32, count, bytes(4 * count))),
        entry("tokenizer.ggml.token_type", ARRAY, array(5, count, u32(1) * count)),
    ]
    return header(entries, [ONE])


def test_only_ranges_of_the_beginning_are_read() -> None:
    """As from a hub: a few requests, that double, of a file with gigabytes of weights."""
    data, asked = with_words(260_000), list[tuple[int, int]]()

    def source(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return data[start:stop].ljust(stop - start, b"\0")

    found = parse_header(Path("m/a.gguf"), source, 40 * 2**30)
    assert len(data) > 6 * FIRST
    assert asked == [(0, FIRST), (FIRST, 2 * FIRST), (2 * FIRST, 4 * FIRST), (4 * FIRST, 8 * FIRST)]
    words = found.metadata["tokenizer.ggml.tokens"]
    assert isinstance(words, list)
    assert (len(words), words[-1]) == (260_000, "▁word259999")
    assert found.size == len(data)


def test_a_source_that_gives_less_is_refused(small: Path) -> None:
    """A file that was cut while it was read."""
    data = small.read_bytes()
    with pytest.raises(BrokenModel, match="ends at byte 100 and not"):
        parse_header(small, lambda start, stop: data[:100][start:stop], len(data))


@pytest.mark.full
def test_other_threads_have_their_turns() -> None:
    data, waits, done = with_words(260_000) + bytes(64), list[float](), threading.Event()

    def watch() -> None:
        before = time.perf_counter()
        while not done.is_set():
            time.sleep(0.001)
            waits.append((now := time.perf_counter()) - before)
            before = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.thread_time()
    try:
        parsed(data)
        taken = time.thread_time() - started
    finally:
        done.set()
        watcher.join()
    print(f"{taken:.3f} s of processor time, longest wait {1000 * max(waits):.0f} ms", file=sys.stderr)
    assert taken < 1.5
    assert max(waits) < 0.25
