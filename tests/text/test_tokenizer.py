"""Templates, tokens, whole characters and stop strings, against transformers and against plain definitions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.support.patience import PATIENCE
from tests.support.tokenizers import CHATML, byte_fallback, byte_level, write_text_files
from together.errors import BadRequest, BrokenModel
from together.requests import Message
from together.text.parser import StopFilter
from together.text.tokenizer import Decoder, TextModel

BYTE_LEVEL, BYTE_FALLBACK = byte_level(), byte_fallback()
KINDS = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte_level", "byte_fallback"])
CHAT = (
    Message("system", "Be brief."),
    Message("user", "hello world"),
    Message("assistant", "ok"),
    Message("user", "🙂?"),
)
TALKATIVE = """{{- bos_token }}
{%- set ns = namespace(found=false) %}
{%- for message in messages %}
    {%- if message['role'] not in ['user', 'assistant', 'system'] %}
        {{- raise_exception('Unknown role ' + message['role']) }}
    {%- endif %}
    {%- if message.role == 'system' %}{%- set ns.found = true %}{% continue %}{% endif %}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}{% endgeneration %}
    {%- else %}<|im_start|>{{ message.content | tojson }}{{ '' if thinking is defined and thinking else '.' }}<|im_end|>
    {%- endif %}
{% endfor %}
{{ ns.found }}{{ strftime_now('%Y') | length }}{% if tools %}tools{% endif %}
"""


def decoded(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    """The text of each token, and the rest at the end."""
    decoder = Decoder(tokenizer)
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


def known_id(tokenizer: Tokenizer, word: str) -> int:
    found = tokenizer.token_to_id(word)
    assert found is not None
    return found


# --- the way in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [CHATML, TALKATIVE], ids=["chatml", "talkative"])
@KINDS
def test_prompt_ids_are_those_of_transformers(tokenizer: Tokenizer, template: str, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    write_text_files(tmp_path, tokenizer, template, bos_token="<|im_start|>")
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    turns = [{"role": message.role, "content": message.content} for message in CHAT]
    for extra in ({}, {"thinking": True}):
        wanted = reference.apply_chat_template(turns, add_generation_prompt=True, return_dict=False, **extra)
        assert list(TextModel.open(tmp_path).prompt_ids(CHAT, **extra)) == wanted


def test_a_template_inside_the_tokenizer_configuration_counts_too(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "D{{ messages[0].content }}"}, {"name": "tool_use", "template": "T"}]
    write_text_files(tmp_path / "one", BYTE_LEVEL, None, chat_template="X{{ messages[0].content }}")
    write_text_files(tmp_path / "many", BYTE_LEVEL, None, chat_template=named)
    one, many = TextModel.open(tmp_path / "one"), TextModel.open(tmp_path / "many")
    assert one.prompt_ids([Message("user", "hello")]) == one.encode("Xhello")
    assert many.prompt_ids([Message("user", "hello")]) == many.encode("Dhello")


def test_a_model_without_a_template_gets_plain_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = TextModel.open(write_text_files(tmp_path, BYTE_LEVEL, None))
    assert "no chat template" in caplog.text
    assert model.prompt_ids([Message("user", "hello")]) == model.encode("User: hello\n\nAssistant:")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content }}", "no element 9"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "not safe|unsafe"),
        ("{{ 'a' + 1 }}", "concatenate"),
        ("{% for i in range(999999999) %}x{% endfor %}", "too big|Range"),
    ],
)
def test_a_template_that_cannot_is_a_sentence(template: str, reason: str, tmp_path: Path) -> None:
    model = TextModel.open(write_text_files(tmp_path, BYTE_LEVEL, template))
    with pytest.raises(BadRequest, match=f"refuses this conversation: .*({reason})") as caught:
        model.prompt_ids([Message("user", "hello")])
    assert caught.value.param == "messages"


def test_broken_folders_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BrokenModel, match=r"no tokenizer\.json; download the model again"):
        TextModel.open(tmp_path)
    write_text_files(tmp_path, BYTE_LEVEL, "{% for %}")
    with pytest.raises(BrokenModel, match="does not parse"):
        TextModel.open(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BrokenModel, match="not a JSON object"):
        TextModel.open(tmp_path)
    write_text_files(tmp_path, BYTE_LEVEL)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(BrokenModel, match=r"tokenizer\.json of .* cannot be read"):
        TextModel.open(tmp_path)


def test_a_tokenizer_that_truncates_or_pads_does_so_no_more(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    model = TextModel.open(write_text_files(tmp_path, tokenizer))
    assert len(model.encode("hello world, how are you")) == len(BYTE_LEVEL.encode("hello world, how are you").ids)


def test_opening_a_model_is_light_and_needs_no_torch(tmp_path: Path) -> None:
    write_text_files(tmp_path, BYTE_LEVEL)
    code = """
