"""Thoughts and tool calls in the style of each of this year's families, by templates that write them as theirs do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import tool_templates as templates
from tests.support.channel_templates import GEMMA4
from tests.support.checksum import EOS
from tests.support.engines import loads, serving
from tests.support.loopback import LoopbackRing
from tests.support.telling import telling
from tests.support.thinking_templates import KIMI as KIMI_TEMPLATE
from tests.support.thinking_templates import QWEN35
from tests.support.toys import worded_toy
from together.engine.engine import Engine
from together.requests import AnswerChunk, CallDelta, ChatRequest, Grammar, Message, Tool, ToolCall, ToolUse
from together.text.answers import answer_chat, chat_parser
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
    KIMI,
    MINIMAX,
    NEMOTRON,
    ToolFormat,
)
from together.types import Sampling

Calls = list[tuple[str, dict[str, Any]]]

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "places": {"type": "array", "items": {"type": "string"}},
        "more": {"type": "object", "properties": {"wind": {"type": "boolean"}, "note": {"type": "string"}}},
    },
    "required": ["city", "days", "places", "more"],
}
TOOLS = (Tool("weather", "What it is like.", PARAMETERS), Tool("now", "The time."))
SAID: Calls = [
    ("weather", {"city": "Köln 7", "days": 3, "places": ["a b", '"c"'], "more": {"wind": True, "note": "x{y}"}}),
    ("now", {}),
]
QUESTION = Message("user", "What is the weather?")
THOUGHT = "They ask\nfor weather: <tool>?"


@dataclass(frozen=True, slots=True)
class Style:
    """A family's: its template, the tags that are tokens of their own, and the one that ends an answer with calls."""

    template: str
    format: ToolFormat
    tags: tuple[str, ...]
    end: str
    thinks: bool = True


