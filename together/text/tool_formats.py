"""The formats in which models write tool calls, each one entry, and the JSON in them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

# The places in a format's texts.
NAME, ARGUMENTS, KEY, VALUE, ANSWER = "{name}", "{arguments}", "{key}", "{value}", "{answer}"
NUMBER = "{number}"  # of a call in its conversation, from 0 on
QUOTE = '<|"|>'  # around texts in Gemma's notation
_FUNCTIONS, _NUMBER = "functions.", re.compile(r"\s*:\s*\d*$")
_TAG = re.compile(r"</?[^\s<>/=]+>|\[/?[A-Z_]+\]")


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One format of calls, as the model was taught it. The reader also takes objects, lists and <function=name>."""

    name: str
    openings: tuple[str, ...]  # what comes before a call, in order; a call may begin with any of them
    closings: tuple[str, ...] = ()  # what comes after one, in order; each may be missing
    call: str = '{"name": "{name}", "arguments": {arguments}}'
    parameter: str = ""  # one of the arguments, its value in JSON unless it is a string; empty: arguments are JSON
    around: tuple[str, str] = ("", "")  # all calls of an answer
    between: str = ""
    marks: tuple[str, ...] = ()  # all of them are in the source of such a template; none: the first opening is
    noted: bool = False  # arguments are in Gemma's notation: see tool_notation.py
    named: bool = False  # the reader takes a name with an object after it
    bare: bool = False  # an object at the beginning of the answer is a call, without a tag
    single: bool = False  # the template takes one call per message
    as_openai: bool = False  # the template takes arguments as text, and no content beside calls alone as null
    short_ids: bool = False  # the template takes ids of exactly nine letters and digits
    lead: str = ""  # what comes before an answer that follows thoughts
    answer: str = ""  # how an answer that is no call is written, with {answer}; empty: as it is
    inside: bool = False  # a template that reads tool_responses takes results in the turn of their calls
    ends: tuple[str, ...] = ()  # words that end an answer, whatever the model's files name
    thoughts: str = "reasoning_content"  # the key of a past turn's thoughts

    @property
    def tags(self) -> frozenset[str]:
        """All tags: those that are special tokens, no decoder shows."""
        texts = (self.call, self.parameter, *self.around, self.lead, self.answer, QUOTE if self.noted else "")
        return frozenset((*self.openings, *self.closings, *self.ends, "[CALL_ID]", *tags_in(*texts)))

    @property
    def is_json(self) -> bool:
        """Whether a call is one JSON object; others have the name before the arguments."""
        return '{"name"' in self.call

    def shown_by(self, template: str) -> bool:
        return all(mark in template for mark in self.marks or self.openings[:1])

    def parts(self) -> tuple[str, str, str]:
        """What comes before a call's name, between name and arguments, and after them."""
        before, _, rest = self.call.partition(NAME)
        middle, _, after = rest.partition(ARGUMENTS)
        return before, middle, after

    @property
    def numbered(self) -> bool:
        """Whether a call's id is its name between what stands before it and a number."""
        return NUMBER in self.call

    def written_id(self, name: str, number: int) -> str:
        return f"{_FUNCTIONS}{name}:{number}"

    def plain_name(self, written: str) -> str:
        """A function's name, of what stands in its place: numbered ones may lack what is around it."""
        if not self.numbered:
            return written
        return _NUMBER.sub("", written.removeprefix(_FUNCTIONS))

    def parameter_parts(self) -> tuple[str, str, str]:
        """As `parts`, of one parameter."""
        before, _, rest = self.parameter.partition(KEY)
        middle, _, after = rest.partition(VALUE)
        return before, middle, after


