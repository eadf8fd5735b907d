"""Dataclasses as plain JSON, with the text of their sentences."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from together.sentences import Sentence


def plain_fields(value: Any) -> dict[str, object]:
    """And what it is in words, where it has a sentence of its own."""
    found = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return {**found, "sentence": str(value.sentence)} if hasattr(value, "sentence") else found


def plain(value: Any) -> object:
    """A value as plain JSON: dataclasses field for field, sentences as their text."""
    if isinstance(value, Sentence):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return plain_fields(value) if is_dataclass(value) else value