THINK_TAGS, CALL_TAGS = ("<think>", "</think>"), ("<tool_call>", "</tool_call>")
GLM_TAGS = (*THINK_TAGS, *CALL_TAGS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
DEEPSEEK_TAGS = tuple(f"<｜tool▁{word}｜>" for word in ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end"))
KIMI_TAGS = tuple(
    f"<|tool_call{word}|>" for word in ("s_section_begin", "_begin", "_argument_begin", "_end", "s_section_end")
)
GEMMA_TAGS = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|tool_response>")
DEEPSEEK_END = "<｜end▁of▁sentence｜>"
STYLES = {
    "glm-4.6": Style(templates.GLM, GLM, GLM_TAGS, "<|observation|>"),
    "glm-4.7": Style(templates.GLM_DENSE, GLM_DENSE, GLM_TAGS, "<|observation|>"),
    "minimax-m2": Style(
        templates.MINIMAX, MINIMAX, (*THINK_TAGS, "<minimax:tool_call>", "</minimax:tool_call>"), "[e~["
    ),
    "granite-3": Style(templates.GRANITE3, GRANITE, ("<|tool_call|>",), "<|end_of_text|>", thinks=False),
    "deepseek-v3.1": Style(templates.DEEPSEEK, DEEPSEEK, THINK_TAGS + DEEPSEEK_TAGS, DEEPSEEK_END, thinks=False),
    "deepseek-v3": Style(templates.DEEPSEEK_V3, DEEPSEEK_V3, DEEPSEEK_TAGS, DEEPSEEK_END, thinks=False),
    "gemma-4": Style(GEMMA4, GEMMA, GEMMA_TAGS, "<turn|>", thinks=False),
    "granite-4": Style(templates.GRANITE4, HERMES, CALL_TAGS, "<|end_of_text|>", thinks=False),
    "kimi-k2": Style(KIMI_TEMPLATE, KIMI, THINK_TAGS + KIMI_TAGS, "<|im_end|>"),
    "qwen3.5": Style(QWEN35, CODER, THINK_TAGS + CALL_TAGS, "<|im_end|>"),
    "nemotron-nano-2": Style(
        templates.NEMOTRON2, NEMOTRON, (*THINK_TAGS, "<TOOLCALL>", "</TOOLCALL>", "<SPECIAL_11>"), "<SPECIAL_12>"
    ),
}
MODELS: dict[str, TextModel] = {}
ALL = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)


def text_model(folder: Path, style: Style) -> TextModel:
    """The toy with the style's words: its tags are special tokens, its end is the model's."""
    return TextModel.open(worded_toy(folder, style.template, (*style.tags, style.end), (EOS, style.end)))


def turn(style: Style, text: str = "") -> Message:
    calls = tuple(
        ToolCall(f"call_{i}", name, json.dumps(values, ensure_ascii=False)) for i, (name, values) in enumerate(SAID)
    )
    return Message("assistant", text, THOUGHT if style.thinks else "", calls)


def told(model: TextModel, style: Style, said: Message) -> tuple[str, str]:
    """The prompt, and what the model answers to it where its template writes it into a conversation as `said`."""
    prompt = model.template.render([QUESTION], TOOLS).result()
    whole = model.template.render([QUESTION, said], TOOLS, None, add_generation_prompt=False).result()
    assert whole.startswith(prompt)
    answer, end, _ = whole.removeprefix(prompt).partition(style.end)
    return prompt, answer if end else answer.removesuffix("\n")


def calls_of(deltas: Iterable[CallDelta]) -> Calls:
    names: list[str] = []
    arguments: list[str] = []
    for delta in deltas:
        if delta.id:
            names.append(delta.name)
            arguments.append("")
        else:
            arguments[delta.index] += delta.arguments
    return [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]


def parted(model: TextModel, prompt: str, pieces: Iterable[str]) -> tuple[str, str, Calls]:
    parser = chat_parser(model, prompt, ToolUse(TOOLS), ())
    parts = [*map(parser.push, pieces), parser.flush()]
    calls = calls_of(delta for part in parts for delta in part.tool_calls)
    return "".join(part.reasoning for part in parts), "".join(part.text for part in parts), calls


def test_gemmas_thoughts_are_in_a_channel(tmp_path: Path) -> None:
    model = text_model(tmp_path, STYLES["gemma-4"])
    prompt = model.template.render([QUESTION], enable_thinking=True).result()
    for answer in ("<|channel>thought\nThey ask.\n<channel|>Well.", "<|channel>thought\nThey ask.<channel|>\nWell."):
        assert parted(model, prompt, answer) == parted(model, prompt, [answer]) == ("They ask.", "Well.", [])
    assert parted(model, model.template.render([QUESTION]).result(), "Well.") == ("", "Well.", [])


def test_nemotrons_thoughts_are_switched_off_by_a_word_of_the_system(tmp_path: Path) -> None:
    model = text_model(tmp_path, STYLES["nemotron-nano-2"])
    prompt = model.template.render([Message("system", "Be short. /no_think"), QUESTION]).result()
    assert prompt.endswith("Assistant\n<think></think>")
    assert "Be short.\n" in prompt
    assert parted(model, prompt, "Well.") == ("", "Well.", [])


RESPONSE = "<think>They ask.\n</think>\n <response> Well,\nsee <b>.\n</response>\n"
# Spaces around the tag divide the response from text behind it.
AFTER = ("<think>Hm.</think><response>\nWell. </response>\nAnd more.", "Well. \nAnd more.")


@given(cuts=st.lists(st.integers(0, len(RESPONSE)), max_size=8))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_granites_response_stands_between_tags(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    """Which are no part of its text; where thoughts were not asked for, they are."""
    style = Style(templates.GRANITE33, GRANITE, ("<|tool_call|>",), "<|end_of_text|>", thinks=False)
    model = MODELS.get(style.template) or text_model(tmp_path_factory.mktemp("style"), style)
    MODELS[style.template] = model
    prompt = model.template.render([QUESTION], thinking=True).result()
    assert "between <response></response>" in prompt
    places = [0, *sorted(cuts), len(RESPONSE)]
    pieces = [RESPONSE[start:stop] for start, stop in pairwise(places)]
    wanted: tuple[str, str, Calls] = ("They ask.", "Well,\nsee <b>.", [])
    assert parted(model, prompt, pieces) == parted(model, prompt, RESPONSE) == wanted
    for answer, text in (
        ("<think>Hm.</think> Well. <resp", "Well. <resp"),
        ("<think>Hm.</think><response>We", "We"),
        AFTER,
    ):
        assert parted(model, prompt, answer) == parted(model, prompt, [answer]) == ("Hm.", text, [])
    assert parted(model, prompt, "<response>Well.</response>") == ("", "<response>Well.</response>", [])


def test_kimis_ids_are_numbers_in_the_conversation(tmp_path: Path) -> None:
    """Clients answer with ids of ours, which may come again in later turns."""
    model = text_model(tmp_path, STYLES["kimi-k2"])
    called = (ToolCall("a", "now", "{}"), ToolCall("b", "weather", "{}"))
    results = (Message("tool", "10:00", tool_call_id="a"), Message("tool", "Sun.", tool_call_id="b"))
    again = (Message("assistant", "", tool_calls=called[:1]), results[0])
    turns = [QUESTION, Message("assistant", "", tool_calls=called), *results, *again]
    whole = model.template.render(turns, TOOLS).result()
    begin, middle = "<|tool_call_begin|>", "<|tool_call_argument_begin|>"
    assert [part.partition(middle)[0] for part in whole.split(begin)[1:]] == [
        "functions.now:0",
        "functions.weather:1",
        "functions.now:2",
    ]
    returned = [part.partition("\n")[0] for part in whole.split("## Return of ")[1:]]
    assert returned == ["functions.now:0", "functions.weather:1", "functions.now:2"]


@pytest.mark.parametrize(
    ("style", "variables", "answer", "thought"),
    [
        ("glm-4.6", {}, "\n<think>Hm.</think>\nWell.", "Hm."),
        ("glm-4.6", {"enable_thinking": False}, "\nWell.", ""),
        ("glm-4.7", {}, "Hm.</think>Well.", "Hm."),
        ("glm-4.7", {"enable_thinking": False}, "Well.", ""),
        ("qwen3.5", {}, "Hm.\n</think>\n\nWell.", "Hm."),
        ("qwen3.5", {"enable_thinking": False}, "Well.", ""),
        ("kimi-k2", {}, "<think>Hm.</think>Well.", "Hm."),
        ("minimax-m2", {}, "Hm.\n</think>\n\nWell.", "Hm."),
        ("deepseek-v3.1", {}, "Well.", ""),
        ("nemotron-nano-2", {}, "Hm.\n</think>\n\nWell.", "Hm."),
        ("deepseek-v3.1", {"thinking": True}, "Hm.</think>Well.", "Hm."),
    ],
)
def test_thoughts_are_switched_by_the_variables_of_a_template(
    tmp_path: Path, style: str, variables: dict[str, object], answer: str, thought: str
) -> None:
    model = text_model(tmp_path, STYLES[style])
    prompt = model.template.render([QUESTION], **variables).result()
    reasoning, text, calls = parted(model, prompt, answer)
    assert (reasoning, text.strip(), calls) == (thought, "Well.", [])
    # A schema's first letter may come at once where the prompt leaves no thoughts open.
    wanted = asyncio.run(model.grammars.compile(Grammar("json_schema", '{"type": "integer"}')))
    mask = wanted.start(prompt).allowed(())
    assert bool(mask[ord("x") // 8] >> ord("x") % 8 & 1) == prompt.rstrip().endswith("<think>")


@ALL
@given(cuts=st.lists(st.integers(0, 500), max_size=8))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_template_writes_is_read_back_at_any_cut(
    tmp_path_factory: pytest.TempPathFactory, style: Style, cuts: list[int]
) -> None:
    model = MODELS.get(style.template) or text_model(tmp_path_factory.mktemp("style"), style)
    MODELS[style.template] = model
    assert model.template.tool_format == style.format
    for text in ("Well.", ""):
        said = turn(style, text)
        prompt, answer = told(model, style, said)
        places = [0, *sorted(min(place, len(answer)) for place in cuts), len(answer)]
        pieces = [answer[start:stop] for start, stop in pairwise(places)]
        wanted = (said.reasoning, text, SAID)
        assert parted(model, prompt, pieces) == parted(model, prompt, answer) == wanted


async def answered(folder: Path, style: Style, use: ToolUse, text: str) -> list[AnswerChunk]:
    """What comes of an answer whose tokens the template's own words are, on a ring of the toy."""
    model = text_model(folder, style)
    _, answer = told(model, style, turn(style, text))
    tokens = [*model.encode(answer), model.encode(style.end)[0]]
    async with LoopbackRing(telling(loads(folder, (2, 4)), tokens)) as ring:
        engine = Engine(ring, model.eos)
        async with serving(engine):
            request = ChatRequest((QUESTION,), Sampling(0.0), 2000, tool_use=use)
            return [piece async for piece in answer_chat(engine, model, request)]


def _uses() -> Iterator[ParameterSet]:
    """Each style forced or free, in turns; the other one is the long form."""
    for (place, name), required in product(enumerate(STYLES), (False, True)):
        marks = () if required == bool(place % 2) else pytest.mark.full
        yield pytest.param(STYLES[name], required, id=f"{'forced' if required else 'free'}-{name}", marks=marks)


@pytest.mark.parametrize(("style", "required"), [*_uses()])
async def test_an_answer_of_a_ring_becomes_thoughts_and_calls(tmp_path: Path, style: Style, required: bool) -> None:
    """A forced one is held to a grammar, in which the model's own words for its calls have to fit."""
    text = "" if required else "Well."
    pieces = await answered(tmp_path, style, ToolUse(TOOLS, required=required), text)
    assert "".join(piece.text for piece in pieces) == text
    assert "".join(piece.reasoning for piece in pieces) == (THOUGHT if style.thinks else "")
    assert calls_of(delta for piece in pieces for delta in piece.tool_calls) == SAID
    assert pieces[-1].finish == "tool_calls"
