"""Large JSON tables are read key by key: within limits of each value, and as `json.loads` reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.folders import write_model, write_raw
from together.errors import BrokenModel
from together.models import headers
from together.models.checkpoint import checkpoint_headers
from together.models.folder import INDEX, MAX_VALUES, json_object, most_bytes, read_bytes, read_json
from together.models.headers import MAX_HEADER, MAX_TENSORS, Headers, TableReader, sorted_in_turns
from together.models.manifest import describe, parse
from together.wording import MOST, quoted

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


def read_all(data: bytes) -> dict[str, Any]:
    reader = TableReader(data)
    found = {name: reader.value(10_000) for name in reader.names()}
    reader.end()
    return found


@given(table=st.dictionaries(st.text(), JSON), ascii_only=st.booleans(), indent=st.sampled_from([None, 2]))
def test_it_reads_what_json_reads(table: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    data = json.dumps(table, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    try:
        assert read_all(data) == table
    except ValueError:
        assert any("\ud800" <= letter <= "\udfff" for letter in str(list(table)) + "".join(table))


@given(noise=st.binary(max_size=60) | st.text(alphabet='{}[]":,0a ', max_size=60).map(str.encode))
def test_anything_else_is_a_value_error(noise: bytes) -> None:
    try:
        found = read_all(noise)
    except ValueError:
        return
    assert found == json.loads(noise)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a": 1, "a": 1}', "'a' twice"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' twice"),
        (b'{"a": 1,}', "no text"),
        (b'{"a": 1} x', "more follows"),
        (b'{"a": ' + b"[" * 9_000, "too deep"),
        (b'{"a": "' + b"x" * 20_000 + b'"}', "more than 10000 bytes"),
        (b'{"' + b"x" * 20_000 + b'": 1}', "more than 4096 bytes"),
        (b'{"\\ud800": 1}', "no key"),
        (b'{"\xff": 1}', "no key"),
    ],
)
def test_what_is_no_table_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_all(data)


@given(items=st.lists(st.integers()))
def test_sorting_in_turns_is_sorting(items: list[int]) -> None:
    assert sorted_in_turns(items, lambda item: item // 3) == sorted(items, key=lambda item: item // 3)


def test_many_items_are_sorted_too() -> None:
    items = [index * 7919 % 100_003 for index in range(50_000)]
    assert sorted_in_turns(items, lambda item: item) == sorted(items)


# --- what a model's files may be --------------------------------------------------------------------------------------


def header_of(count: int, name: str = "t") -> bytes:
    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return ("{" + ",".join(f'"{name}{index}":{entry}' for index in range(count)) + "}").encode()


def test_all_files_of_a_model_share_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_TENSORS", 25)
    raw, model = header_of(10), Headers()
    for _ in range(2):
        model.check(Path("m/a"), raw, 8 + len(raw))
    with pytest.raises(BrokenModel, match="more than 25 tensors"):
        model.check(Path("m/a"), raw, 8 + len(raw))
    monkeypatch.setattr(headers, "MAX_HEADER", 2 * len(raw))
    model = Headers()
    for _ in range(2):
        model.check(Path("m/a"), raw, 8 + len(raw))
    with pytest.raises(BrokenModel, match=f"more than {2 * len(raw)} bytes"):
        model.check(Path("m/a"), raw, 8 + len(raw))


def test_a_large_published_model_fits() -> None:
    """Kimi K2 in 4 bits: 210,000 tensors in 31 MB of headers, 23 MB of index."""
    assert MAX_TENSORS > 210_000
    assert MAX_HEADER > 31 * 10**6
    assert most_bytes(INDEX) > 23 * 10**6
    assert most_bytes("tokenizer.json") > 34 * 10**6


@pytest.mark.parametrize("shape", [[0, 2**63], [0] * 9, [0, 10**400]])
def test_a_shape_has_bounds(shape: list[int]) -> None:
    raw = json.dumps({"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, 0]}}).encode()
    with pytest.raises(BrokenModel, match="bad shape") as caught:
        Headers().check(Path("m/a"), raw, 8 + len(raw))
    assert len(str(caught.value)) < 2 * MOST
    most = json.dumps({"a": {"dtype": "U8", "shape": [0, 2**63 - 1, *[1] * 6], "data_offsets": [0, 0]}}).encode()
    Headers().check(Path("m/a"), most, 8 + len(most))


LONG = "n" * 3000


@pytest.mark.parametrize(
    "entries",
    [
        {LONG: 1},
        {LONG: {}},
        {LONG: {"dtype": LONG[:900], "shape": [], "data_offsets": [0, 0]}},
        {LONG: {"dtype": "U8", "shape": [1] * 8, "data_offsets": [0, 0]}},
        {LONG: {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}},
    ],
)
def test_no_refusal_is_long(tmp_path: Path, entries: dict[str, Any]) -> None:
    file = write_raw(tmp_path / "model.safetensors", json.dumps(entries).encode(), b"0")
    with pytest.raises(BrokenModel) as caught:
        Headers().read(file)
    assert len(str(caught.value)) < 2 * MOST + 200


def test_a_small_file_over_its_limit_is_not_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    with (folder / "config.json").open("r+b") as stream:
        stream.truncate(2**40)
    for read in (lambda: read_bytes(folder, "config.json"), lambda: describe(folder)):
        with pytest.raises(BrokenModel, match=f"config.json is broken: it has {2**40} bytes, more than"):
            read()


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(BrokenModel, match="not a file"):
        read_json(tmp_path, "config.json")


def test_json_has_no_more_values_than_any_needs() -> None:
    most = b'{"a":[' + b"0," * (MAX_VALUES - 5) + b"0]}"
    assert len(json_object(Path("m/x"), most)["a"]) == MAX_VALUES - 4
    with pytest.raises(BrokenModel, match="values"):
        json_object(Path("m/x"), most[:-2] + b",0,0,0,0,0]}")


@pytest.mark.parametrize("data", [b'{"name": "a", "name": "a"}', b'{"files":' + b"[" * 100_000, b"[]," * 200_000])
def test_manifests_go_the_same_way(data: bytes) -> None:
    with pytest.raises(BrokenModel) as caught:
        parse(data)
    assert len(str(caught.value)) < 2 * MOST


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"weight_map": {"a": ["x"]}}, "no text"),
        ({"weight_map": {"a": None}}, "no text"),
        ({"weight_map": []}, "missing"),
        ({"weight_map": {}}, "no weight_map"),
        ({"weight_map": {"a": "../x"}}, "not a plain file name"),
        ({"weight_map": {"a": LONG}}, "more than 2048 bytes"),
    ],
)
def test_bad_indexes(tmp_path: Path, index: dict[str, Any], reason: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(BrokenModel, match=reason) as caught:
        checkpoint_headers(tmp_path)
    assert len(str(caught.value)) < 2 * MOST + 200


@given(value=st.text() | st.binary() | JSON | st.dictionaries(st.text(), JSON) | st.text().map(lambda text: text * 999))
def test_a_quotation_is_short_and_printable(value: object) -> None:
    assert len(quoted(value)) <= MOST
    assert quoted(value).isprintable()
