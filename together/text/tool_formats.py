"""How models write tool calls, and which of these ways a chat template shows. Knows no request, no token, no parsing.

The formats are the ones of the models' own templates and documents: Hermes and Qwen, Qwen3-Coder, Llama 3, Mistral
before and since its tokenizer of version 11, Nemotron.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# What stands between the tags: {"name", "arguments"}, a list of these, name and arguments, or <function=name>.
Body = Literal["object", "list", "named", "function"]
FUNCTION = "<function="
ARGUMENTS_TAG = "[ARGS]"


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """One way to write calls. `body` is what the model was taught; what is read is any body that can be told apart."""

    name: str
    openings: tuple[str, ...]  # the first one is what a forced call begins with
    closing: str = ""
    body: Body = "object"
    arguments: str = "arguments"  # the key of an object
    spaces: str = ""  # between a tag and the body, and between calls
    bare: bool = False  # an object at the beginning of the answer is a call without any tag
    single: bool = False  # the template takes one call in a turn
    short_ids: bool = False  # the template takes ids of exactly nine letters and digits

    @property
    def words(self) -> tuple[str, ...]:
        """Tags that a tokenizer may have as special tokens, which no decoder shows."""
        return (*self.openings, self.closing, ARGUMENTS_TAG, "[CALL_ID]")


HERMES = ToolStyle("hermes", ("<tool_call>",), "</tool_call>", spaces="\n")
CODER = ToolStyle("coder", ("<tool_call>", FUNCTION), "</tool_call>", "function", spaces="\n")
LLAMA = ToolStyle("llama", ("<|python_tag|>",), arguments="parameters", bare=True, single=True)
MISTRAL = ToolStyle("mistral", ("[TOOL_CALLS]",), body="list", short_ids=True)
MISTRAL_NAMED = ToolStyle("mistral-named", ("[TOOL_CALLS]",), body="named", short_ids=True)
NEMOTRON = ToolStyle("nemotron", ("<TOOLCALL>",), "</TOOLCALL>", "list")


def style_of(template: str) -> ToolStyle | None:
    """The way that a template's own text shows; None if it shows none of these."""
    if MISTRAL.openings[0] in template:
        return MISTRAL_NAMED if ARGUMENTS_TAG in template else MISTRAL
    if NEMOTRON.openings[0] in template:
        return NEMOTRON
    if HERMES.openings[0] in template:
        return CODER if FUNCTION in template else HERMES
    if LLAMA.openings[0] in template or '"parameters": ' in template:
        return LLAMA
    return None
