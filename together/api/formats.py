"""`response_format`: what it may say, and the grammar that it means. Knows no HTTP, no model and no grammar library."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from together.api.fields import Strict
from together.errors import BadRequest
from together.requests import Grammar

Schema = dict[str, JsonValue]

ANY_OBJECT: Schema = {"type": "object"}


class JsonSchema(Strict):
    """A named schema. It is always enforced, whatever `strict` says; name and description have no other effect."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    wanted: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Strict):
    """Text as it comes, any JSON object, or JSON by a schema. `schema` is llama.cpp's place for it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    wanted: Annotated[Schema | None, Field(alias="schema")] = None

    def grammar(self) -> Grammar | None:
        """Raises BadRequest where the type needs a schema and there is none."""
        if self.type == "text":
            return None
        schema = self._named() if self.type == "json_schema" else self.wanted
        return Grammar("json_schema", json.dumps(ANY_OBJECT if schema is None else schema))

    def _named(self) -> Schema | None:
        if self.json_schema is not None:
            return self.json_schema.wanted
        if self.wanted is None:
            path = "response_format.json_schema"
            raise BadRequest(f"{path}: type json_schema needs it, with a name and a schema", param=path)
        return self.wanted
