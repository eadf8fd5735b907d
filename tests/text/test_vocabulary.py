"""Words of the files next to tokenizer.json: ends of text, begin tokens, and words of a fine-tune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer

from tests.support.tokenizers import byte_level, write_text_files
from together.errors import BrokenModel
from together.text.tokenizer import TextModel

OWN = byte_level().token_to_id("<|im_end|>")
START = byte_level().token_to_id("<|im_start|>")
SIZE = byte_level().get_vocab_size()


NO_END = {"eos_token": None}


def write(folder: Path, **files: Any) -> Path:
    """A model's text side with further JSON files; `tokenizer_config` is added to the usual one."""
    write_text_files(folder, byte_level(), **files.pop("tokenizer_config", {}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


# --- ends of text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({}, {OWN}),
        ({"generation_config": {"eos_token_id": 5}}, {5, OWN}),
        ({"generation_config": {"eos_token_id": [5, 6]}, "config": {"eos_token_id": 7}}, {5, 6, 7, OWN}),
        ({"config": {"eos_token_id": 8, "text_config": {"eos_token_id": [9]}}}, {8, 9, OWN}),
        ({"config": {"eos_token_id": None}, "tokenizer_config": NO_END}, set()),
        ({"generation_config": {"eos_token_id": [True, "5", -1, 5]}}, {5, OWN}),
        ({"special_tokens_map": {"eos_token": {"content": "<|im_start|>"}}, "tokenizer_config": NO_END}, {START}),
    ],
)
def test_ends_are_those_of_all_files(tmp_path: Path, files: dict[str, Any], ends: set[int]) -> None:
    assert TextModel.open(write(tmp_path, **files)).eos == ends


@pytest.mark.parametrize("broken", ["", "{,}", "[1]"])
def test_a_broken_side_file_is_passed_over_with_a_word(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path, config={"eos_token_id": 7})
    for name in ("generation_config", "special_tokens_map", "added_tokens"):
        (folder / f"{name}.json").write_text(broken, encoding="utf-8")
    assert TextModel.open(folder).eos == {7, OWN}
    assert "generation_config.json" in caplog.text


# --- the begin token --------------------------------------------------------------------------------------------------


def adds_begin(folder: Path) -> Path:
    """tokenizer.json adds the begin token to any text, as those of Llama 3 and Gemma do."""
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[("<|im_start|>", START)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.parametrize("itself", [False, True])
async def test_a_prompt_begins_with_one_begin_token_or_none(tmp_path: Path, asked: bool | None, itself: bool) -> None:
    config = {"bos_token": "<|im_start|>"} | ({} if asked is None else {"add_bos_token": asked})
    folder = write(tmp_path, tokenizer_config=config)
    model = TextModel.open(adds_begin(folder) if itself else folder)
    begin = (START,) if itself or asked else ()
    plain = model.encode("hello world")
    assert await model.encode_prompt("hello world") == (*begin, *plain)
    assert await model.encode_prompt("<|im_start|>hello world") == (START, *plain), "a rendered chat has its own"


async def test_a_model_without_a_begin_token_gets_none(tmp_path: Path) -> None:
    model = TextModel.open(write(tmp_path, tokenizer_config={"add_bos_token": True, "bos_token": None}))
    assert await model.encode_prompt("hello") == model.encode("hello")


# --- added words ------------------------------------------------------------------------------------------------------


def added(word: str, **flags: bool) -> dict[str, object]:
    usual = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
    return {"content": word, **usual, **flags}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"added_tokens_decoder": {str(SIZE): added("<|tool|>"), str(SIZE + 1): added("<|end|>")}}},
        {"added_tokens": {"<|end|>": SIZE + 1, "<|tool|>": SIZE}},
        {
            "added_tokens": {"<|tool|>": SIZE},
            "tokenizer_config": {"added_tokens_decoder": {str(SIZE + 1): added("<|end|>", special=True)}},
        },
    ],
)
def test_words_of_a_fine_tune_are_whole_tokens(tmp_path: Path, files: dict[str, Any]) -> None:
    folder = write(tmp_path, **files)
    model = TextModel.open(folder)
    ids = model.encode("hello<|tool|>world<|end|>")
    assert ids == (*model.encode("hello"), SIZE, *model.encode("world"), SIZE + 1)
    if "added_tokens" not in files:
        theirs = AutoTokenizer.from_pretrained(folder)
        assert tuple(theirs.encode("hello<|tool|>world<|end|>", add_special_tokens=False)) == ids


def test_an_added_word_keeps_its_id_behind_a_gap(tmp_path: Path) -> None:
    folder = write(tmp_path, added_tokens={"<|late|>": SIZE + 7})
    assert TextModel.open(folder).encode("<|late|>") == (SIZE + 7,)


def test_a_word_with_two_ids_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = TextModel.open(write(tmp_path, added_tokens={"<|im_end|>": SIZE + 3}))
    assert model.encode("<|im_end|>") == (OWN,)
    assert "<|im_end|>" in caplog.text


def test_a_special_word_is_not_shown_and_another_one_is(tmp_path: Path) -> None:
    words = {str(SIZE): added("<|seen|>"), str(SIZE + 1): added("<|hidden|>", special=True)}
    model = TextModel.open(write(tmp_path, tokenizer_config={"added_tokens_decoder": words}))
    assert model.tokenizer.decode([SIZE, SIZE + 1]) == "<|seen|>"


@pytest.mark.parametrize(
    "words",
    [[], "x", {"a": 1}, {"5": None}, {"5": {"content": 7}}, {"-1": added("<|x|>")}, {"9" * 5000: added("<|x|>")}],
)
def test_added_words_of_no_known_form_are_passed_over(tmp_path: Path, words: object) -> None:
    model = TextModel.open(write(tmp_path, tokenizer_config={"added_tokens_decoder": words}))
    assert model.tokenizer.get_vocab_size() == SIZE


@pytest.mark.parametrize(
    ("before", "after"),
    [({}, {"lstrip": True, "rstrip": True}), ({"special": True}, {}), ({"rstrip": True}, {"special": True})],
)
def test_the_settings_decide_how_a_known_word_is_cut_and_shown(
    tmp_path: Path, before: dict[str, bool], after: dict[str, bool]
) -> None:
    """tokenizer.json has the word with other flags; transformers uses those of the settings."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<x>", normalized=False, **before)])
    words = {str(SIZE): added("<x>", **after)}
    folder = write_text_files(tmp_path, tokenizer, added_tokens_decoder=words)
    model, theirs = TextModel.open(folder), AutoTokenizer.from_pretrained(folder)
    text = "hello <x> world"
    assert model.encode(text) == tuple(theirs.encode(text, add_special_tokens=False))
    ids = list(model.encode(text))
    assert model.tokenizer.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_tokenizer_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    folder = write(tmp_path)
    wanted = TextModel.open(folder).encode("hello world")
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_text(encoding="utf-8").encode(encoding))
    assert TextModel.open(folder).encode("hello world") == wanted


@pytest.mark.parametrize("index", [10**6, 2**40])
def test_words_far_beyond_the_tokenizers_own_are_refused(tmp_path: Path, index: int) -> None:
    with pytest.raises(BrokenModel, match=f"up to token {index}"):
        TextModel.open(write(tmp_path, added_tokens={"<a>": SIZE, "<b>": index}))


def test_a_tokenizer_whose_added_words_would_hold_everybody_up_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["added_tokens"] += [added("x" * 1500 + str(i)) | {"id": SIZE + i} for i in range(200)]
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BrokenModel, match=r"added words have 30\d{4} letters"):
        TextModel.open(folder)
