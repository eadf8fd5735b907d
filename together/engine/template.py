"""A model's own chat template: finds it in the model's folder and renders it in Jinja's sandbox. Knows no token ids.

Templates are strangers' code: they see plain strings, lists and dicts, and may neither change those nor reach Python.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from together.engine.tool_styles import HERMES, ToolStyle, style_of
from together.engine.turns import Turn, native_turns, offer, plain_turns, told_of
from together.errors import BadRequest, BrokenModel
from together.requests import Message, Tool

# For a model without a template: roles as words, one blank line between turns.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
# What a template of a stranger can run into while it renders: its own complaint, the sandbox, or plain nonsense.
_RENDER_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class ChatTemplate:
    """Turns a conversation into the text that the model was trained on."""

    def __init__(self, source: str, special: Mapping[str, str], tool_source: str | None = None) -> None:
        """`special` are the words a template may name, as `bos_token`; `tool_source` is another template for tools.

        Raises BrokenModel for a syntax error.
        """
        self._plain = _Side.of(source)
        self._tools = self._plain if tool_source is None else _Side.of(tool_source)
        self._special = dict(special)

    @property
    def style(self) -> ToolStyle:
        """How this model writes tool calls."""
        return self._tools.style or HERMES

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), /, **variables: object) -> str:
        """The conversation as text, up to where the assistant goes on. Raises BadRequest if the template refuses."""
        has_calls = any(message.calls or message.role == "tool" for message in messages)
        side = self._tools if tools or has_calls else self._plain
        if side.style is not None:
            given = {"tools": offer(tools)} if tools else {}
            return self._render(side.template, native_turns(messages, side.style), variables | given)
        if not tools:
            return self._render(side.template, plain_turns(messages), variables)
        return self._told(side.template, messages, tools, variables)

    def _told(
        self, template: Template, messages: Sequence[Message], tools: Sequence[Tool], variables: Mapping[str, object]
    ) -> str:
        """Tools in words, in the system's turn; in the first one of the user for templates that know no system."""
        try:
            return self._render(template, plain_turns(told_of(messages, tools)), variables)
        except BadRequest:
            if any(message.role == "system" for message in messages):
                raise
        return self._render(template, plain_turns(told_of(messages, tools, "user")), variables)

    def _render(self, template: Template, turns: Sequence[Turn], variables: Mapping[str, object]) -> str:
        known: dict[str, object] = {"add_generation_prompt": True, "tools": None, "documents": None}
        try:
            return template.render({**self._special, **known, **variables, "messages": turns})
        except _RENDER_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise BadRequest(f"the model's chat template refuses this conversation: {reason}", "messages") from error


@dataclass(frozen=True, slots=True)
class _Side:
    """A template; `style` is how it writes calls, None where it takes no tools or its calls are unknown here."""

    template: Template
    style: ToolStyle | None

    @classmethod
    def of(cls, source: str) -> _Side:
        environment = _environment()
        try:
            wanted = meta.find_undeclared_variables(environment.parse(source))
            return cls(environment.from_string(source), style_of(source) if "tools" in wanted else None)
        except TemplateSyntaxError as error:
            raise BrokenModel(f"the chat template does not parse (line {error.lineno}: {error.message})") from error


def find_template(folder: Path, tokenizer_config: Mapping[str, Any], name: str = "default") -> str | None:
    """A template's source, from a file of its own or the tokenizer's configuration; None if there is none.

    `name` "tool_use" is what some models bring for conversations with tools.
    """
    default = name == "default"
    file = folder / ("chat_template.jinja" if default else f"additional_chat_templates/{name}.jinja")
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = tokenizer_config.get("chat_template")
    if isinstance(found, list):  # several, by name
        by_name = {entry["name"]: entry["template"] for entry in found}
        return by_name.get(name)
    return found if default and isinstance(found, str) else None


def _environment() -> Environment:
    """Jinja as model templates expect it, following the conventions of transformers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _complain
    environment.globals["strftime_now"] = _now
    return environment


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012  # what Jinja declares

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: object, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter escapes HTML characters, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _complain(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
