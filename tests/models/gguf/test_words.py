"""A GGUF file's words become files of a folder: ids, prompts and ends are those of the folder it was made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from tests.support.gguf_bytes import read_header
from tests.support.gguf_words import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER,
    settings_of,
    write_files,
    write_vocabulary,
    write_words,
)
from tests.support.hub_words import make_folder
from tests.support.llama_cpp import RECORDED, TEXTS, write_gguf
from tests.support.smollm2 import smollm2_folder, smollm2_gguf
from together.errors import BrokenModel, UnsupportedModel
from together.models.generation import read_sampling_defaults
from together.models.gguf.patterns import SPLITTINGS
from together.models.gguf.vocabulary import GgufWords
from together.models.gguf.words import word_files
from together.requests import Message
from together.text.tokenizer import TextModel

CHAT = (
    Message("system", "Be brief."),
    Message("user", "hello world"),
    Message("assistant", "ok"),
    Message("user", "?"),
)
PRES = {"llama": "llama-bpe", "qwen2": "qwen2", "qwen3": "qwen2"}
MORE = ("", " ", "e\u0301 naïve \u1112\u1161\u11ab", "<think>\nx</think> <tool_call>", "a\x00b\ufeff\u00a0c ▁ Ġ")


def files_of(file: Path) -> dict[str, bytes]:
    return word_files(read_header(file).metadata)


def opened(folder: Path, file: Path) -> TextModel:
    return TextModel.open(write_files(folder, files_of(file)))


# --- byte-level BPE ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PRES)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A family and its folder, as on the hub."""
    return request.param, make_folder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def back(published: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextModel]:
    """The same from a GGUF file, whose matrices have some more rows."""
    family, folder = published
    file = write_words(tmp_path_factory.mktemp("back") / "tiny.gguf", folder, PRES[family], rows=400)
    found = opened(file.parent / "words", file)
    yield found
    found.template.close()


def test_ids_are_those_of_transformers(published: tuple[str, Path], back: TextModel) -> None:
    theirs = AutoTokenizer.from_pretrained(published[1])
    for text in (*TEXTS, *MORE):
        assert back.encode(text) == tuple(theirs.encode(text, add_special_tokens=False)), text
        assert tuple(back.tokenizer.encode(text).ids) == tuple(theirs.encode(text)), text
        ids = list(back.encode(text))
        assert back.tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    assert back.tokenizer.get_vocab() == theirs.get_vocab()


def test_prompts_and_ends_are_those_of_the_folder(published: tuple[str, Path], back: TextModel) -> None:
    folder = TextModel.open(published[1])
    try:
        assert back.prompt_ids(CHAT) == folder.prompt_ids(CHAT)
        assert (back.eos, back.begin, back.thinks) == (folder.eos, folder.begin, folder.thinks)
        assert (back.tool_tags, back.reasoning_tags) == (folder.tool_tags, folder.reasoning_tags)
    finally:
        folder.template.close()


def recorded() -> list[tuple[str, list[list[int]]]]:
    """Every known way to split, and what llama.cpp makes of the texts."""
    found = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert tuple(found["texts"]) == TEXTS, "python -m tests.support.llama_cpp"
    return [(pre, way["ids"]) for way in found["ways"] for pre in way["pre"]]


QUOTED = {"seed-coder"}  # after llama.cpp was built for the record: a pattern that it quotes, as all the others


def test_every_way_to_split_was_recorded() -> None:
    assert {pre for pre, _ in recorded()} == set(SPLITTINGS) - QUOTED


def test_seed_coder_keeps_line_ends_apart_from_signs() -> None:
    """Where Qwen 2, whose pattern is alike else, takes them with the signs before."""
    (seed,), (qwen,) = SPLITTINGS["seed-coder"].patterns, SPLITTINGS["qwen2"].patterns
    text = "It's 12 (ok)!!\n\nx"
    found = [
        [text[start:stop] for _, (start, stop) in pre_tokenizers.Split(Regex(each), "isolated").pre_tokenize_str(text)]
        for each in (seed, qwen)
    ]
    assert found[0] == ["It", "'s", " ", "1", "2", " (", "ok", ")!!", "\n\n", "x"]
    assert found[1] == ["It", "'s", " ", "1", "2", " (", "ok", ")!!\n\n", "x"]


