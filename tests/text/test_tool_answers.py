"""Tool calls from tokens to chunks, on rings of the toy: read, forced, and held to their schemas."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from tests.support.checksum import TEMPLATE, VOCABULARY, make_checksum_model
from tests.support.engines import LAYERS, loads, serving
from tests.support.loopback import LoopbackRing
from tests.support.tokenizers import byte_level
from together.engine.engine import Engine
from together.errors import BadRequest
from together.requests import AnswerChunk, ChatRequest, Grammar, Message, Tool, ToolUse
from together.text.answers import answer_chat
from together.text.tokenizer import TextModel
from together.text.tool_formats import (
    CODER,
    DEEPSEEK,
    DEEPSEEK_V3,
    GEMMA,
    GLM,
    GLM_DENSE,
    GRANITE,
    HERMES,
    LLAMA,
    MINIMAX,
    MISTRAL,
    MISTRAL_NAMED,
    NEMOTRON,
    ToolFormat,
)
from together.text.tool_grammars import call_grammar
from together.types import Sampling

QUESTION = (Message("user", "What is the weather?"),)
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["c", "f"]},
        "more": {"$ref": "#/$defs/more"},
    },
    "required": ["city", "unit", "more"],
    "$defs": {
        "more": {
            "type": "object",
            "properties": {"wind": {"type": "boolean"}},
            "required": ["wind"],
            "additionalProperties": False,
        }
    },
}
TOOLS = (Tool("weather", parameters=WEATHER), Tool("now"))
TAUGHT = {  # what a template shows of its format
    HERMES: "<tool_call>",
    CODER: "<tool_call><function=",
    LLAMA: "<|python_tag|>",
    MISTRAL: "[TOOL_CALLS]",
    MISTRAL_NAMED: "[TOOL_CALLS][ARGS]",
    NEMOTRON: "<TOOLCALL>",
    GLM: "<tool_call><arg_key>",
    GLM_DENSE: "<tool_call></arg_key><arg_value>",
    MINIMAX: "<minimax:tool_call>",
    GRANITE: "<|tool_call|>",
    GEMMA: "<|tool_call><tool_call|>",
    DEEPSEEK: "<｜tool▁calls▁begin｜>",
    DEEPSEEK_V3: "<｜tool▁calls▁begin｜>```json",
}
TOKENS = {  # the tags that are tokens of such models
    MISTRAL: ("[TOOL_CALLS]",),
    MISTRAL_NAMED: ("[TOOL_CALLS]", "[ARGS]"),
    GLM: ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    MINIMAX: ("<minimax:tool_call>", "</minimax:tool_call>"),
    GRANITE: ("<|tool_call|>",),
    GEMMA: ("<|tool_call>", "<tool_call|>", '<|"|>'),
}


def calling_toy(folder: Path, tool_format: ToolFormat, *tags: str) -> Path:
    """A toy whose template writes calls in `tool_format`; `tags` are special tokens."""
    make_checksum_model(folder, layers=LAYERS, vocabulary=VOCABULARY + len(tags))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(tag, special=True, normalized=False) for tag in tags])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = folder / "tokenizer_config.json"
    template = "{# " + TAUGHT[tool_format] + " #}{% if tools %}{{ tools | length }}{% endif %}" + TEMPLATE
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    return folder


@asynccontextmanager
async def chatting(folder: Path) -> AsyncIterator[tuple[Engine, TextModel]]:
    model = TextModel.open(folder)
    async with LoopbackRing(loads(folder, (2, 4))) as ring:
        engine = Engine(ring, model.eos)
        async with serving(engine):
            yield engine, model


async def answer(engine: Engine, model: TextModel, request: ChatRequest) -> list[AnswerChunk]:
    return [piece async for piece in answer_chat(engine, model, request)]


def calls_of(pieces: Sequence[AnswerChunk], choice: int = 0) -> list[tuple[str, str]]:
    deltas = [delta for piece in pieces if piece.index == choice for delta in piece.tool_calls]
    heads = [delta for delta in deltas if delta.id]
    assert len({head.id for head in heads}) == len(heads)
    return [(head.name, "".join(each.arguments for each in deltas if each.index == head.index)) for head in heads]


def said(pieces: Sequence[AnswerChunk]) -> str:
    return "".join(piece.text for piece in pieces)


def told_to_say(text: str, use: ToolUse, **more: Any) -> ChatRequest:
    """A request whose answer is `text`, token by token, as if the model chose it; its tag is "[TOOL_CALLS]"."""
    parts = [json.dumps(part) for part in text.split("[TOOL_CALLS]")]
    grammar = Grammar("lark", "start: " + " <[261]> ".join(parts))
    return ChatRequest(QUESTION, Sampling(1.0, seed=1), grammar=grammar, tool_use=use, **({"max_tokens": 400} | more))


# --- where the model is free ------------------------------------------------------------------------------------------


async def test_calls_are_read_and_the_answer_ends_with_them(tmp_path: Path) -> None:
    text = 'Well.\n<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'
    async with chatting(calling_toy(tmp_path, HERMES)) as (engine, model):
        pieces = await answer(engine, model, told_to_say(text, ToolUse(TOOLS), choices=2))
        without = await answer(engine, model, told_to_say(text, ToolUse()))
    for choice in range(2):
        own = [piece for piece in pieces if piece.index == choice]
        assert (said(own), calls_of(own, choice), own[-1].finish) == ("Well.", [("now", '{"a": 1}')], "tool_calls")
        assert own[-1].usage is not None
        assert own[-1].usage.completion_tokens == sum(len(piece.token_ids) for piece in own) == len(text)
    assert calls_of(pieces, 0) == calls_of(pieces, 1)
    assert (said(without), calls_of(without), without[-1].finish) == (text, [], "stop")


async def test_tags_that_are_special_tokens_are_seen(tmp_path: Path) -> None:
    text = '[TOOL_CALLS][{"name": "now", "arguments": {}}]'
    async with chatting(calling_toy(tmp_path, MISTRAL, "[TOOL_CALLS]")) as (engine, model):
        pieces = await answer(engine, model, told_to_say(text, ToolUse(TOOLS)))
        broken = await answer(engine, model, told_to_say("a[TOOL_CALLS]!", ToolUse(TOOLS)))
    assert (said(pieces), calls_of(pieces), pieces[-1].finish) == ("", [("now", "{}")], "tool_calls")
    assert (said(broken), calls_of(broken), broken[-1].finish) == ("a[TOOL_CALLS]!", [], "stop")


async def test_a_call_that_is_cut_off_is_given_with_the_reason(tmp_path: Path) -> None:
    text = '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'
    async with chatting(calling_toy(tmp_path, HERMES)) as (engine, model):
        for length, calls, shown in ((46, [("now", '{"a":')], ""), (30, [], text[:30])):
            pieces = await answer(engine, model, told_to_say(text, ToolUse(TOOLS), max_tokens=length))
            assert (calls_of(pieces), said(pieces), pieces[-1].finish) == (calls, shown, "length")
        stopped = await answer(engine, model, told_to_say(text, ToolUse(TOOLS), stop=('"a"',)))
    assert (calls_of(stopped), said(stopped), stopped[-1].finish) == ([("now", "{")], "", "tool_calls")


async def test_without_parallel_calls_the_answer_ends_with_the_first(tmp_path: Path) -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    async with chatting(calling_toy(tmp_path, HERMES)) as (engine, model):
        both = await answer(engine, model, told_to_say(call * 2, ToolUse(TOOLS)))
        one = await answer(engine, model, told_to_say(call * 2, ToolUse(TOOLS, parallel=False)))
    assert calls_of(both) == [("now", "{}")] * 2
    assert (calls_of(one), one[-1].finish) == ([("now", "{}")], "tool_calls")
    assert one[-1].usage is not None
    assert one[-1].usage.completion_tokens < len(call)


# --- where it is not --------------------------------------------------------------------------------------------------


def assert_valid(calls: Sequence[tuple[str, str]], schemas: Mapping[str, Mapping[str, object]]) -> None:
    assert calls
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), schemas[name])


@pytest.mark.parametrize("tool_format", TAUGHT, ids=lambda tool_format: tool_format.name)
async def test_a_forced_call_is_in_the_models_own_style_and_valid(tmp_path: Path, tool_format: ToolFormat) -> None:
    tags = TOKENS.get(tool_format, ())
    use, named = ToolUse(TOOLS, required=True, parallel=False), ToolUse(TOOLS, required=True, name="weather")
    async with chatting(calling_toy(tmp_path, tool_format, *tags)) as (engine, model):
        for seed in range(2):
            for wanted in (use, named):
                request = ChatRequest(QUESTION, Sampling(1.0, seed=seed), 400, tool_use=wanted)
                pieces = await answer(engine, model, request)
                assert (said(pieces), pieces[-1].finish) == ("", "tool_calls")
                calls = calls_of(pieces)
                assert len(calls) == 1
                assert wanted is use or calls[0][0] == "weather"
                assert_valid(calls, {"weather": WEATHER, "now": {"maxProperties": 0}})


async def test_a_model_that_thinks_calls_after_its_reasoning(tmp_path: Path) -> None:
    folder = calling_toy(tmp_path, HERMES, "<think>", "</think>")
    config = folder / "tokenizer_config.json"
    read = json.loads(config.read_text())
    config.write_text(json.dumps(read | {"chat_template": read["chat_template"] + "<think>\n"}))
    async with chatting(folder) as (engine, model):
        sampling = Sampling(1.0, seed=1, logit_bias=((262, 18.0),))  # the closing tag, which the toy never says
        request = ChatRequest(QUESTION, sampling, 400, tool_use=ToolUse(TOOLS, required=True, name="weather"))
        pieces = await answer(engine, model, request)
    assert "".join(piece.reasoning for piece in pieces)
    assert (said(pieces), pieces[-1].finish) == ("", "tool_calls")
    assert_valid(calls_of(pieces), {"weather": WEATHER})


async def test_a_format_of_the_answer_and_tools_leave_the_choice_to_the_model(tmp_path: Path) -> None:
    n = {"type": "integer", "minimum": 0, "maximum": 99}
    shape = {"type": "object", "properties": {"n": n}, "required": ["n"], "additionalProperties": False}
    grammar, use = Grammar("json_schema", json.dumps(shape)), ToolUse((Tool("now", strict=True),), parallel=False)
    async with chatting(calling_toy(tmp_path, HERMES)) as (engine, model):
        for letter, calls in (("<", [("now", "{}")]), ("{", [])):
            sampling = Sampling(1.0, seed=2, logit_bias=((ord(letter), 50.0),))
            request = ChatRequest(QUESTION, sampling, 300, grammar=grammar, tool_use=use)
            pieces = await answer(engine, model, request)
            assert calls_of(pieces) == calls
            if not calls:
                jsonschema.validate(json.loads(said(pieces)), shape)


async def test_strict_tools_hold_free_calls_to_their_schema(tmp_path: Path) -> None:
    strict = Tool("weather", parameters=WEATHER, strict=True)
    async with chatting(calling_toy(tmp_path, HERMES, "<tool_call>")) as (engine, model):
        sampling = Sampling(1.0, seed=4, logit_bias=((261, 60.0),))
        request = ChatRequest(QUESTION, sampling, 400, tool_use=ToolUse((strict,), parallel=False))
        pieces = await answer(engine, model, request)
        plain = await answer(
            engine, model, ChatRequest(QUESTION, Sampling(1.0, seed=4), 8, tool_use=ToolUse((strict,)))
        )
    assert_valid(calls_of(pieces), {"weather": WEATHER})
    assert (calls_of(plain), len(said(plain))) == ([], 8)


async def test_a_schema_that_cannot_be_enforced_is_refused_by_name(tmp_path: Path) -> None:
    odd = Tool("odd", parameters={"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}})
    async with chatting(calling_toy(tmp_path, HERMES)) as (engine, model):
        free = ChatRequest(QUESTION, Sampling(0.0), 2, tool_use=ToolUse((odd,)))
        assert (await answer(engine, model, free))[-1].finish == "length"
        with pytest.raises(BadRequest) as caught:
            await answer(engine, model, ChatRequest(QUESTION, tool_use=ToolUse((odd,), required=True)))
    assert caught.value.param == "tools"


@pytest.mark.parametrize("tool_format", TAUGHT, ids=lambda tool_format: tool_format.name)
def test_without_a_reason_there_is_no_grammar(tool_format: ToolFormat) -> None:
    asked = Grammar("json_schema", "{}")
    assert call_grammar(tool_format, ToolUse(TOOLS), {}, None) is None
    assert call_grammar(tool_format, ToolUse(TOOLS), {}, asked) != asked


# --- the grammars themselves ------------------------------------------------------------------------------------------

BYTES = byte_level()
MATCHED = LLTokenizer(BYTES.to_str(), eos_token=BYTES.token_to_id("<|im_end|>"))
GOOD, BAD = '{"city": "Rome", "unit": "c", "more": {"wind": true}}', '{"city": "Rome", "unit": "k"'
WRITTEN: dict[ToolFormat, tuple[str, str]] = {  # before the arguments, after them
    HERMES: ('<tool_call>\n{"name": "weather", "arguments": ', "}\n</tool_call>"),
    LLAMA: ('{"name": "weather", "parameters": ', "}"),
    MISTRAL: ('[TOOL_CALLS][{"name": "weather", "arguments": ', "}]"),
    MISTRAL_NAMED: ("[TOOL_CALLS]weather[ARGS]", ""),
    NEMOTRON: ('<TOOLCALL>[{"name": "weather", "arguments": ', "}]</TOOLCALL>"),
    GRANITE: ('<|tool_call|>[{"name": "weather", "arguments": ', "}]"),
    DEEPSEEK: (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>",
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    DEEPSEEK_V3: (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n",
        "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
}


def fits(grammar: Grammar | None, text: str) -> bool:
    """Whether an answer may be `text` or begin with it."""
    assert grammar is not None
    matcher = LLMatcher(MATCHED, LLMatcher.grammar_from_lark(grammar.source), log_level=0)
    assert not matcher.get_error()
    ids = BYTES.encode(text, add_special_tokens=False).ids
    return matcher.try_consume_tokens(ids) == len(ids)


@pytest.mark.parametrize("tool_format", WRITTEN, ids=lambda tool_format: tool_format.name)
def test_what_the_grammars_allow(tool_format: ToolFormat) -> None:
    """No tag is a token here: the letters of an opening tag begin a call."""
    before, after = WRITTEN[tool_format]
    use = ToolUse((Tool("weather", parameters=WEATHER, strict=True), Tool("now")))
    free, must = (call_grammar(tool_format, each, {}, None) for each in (use, replace(use, required=True)))
    call = before + GOOD + after
    assert fits(free, call)
    assert fits(must, call)
    assert not fits(free, before + BAD)
    assert not fits(must, before + BAD)
    assert fits(free, "Just text.")
    assert not fits(must, "Just text.")
    other = before.replace("weather", "now") + '{"any": 1}' + after
    assert fits(free, other)
    assert not fits(free, before.replace("weather", "unknown") + '{"any": 1}')
    if not tool_format.bare:
        assert fits(free, "First this.\n" + call)
        assert fits(free, f"{call}\n{call}")


PARAMETERS: dict[ToolFormat, tuple[str, str, str]] = {  # before a parameter's name, before its value, after it
    CODER: ("<parameter=", ">\n", "\n</parameter>\n"),
    GLM: ("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
    GLM_DENSE: ("<arg_key>", "</arg_key><arg_value>", "</arg_value>"),
    MINIMAX: ('<parameter name="', '">', "</parameter>\n"),
}
CALLED: dict[ToolFormat, tuple[str, str]] = {
    CODER: ("<tool_call>\n<function=weather>\n", "</function>\n</tool_call>"),
    GLM: ("<tool_call>weather\n", "</tool_call>"),
    GLM_DENSE: ("<tool_call>weather", "</tool_call>"),
    MINIMAX: ('<minimax:tool_call>\n<invoke name="weather">\n', "</invoke>\n</minimax:tool_call>"),
}


@pytest.mark.parametrize("tool_format", PARAMETERS, ids=lambda tool_format: tool_format.name)
def test_what_the_grammars_of_parameters_allow(tool_format: ToolFormat) -> None:
    (before, middle, after), (begin, end) = PARAMETERS[tool_format], CALLED[tool_format]

    def call(**values: str) -> str:
        return begin + "".join(f"{before}{key}{middle}{value}{after}" for key, value in values.items()) + end

    use = ToolUse((Tool("weather", parameters=WEATHER, strict=True), Tool("now")))
    free, must = (call_grammar(tool_format, each, {}, None) for each in (use, replace(use, required=True)))
    good = call(city="Rome", days="3", unit="c", more='{"wind": true}')
    for grammar in (free, must):
        assert fits(grammar, good)
        assert fits(grammar, call(city="a\nb", unit="f", more='{"wind": false}'))
        assert not fits(grammar, call(city="Rome", unit="k", more='{"wind": true}'))
        assert not fits(grammar, call(city="Rome", days="30", unit="c", more='{"wind": true}'))
        assert not fits(grammar, call(city="far too long a name", unit="c", more='{"wind": true}'))
        assert not fits(grammar, call(city="Rome", unit="c"))
    assert fits(free, f"First this.\n{good}\n{good}")
    assert fits(free, "Just text.")
    assert not fits(must, "Just text.")


def test_what_the_grammar_of_gemmas_notation_allows() -> None:
    city, digits = {"type": "string", "maxLength": 8}, {"type": "array", "items": {"type": "integer", "maximum": 9}}
    inner = {"type": "object", "properties": {"b": {"type": ["null", "string"]}, "x": {"$ref": "#/$defs/digits"}}}
    properties = {"city": city, "days": {"type": "integer", "maximum": 9}, "in": inner, "any": {}}
    properties |= {"unit": {"enum": ["c", "f"]}, "free": {"type": "object"}}
    properties["more"] = {"anyOf": [{"type": "object", "properties": {"wind": {"type": "boolean"}}}, {"type": "null"}]}
    schema = {"properties": properties, "required": ["city", "unit", "more"], "$defs": {"digits": digits}}
    must = call_grammar(GEMMA, ToolUse((Tool("weather", parameters=schema),), required=True), {}, None)

    def call(*parts: str) -> str:
        return "<|tool_call>call:weather{" + ",".join(parts) + "}<tool_call|>"

    rome, unit, more = 'city:<|"|>Rome<|"|>', 'unit:<|"|>c<|"|>', "more:{wind:true}"
    assert fits(must, call(rome, more, unit))
    assert fits(must, call(rome, "days:3", more, unit))
    assert fits(must, call('any:{k:[1,<|"|>a<|"|>]}', rome, 'in:{b:<|"|>x<|"|>,x:[1,2]}', more, unit))
    assert fits(must, call(rome, "in:{x:[]}", more, unit))
    assert fits(must, call(rome, 'free:{a_1:<|"|>b<|"|>}', "more:null", unit))
    assert not fits(must, call(rome, unit))
    assert not fits(must, call(rome, "in:{x:[10]}", more, unit))
    assert not fits(must, call(rome, "days:30", more, unit))
    assert not fits(must, call(rome, more, 'unit:<|"|>k<|"|>'))
    assert not fits(must, call('city:<|"|>far too long a name<|"|>', more, unit))
    assert not fits(must, call("city:Rome", more, unit))
