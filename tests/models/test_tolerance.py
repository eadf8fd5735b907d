"""What is read tolerantly is read within the same limits: indexes and JSON in any encoding, files that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.folders import CONFIG, SHAPES, write_model, write_tensors
from together.errors import BrokenModel, UnsupportedModel
from together.models.checkpoint import MAX_FILES, checkpoint_headers, choose_files, weight_files, weight_map
from together.models.config import effective
from together.models.folder import INDEX, MAX_VALUES, is_pointer, most_bytes, read_json, require_whole, without_weights
from together.models.names import EMBED
from together.models.quantization import quantization_of
from together.models.spec import read_spec
from together.wording import MOST

ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"]
PAIR = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TWICE = '{"a": 1, "a": 2}'
LONG = "n" * 3000


def numbered(folder: Path, index: bytes | None = None) -> Path:
    """A model in two numbered files, with these bytes as its index."""
    write_model(folder)
    (folder / "model.safetensors").unlink()
    for file, half in zip(PAIR, (list(SHAPES)[:3], list(SHAPES)[3:]), strict=True):
        write_tensors(folder / file, {name: SHAPES[name] for name in half})
    if index is not None:
        (folder / INDEX).write_bytes(index)
    return folder


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_index_in_every_encoding(encoding: str) -> None:
    index = json.dumps({"weight_map": {"ä": PAIR[0], "b": PAIR[1]}}, ensure_ascii=False).encode(encoding)
    assert weight_map(Path("m", INDEX), index) == {"ä": PAIR[0], "b": PAIR[1]}


@pytest.mark.parametrize("encoding", ["utf-8", *ENCODINGS])
def test_doubled_keys_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "config.json").write_bytes(TWICE.encode(encoding))
    with pytest.raises(BrokenModel, match="names 'a' twice"):
        read_json(folder, "config.json")
    index = '{"weight_map": {"a": "x", "a": "y"}}'
    with pytest.raises(BrokenModel, match="names 'a' twice"):
        weight_map(folder / INDEX, index.encode(encoding))


def test_wide_json_in_another_encoding_has_the_same_limit(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "config.json").write_bytes(f'{{"a":[{"0," * MAX_VALUES}0]}}'.encode("utf-16"))
    with pytest.raises(BrokenModel, match=r"config.json is broken"):
        read_json(folder, "config.json")


@pytest.mark.parametrize(
    "index",
    [b"", b"{", b"[]", b'{"weight_map": []}', b'{"weight_map":' + b"[" * 100_000, TWICE.encode("utf-16"), b"\xff\xfe{"],
)
def test_a_broken_index_is_passed_over_where_the_files_are_plain(
    tmp_path: Path, index: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    folder = numbered(tmp_path / "m", index)
    assert tuple(header.file.name for header in checkpoint_headers(folder)) == PAIR
    (record,) = caplog.records
    assert INDEX in record.getMessage()
    assert len(record.getMessage()) < 2 * MOST + 200


def test_an_index_over_its_limit_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = numbered(tmp_path / "m", b"{}")
    os.truncate(folder / INDEX, most_bytes(INDEX) + 1)
    assert weight_files(folder) == PAIR
    assert "more than" in caplog.text


def test_where_the_files_are_not_plain_the_index_says_what_is_wrong(tmp_path: Path) -> None:
    folder = numbered(tmp_path / "m", b'{"weight_map": {"a": ["x"]}}')
    for file, name in zip(PAIR, ("a", "b"), strict=True):
        (folder / file).rename(folder / f"{name}.safetensors")
    with pytest.raises(BrokenModel, match=r"index\.json is broken: .* no text"):
        weight_files(folder)


def test_a_model_has_no_more_files_than_any_needs() -> None:
    there = [f"m-{i:05}-of-{MAX_FILES + 1:05}.safetensors" for i in range(1, MAX_FILES + 2)]
    with pytest.raises(BrokenModel, match=f"more than {MAX_FILES}"):
        choose_files("m", there, None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes in folders")
def test_a_pipe_is_no_file_of_a_model(tmp_path: Path) -> None:
    """Whoever opened one would wait for a writer for ever."""
    folder = write_model(tmp_path / "m")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "adapter_config.json"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    assert not is_pointer(folder / "tokenizer.json")
    require_whole(folder, ["config.json", "tokenizer.json"])
    assert "adapter" in str(without_weights("m", ["adapter_config.json"], folder))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(BrokenModel, match="has neither"):
        checkpoint_headers(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": LONG},
        {"hidden_act": LONG},
        {"num_attention_heads": LONG},
        {"num_hidden_layers": 10**1000},
        {"rope_scaling": LONG},
        {"rope_scaling": {"type": LONG}},
        {"rope_scaling": {"type": "linear", "factor": LONG}},
    ],
)
def test_no_refusal_of_a_configuration_is_long(config: dict[str, object]) -> None:
    with pytest.raises((BrokenModel, UnsupportedModel)) as caught:
        effective("m", CONFIG | config)
    assert len(str(caught.value)) < 2 * MOST


def test_the_name_of_a_quantization_is_short() -> None:
    assert len(str(quantization_of({"quantization_config": {"quant_method": LONG}}))) <= 60
    assert len(str(quantization_of({"quantization": {"bits": LONG}}))) <= 70


def test_a_stored_name_in_a_refusal_is_short(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    wrap = "model." * 300
    write_tensors(folder / "model.safetensors", {f"{wrap}embed_tokens.weight": (1, 1), f"{wrap}norm.weight": (1,)})
    with pytest.raises(BrokenModel) as caught:
        read_spec(folder)
    assert len(str(caught.value)) < 2 * MOST + 200
    assert EMBED not in str(caught.value)