import json, sys
from pathlib import Path
import psutil
import together.engine.engine
from together.text.tokenizer import TextModel
from together.requests import Message
model = TextModel.open(Path(sys.argv[1]))
ids = model.prompt_ids([Message("user", "hello")])
resident = psutil.Process().memory_info().rss // 2**20  # its peak may be its parent's, from before the exec
print(json.dumps([len(ids), resident, sorted({"torch", "mlx", "transformers"} & set(sys.modules))]))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE, env=environment)
    count, resident_mb, heavy = json.loads(done.stdout)
    assert count > 0
    assert heavy == []
    assert resident_mb < 150


# --- whole characters -------------------------------------------------------------------------------------------------


@KINDS
@given(text=st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_pieces_join_to_the_text_and_never_split_a_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = decoded(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@KINDS
def test_an_emoji_of_four_tokens_comes_out_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ok 🚀 👩‍👩‍👧", add_special_tokens=False).ids
    rocket = [piece for piece in decoded(tokenizer, ids) if "🚀" in piece]
    assert len(ids) > 12
    assert [piece.strip() for piece in rocket] == ["🚀"]


@KINDS
def test_an_unfinished_character_at_the_end_is_what_decode_gives(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a 🚀", add_special_tokens=False).ids
    for missing in (1, 2):
        pieces = decoded(tokenizer, ids[:-missing])
        assert "".join(pieces) == tokenizer.decode(ids[:-missing])
        assert "\ufffd" in pieces[-1]


@given(ids=st.lists(st.integers(0, 335), max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_byte_level_ids_join_to_what_decode_gives(ids: list[int]) -> None:
    assert "".join(decoded(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)


@given(ids=st.lists(st.integers(0, 300), max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_byte_fallback_ids_are_survived(ids: list[int]) -> None:
    """Bytes that make no character invalidate those before them, which may have been shown; it must only not fail."""
    whole = BYTE_FALLBACK.decode(ids)
    if "\ufffd" not in whole:
        assert "".join(decoded(BYTE_FALLBACK, ids)) == whole
    else:
        assert "\ufffd" in "".join(decoded(BYTE_FALLBACK, ids))


def test_spaces_stay_after_bytes_that_are_no_character() -> None:
    words = ("▁hello", "<0x41>", "<0xFA>", "<0xE3>", "▁hello", "▁world", "▁the")
    ids = [known_id(BYTE_FALLBACK, word) for word in words]
    assert "".join(decoded(BYTE_FALLBACK, ids)).endswith("\ufffd\ufffd hello world the")


@KINDS
def test_special_tokens_are_not_shown(tokenizer: Tokenizer) -> None:
    end = known_id(tokenizer, "<|im_end|>")
    ids = tokenizer.encode("hello", add_special_tokens=False).ids
    assert "".join(decoded(tokenizer, [end, *ids, end, *ids])) == tokenizer.decode([*ids, *ids])


# --- stop strings -----------------------------------------------------------------------------------------------------


def shown(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop = StopFilter(stops)
    text = "".join([stop.push(piece) for piece in pieces])
    return text + ("" if stop.match else stop.flush()), bool(stop.match)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: read letter by letter, and cut the text before the first complete stop string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


SOME_TEXT = st.text("abS", max_size=30)
SOME_STOPS = st.lists(st.text("abS", min_size=1, max_size=5), max_size=4)


@given(text=SOME_TEXT, stops=SOME_STOPS, cuts=st.lists(st.integers(0, 30), max_size=10))
@settings(max_examples=300, deadline=None)
def test_a_stop_string_never_leaks_however_the_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    places = [0, *sorted(min(place, len(text)) for place in cuts), len(text)]
    pieces = [text[start:stop] for start, stop in pairwise(places)]
    assert shown(stops, pieces) == cut(text, stops)


def test_text_is_held_back_only_while_it_could_be_a_stop_string() -> None:
    stop = StopFilter(["STOP"])
    assert [stop.push(piece) for piece in ("a", "S", "T", "x", "ST", "OP", "b")] == ["a", "", "", "STx", "", "", ""]
    assert stop.match


def test_without_a_match_what_was_held_back_comes_at_the_end() -> None:
    stop = StopFilter(["STOP", ""])
    assert (stop.push("go ST"), stop.flush(), stop.match) == ("go ", "ST", "")


def test_a_text_that_goes_on_keeps_the_space_before_its_first_word() -> None:
    """SentencePiece's decoder strips the first space of a text, but a completion does not begin a text."""
    ids = BYTE_FALLBACK.encode("hello the end", add_special_tokens=False).ids
    whole = BYTE_FALLBACK.decode(ids)
    for cut in range(1, len(ids)):
        decoder = Decoder(BYTE_FALLBACK, ids[:cut])
        said = "".join([*(decoder.push(token_id) for token_id in ids[cut:]), decoder.flush()])
        assert BYTE_FALLBACK.decode(ids[:cut]) + said == whole
