"""Folders of models as LM Studio, Ollama, llama.cpp and the hub's tools lay them out; the files hold any bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MODEL = "application/vnd.ollama.image.model"
ADAPTER = "application/vnd.ollama.image.adapter"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_LIST = "application/vnd.ollama.manifest.list.v2+json"
LIBRARY = "registry.ollama.ai/library"


def put(file: Path, data: bytes = b"GGUF") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def hub_file(cache: Path, name: str, file: str, data: bytes = b"GGUF", revision: str = "0123") -> Path:
    """A file as the hub's tools keep it: a link in the snapshot to a blob. Returns the link."""
    root = cache / f"models--{name.replace('/', '--')}"
    blob = put(root / "blobs" / hashlib.sha256(data).hexdigest(), data)
    link = root / "snapshots" / revision / file
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(blob)
    put(root / "refs" / "main", revision.encode())
    return link


class OllamaFolder:
    """`root` with `manifests` and `blobs`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, data: bytes) -> str:
        """Keep these bytes; their digest, as manifests name it."""
        digest = hashlib.sha256(data).hexdigest()
        put(self.root / "blobs" / f"sha256-{digest}", data)
        return f"sha256:{digest}"

    def file(self, digest: str) -> Path:
        return self.root / "blobs" / digest.replace(":", "-")

    def manifest(self, *layers: tuple[str, str], **more: Any) -> dict[str, Any]:
        """One of layers, each a kind and a digest."""
        listed = [{"mediaType": kind, "digest": digest, "size": 1} for kind, digest in layers]
        return {"schemaVersion": 2, "mediaType": _MANIFEST, "config": {}, "layers": listed, **more}

    def tag(self, name: str, manifest: object) -> Path:
        """Write a tag, as `registry.ollama.ai/library/llama3.2/3b`."""
        return put(self.root / "manifests" / name, json.dumps(manifest).encode())

    def add(self, name: str, data: bytes = b"GGUF") -> Path:
        """A tag of a GGUF file with these bytes, and a template. Returns the blob."""
        digest, template = self.blob(data), self.blob(b"{{ .Prompt }}")
        self.tag(name, self.manifest((MODEL, digest), ("application/vnd.ollama.image.template", template)))
        return self.file(digest)

    def add_list(self, name: str, *children: dict[str, Any]) -> Path:
        """A tag as newer versions write it: a link to a blob, which lists manifests by runners."""
        digest = self.blob(json.dumps({"schemaVersion": 2, "mediaType": _LIST, "manifests": children}).encode())
        link = self.root / "manifests-v2" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.file(digest))
        return link
