"""Where a model's folder keeps its chat templates, and what they are called. Reads them; runs none."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from together.errors import BrokenModel
from together.models.folder import read_bytes, read_json
from together.models.manifest import template_names

logger = logging.getLogger(__name__)

DEFAULT, TOOL_USE = "default", "tool_use"
MOST_SOURCE = 2**19  # bytes of a template; published ones have up to 30 kB
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def find_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """A model's templates by name, from every place that publishers use; `config` is tokenizer_config.json.

    Files of their own win over chat_template.json, and that over the tokenizer's configuration. A model with templates
    and no default uses its first one. Raises BrokenModel for an unknown encoding, and for a template that is none
    or too large.
    """
    found: dict[str, str] = {}
    for name, source in _all(folder, config):
        _check_size(folder, len(source))
        if source.strip():
            found[name] = source
        else:
            logger.warning("an empty chat template of %s is passed over: %.60r", folder.name, name)
    if not found and not isinstance(config.get("chat_template") or "", str):
        raise BrokenModel(f"the chat template of {folder.name} is no text; correct it, or get this model again")
    if found and DEFAULT not in found:
        first = next((name for name in found if name != TOOL_USE), TOOL_USE)
        found[DEFAULT] = found[first]
        logger.warning("%s has no default chat template: %.60r is used", folder.name, first)
    return found


def _all(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every template with its name; a later one of the same name counts."""
    yield from _listed(config.get("chat_template"), folder.name)
    yield from _listed(words_json(folder, "chat_template.json").get("chat_template"), folder.name)
    if (folder / "chat_template.jinja").is_file():
        yield DEFAULT, read_text(folder, "chat_template.jinja")
    for name in template_names(folder):
        yield Path(name).stem, read_text(folder, name)


def words_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object that may hold the chat template; empty where the file is missing or has nothing in it.

    Without its template a model answers nonsense, so a broken file is an error. Raises BrokenModel naming it.
    """
    file = folder / name
    if file.is_file() and not read_bytes(folder, name).strip():
        logger.warning("%s of %s is empty; it is passed over", name, folder.name)
        return {}
    return read_json(folder, name) if file.is_file() else {}


def _listed(value: object, name: str) -> Iterator[tuple[str, str]]:
    """One template, a list of named ones, or a table of them; what is none of these is warned about."""
    if isinstance(value, str):
        yield DEFAULT, value
    elif isinstance(value, dict):
        yield from ((str(key), text) for key, text in value.items() if isinstance(text, str))
    elif isinstance(value, list):
        for entry in value:
            text = entry.get("template") if isinstance(entry, dict) else None
            if isinstance(text, str):
                yield str(entry.get("name") or DEFAULT), text
            else:
                logger.warning("%s lists a chat template that is none; it is passed over", name)


def read_text(folder: Path, name: str) -> str:
    """A text in UTF-8, or in what its byte order mark names; line ends as Jinja has them.

    Raises BrokenModel naming the file where it is in another encoding, too large, or no file of this folder.
    """
    file = folder / name
    _check_size(folder, file.stat().st_size)  # a file that is too large is not read
    data = read_bytes(folder, name)
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    try:
        return data.removeprefix(mark).decode(encoding)
    except UnicodeDecodeError as error:
        raise BrokenModel(
            f"{file.name} of {folder.name} is not in UTF-8 (byte {error.start}); save it in UTF-8"
        ) from error


def _check_size(folder: Path, size: int) -> None:
    if size > MOST_SOURCE:
        raise BrokenModel(
            f"the chat template of {folder.name} has {size} bytes, {MOST_SOURCE} are the most; get this model again"
        )
