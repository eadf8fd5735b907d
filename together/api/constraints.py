"""What other servers call their fields for answers that have to match something, honoured by the same grammars."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field, JsonValue

from together.api.content import Strict
from together.api.responses import wrong
from together.requests import Grammar

Choices = Annotated[list[str], Field(min_length=1, max_length=4096, fail_fast=True)]


class StructuredOutputs(Strict):
    """vLLM's newer field; one of these is given."""

    wanted: Annotated[dict[str, JsonValue] | str | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: JsonValue = None  # refused


def _schema_text(schema: Mapping[str, JsonValue] | str, field: str) -> str:
    """Raises BadRequest for a text that is no schema."""
    if not isinstance(schema, str):
        return json.dumps(schema)
    try:
        found = json.loads(schema)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise wrong(field, "a JSON schema is an object, or its text")
    return schema


class ConstraintFields(Strict):
    """vLLM's older fields, its newer one, and llama.cpp's `grammar` in GBNF and `json_schema`."""

    guided_json: dict[str, JsonValue] | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None
    grammar: str | None = None
    json_schema: dict[str, JsonValue] | None = None

    def constraint(self, other: Grammar | None = None) -> Grammar | None:
        """The one that is asked for, here or as `other`. Raises BadRequest where there are several."""
        found = [*self._asked()] + ([other] if other is not None else [])
        if len(found) > 1:
            raise wrong(
                found[0].param, "an answer can be held to one thing, and {other} asks too", other=found[1].param
            )
        return found[0] if found else None

    def _asked(self) -> Iterator[Grammar]:
        within = self.structured_outputs or StructuredOutputs()
        if within.structural_tag is not None:
            where = "structured_outputs.structural_tag"
            raise wrong(where, "not supported by this version of together; offer tools instead")
        for field, schema in (
            ("guided_json", self.guided_json),
            ("json_schema", self.json_schema),
            ("structured_outputs.json", within.wanted),
            ("structured_outputs.json_object", {"type": "object"} if within.json_object else None),
        ):
            if schema is not None:
                yield Grammar("json_schema", _schema_text(schema, field), field)
        for field, regex in (("guided_regex", self.guided_regex), ("structured_outputs.regex", within.regex)):
            if regex is not None:
                yield Grammar("regex", regex, field)
        for field, choice in (("guided_choice", self.guided_choice), ("structured_outputs.choice", within.choice)):
            if choice is not None:
                yield Grammar("choice", json.dumps(choice), field)
        for field, rules in (
            ("guided_grammar", self.guided_grammar),
            ("grammar", self.grammar),
            ("structured_outputs.grammar", within.grammar),
        ):
            if rules is not None:
                yield Grammar("gbnf", rules, field)
