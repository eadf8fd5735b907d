"""OpenAI's harmony format: channels become reasoning, text and calls, at any cut and on rings; past turns go back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from tests.support.channel_templates import GPT_OSS
from tests.support.checksum import EOS
from tests.support.engines import LAYERS, loads, serving
from tests.support.loopback import LoopbackRing
from tests.support.telling import telling
from tests.support.toys import worded_toy
from together.api.requests import ChatCompletionRequest
from together.engine.engine import Engine
from together.requests import (
    LOCAL,
    AnswerChunk,
    CallDelta,
    ChatRequest,
    GenerateRequest,
    Grammar,
    Message,
    Tool,
    ToolCall,
    ToolUse,
)
from together.text.answers import answer_chat, generate_text
from together.text.harmony import HarmonyParser
from together.text.parser import StopFilter
from together.text.tokenizer import TextModel
from together.text.tool_formats import HARMONY
from together.text.tool_grammars import call_grammar
from together.types import Sampling

TAGS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|return|>", "<|call|>")
THOUGHT, AGAIN = "<|channel|>analysis<|message|>Hm, 2+2.<|end|>", "<|start|>assistant"
FINAL, CALL = "<|channel|>final<|message|>", "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
Calls = list[tuple[str, str]]


def calls_of(deltas: Iterable[CallDelta]) -> Calls:
    calls: Calls = []
    for delta in deltas:
        if delta.id:
            calls.append((delta.name, ""))
        else:
            assert delta.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return calls


def parted(pieces: Iterable[str], tools: tuple[str, ...] = ("f", "g")) -> tuple[str, str, Calls]:
    parser = HarmonyParser(tools)
    parts = [*map(parser.push, pieces), parser.flush()]
    calls = calls_of(delta for part in parts for delta in part.tool_calls)
    return "".join(part.reasoning for part in parts), "".join(part.text for part in parts), calls


CASES: list[tuple[str, str, str, Calls]] = [
    (f"{THOUGHT}{AGAIN}{FINAL}4<|return|>", "Hm, 2+2.", "4", []),
    (f"{THOUGHT}{AGAIN}{FINAL} 4 \n", "Hm, 2+2.", " 4 \n", []),  # its end is no part of the text
    (f"{FINAL}4", "", "4", []),
    (f"{THOUGHT}\n{AGAIN}{THOUGHT}{AGAIN}{FINAL}4<|end|>", "Hm, 2+2.\n\nHm, 2+2.", "4", []),
    (f'{THOUGHT}{AGAIN}{CALL}{{"a": "<b>"}}<|call|>', "Hm, 2+2.", "", [("f", '{"a": "<b>"}')]),
    (f'{CALL}{{"a": 1', "", "", [("f", '{"a": 1')]),
    (f"{CALL}<|call|>", "", "", [("f", "{}")]),
    (CALL, "", "", [("f", "{}")]),  # the token at its end is no text
    (" to=functions.g<|channel|>commentary json<|message|>{}<|call|>", "", "", [("g", "{}")]),  # as templates write it
    (f"{THOUGHT}{AGAIN} to=functions.g<|channel|>commentary json<|message|>{{}}", "Hm, 2+2.", "", [("g", "{}")]),
    ("<|channel|>analysis to=g code<|message|>{}<|call|>", "", "", [("g", "{}")]),
    ("<|channel|>analysis to=python code<|message|>1+1<|end|>", "1+1", "", []),
    (
        f"<|channel|>commentary<|message|>I look.<|end|>{AGAIN}{CALL}{{}}<|call|>{AGAIN}{CALL}{{}}<|call|>",
        "",
        "I look.",
        [("f", "{}"), ("f", "{}")],
    ),
    (f"<|channel|>commentary<|message|>I look.<|end|>{AGAIN}{FINAL}4", "", "I look.\n\n4", []),
    ("Just text, <b> and < and t", "", "Just text, <b> and < and t", []),
    (f"{THOUGHT}{AGAIN}", "Hm, 2+2.", "", []),  # cut off within a header
    (f"{THOUGHT}{AGAIN}<|channel|>fin", "Hm, 2+2.", "", []),
    (f"{THOUGHT}4<|return|>", "Hm, 2+2.", "4", []),  # a header forgotten
    ("<|channel|>analysis<|message|>never ends", "never ends", "", []),
    (f"{FINAL}a<|channel|>final<|message|>b", "", "a\n\nb", []),
    ("<|start|>assistant<|end|>x", "", "<|start|>assistant\n\nx", []),
    ("<|channel|>" + "x" * 400, "", "<|channel|>" + "x" * 400, []),
    ("<|message|>4", "", "4", []),
]


@pytest.mark.parametrize(("text", "thought", "said", "calls"), CASES)
def test_channels(text: str, thought: str, said: str, calls: Calls) -> None:
    assert parted([text]) == parted(text) == (thought, said, calls)


def test_a_call_that_nobody_offered_is_shown() -> None:
    assert parted(f"{CALL}{{}}<|call|>", ()) == ("", f"{CALL}{{}}", [])


SCRAPS: tuple[str, ...] = (*TAGS, AGAIN, "assistant", "analysis", "final", "commentary", " to=functions.f")
SCRAPS += ("{", "}", "a", " ", "\n")


@given(text=st.lists(st.sampled_from(SCRAPS), max_size=14).map("".join), cuts=st.lists(st.integers(0, 200), max_size=6))
@settings(max_examples=500, deadline=None)
def test_what_comes_out_does_not_depend_on_how_the_text_was_cut(text: str, cuts: list[int]) -> None:
    places = [0, *sorted(min(place, len(text)) for place in cuts), len(text)]
    pieces = [text[start:stop] for start, stop in pairwise(places)]
    assert parted(pieces) == parted(text) == parted([text])


def test_stop_strings_end_the_text_alone() -> None:
    parser = HarmonyParser((), StopFilter(("2+2", "END")))
    parts = [parser.push(f"{THOUGHT}{AGAIN}{FINAL}4 EN"), parser.push("D more"), parser.flush()]
    assert "".join(part.reasoning for part in parts) == "Hm, 2+2."
    assert ("".join(part.text for part in parts), parser.stopped) == ("4 ", "END")


def test_letters_come_at_once_except_what_may_be_a_tag() -> None:
    parser = HarmonyParser(("f",))
    pieces = ["<|channel|>", "analysis", "<|message|>", "a", "<", "b", "<|end|>", AGAIN, CALL, "{", "}", "<|call|>"]
    parts = [parser.push(piece) for piece in pieces]
    assert [part.reasoning for part in parts] == ["", "", "", "a", "", "<b", "", "", "", "", "", ""]
    assert [calls_of(part.tool_calls[:1]) for part in parts[8:9]] == [[("f", "")]]
    assert ["".join(each.arguments for each in part.tool_calls) for part in parts[9:]] == ["{", "}", ""]
    assert parser.called


# --- templates --------------------------------------------------------------------------------------------------------

PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99, "minimum": 0}, "s": {"type": "string", "maxLength": 8}},
    "required": ["a"],
}
TOOLS = (Tool("f", "Does it.", PARAMETERS), Tool("g", "Another."))
QUESTION = Message("user", "What is 2+2?")


def harmony_toy(folder: Path) -> Path:
    return worded_toy(folder, GPT_OSS, TAGS, (EOS,))


def test_past_turns_go_back_as_the_template_wants_them(tmp_path: Path) -> None:
    template = TextModel.open(harmony_toy(tmp_path)).template
    assert template.tool_format == HARMONY
    calls = (ToolCall("c1", "f", '{"a": 1}'), ToolCall("c2", "g", ""))
    results = (Message("tool", "one", tool_call_id="c1"), Message("tool", "two", tool_call_id="c2"))
    talk = [Message("system", "Be brief."), QUESTION, Message("assistant", "Well.", "Hm.", calls), *results]
    said = template.render(talk, TOOLS).result()
    developer, user, thought, first, one, second, two, ready = said.split("<|start|>")[2:]
    assert developer.startswith("developer<|message|>Be brief.\n\n# Tools\n\nnamespace functions {\n// Does it.\n")
    assert user == "user<|message|>What is 2+2?<|end|>"
    assert thought == "assistant<|channel|>analysis<|message|>Hm.\n\nWell.<|end|>"
    assert first == 'assistant to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>'
    assert one == 'functions.f to=assistant<|channel|>commentary<|message|>"one"<|end|>'
    assert second == "assistant to=functions.g<|channel|>commentary json<|message|>{}<|call|>"
    assert two == 'functions.g to=assistant<|channel|>commentary<|message|>"two"<|end|>'
    assert ready == "assistant"


def test_what_the_template_writes_is_read_back(tmp_path: Path) -> None:
    template = TextModel.open(harmony_toy(tmp_path)).template
    prompt = template.render([QUESTION], TOOLS).result()
    call = Message("assistant", "", "Hm.", (ToolCall("c", "f", '{"a": 1, "s": "é<|x|>"}'),))
    for message, wanted in (
        (call, ("Hm.", "", [("f", '{"a": 1, "s": "é<|x|>"}')])),
        (Message("assistant", "4", "Hm."), ("Hm.", "4", [])),
    ):
        said = template.render([QUESTION, message], TOOLS, None, add_generation_prompt=False).result()
        assert said.startswith(prompt)
        assert parted(said.removeprefix(prompt)) == parted([said.removeprefix(prompt)]) == wanted


def test_its_words_end_an_answer_whatever_the_files_name(tmp_path: Path) -> None:
    model = TextModel.open(harmony_toy(tmp_path))
    assert model.eos == {EOS, *(model.tokenizer.token_to_id(word) for word in ("<|return|>", "<|call|>"))}


def test_the_effort_of_a_request_reaches_the_template(tmp_path: Path) -> None:
    template = TextModel.open(harmony_toy(tmp_path)).template
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
    for more, effort in (
        ({}, "medium"),
        ({"reasoning_effort": "high"}, "high"),
        ({"reasoning_effort": "high", "chat_template_kwargs": {"reasoning_effort": "low"}}, "low"),
    ):
        chat = ChatCompletionRequest.model_validate(body | more).to_chat(Sampling(), LOCAL)
        assert f"Reasoning: {effort}\n" in template.render(chat.messages, **chat.template).result()


# --- rings ------------------------------------------------------------------------------------------------------------


async def answered(folder: Path, text: str, **asked: Any) -> list[AnswerChunk]:
    """What comes of an answer in these words."""
    model = TextModel.open(harmony_toy(folder))
    async with LoopbackRing(telling(loads(folder, (2, LAYERS)), model.encode(text))) as ring:
        engine = Engine(ring, model.eos)
        async with serving(engine):
            request = ChatRequest((QUESTION,), Sampling(0.0), 600, **asked)
            return [piece async for piece in answer_chat(engine, model, request)]


async def test_a_script_sees_the_channels(tmp_path: Path) -> None:
    model = TextModel.open(harmony_toy(tmp_path))
    text = f"{THOUGHT}{AGAIN}{FINAL}4"
    async with LoopbackRing(telling(loads(tmp_path, (2, LAYERS)), model.encode(f"{text}<|return|>"))) as ring:
        engine = Engine(ring, model.eos)
        async with serving(engine):
            request = GenerateRequest(model.prompt_ids([QUESTION]), Sampling(0.0), 600)
            assert "".join([piece.text async for piece in generate_text(engine, model, request)]) == text


def outcome(pieces: list[AnswerChunk]) -> tuple[str, str, Calls, str | None]:
    calls = calls_of(delta for piece in pieces for delta in piece.tool_calls)
    return "".join(p.reasoning for p in pieces), "".join(p.text for p in pieces), calls, pieces[-1].finish


async def test_an_answer_of_a_ring(tmp_path: Path) -> None:
    pieces = await answered(tmp_path, f"{THOUGHT}{AGAIN}{FINAL}4é<|return|>", tool_use=ToolUse(TOOLS))
    assert outcome(pieces) == ("Hm, 2+2.", "4é", [], "stop")
    usage = pieces[-1].usage
    assert usage is not None
    assert 0 < usage.reasoning_tokens < usage.completion_tokens


async def test_a_call_of_a_ring(tmp_path: Path) -> None:
    text = f'{THOUGHT}{AGAIN}<|channel|>commentary<|message|>I look.<|end|>{AGAIN}{CALL}{{"a": 1}}<|call|>'
    pieces = await answered(tmp_path, text, tool_use=ToolUse(TOOLS))
    assert outcome(pieces) == ("Hm, 2+2.", "I look.", [("f", '{"a": 1}')], "tool_calls")


@pytest.mark.parametrize("thought", ["", THOUGHT + AGAIN])
async def test_a_forced_call(tmp_path: Path, thought: str) -> None:
    use = ToolUse(TOOLS, required=True, name="f")
    pieces = await answered(tmp_path, f'{thought}{CALL}{{"a": 1}}<|call|>', tool_use=use)
    assert outcome(pieces) == (thought and "Hm, 2+2.", "", [("f", '{"a": 1}')], "tool_calls")


async def test_a_call_is_all_that_is_left_where_one_is_forced(tmp_path: Path) -> None:
    """The model would rather answer."""
    use = ToolUse(TOOLS, required=True, name="f")
    thought, said, calls, finish = outcome(
        await answered(tmp_path, f"{THOUGHT}{AGAIN}{FINAL}4<|return|>", tool_use=use)
    )
    assert (thought, said, finish) == ("Hm, 2+2.", "", "tool_calls")
    assert [name for name, _ in calls] == ["f"]
    jsonschema.validate(json.loads(calls[0][1]), PARAMETERS)


@pytest.mark.parametrize("use", [ToolUse(), ToolUse(TOOLS)], ids=["alone", "with tools"])
async def test_an_answer_by_a_schema(tmp_path: Path, use: ToolUse) -> None:
    wanted = Grammar("json_schema", json.dumps(PARAMETERS | {"additionalProperties": False}))
    text = f'{THOUGHT}{AGAIN}{FINAL}{{"a": 4}}<|return|>'
    assert outcome(await answered(tmp_path / "a", text, grammar=wanted, tool_use=use)) == (
        "Hm, 2+2.",
        '{"a": 4}',
        [],
        "stop",
    )
    broken = await answered(tmp_path / "b", f"{THOUGHT}{AGAIN}{FINAL}nine<|return|>", grammar=wanted, tool_use=use)
    jsonschema.validate(json.loads(outcome(broken)[1]), PARAMETERS)


def test_what_strict_tools_allow(tmp_path: Path) -> None:
    model = TextModel.open(harmony_toy(tmp_path))
    tokens = LLTokenizer(model.tokenizer.to_str(), eos_token=EOS)
    grammar = call_grammar(HARMONY, ToolUse((Tool("f", parameters=PARAMETERS, strict=True),)), model.tool_tags, None)
    assert grammar is not None

    def fits(text: str) -> bool:
        matcher = LLMatcher(tokens, LLMatcher.grammar_from_lark(grammar.source), log_level=0)
        assert not matcher.get_error()
        return bool(matcher.try_consume_tokens(list(model.encode(text))) == len(model.encode(text)))

    assert fits(f"{FINAL}Any text.")
    assert fits(f'{AGAIN}{CALL}{{"a": 1}}')
    assert fits(f'<|channel|>commentary<|message|>I look.<|end|>{AGAIN}{CALL}{{"a": 1, "s": "x"}}')
    assert not fits(f'{CALL}{{"a": "1"}}')
    assert not fits("<|channel|>commentary to=functions.g")
    assert not fits("Text outside of a channel")