@pytest.mark.parametrize(("pre", "ids"), recorded(), ids=lambda value: value if isinstance(value, str) else "")
def test_texts_are_split_as_in_llama_cpp(tmp_path: Path, pre: str, ids: list[list[int]]) -> None:
    found = json.loads(RECORDED.read_text(encoding="utf-8"))
    file = write_gguf(tmp_path / "a.gguf", found["words"], [merge.split(" ") for merge in found["merges"]], pre)
    text = opened(tmp_path / "words", file)
    text.template.close()
    assert [list(text.encode(each)) for each in TEXTS] == ids


def test_patterns_are_those_of_transformers() -> None:
    """Combining marks, too, which llama.cpp passes over."""
    known = {pre: pattern for pre, pattern in GGUF_PRE_TOKENIZER_SPLITS.items() if pre in SPLITTINGS}
    assert len(known) > 15
    assert {pre: SPLITTINGS[pre].patterns for pre in known} == {pre: (pattern,) for pre, pattern in known.items()}


@pytest.mark.parametrize(("pre", "ids"), [("llama-bpe", [4]), ("smaug-bpe", [3, 2]), ("tekken", [4])])
def test_a_word_that_no_merge_makes(tmp_path: Path, pre: str, ids: list[int]) -> None:
    """Some tokenizers take a whole piece that is a word."""
    more = merging("a b")
    file = write_vocabulary(tmp_path / "a.gguf", "gpt2", ["a", "b", "c", "ab", "abc"], [NORMAL] * 5, more, pre=pre)
    text = opened(tmp_path / "words", file)
    text.template.close()
    assert list(text.encode("abc")) == ids


def test_files_of_ollama_that_do_not_say_how_they_split(tmp_path: Path) -> None:
    """Its gpt-oss names the usual way and means GPT-4o's."""
    more = merging("1 2", "12 3")

    def named(writer: gguf.GGUFWriter) -> None:
        more(writer)
        writer.arch = "gptoss"
        writer.add_architecture()

    words, kinds = ["1", "2", "3", "12", "123"], [NORMAL] * 5
    file = write_vocabulary(tmp_path / "a.gguf", "gpt2", words, kinds, named, pre="default")
    assert GgufWords.of(read_header(file).metadata, "a").splits == "gpt-4o"
    other = write_vocabulary(tmp_path / "b.gguf", "gpt2", words, kinds, more, pre="default")
    assert GgufWords.of(read_header(other).metadata, "b").splits == "default"


def merging(*merges: str) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_array("tokenizer.ggml.merges", list(merges))


@pytest.mark.full
def test_the_words_of_a_real_file(tmp_path: Path) -> None:
    """SmolLM2's: against its tokenizer made by hand, whose answers make sense (tests/text/test_smollm2.py)."""
    theirs = AutoTokenizer.from_pretrained(smollm2_folder())
    ours = opened(tmp_path / "words", smollm2_gguf())
    try:
        for text in (*TEXTS, *MORE):
            assert ours.encode(text) == tuple(theirs.encode(text, add_special_tokens=False)), text
        chat = [{"role": each.role, "content": each.content} for each in CHAT]
        rendered = theirs.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert ours.prompt_ids(CHAT) == tuple(rendered)
        assert theirs.eos_token_id in ours.eos
    finally:
        ours.template.close()


# --- templates, ends, sampling ----------------------------------------------------------------------------------------

LETTERS = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]


def made(
    tmp_path: Path,
    control: Iterable[str] = (),
    more: Callable[[gguf.GGUFWriter], Any] = lambda writer: None,
    *,
    model: str = "gpt2",
    pre: str = "qwen2",
    words: Sequence[str] = LETTERS,
    user: Iterable[str] = (),
    merges: Sequence[str] = ("a b",),
) -> dict[str, bytes]:
    """Files of letters and "ab", then special words, then added ones."""
    listed = [*words, "ab", *control, *user]
    kinds = [NORMAL] * (len(words) + 1) + [CONTROL] * len(list(control)) + [USER] * len(list(user))

    def fill(writer: gguf.GGUFWriter) -> None:
        merging(*merges)(writer)
        more(writer)

    return files_of(write_vocabulary(tmp_path / "a.gguf", model, listed, kinds, fill, pre=pre))


