"""Sentencepiece in GGUF files: ids are those of the library itself, with and without a space at the beginning."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.models.gguf.test_words import CHAT, MORE, files_of, opened
from tests.support.gguf_words import BYTE, CONTROL, NORMAL, UNKNOWN, USER, words_of, write_vocabulary
from tests.support.hub_words import make_folder
from tests.support.llama_cpp import TEXTS
from tests.support.tokenizers import CORPUS
from together.errors import BrokenModel
from together.text.tokenizer import TextModel

# What begins with a space, ends with one, or has several.
SPACES = (
    "hello",
    " hello",
    "  hello",
    "hello world",
    "hello  world ",
    "",
    " ",
    "   ",
    "\n hello\n\n",
    "the end of the story",
)
USERS = ("<table>", "\n\n", "▁▁", "▁▁▁")
PLAIN: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "split_digits": True,
}


def taught(**how: Any) -> sentencepiece.SentencePieceProcessor:
    """A small tokenizer of the library, taught the texts of the tests."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CORPUS, *TEXTS] * 3),
        model_writer=model,
        vocab_size=700,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
        **PLAIN | how,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def write(file: Path, judge: sentencepiece.SentencePieceProcessor, users: Iterable[str] = (), **flags: bool) -> Path:
    """As llama.cpp's converter writes it: words that `users` defined with plain spaces."""
    count = judge.vocab_size()
    words, kinds = [judge.id_to_piece(index) for index in range(count)], [NORMAL] * count
    for index, word in enumerate(words):
        if judge.is_unknown(index):
            kinds[index] = UNKNOWN
        elif judge.is_control(index):
            kinds[index] = CONTROL
        elif judge.is_byte(index):
            kinds[index] = BYTE
        elif word in users:
            kinds[index], words[index] = USER, word.replace("▁", " ")
    scores = [-1000.0 if kind == USER else judge.get_score(index) for index, kind in enumerate(kinds)]

    def more(writer: gguf.GGUFWriter) -> None:
        for name, value in flags.items():
            getattr(writer, f"add_{name}")(value)

    return write_vocabulary(file, "llama", words, kinds, more, scores=scores)


def test_ids_are_those_of_the_library(tmp_path: Path) -> None:
    """As Llama 2's: a space comes before any text, and the begin token."""
    judge = taught()
    text = opened(tmp_path / "words", write(tmp_path / "a.gguf", judge))
    text.template.close()
    for each in (*TEXTS, *SPACES, *MORE):
        assert list(text.encode(each)) == judge.encode(each), each
        assert text.tokenizer.encode(each).ids == [judge.bos_id(), *judge.encode(each)], each
        assert text.tokenizer.decode(list(text.encode(each))) == judge.decode(judge.encode(each)), each
    assert (text.begin, text.eos) == ((judge.bos_id(),), frozenset({judge.eos_id()}))


def test_without_a_space_at_the_beginning(tmp_path: Path) -> None:
    """As Gemma's, whose runs of spaces and line breaks are words of their own."""
    judge = taught(add_dummy_prefix=False, user_defined_symbols=list(USERS))
    file = write(tmp_path / "a.gguf", judge, USERS, add_space_prefix=False, add_bos_token=False)
    text = opened(tmp_path / "words", file)
    text.template.close()
    for each in (*TEXTS, *SPACES, "a   b    c<table>\n\n\n"):
        assert list(text.encode(each)) == judge.encode(each), each
        assert text.tokenizer.encode(each).ids == judge.encode(each), each
        assert text.tokenizer.decode(judge.encode(each)) == each


def test_a_space_follows_every_special_word(tmp_path: Path) -> None:
    """As in llama.cpp, and in the published tokenizers of Llama 2, TinyLlama and Mistral 0.1."""
    judge = taught()
    text = opened(tmp_path / "words", write(tmp_path / "a.gguf", judge))
    text.template.close()
    assert list(text.encode("hello</s>the end")) == [*judge.encode("hello"), judge.eos_id(), *judge.encode("the end")]


def test_the_unknown_word_is_a_special_one(tmp_path: Path) -> None:
    judge = taught()
    made = Tokenizer.from_str(files_of(write(tmp_path / "a.gguf", judge))["tokenizer.json"].decode())
    found = {index: word.content for index, word in made.get_added_tokens_decoder().items() if word.special}
    assert found == {judge.unk_id(): "<unk>", judge.bos_id(): "<s>", judge.eos_id(): "</s>"}
    assert made.encode("<unk>", add_special_tokens=False).ids == [judge.unk_id()]


def test_words_with_equal_scores_go_by_their_ids(tmp_path: Path) -> None:
    """Some converters wrote the same score everywhere; a tokenizer's ids have the order of its merges."""
    words, scores = ["<unk>", "a", "b", "c", "bc", "ab"], [-1000.0] * 6
    kinds = [UNKNOWN, *[NORMAL] * 5]
    text = opened(tmp_path / "a", write_vocabulary(tmp_path / "a.gguf", "llama", words, kinds, no_space, scores=scores))
    text.template.close()
    assert list(text.encode("abc")) == [1, 4]
    better = [*scores[:5], -1.0]
    text = opened(tmp_path / "b", write_vocabulary(tmp_path / "b.gguf", "llama", words, kinds, no_space, scores=better))
    text.template.close()
    assert list(text.encode("abc")) == [5, 3]


def no_space(writer: gguf.GGUFWriter) -> None:
    writer.add_add_space_prefix(False)


def of_folder(folder: Path, file: Path, more: Callable[[gguf.GGUFWriter], Any]) -> Path:
    """A folder with sentencepiece's words: scores fall with the ids."""
    words, kinds = words_of(Tokenizer.from_file(str(folder / "tokenizer.json")))

    def fill(writer: gguf.GGUFWriter) -> None:
        gguf.SpecialVocab(folder).add_to_gguf(writer, quiet=True)
        more(writer)

    kinds[words.index("<unk>")] = UNKNOWN
    return write_vocabulary(file, "llama", words, kinds, fill, scores=[-float(index) for index in range(len(words))])


@pytest.mark.parametrize(("family", "space"), [("mistral", None), ("gemma3_text", False)])
def test_families(tmp_path: Path, family: str, space: bool | None) -> None:
    """Mistral's newer files put a space before the first word of a text alone: their templates write the others."""
    folder = make_folder(tmp_path / "model", family)
    more: Iterable[Any] = () if space is None else (no_space,)
    file = of_folder(folder, tmp_path / "a.gguf", lambda writer: [each(writer) for each in more])
    theirs, ours, before = AutoTokenizer.from_pretrained(folder), opened(tmp_path / "a", file), TextModel.open(folder)
    try:
        for text in (*TEXTS, *SPACES[:5], "<s>[INST] hello[/INST] the</s>", "<start_of_turn>the<end_of_turn>"):
            assert ours.encode(text) == tuple(theirs.encode(text, add_special_tokens=False)), text
            ids = list(ours.encode(text))
            assert ours.tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
        assert ours.prompt_ids(CHAT[1:]) == before.prompt_ids(CHAT[1:])
        assert (ours.eos, ours.begin) == (before.eos, before.begin)
    finally:
        ours.template.close()
        before.template.close()


def test_a_word_that_would_take_minutes(tmp_path: Path) -> None:
    file = write_vocabulary(tmp_path / "a.gguf", "llama", ["<unk>", "a" * 1025], [UNKNOWN, NORMAL], scores=[0.0, 0.0])
    with pytest.raises(BrokenModel, match="has more than 1024 letters"):
        files_of(file)
