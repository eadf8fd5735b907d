"""Every place where publishers keep a chat template, in every encoding that they save it in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.tokenizers import byte_level, write_text_files
from together.errors import BrokenModel
from together.text.tokenizer import MOST_SOURCE, find_templates, read_text, words_json


def named(name: str, template: str) -> dict[str, str]:
    return {"name": name, "template": template}


def templates(folder: Path, **config: Any) -> dict[str, str]:
    write_text_files(folder, byte_level(), None, **config)
    return find_templates(folder, words_json(folder, "tokenizer_config.json"))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("A", {"default": "A"}),
        ([named("default", "A"), named("tool_use", "B")], {"default": "A", "tool_use": "B"}),
        ({"default": "A", "rag": "C"}, {"default": "A", "rag": "C"}),
        ([named("rag", "C")], {"rag": "C", "default": "C"}),  # none is called default
        ([named("tool_use", "B"), named("rag", "C")], {"tool_use": "B", "rag": "C", "default": "C"}),
        ([{"template": "A"}], {"default": "A"}),
        ([7, None, {"name": "default"}, named("rag", "C")], {"rag": "C", "default": "C"}),
        ([], {}),
        (None, {}),
    ],
)
def test_templates_of_the_tokenizers_configuration(tmp_path: Path, value: object, found: dict[str, str]) -> None:
    assert templates(tmp_path, chat_template=value) == found


def test_files_win_over_json_and_that_over_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "J"}))
    assert templates(tmp_path) == {"default": "J"}
    assert templates(tmp_path, chat_template="C") == {"default": "J"}
    (tmp_path / "chat_template.jinja").write_text("F")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("T")
    assert templates(tmp_path, chat_template="C") == {"default": "F", "tool_use": "T"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_byte_order_mark_is_read_and_never_part_of_a_prompt(tmp_path: Path, encoding: str) -> None:
    text = "{{ messages[0].content }} größer ▁"
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    (tmp_path / "chat_template.jinja").write_bytes(mark + text.encode(encoding))
    assert read_text(tmp_path, "chat_template.jinja") == text


def test_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes("größer".encode("latin-1"))
    with pytest.raises(BrokenModel, match=r"chat_template\.jinja of .* is not in UTF-8 \(byte 2\)"):
        read_text(tmp_path, "chat_template.jinja")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.json"])
def test_a_broken_file_that_may_hold_the_template_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(" \n")
    assert words_json(tmp_path, name) == {}
    (tmp_path / name).write_text("{,}")
    with pytest.raises(BrokenModel, match=name):
        words_json(tmp_path, name)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7, "not text"),
        ({"default": 7}, "not text"),
        ([{"name": "default", "template": 7}], "not text"),
        ("{# " + "x" * MOST_SOURCE + " #}", "bytes"),
    ],
    ids=["number", "object", "named number", "large"],
)
def test_a_template_that_is_none_is_a_broken_model(value: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(BrokenModel, match=reason):
        find_templates(tmp_path, {"chat_template": value})


@pytest.mark.parametrize("empty", ["", " \n\n"])
def test_an_empty_template_is_passed_over_for_one_that_says_something(
    tmp_path: Path, empty: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "chat_template.jinja").write_text(empty)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": empty}))
    assert templates(tmp_path, chat_template="C") == {"default": "C"}
    assert "empty" in caplog.text
    assert templates(tmp_path, chat_template=empty) == {}


def test_a_macs_companion_file_is_no_template(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "._rag.jinja").write_bytes(b"\x00\x05\x16\x07\xff")
    assert templates(tmp_path, chat_template="C") == {"default": "C"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_what_is_no_file_of_the_folder_is_never_read(tmp_path: Path, kind: str) -> None:
    """A pipe would block the reader forever, and a link may lead to any file."""
    folder = tmp_path / "m"
    more = folder / "additional_chat_templates"
    more.mkdir(parents=True)
    (tmp_path / "secret.jinja").write_text("secret")
    if kind == "pipe":
        os.mkfifo(more / "rag.jinja")
        assert templates(folder, chat_template="C") == {"default": "C"}
    else:
        (more / "rag.jinja").symlink_to(tmp_path / "secret.jinja")
        with pytest.raises(BrokenModel, match="leads outside"):
            templates(folder, chat_template="C")
