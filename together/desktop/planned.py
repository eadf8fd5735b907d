"""The model that a plan is for: on this machine, on the hub, by its config.json alone, or a well-known shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from together.errors import BadInput, BadSetting, Unreachable
from together.models.folder import read_json
from together.models.gguf.sources import is_imported
from together.models.manifest import CONFIG, is_shard
from together.models.summary import Summary, summarize_config
from together.planning.fields import near_names
from together.planning.shapes import SHAPES, shape_named
from together.weights.find import resolve_model
from together.weights.inspected import inspect_folder, inspect_hub


@dataclass(frozen=True, slots=True)
class ModelToPlan:
    """What is known of it without its weights; `config` is None where it is not here or does not run here."""

    name: str
    summary: Summary
    config: dict[str, Any] | None


def planned_model(model: str | dict[str, Any], home: Path) -> ModelToPlan:
    """A folder, a known name, a hub id, a shape's name, or a config.json. Raises BadInput or Unreachable."""
    if isinstance(model, dict):
        name = model.get("name")
        return _by_config(name if isinstance(name, str) else "the file's model", model)
    try:
        found = resolve_model(model, home)
    except BadSetting as error:
        known = shape_named(model)
        if known is not None:
            return _by_config(known, SHAPES[known])
        near = near_names(model, tuple(SHAPES), 3) or tuple(SHAPES)[:4]
        message = "{error}, or a well-known one: {near}"
        raise BadSetting(message, error=error.sentence, near=near) from None
    if isinstance(found, str):
        return _on_hub(found, home)
    if not (is_shard(found) or is_imported(found) or any(found.glob("*.safetensors"))):
        return _by_config(found.name, read_json(found, CONFIG))
    here = inspect_folder(found, home)
    config = read_json(found, CONFIG) if here.reason is None else None
    return ModelToPlan(here.published.name, here.summary, config)


def _on_hub(name: str, home: Path) -> ModelToPlan:
    """By its headers. Where the hub does not give them, the error names the shape that is known without it."""
    try:
        return ModelToPlan(name, inspect_hub(name, home).summary, None)
    except (BadInput, Unreachable) as error:
        known = shape_named(name.rpartition("/")[2])
        if known is None:
            raise
        kind = Unreachable if isinstance(error, Unreachable) else BadSetting
        message = "{error}; its shape is known without the hub: --model {known}"
        raise kind(message, error=error.sentence, known=known) from None


def _by_config(name: str, config: dict[str, Any]) -> ModelToPlan:
    return ModelToPlan(name, summarize_config(name, config), config)