def ends(files: Mapping[str, bytes]) -> list[str]:
    """The words that end an answer."""
    vocabulary = json.loads(files["tokenizer.json"])["model"]["vocab"]
    by_id = {index: word for word, index in vocabulary.items()}
    return [by_id[index] for index in settings_of(files, "generation_config.json").get("eos_token_id", [])]


def test_every_word_that_ends_an_answer(tmp_path: Path) -> None:
    """A file names one end, rarely two; the template of a chat may write another."""
    llama = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    files = made(tmp_path, llama, lambda writer: writer.add_eos_token_id(30))
    assert ends(files) == ["<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"]
    gemma = made(tmp_path, ["<eos>", "<bos>", "<end_of_turn>"], lambda writer: writer.add_eos_token_id(27))
    assert ends(gemma) == ["<eos>", "<end_of_turn>"]

    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_eot_token_id(28)
        writer.add_eom_token_id(29)

    named = made(tmp_path, ["<a>", "<b>", "<c>"], more)
    assert ends(named) == ["<b>", "<c>"]


def test_words_that_end_nothing(tmp_path: Path) -> None:
    assert ends(made(tmp_path, ["<|end|>", "<|return|>"])) == ["<|end|>", "<|return|>"]
    assert ends(made(tmp_path, ["<|end|>", "<|return|>", "<|call|>"])) == ["<|return|>", "<|call|>"]
    assert ends(made(tmp_path, words=[*LETTERS, "</s>"])) == []


def test_special_words_by_their_roles(tmp_path: Path) -> None:
    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_bos_token_id(27)
        writer.add_eos_token_id(28)
        writer.add_pad_token_id(2**32 - 1)  # as files write that there is none
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(True)

    files = made(tmp_path, ["<s>", "<e>"], more)
    settings = settings_of(files, "tokenizer_config.json")
    assert (settings["bos_token"], settings["eos_token"]) == ("<s>", "<e>")
    assert (settings["add_bos_token"], settings["add_eos_token"]) == (True, True)
    assert "pad_token" not in settings
    text = TextModel.open(write_files(tmp_path / "words", files))
    text.template.close()
    assert (text.begin, text.eos) == ((27,), frozenset({28}))
    assert text.tokenizer.encode("ab").ids == [27, 26, 28]
    assert text.tokenizer.decode([27, 26, 28]) == "ab"


def test_added_words_are_found_whole_and_shown(tmp_path: Path) -> None:
    files = made(tmp_path, ["<|im_end|>"], user=["<think>", "  "])
    text = TextModel.open(write_files(tmp_path / "words", files))
    text.template.close()
    assert text.encode("ab<think>  <|im_end|>") == (26, 28, 29, 27)
    assert text.tokenizer.decode([26, 28, 29, 27, 0]) == "ab<think>  a"


def test_templates_with_names(tmp_path: Path) -> None:
    def more(writer: gguf.GGUFWriter) -> None:
        rest = [
            {"name": name, "template": f"{name} {{{{ messages[0].content }}}}"}
            for name in ("default", "tool_use", "rag")
        ]
        writer.add_chat_template(rest)
        writer.add_string("tokenizer.chat_template.../../x", "no file's name")

    files = made(tmp_path, (), more)
    assert sorted(name for name in files if name.endswith(".jinja")) == [
        "additional_chat_templates/rag.jinja",
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
    ]
    text = TextModel.open(write_files(tmp_path / "words", files))
    try:
        assert text.template.render(CHAT[1:]).result() == "default hello world"
        assert text.template.render(CHAT[1:], (), "rag").result() == "rag hello world"
    finally:
        text.template.close()


def test_the_authors_sampling(tmp_path: Path) -> None:
    def more(writer: gguf.GGUFWriter) -> None:
        for key, value in {"temp": 0.6, "top_p": 0.95, "penalty_repeat": 1.1}.items():
            writer.add_float32(f"general.sampling.{key}", value)
        writer.add_int32("general.sampling.top_k", 20)

    found = read_sampling_defaults(write_files(tmp_path / "words", made(tmp_path, (), more)))
    assert (found.sampling.temperature, found.sampling.top_p, found.sampling.top_k) == (0.6, 0.95, 20)
    assert found.sampling.repetition_penalty == 1.1
    assert set(found.by_author) == {"temperature", "top_p", "top_k", "repetition_penalty"}
    plain = settings_of(made(tmp_path), "generation_config.json")
    assert "do_sample" not in plain


