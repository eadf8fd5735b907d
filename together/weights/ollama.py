"""Ollama's models: tags name manifests, manifests name blobs, and one blob is the GGUF file.

As ollama's packages `manifest` and `types/model` read them; nothing in a manifest is trusted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from together.models.folder import read_begin
from together.weights.listing import Reach, file_size, folders_in

_ROOTS = ("manifests-v2", "manifests")  # the first one that has a tag counts
_DEPTH = 3  # folders above a tag: host, namespace, model
_HOSTS = ("ollama.com", "registry.ollama.ai")  # both are the same one
_NAMESPACE, _TAG = "library", "latest"  # what names leave out
_LIST = "application/vnd.ollama.manifest.list.v2+json"
_MODEL, _ADAPTER = (f"application/vnd.ollama.image.{kind}" for kind in ("model", "adapter"))
_ON_GGUF = ("", "ollama", "llamacpp", "ggml")  # runners whose manifests have GGUF files
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_NAME = re.compile(r"[\w.:-]{1,128}")  # a host may have a port
_MOST = 2**20  # bytes of a manifest; usual are 1,000


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag's name as `ollama list` shows it, its manifest, and the GGUF file that it stands for."""

    name: str
    manifest: Path
    blob: Path
    bytes: int


def tags_in(root: Path, reach: Reach) -> Iterator[Tag]:
    """The tags of one of Ollama's folders that stand for a GGUF file which is here, each once."""
    try:
        top = root.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return
    seen: set[str] = set()
    for manifests in _ROOTS:
        for folder, files in folders_in(top / manifests, _DEPTH, reach):
            names = [(_name(file.relative_to(folder.parents[2])), file) for file in files if _is_tag(file, folder, top)]
            for name, file in names:
                tag = _tag(name, file, top) if name and name not in seen else None
                if tag is not None:
                    seen.add(name)
                    yield tag


def short_name(name: str) -> str:
    """A tag's name without the tag that is taken where none is named."""
    return name.removesuffix(f":{_TAG}")


def _is_tag(file: Path, folder: Path, top: Path) -> bool:
    return len(folder.relative_to(top).parts) == 1 + _DEPTH


def _name(place: Path) -> str:
    """`llama3.2:3b`, `someone/model:tag` or `hf.co/org/name:tag`; empty for what is no name."""
    if not all(_NAME.fullmatch(part) for part in place.parts):
        return ""
    host, namespace, model, tag = place.parts
    if host.lower() not in _HOSTS:
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == _NAMESPACE else f"{namespace}/{model}:{tag}"


def _tag(name: str, file: Path, top: Path) -> Tag | None:
    manifest = _manifest(file, top)
    layers = _layers(_of_gguf(manifest, top) if manifest.get("mediaType") == _LIST else manifest)
    kinds = [layer.get("mediaType") for layer in layers]
    if kinds.count(_MODEL) != 1 or _ADAPTER in kinds:  # with an adapter the model writes something else
        return None
    blob = _blob(layers[kinds.index(_MODEL)].get("digest"), top)
    size = None if blob is None else file_size(blob, top)
    return Tag(name, file, blob, size) if blob is not None and size else None


def _of_gguf(manifests: dict[str, Any], top: Path) -> dict[str, Any]:
    """The one manifest of a list whose model is a GGUF file; empty where there is none."""
    listed = manifests.get("manifests")
    for child in listed if isinstance(listed, list) else ():
        if isinstance(child, dict) and child.get("runner", "") in _ON_GGUF:
            blob = None if _layers(child) else _blob(child.get("digest"), top)
            return child if blob is None else _manifest(blob, top)
    return {}


def _layers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    layers = manifest.get("layers")
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def _blob(digest: object, top: Path) -> Path | None:
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    return top / "blobs" / f"sha256-{match[1]}" if match else None


def _manifest(file: Path, top: Path) -> dict[str, Any]:
    """What a manifest in Ollama's folder says; empty where it is none."""
    size = file_size(file, top)
    if not size or size > _MOST:
        return {}
    try:
        found = json.loads(read_begin(file, _MOST))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
