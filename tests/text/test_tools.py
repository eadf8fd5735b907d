"""Tool calls in every format: split from text, without losing any, and given to templates."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from together.requests import CallDelta, Tool
from together.text.parser import ToolCallParser
from together.text.tool_formats import (
    CODER,
    DEEPSEEK,
    DEEPSEEK_V3,
    FORMATS,
    GEMMA,
    GLM,
    GLM_DENSE,
    GRANITE,
    HERMES,
    KIMI,
    LLAMA,
    MINIMAX,
    MISTRAL,
    MISTRAL_NAMED,
    NEMOTRON,
    ToolFormat,
    tool_format_of,
    typed,
    written,
)

TOOLS = (
    Tool("f", "Does it.", {"type": "object", "properties": {"a": {"type": "integer"}, "s": {"type": "string"}}}),
    Tool("g"),
    Tool("odd", "", {"type": "object", "properties": {"a": {}, "a b:c": {}, "a:b": {}}}),
)
F, G = '{"name": "f", "arguments": {"a": 1}}', '{"name": "g", "arguments": {}}'
Calls = list[tuple[str, str]]


def parted(tool_format: ToolFormat, pieces: Iterable[str]) -> tuple[str, Calls]:
    """The text and the calls; checks that ids, names and arguments arrive in order."""
    splitter = ToolCallParser(tool_format, TOOLS)
    given_out = [*(splitter.push(piece) for piece in pieces), splitter.flush()]
    calls: Calls = []
    for delta in (delta for _, deltas in given_out for delta in deltas):
        if delta.id:
            assert (delta.index, delta.arguments) == (len(calls), "")
            calls.append((delta.name, ""))
        else:
            assert delta.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return "".join(said for said, _ in given_out), calls


# --- what models write ------------------------------------------------------------------------------------------------

CASES: list[tuple[ToolFormat, str, str, Calls]] = [
    (HERMES, f"<tool_call>\n{F}\n</tool_call>", "", [("f", '{"a": 1}')]),
    (HERMES, f"Hm.\n\n<tool_call>{F}</tool_call>\n<tool_call>{G}</tool_call>", "Hm.", [("f", '{"a": 1}'), ("g", "{}")]),
    (HERMES, f"a <tool_call>{G}</tool_call> b", "a  b", [("g", "{}")]),
    (HERMES, '<tool_call>{"arguments": {"s": "é"}, "name": "f"}</tool_call>', "", [("f", '{"s": "é"}')]),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", '{"a": 1}')]),
    (HERMES, '<tool_call>{"name": "g", "arguments": null}</tool_call>', "", [("g", "{}")]),
    (
        HERMES,
        '<tool_call>{"name": "f", "arguments": {"s": "</tool_call> \\"}"}}\n</tool_call>',
        "",
        [("f", '{"s": "</tool_call> \\"}"}')],
    ),
    (HERMES, '<tool_call>{"name": "other", "arguments": {}}</tool_call>', "", [("other", "{}")]),
    (HERMES, f"<tool_call>{F}}}\n</tool_call>", "", [("f", '{"a": 1}')]),  # a bracket too many
    (HERMES, f"<tool_call>{F[:-1]}\n</tool_call> x", "x", [("f", '{"a": 1}')]),  # one too few
    (HERMES, f"<tool_call>{F}\n<tool_call>{G}", "", [("f", '{"a": 1}'), ("g", "{}")]),  # no closing tag
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1')]),  # cut off
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": tru}}</tool_call>', "", [("f", '{"a": tru}')]),
    (
        CODER,
        "<tool_call>\n<function=f>\n<parameter=a>\n5\n</parameter>\n<parameter=s>\n7\n\n8\n</parameter>\n</function>\n</tool_call>",
        "",
        [("f", '{"a": 5, "s": "7\\n\\n8"}')],
    ),
    (CODER, "So:\n<function=g>\n</function>\n</tool_call>", "So:", [("g", "{}")]),
    (CODER, "<tool_call><function=f><parameter=new>[1]</parameter></tool_call>", "", [("f", '{"new": [1]}')]),
    (CODER, "<tool_call><function=f><parameter=s>half", "", [("f", '{"s": "half')]),
    (CODER, f"<tool_call>\n{F}\n</tool_call>", "", [("f", '{"a": 1}')]),
    (HERMES, "<tool_call><function=g></function></tool_call>", "", [("g", "{}")]),
    (LLAMA, '{"name": "f", "parameters": {"a": "1"}}', "", [("f", '{"a": "1"}')]),
    (LLAMA, '\n{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}', "", [("f", "{}"), ("g", "{}")]),
    (LLAMA, '<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": 1}};', "", [("f", '{"a": 1}')]),
    (LLAMA, '{"type": "function", "function": {"name": "g", "parameters": {}}}', "", [("g", "{}")]),
    (MISTRAL, f"[TOOL_CALLS][{F}, {G}]", "", [("f", '{"a": 1}'), ("g", "{}")]),
    (MISTRAL, f' [TOOL_CALLS] [{F[:-1]}, "id": "123456789"}}]', "", [("f", '{"a": 1}')]),
    (MISTRAL_NAMED, 'a[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{}', "a", [("f", '{"a": 1}'), ("g", "{}")]),
    (MISTRAL_NAMED, "[TOOL_CALLS]g[CALL_ID]abc123456[ARGS]{}", "", [("g", "{}")]),
    (NEMOTRON, f"<TOOLCALL>[{F}]</TOOLCALL>", "", [("f", '{"a": 1}')]),
    (GRANITE, f"<|tool_call|>[{F}, {G}]", "", [("f", '{"a": 1}'), ("g", "{}")]),
    (GRANITE, f"<|tool_call|> {G}", "", [("g", "{}")]),
    (
        GLM,
        "So:\n<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>5</arg_value>\n"
        "<arg_key>s</arg_key>\n<arg_value>7\n</arg_value>\n</tool_call>\n<tool_call>g\n</tool_call>",
        "So:",
        [("f", '{"a": 5, "s": "7\\n"}'), ("g", "{}")],
    ),
    (GLM, "<tool_call>f<arg_key>a</arg_key><arg_value>5</arg_value></tool_call>", "", [("f", '{"a": 5}')]),
    (GLM, "<tool_call>\nf\n<arg_key> a </arg_key>\n\n<arg_value>[1]</arg_value>", "", [("f", '{"a": [1]')]),
    (GLM, "<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>half</arg_v", "", [("f", '{"s": "half</arg_v')]),
    (GLM, f"<tool_call>\n{F}\n</tool_call>", "", [("f", '{"a": 1}')]),
    (GLM_DENSE, "<tool_call>g</tool_call><tool_call>g\n</tool_call>", "", [("g", "{}"), ("g", "{}")]),
    (
        MINIMAX,
        'Yes.\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">5</parameter>\n'
        '<parameter name="s">7</parameter>\n</invoke>\n<invoke name="g">\n</invoke>\n</minimax:tool_call>',
        "Yes.",
        [("f", '{"a": 5, "s": "7"}'), ("g", "{}")],
    ),
    (
        DEEPSEEK,
        'Yes.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Yes.",
        [("f", '{"a": 1}'), ("g", "{}")],
    ),
    (
        DEEPSEEK_V3,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```'
        "<｜tool▁call▁end｜>\n"
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        [("f", '{"a": 1}'), ("g", "{}")],
    ),
    (
        GEMMA,
        '<|tool_call>call:f{a:5,s:<|"|>7 "{x}<|"|>}<tool_call|><|tool_call>call:g{}<tool_call|>',
        "",
        [("f", '{"a": 5, "s": "7 \\"{x}"}'), ("g", "{}")],
    ),
    (
        GEMMA,
        'Yes.<|tool_call>call:f{ o : {<|"|>k l<|"|>:[<|"|><b><|"|>,true, None,-1.5e3,word]}}<tool_call|>',
        "Yes.",
        [("f", '{"o": {"k l": ["<b>", true, null, -1.5e3, "word"]}}')],
    ),
    (
        GEMMA,
        "<|tool_call>call:f{s: New York ,u:http://x.y/z,t:10:30,o:{a b:c d,l:[1, e f:g,]},n:}<tool_call|>",
        "",
        [
            (
                "f",
                '{"s": "New York", "u": "http://x.y/z", "t": "10:30", "o": {"a b": "c d", "l": [1, "e f:g"]}, "n": ""}',
            )
        ],
    ),
    (
        GEMMA,
        "<|tool_call>call:odd{no one:0,a b:c:1,a:b : 2,a:x:y,z,none:3}",
        "",
        [("odd", '{"no one": 0, "a b:c": 1, "a:b": 2, "a": "x:y,z", "none": 3}')],
    ),
    (GEMMA, "<|tool_call>call:g{a:" + "[" * 3000, "", [("g", '{"a": ' + "[" * 63 + f'"{"[" * 2937}"')]),
    (GEMMA, "<|tool_call>call:f{s:New Yo", "", [("f", '{"s": "New Yo"')]),
    (GEMMA, "<|tool_call>call:f{s y", "", [("f", '{"s y"')]),
    (GEMMA, '<|tool_call>call:f{s:<|"|>a<|"|> b}]}<tool_call|>', "", [("f", '{"s": "a"}')]),
    (GEMMA, '<|tool_call>call:f{s:<|"|>ha', "", [("f", '{"s": "ha')]),
    (GEMMA, '<|tool_call>call:f{s:<|"|>ha<|"', "", [("f", '{"s": "ha<|\\"')]),
    (
        KIMI,
        "So:<|tool_calls_section_begin|><|tool_call_begin|>functions.f:12<|tool_call_argument_begin|>"
        '{"a": 1}<|tool_call_end|><|tool_call_begin|>functions.g: 1<|tool_call_argument_begin|>{}<|tool_call_end|>'
        "<|tool_call_begin|>g<|tool_call_argument_begin|> {}<|tool_call_end|>",
        "So:",
        [("f", '{"a": 1}'), ("g", "{}"), ("g", "{}")],
    ),
    (MINIMAX, '<invoke name="g"></invoke></minimax:tool_call> x', "x", [("g", "{}")]),
    (MINIMAX, '<minimax:tool_call><invoke name="f"><parameter name="s">a', "", [("f", '{"s": "a')]),
]
NO_CALLS: list[tuple[ToolFormat, str]] = [
    (HERMES, " Plain text \n"),
    (HERMES, "The tag <tool_call> begins one."),
    (HERMES, '<tool_call>{"x": 1}</tool_call> <tool'),
    (HERMES, '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    (HERMES, '<tool_call>{"name": "f", "argu'),
    (HERMES, '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
    (HERMES, "<tool_call>f{}</tool_call>"),
    (HERMES, "<tool_call>"),
    (HERMES, "<tool_call>\n"),
    (CODER, "<function=x"),
    (CODER, "<function>f</function>"),
    (LLAMA, '{"answer": 1}'),
    (LLAMA, '{"name": "Bob", "parameters": {"a": 1}}'),
    (LLAMA, 'As JSON: {"name": "f", "parameters": {}}'),
    (LLAMA, "<|python_tag|>print(1)"),
    (LLAMA, "{}"),
    (LLAMA, "\n "),
    (MISTRAL, "[TOOL_CALLS] nothing!"),
    (MISTRAL, "[TOOL_CALLS][1, 2]"),
    (GRANITE, "<|tool_call|> is written first"),
    (DEEPSEEK, "<｜tool▁calls▁begin｜>Nothing."),
    (KIMI, "<|tool_calls_section_begin|>Nothing."),
    (KIMI, "<|tool_call_begin|>functions.f:0{}"),
    (GEMMA, "<|tool_call>call:f"),
    (GEMMA, "<|tool_call>call:f[1]<tool_call|>"),
    (DEEPSEEK, "<｜tool▁call▁begin｜>f<｜tool▁sep｜>[1]"),
    (DEEPSEEK_V3, "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```js"),
    (GLM, "<tool_call> begins one, as <tool_call>f does"),
    (GLM, "<tool_call>f\n<other>"),
    (GLM, "<tool_call>f\n<arg_ke"),
    (GLM_DENSE, "<tool_call>one two <arg_key>"),
    (MINIMAX, "<minimax:tool_call>\nNothing."),
    (MINIMAX, '<minimax:tool_call><invoke name="f"'),
    (CODER, "<tool_call>f>"),
]


@pytest.mark.parametrize(("tool_format", "text", "said", "calls"), CASES)
def test_calls(tool_format: ToolFormat, text: str, said: str, calls: Calls) -> None:
    assert parted(tool_format, [text]) == parted(tool_format, text) == (said, calls)


@pytest.mark.parametrize(("tool_format", "text"), NO_CALLS)
def test_text_that_is_no_call_is_shown_as_it_is(tool_format: ToolFormat, text: str) -> None:
    assert parted(tool_format, [text]) == parted(tool_format, text) == (text, [])


TAGS = sorted({tag for each in FORMATS for tag in each.tags})
SCRAPS = (*TAGS, "<function=f>", "</function>", "<parameter=s>", '<parameter name="s">', "</parameter>", "</invoke>")
SCRAPS += ('<invoke name="f">', "f", "{", "}", "[", "]", ",", ";", '"', "\\", " ", "\n", "a", F, G)
SCRAPS += ('"name": "f", ', '"arguments": ')


@given(
    tool_format=st.sampled_from(FORMATS),
    text=st.lists(st.sampled_from(SCRAPS), max_size=14).map("".join),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
@settings(max_examples=600, deadline=None)
def test_what_comes_out_does_not_depend_on_how_the_text_was_cut(
    tool_format: ToolFormat, text: str, cuts: list[int]
) -> None:
    places = [0, *sorted(min(place, len(text)) for place in cuts), len(text)]
    whole = parted(tool_format, [text])
    assert (
        parted(tool_format, [text[start:stop] for start, stop in pairwise(places)])
        == parted(tool_format, text)
        == whole
    )
    if not whole[1]:
        assert whole[0] == text


@given(
    tool_format=st.sampled_from(FORMATS),
    calls=st.lists(
        st.fixed_dictionaries(
            {},
            optional={"a": st.integers(), "s": st.text(st.characters(exclude_characters="<>"), max_size=9)}
            | {"new": st.lists(st.booleans(), max_size=2)},
        ),
        min_size=1,
        max_size=3,
    ),
)
@settings(max_examples=200, deadline=None)
def test_calls_as_they_are_written_are_read_back(tool_format: ToolFormat, calls: list[dict[str, object]]) -> None:
    calls = calls[:1] if tool_format.single else calls
    text = written(tool_format, [("f", json.dumps(values)) for values in calls])
    said, found = parted(tool_format, text)
    assert (said, [(name, json.loads(values)) for name, values in found]) == ("", [("f", values) for values in calls])


def test_arguments_come_while_they_are_written_and_no_part_of_a_tag() -> None:
    splitter = ToolCallParser(HERMES, TOOLS)
    said = [
        splitter.push(piece) for piece in ("Hi ", "<tool", "_call>", '{"name": "f"', ', "arguments": ', '{"a"', ": 1}")
    ]
    assert [text for text, _ in said] == ["Hi", "", "", "", "", "", ""]
    head, *parts = [delta for _, deltas in said for delta in deltas]
    assert (head.name, head.arguments, head.id[:5]) == ("f", "", "call_")
    assert parts == [CallDelta(0, arguments='{"a"'), CallDelta(0, arguments=": 1}")]
    assert (splitter.calls.begun, splitter.calls.finished) == (1, 1)


def test_long_arguments_take_no_quadratic_time() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"s": "' + "word " * 40_000 + '"}}</tool_call>'
    _, calls = parted(HERMES, [text[at : at + 5] for at in range(0, len(text), 5)])
    assert len(calls[0][1]) > 200_000


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", {"type": "integer"}, 5),
        ("5", {"type": "string"}, "5"),
        ("True", {"type": "boolean"}, True),
        ("None", {"type": ["string", "null"]}, None),
        ("true", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "true"),
        ('{"x": [1]}', {"type": "object"}, {"x": [1]}),
        ("5", {"enum": ["5", "6"]}, "5"),
        ("not JSON", {"type": "object"}, "not JSON"),
        ("NaN", {"type": "number"}, "NaN"),
        ("1e999", {"type": "number"}, "1e999"),
        ("[" * 100_000, None, "[" * 100_000),
        ("5", {"type": 5, "anyOf": 5, "enum": 5}, 5),
    ],
)
def test_parameters_have_the_type_of_their_schema(text: str, schema: object, value: object) -> None:
    assert json.loads(typed(text, schema)) == value


# --- which way a model writes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "tool_format"),
    [
        ('<tool_call>\n{"name": <name>, "arguments": <args>}\n</tool_call>', HERMES),
        ("<tool_call>\n<function=name>\n<parameter=p>", CODER),
        ("{{ '{\"name\": \"' + call.name + '\", ' }}{{ '\"parameters\": ' }}", LLAMA),
        ("{{ '<|python_tag|>' }}", LLAMA),
        ("{{ '[TOOL_CALLS] [' }}", MISTRAL),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", MISTRAL_NAMED),
        ("<TOOLCALL>[{{ call }}]</TOOLCALL>", NEMOTRON),
        ("{{ '<tool_call>' + tc.name }}\n<arg_key>{{ k }}</arg_key>\n<arg_value>", GLM),
        ("{{ '<tool_call>' + tc.name }}<arg_key>{{ k }}</arg_key><arg_value>", GLM_DENSE),
        ("{% set begin = '<minimax:tool_call>' %}", MINIMAX),
        ("respond only with <|tool_call|> followed by a list", GRANITE),
        ("{{ '<|tool_call>call:' + name + '<tool_call|>' }}", GEMMA),
        ("{{ '<｜tool▁calls▁begin｜>' + name + '<｜tool▁sep｜>' }}", DEEPSEEK),
        ("<|tool_calls_section_begin|>{{ call.id }}", KIMI),
        ("{{ '<｜tool▁calls▁begin｜>' + name + '<｜tool▁sep｜>' + '```json' }}", DEEPSEEK_V3),
        ("{{ tools | tojson }}", None),
    ],
)
def test_the_template_shows_the_format(template: str, tool_format: ToolFormat | None) -> None:
    assert tool_format_of(template) == tool_format


@pytest.mark.parametrize("tool_format", [CODER, GLM, GLM_DENSE, MINIMAX, DEEPSEEK, KIMI, GEMMA], ids=str)
def test_names_of_the_longest_kind_are_read_at_any_cut(tool_format: ToolFormat) -> None:
    """A function has at most 64 letters, a parameter as many as its schema gives it."""
    name, parameter = "f" * 64, "p" * 80
    text = written(tool_format, [(name, json.dumps({parameter: "x", "q": "y"}))])
    wanted = parted(tool_format, [text])
    ((called, arguments),) = wanted[1]
    assert called == name
    assert json.loads(arguments) == {parameter: "x", "q": "y"}
    for size in (1, 2, 7, 64, 65):
        assert parted(tool_format, [text[at : at + size] for at in range(0, len(text), size)]) == wanted
