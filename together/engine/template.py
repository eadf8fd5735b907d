"""A model's own chat template: finds it in the model's folder and renders it in Jinja's sandbox. Knows no token ids.

Templates are strangers' code: they see plain strings, lists and dicts, and may neither change those nor reach Python.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from together.errors import BadRequest, BrokenModel
from together.requests import Message

# For a model without a template: roles as words, one blank line between turns.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
# What a template of a stranger can run into while it renders: its own complaint, the sandbox, or plain nonsense.
_RENDER_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)


class ChatTemplate:
    """Turns a conversation into the text that the model was trained on."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """`special` are the words a template may name, as `bos_token`. Raises BrokenModel for a syntax error."""
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise BrokenModel(f"the chat template does not parse (line {error.lineno}: {error.message})") from error
        self._special = dict(special)

    def render(self, messages: Sequence[Message], **variables: object) -> str:
        """The conversation as text, up to where the assistant goes on. Raises BadRequest if the template refuses."""
        turns = [_turn(message) for message in messages]
        known: dict[str, object] = {"add_generation_prompt": True, "tools": None, "documents": None}
        try:
            return self._template.render({**self._special, **known, **variables, "messages": turns})
        except _RENDER_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise BadRequest(f"the model's chat template refuses this conversation: {reason}", "messages") from error


def _turn(message: Message) -> dict[str, str]:
    turn = {"role": message.role, "content": message.content}
    return turn | ({"reasoning_content": message.reasoning} if message.reasoning else {})


def find_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """The template's source, from `chat_template.jinja` or the tokenizer's configuration; None if there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = tokenizer_config.get("chat_template")
    if isinstance(found, list):  # several, by name
        by_name = {entry["name"]: entry["template"] for entry in found}
        return by_name.get("default")
    return found if isinstance(found, str) else None


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