def test_a_tokenizer_that_the_file_carries_whole(tmp_path: Path) -> None:
    """It may split in a way that has no name, as the demo's."""
    demo = Path("examples/demo_model").resolve()
    whole = (demo / "tokenizer.json").read_text(encoding="utf-8")
    files = files_of(write_words(tmp_path / "a.gguf", demo, "unknown", carrying(whole)))
    ours, theirs = TextModel.open(write_files(tmp_path / "words", files)), TextModel.open(demo)
    try:
        for text in TEXTS:
            assert ours.encode(text) == theirs.encode(text)
        assert ours.prompt_ids(CHAT[1:]) == theirs.prompt_ids(CHAT[1:])
        assert (ours.eos, ours.begin) == (theirs.eos, theirs.begin)
    finally:
        ours.template.close()
        theirs.template.close()
    for text, reason in ((whole.replace("<|end|>", "<|other|>"), "other words"), ("{", "cannot be read")):
        with pytest.raises(BrokenModel, match=reason):
            files_of(write_words(tmp_path / "b.gguf", demo, "unknown", carrying(text)))


def carrying(text: str) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_string("tokenizer.huggingface.json", text)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_words_that_are_not_read_here(tmp_path: Path) -> None:
    hows: list[tuple[dict[str, Any], str]] = [
        ({"pre": "kimi-k2"}, "tiny splits texts in a way that is not known here .*'kimi-k2'"),
        ({"pre": ""}, "tiny does not say how it splits texts"),
        ({"model": "bert"}, "tiny has its words in a form that is not read here .*'bert'"),
        ({"model": "llama"}, "tiny lacks tokenizer.ggml.scores"),
    ]
    for how, reason in hows:
        with pytest.raises(UnsupportedModel, match=reason) as caught:
            made(tmp_path, **how)
        assert "folder with safetensors" in str(caught.value)
    lacking: list[tuple[dict[str, Any], str]] = [
        ({}, "this GGUF file holds no words"),
        ({"tokenizer.ggml.model": "gpt2"}, "holds no words"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"]}, "lacks tokenizer.ggml.token_type"),
    ]
    for metadata, reason in lacking:
        with pytest.raises(UnsupportedModel, match=reason):
            word_files(metadata)


GOOD: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<e>"],
    "tokenizer.ggml.token_type": [NORMAL, NORMAL, NORMAL, CONTROL],
    "tokenizer.ggml.merges": ["a b"],
}
BROKEN: dict[str, tuple[str, Any, str]] = {
    "twice": ("tokens", ["a", "b", "ab", "a"], "the word 'a' twice"),
    "numbers as words": ("tokens", [1, 2], "tokens is no list of str"),
    "one word": ("tokens", "a", "tokens is no list of str"),
    "few kinds": ("token_type", [1], "4 words and 1 token_type"),
    "kinds in words": ("token_type", ["1"] * 4, "token_type is no list of int"),
    "half a merge": ("merges", ["ab"], "the merge 'ab' has one part"),
    "a merge of other words": ("merges", ["x y"], "the merge 'x y' is not of its words"),
    "a merge to no word": ("merges", ["b a"], "the merge 'b a' is not of its words"),
    "long added words": ("tokens", ["a", "b", "ab", "x" * 200_001], "200001 letters, more than 200000"),
    "very long words": ("tokens", ["a", "b", "ab" * 2**23, "<e>"], "more than 16777216"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_words_that_contradict_themselves(name: str) -> None:
    key, value, reason = BROKEN[name]
    word_files(GOOD)
    with pytest.raises(BrokenModel, match=reason):
        word_files(GOOD | {f"tokenizer.ggml.{key}": value})


def test_a_merge_to_an_unused_word_at_the_end() -> None:
    words, kinds = ["a", "b", "<e>", "ab"], [NORMAL, NORMAL, CONTROL, UNUSED]
    with pytest.raises(BrokenModel, match="the merge 'a b' is not of its words"):
        word_files(GOOD | {"tokenizer.ggml.tokens": words, "tokenizer.ggml.token_type": kinds})


def test_empty_words_have_names() -> None:
    files = word_files(GOOD | {"tokenizer.ggml.tokens": ["a", "b", "ab", ""]})
    assert json.loads(files["tokenizer.json"])["added_tokens"][0]["content"] == "[EMPTY_3]"
