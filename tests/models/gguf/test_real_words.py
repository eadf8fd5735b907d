"""Real vocabularies: llama.cpp's own test files, with the ids that transformers' published tokenizers gave."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.models.gguf.test_words import files_of
from tests.support.downloads import cache, downloaded, once
from together.errors import UnsupportedModel

PACKAGE = "llama-cpp-python==0.3.36"  # its sources: 77 MB, of which 30 MB are kept
NAMES = (
    "command-r deepseek-coder deepseek-llm falcon gemma-4 gpt-2 llama-bpe llama-spm mpt phi-3 qwen2 refact starcoder"
).split()
BETWEEN = "\n__ggml_vocab_test__\n"


@pytest.fixture(scope="module")
def vocabularies() -> Path:
    return once(cache("LLAMA_CPP_CACHE", "llama-cpp-0.3.36") / "vocabularies", _unpack)


def _unpack(folder: Path) -> None:
    folder.mkdir()
    package = downloaded(PACKAGE, folder.parent, "*.tar.gz", "--no-binary", "llama-cpp-python")
    with tarfile.open(package) as opened:
        for member in opened:
            if "/models/ggml-vocab-" in member.name and (content := opened.extractfile(member)) is not None:
                (folder / Path(member.name).name).write_bytes(content.read())


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_the_published_tokenizer(vocabularies: Path, name: str) -> None:
    file = vocabularies / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.from_str(files_of(file)["tokenizer.json"].decode())
    texts = Path(f"{file}.inp").read_text(encoding="utf-8").split(BETWEEN)
    wanted = Path(f"{file}.out").read_text(encoding="utf-8").split("\n")[: len(texts)]
    assert len(texts) > 40
    for text, ids in zip(texts, wanted, strict=True):
        assert tokenizer.encode(text, add_special_tokens=False).ids == [int(each) for each in ids.split()], text


@pytest.mark.full
def test_files_that_do_not_say_enough_are_refused(vocabularies: Path) -> None:
    for name, reason in {
        "gpt-neox": "does not say how it splits",
        "bert-bge": "'bert'",
        "aquila": "does not say",
    }.items():
        with pytest.raises(UnsupportedModel, match=reason):
            files_of(vocabularies / f"ggml-vocab-{name}.gguf")
