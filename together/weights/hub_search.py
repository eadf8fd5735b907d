"""What the hub has under some words, by one request: names, sizes, licences, and whether their families run here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, get_token, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, exported without __all__

from together.errors import BadSetting, Unreachable
from together.jsonfile import write_whole
from together.models.families import BY_NAME
from together.models.headers import ELEMENT_BYTES
from together.models.names import is_model_name
from together.weights.hub_listing import ANSWER_WITHIN, reached
from together.weights.hub_ranges import endpoint
from together.wording import MOST, cut, quoted, reason_of

HUB = "https://huggingface.co"
MOST_FOUND = 30
LONGEST = 200  # characters of a search
_EXPANDED = ("config", "downloads", "gated", "gguf", "lastModified", "likes", "private", "safetensors", "tags")
_WEIGHTS = ("safetensors", "gguf")
_TEXT = ("text-generation", "image-text-to-text", "any-to-any")  # what such models are said to do
_TOKEN = re.compile(r"[\x21-\x7e]{4,400}")
_NO_TEXT = ("sentence-transformers", "feature-extraction", "text-to-image", "diffusers")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository. What is not known is 0 or empty. `runs`: whether its family is one of ours, as far as it says."""

    name: str
    gated: bool
    licence: str
    family: str
    runs: bool | None
    gguf: bool
    params: int
    bytes: int
    context: int
    downloads: int
    likes: int
    changed: str  # a date


@dataclass(frozen=True, slots=True)
class HubAccess:
    """Which hub is asked, and with what."""

    url: str
    mirror: bool
    offline: bool
    token: bool


def hub_access() -> HubAccess:
    """Of this process now."""
    url = endpoint()
    return HubAccess(url, url != HUB, constants.is_offline_mode(), bool(get_token()))


def keep_token(token: str) -> None:
    """Keep it where the hub's own tools do, for its owner alone; an empty one is forgotten. Raises BadSetting."""
    if os.environ.get("HF_TOKEN"):
        raise BadSetting("HF_TOKEN is set where the app was started, and counts before any other; change it there")
    token, file = token.strip(), Path(constants.HF_TOKEN_PATH)
    if token and not _TOKEN.fullmatch(token):
        raise BadSetting("that is no token of the hub; copy it from {hub}/settings/tokens", hub=endpoint())
    try:
        if token:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, token.encode(), private=True)
        else:
            file.unlink(missing_ok=True)
    except OSError as error:
        message = "the token cannot be kept in {file} ({reason}); set HF_TOKEN instead"
        raise BadSetting(message, file=str(file), reason=reason_of(error)) from None


def search_hub(words: str) -> tuple[HubModel, ...]:
    """Models with weights that can run here, the most downloaded first. Raises BadSetting or Unreachable."""
    words = " ".join(words.split())
    if not words or len(words) > LONGEST:
        raise BadSetting("a search has 1 to {most} characters; write a part of a model's name", most=LONGEST)
    asked: dict[str, Any] = {"search": words, "sort": "downloads", "direction": "-1", "limit": MOST_FOUND}
    with reached(quoted(words)):
        answer = get_session().get(
            f"{endpoint()}/api/models",
            params=asked | {"expand": list(_EXPANDED)},
            headers=build_hf_headers(),
            timeout=ANSWER_WITHIN,
        )
        hf_raise_for_status(answer)
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise Unreachable("{hub} does not answer as a hub does; check HF_ENDPOINT", hub=endpoint())
    return tuple(_models(found[:MOST_FOUND]))


def _models(found: list[Any]) -> Iterator[HubModel]:
    """Nothing that a hub says is trusted: what is none of what it should be is passed over."""
    for item in found:
        name = item.get("id") if isinstance(item, dict) else None
        if not isinstance(name, str) or not is_model_name(name) or name.count("/") != 1:
            continue
        tags = [tag for tag in _list(item.get("tags")) if isinstance(tag, str)]
        if _writes_text(tags):
            yield _model(name, item, tags)


def _writes_text(tags: list[str]) -> bool:
    weights = any(tag in _WEIGHTS for tag in tags)
    return weights and (any(tag in _TEXT for tag in tags) or not any(tag in _NO_TEXT for tag in tags))


def _model(name: str, item: Mapping[str, Any], tags: list[str]) -> HubModel:
    gguf, stored = _table(item.get("gguf")), _table(item.get("safetensors"))
    only_gguf = "gguf" in tags and "safetensors" not in tags
    family = _text(gguf.get("architecture") if only_gguf else _table(item.get("config")).get("model_type"))
    counts = {key: _count(value) for key, value in _table(stored.get("parameters")).items()}
    return HubModel(
        name=name,
        gated=item.get("gated") not in (None, False),
        licence=next((_text(tag.removeprefix("license:")) for tag in tags if tag.startswith("license:")), ""),
        family=family,
        runs=None if only_gguf or not family else family in BY_NAME,
        gguf=only_gguf,
        params=_count(gguf.get("total")) if only_gguf else _count(stored.get("total")) or sum(counts.values()),
        bytes=0 if only_gguf else sum(ELEMENT_BYTES.get(key, 0) * count for key, count in counts.items()),
        context=_count(gguf.get("context_length")),
        downloads=_count(item.get("downloads")),
        likes=_count(item.get("likes")),
        changed=_text(item.get("lastModified"))[:10],
    )


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return cut(value, MOST) if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**63 else 0