HERMES = ToolFormat(
    "hermes",
    ("<tool_call>",),
    ("</tool_call>",),
    '<tool_call>\n{"name": "{name}", "arguments": {arguments}}\n</tool_call>',
    between="\n",
)
CODER = ToolFormat(
    "coder",
    ("<tool_call>", "<function="),
    ("</tool_call>",),
    "<tool_call>\n<function={name}>\n{arguments}</function>\n</tool_call>",
    "<parameter={key}>\n{value}\n</parameter>\n",
    between="\n",
    marks=("<tool_call>", "<function="),
)
GLM = ToolFormat(
    "glm",
    ("<tool_call>",),
    ("</tool_call>",),
    "<tool_call>{name}\n{arguments}</tool_call>",
    "<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n",
    between="\n",
    marks=("<tool_call>", "<arg_key>"),
)
GLM_DENSE = ToolFormat(  # since GLM-4.7
    "glm-dense",
    ("<tool_call>",),
    ("</tool_call>",),
    "<tool_call>{name}{arguments}</tool_call>",
    "<arg_key>{key}</arg_key><arg_value>{value}</arg_value>",
    marks=("<tool_call>", "</arg_key><arg_value>"),
)
MINIMAX = ToolFormat(
    "minimax",
    ("<minimax:tool_call>", '<invoke name="'),
    ("</minimax:tool_call>",),
    '<invoke name="{name}">\n{arguments}</invoke>\n',
    '<parameter name="{key}">{value}</parameter>\n',
    around=("<minimax:tool_call>\n", "</minimax:tool_call>"),
)
GRANITE = ToolFormat("granite", ("<|tool_call|>",), around=("<|tool_call|>[", "]"), between=", ")
LLAMA = ToolFormat(
    "llama", ("<|python_tag|>",), call='{"name": "{name}", "parameters": {arguments}}', bare=True, single=True
)
MISTRAL = ToolFormat(
    "mistral", ("[TOOL_CALLS]",), around=("[TOOL_CALLS][", "]"), between=", ", named=True, short_ids=True
)
MISTRAL_NAMED = ToolFormat(
    "mistral-named",
    ("[TOOL_CALLS]",),
    call="[TOOL_CALLS]{name}[ARGS]{arguments}",
    marks=("[TOOL_CALLS]", "[ARGS]"),
    named=True,
    short_ids=True,
)
NEMOTRON = ToolFormat(
    "nemotron", ("<TOOLCALL>",), ("</TOOLCALL>",), around=("<TOOLCALL>[", "]</TOOLCALL>"), between=", ", named=True
)
DEEPSEEK = ToolFormat(  # since V3.1
    "deepseek",
    ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>",
    around=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    as_openai=True,
)
KIMI = ToolFormat(  # K2
    "kimi",
    ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
    ("<|tool_call_end|>", "<|tool_calls_section_end|>"),
    "<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>",
    around=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
)
DEEPSEEK_V3 = replace(
    DEEPSEEK,
    name="deepseek-v3",
    openings=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>"),
    closings=("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    call="<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>",
    between="\n",
    marks=("<｜tool▁calls▁begin｜>", "```json"),
)
GEMMA = ToolFormat(  # since Gemma 4
    "gemma",
    ("<|tool_call>call:",),
    ("<tool_call|>",),
    "<|tool_call>call:{name}{arguments}<tool_call|>",
    marks=("<|tool_call>", "<tool_call|>"),
    noted=True,
    inside=True,
    ends=("<|tool_response>",),
)
HARMONY = ToolFormat(  # gpt-oss
    "harmony",
    ("<|channel|>commentary to=functions.",),
    ("<|end|>",),
    call="<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}",
    marks=("<|channel|>", "<|message|>"),
    single=True,
    lead="<|start|>assistant",
    answer="<|channel|>final<|message|>{answer}",
    ends=("<|return|>", "<|call|>"),
    thoughts="thinking",
)

# The first that a template shows is its own; so the more special ones come first.
FORMATS = (
    HARMONY,
    GEMMA,
    DEEPSEEK_V3,
    DEEPSEEK,
    KIMI,
    MISTRAL_NAMED,
    MISTRAL,
    NEMOTRON,
    MINIMAX,
    GRANITE,
    GLM_DENSE,
    GLM,
    CODER,
    HERMES,
    LLAMA,
)


def tags_in(*texts: str) -> list[str]:
    """What is written in them that may be a token of its own."""
    return _TAG.findall(" ".join(texts))


def tool_format_of(template: str) -> ToolFormat | None:
    """The format that a template's source shows, None if it shows none of these."""
    found = next((each for each in FORMATS if each.shown_by(template)), None)
    return LLAMA if found is None and '"parameters": ' in template else found


def written(tool_format: ToolFormat, calls: Sequence[tuple[str, str]]) -> str:
    """Calls (names and arguments in JSON) as a model writes them."""
    texts = [
        tool_format.call.replace(NUMBER, str(number), 1)
        .replace(ARGUMENTS, _arguments(tool_format, arguments))
        .replace(NAME, name, 1)
        for number, (name, arguments) in enumerate(calls)
    ]
    begin, end = tool_format.around
    return begin + tool_format.between.join(texts) + end


def _arguments(tool_format: ToolFormat, arguments: str) -> str:
    """As they are where they are no object."""
    try:
        values = _loads(arguments or "{}")
    except ValueError:
        return arguments
    if tool_format.noted:
        return noted(values)
    if not tool_format.parameter or not isinstance(values, dict):
        return arguments or "{}"
    before, middle, after = tool_format.parameter_parts()
    texts = ((key, value if isinstance(value, str) else as_json(value)) for key, value in values.items())
    return "".join(f"{before}{key}{middle}{value}{after}" for key, value in texts)


def noted(value: object) -> str:
    """A value in Gemma's notation."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{noted(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(noted, value)) + "]"
    return f"{QUOTE}{value}{QUOTE}" if isinstance(value, str) else as_json(value)


def typed(text: str, schema: object) -> str:
    """A parameter's text as JSON of its schema's type, or as a JSON string if it is none."""
    kinds = kinds_of(schema)
    word = {"True": "true", "False": "false", "None": "null"}.get(text.strip(), text)  # as templates write them
    try:
        value = _loads(word)
        is_text = kinds == {"string"} or ("string" in kinds and value is not None)
        return as_json(text if is_text else value)
    except ValueError:
        return as_json(text)


def kinds_of(schema: object) -> set[str]:
    """The types that a schema names, directly or as one of several schemas; empty if it names none."""
    if not isinstance(schema, Mapping):
        return set()
    named, values = schema.get("type"), as_list(schema.get("enum"))
    kinds = {kind for kind in (named, *as_list(named)) if isinstance(kind, str)}
    choices = (*as_list(schema.get("anyOf")), *as_list(schema.get("oneOf")))
    if values and not kinds and not choices:
        return {"string"} if all(isinstance(value, str) for value in values) else set()
    return kinds.union(*map(kinds_of, choices))


def properties_of(schema: Mapping[str, object]) -> Mapping[str, object]:
    found = schema.get("properties")
    return found if isinstance(found, Mapping) else {}


def as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def text_of(quoted: str) -> str:
    """A JSON string's text; empty if it is no string that can be encoded."""
    try:
        text = str(_loads(quoted))
        text.encode()
        return text
    except ValueError:
        return ""


def call_of(text: str) -> tuple[str, str] | None:
    """Name and arguments of an object that is a call, with its keys in any order or in OpenAI's nesting."""
    try:
        value = _loads(text)
        inner = value.get("function") if isinstance(value, dict) else None
        value = inner if isinstance(inner, dict) else value
        name = inner if isinstance(inner, str) else value.get("name")
        arguments = value.get("arguments", value.get("parameters"))
        written = arguments if isinstance(arguments, str) else as_json({} if arguments is None else arguments)
        return (name, written) if isinstance(name, str) and isinstance(_loads(written), dict) else None
    except ValueError:
        return None


def _loads(text: str) -> Any:
    """Raises ValueError for what is not JSON, including Python's extensions of it."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def is_json(text: str) -> bool:
    try:
        _loads(text)
        return True
    except ValueError:
        return False


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def as_json(value: object) -> str:
    """JSON that can be encoded: lone surrogates are escaped. Raises ValueError for a number that JSON does not have."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return json.dumps(value)
