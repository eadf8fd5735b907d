"""A child process writes the words of a GGUF file into a folder, and says what is wrong with them."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.cluster import until
from tests.support.gguf_bytes import read_header
from tests.support.gguf_words import CONTROL, NORMAL, write_vocabulary
from together.errors import BrokenModel, LoadFailed, UnsupportedModel
from together.models.gguf.words import word_files
from together.weights.gguf_words import write_words


def write(file: Path, pre: str = "qwen2", merges: tuple[str, ...] = ("a b",)) -> Path:
    def more(writer: Any) -> None:
        writer.add_token_merges(list(merges))
        writer.add_chat_template([{"name": name, "template": name} for name in ("default", "tool_use")])

    words = ["a", "b", "ab", "<|im_end|>"]
    return write_vocabulary(file, "gpt2", words, [*[NORMAL] * 3, CONTROL], more, pre=pre)


def made(file: Path, folder: Path, size: int = 0) -> dict[str, bytes]:
    """What the child wrote."""
    asyncio.run(write_words(file, size or file.stat().st_size, folder))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_child_writes_them(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf")
    found = made(file, tmp_path / "words")
    assert found == word_files(read_header(file).metadata)
    assert json.loads(found["generation_config.json"])["eos_token_id"] == [3]
    assert "additional_chat_templates/tool_use.jinja" in found


def test_the_header_alone_is_enough(tmp_path: Path) -> None:
    """As it came from a hub: what follows it stays there."""
    file = write(tmp_path / "tiny.gguf")
    whole, size = file.read_bytes(), read_header(file).size
    file.write_bytes(whole[:size])
    assert "tokenizer.json" in made(file, tmp_path / "words", size + 2**30)
    file.write_bytes(whole[: size - 1])
    with pytest.raises(BrokenModel, match=f"ends at byte {size - 1}"):
        made(file, tmp_path / "words", size + 2**30)


def test_a_failure_of_the_child_itself_is_a_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it fails over; the log has the traceback."""
    caplog.set_level("INFO", "together.weights.children")
    file = write(tmp_path / "tiny.gguf")
    with pytest.raises(
        LoadFailed, match=r"words of .*tiny\.gguf are such that .*\(ValueError: .*null.*\), .* bug of it"
    ):
        made(file, tmp_path / "no\0folder")
    assert "Traceback" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="Windows has other codes")
def test_a_child_that_is_killed_is_a_sentence(tmp_path: Path) -> None:
    file, before = write(tmp_path / "tiny.gguf"), psutil.Process().children()  # other tests may have left some

    def born() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child not in before]

    async def killed() -> None:
        order = asyncio.create_task(write_words(file, 1000, tmp_path / "words"))
        await until(lambda: born() or order.done())
        for child in born():
            child.kill()
        await order

    with pytest.raises(LoadFailed, match=r"tiny\.gguf ended with code -9 \(it said nothing\); try again"):
        asyncio.run(killed())


def test_what_is_wrong_comes_back(tmp_path: Path) -> None:
    words = tmp_path / "words"
    with pytest.raises(UnsupportedModel, match=r"tiny splits texts in a way that is not known here .*'none'"):
        made(write(tmp_path / "tiny.gguf", "none"), words)
    with pytest.raises(BrokenModel, match="the words of tiny are broken"):
        made(write(tmp_path / "tiny.gguf", merges=("a c",)), words)
    (tmp_path / "zip").write_bytes(b"PK" + bytes(100))
    with pytest.raises(BrokenModel, match="zip is broken: it is no GGUF file"):
        made(tmp_path / "zip", words)
    with pytest.raises(LoadFailed, match=r"the words of .*tiny\.gguf cannot be written"):
        made(write(tmp_path / "tiny.gguf"), tmp_path / "zip")


async def test_the_child_of_a_cancelled_order_ends(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    order = asyncio.create_task(write_words(write(tmp_path / "tiny.gguf"), 1000, tmp_path / "words"))
    await until(lambda: set(psutil.Process().children()) - before)
    new = set(psutil.Process().children()) - before
    order.cancel()
    with pytest.raises(asyncio.CancelledError):
        await order
    assert not any(child.is_running() for child in new)
