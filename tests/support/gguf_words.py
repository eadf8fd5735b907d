"""Writes a model folder's words into a GGUF file, by the rules of llama.cpp's converter (conversion/base.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
More = Callable[[gguf.GGUFWriter], None]


def write_words(file: Path, folder: Path, pre: str, more: More = lambda writer: None, rows: int = 0) -> Path:
    """Byte-level BPE of a folder: its words, merges, special ids and templates. Up to `rows`, unused words follow."""
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words, kinds = words_of(tokenizer)
    words += [f"[PAD{index}]" for index in range(len(words), rows)]
    kinds += [UNUSED] * (len(words) - len(kinds))

    def fill(writer: gguf.GGUFWriter) -> None:
        special = gguf.SpecialVocab(folder, load_merges=False)
        special.add_to_gguf(writer, quiet=True)
        writer.add_token_merges([" ".join(merge) for merge in described["model"]["merges"]])
        more(writer)

    return write_vocabulary(file, "gpt2", words, kinds, fill, pre=pre)


def words_of(tokenizer: Tokenizer) -> tuple[list[str], list[int]]:
    """Every word and its kind, in the order of ids."""
    added = tokenizer.get_added_tokens_decoder()
    by_id = {index: word for word, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    kinds = [
        (CONTROL if added[index].special else USER) if index in added else _kind(by_id[index])
        for index in sorted(by_id)
    ]
    return [by_id[index] for index in sorted(by_id)], kinds


def _kind(word: str) -> int:
    return BYTE if len(word) == 6 and word.startswith("<0x") and word.endswith(">") else NORMAL


def write_vocabulary(
    file: Path,
    model: str,
    words: Iterable[str],
    kinds: Iterable[int],
    more: More = lambda writer: None,
    *,
    pre: str = "default",
    scores: Iterable[float] | None = None,
) -> Path:
    """A GGUF file without weights."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_tokenizer_model(model)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(words))
    writer.add_token_types(list(kinds))
    if scores is not None:
        writer.add_token_scores(list(scores))
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """What `word_files` made, as a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def settings_of(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files[name])
    return found
