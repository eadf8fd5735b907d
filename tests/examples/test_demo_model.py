"""Tests of the bundled demo model, read from its files as everybody reads them."""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).parents[2] / "examples" / "demo_model"
sys.path.insert(0, str(FOLDER))  # its scripts import one another as scripts do

import corpus  # noqa: E402
import evaluate  # noqa: E402
import questions  # noqa: E402
import unknowns  # noqa: E402
import vocabulary  # noqa: E402

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    found: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(FOLDER)
    return found


@pytest.fixture(scope="module")
def model() -> evaluate.Model:
    return evaluate.Model()


def _plain(text: str) -> str:
    return re.sub(r"[^\w+*/×÷{}-]+", " ", text.casefold()).strip()


def _expansions(template: str) -> set[str]:
    """All texts that a template with alternatives stands for."""
    parts = re.split(r"\[([^\[\]]*)\]", template)
    ways = [part.split("/") if index % 2 else [part] for index, part in enumerate(parts)]
    return {_plain("".join(way)) for way in itertools.product(*ways)}


def test_all_files_are_there_and_small() -> None:
    assert sum((FOLDER / name).stat().st_size for name in FILES) <= 16_000_000


def test_config_is_the_promised_architecture() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_hidden_layers"] == 8
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["max_position_embeddings"] == 4096
    assert config["tie_word_embeddings"] is True
    assert "_name_or_path" not in config


def test_generation_stops_at_the_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    assert tokenizer.convert_ids_to_tokens(generation["eos_token_id"]) == vocabulary.END == tokenizer.eos_token


def test_weights_are_bf16() -> None:
    with safe_open(FOLDER / "model.safetensors", framework="numpy") as weights:
        names = list(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert "lm_head.weight" not in names


def test_no_file_names_a_path_of_the_machine_that_made_it() -> None:
    for name in FILES[:-1]:
        assert not re.search(r"/(work|home|root|tmp|usr)/", (FOLDER / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "text",
    [
        "What is the capital of France?",
        "  two  spaces \n\n and\tlines\r\n ",
        "naïve café — Ünïcödé",
        "你好，世界。日本語テキスト",
        "👩‍👩‍👧‍👦 🏳️‍🌈 emoji",
        "1234567890, 1, 2,3",
        "עברית العربية हिन्दी",
        "\x00\x01\x7f control",
        "",
        " ",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_random_characters_survive_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(7)
    for _ in range(200):
        text = "".join(chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))) for _ in range(30))
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_vocabulary_is_about_four_thousand_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == vocabulary.VOCABULARY == json.loads((FOLDER / "config.json").read_text())["vocab_size"]


def test_the_template_renders_every_role(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " hi "},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "bye"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|bos|><|system|> Be kind.<|end|><|user|> hi<|end|><|assistant|>Hello!<|end|><|user|> bye<|end|><|assistant|>"
    )


def test_training_sees_what_the_template_writes(tokenizer: PreTrainedTokenizerFast) -> None:
    conversations = list(itertools.islice(corpus.conversations(3), 50))
    for conversation, (ids, _) in zip(
        conversations, vocabulary.encode(tokenizer.backend_tokenizer, conversations), strict=True
    ):
        messages = [{"role": message.role, "content": message.content} for message in conversation]
        assert tokenizer.apply_chat_template(messages, return_dict=False) == ids


def test_held_out_phrasings_are_not_trained_on() -> None:
    kinds = [value for value in vars(questions).values() if isinstance(value, questions.Wordings)]
    for kind in kinds:
        trained = {text for template in kind.train for text in _expansions(template)}
        assert not trained & {_plain(text) for text in kind.held}
    trained = {text for template in unknowns.templates(held=False) for text in _expansions(template)}
    assert not trained & {_plain(text) for text in unknowns.templates(held=True)}


def test_held_out_questions_do_not_occur_in_training() -> None:
    rng = random.Random(11)
    trained = {corpus.plain(corpus.question(rng).text) for _ in range(20_000)}
    assert not [case for case in corpus.cases(5, 20) if corpus.plain(case.prompt[-1].content) in trained]


@pytest.fixture(scope="module")
def tried(model: evaluate.Model) -> dict[str, str]:
    """What people type first, with the answers."""
    return dict(zip((text for text, _ in evaluate.FIRST_TRIED), model.first_tried(), strict=True))


def test_what_people_try_first(tried: dict[str, str]) -> None:
    for text, part in evaluate.FIRST_TRIED:
        assert part in tried[text], text


def test_a_sample_of_held_out_questions(model: evaluate.Model) -> None:
    cases = random.Random(1).sample(corpus.cases(77, 15), 60)
    answered = evaluate.ask(model, cases)
    assert sum(text == case.answer for case, text in answered) >= 51


def test_one_prompt_gives_a_long_answer(tried: dict[str, str], tokenizer: PreTrainedTokenizerFast) -> None:
    answer = tried["Count from 1 to 100."]
    assert answer == ", ".join(str(number) for number in range(1, 101)) + "."
    assert len(tokenizer.encode(answer)) >= 150
