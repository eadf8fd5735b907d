"""Remembers sha256 of files on this machine, so that no unchanged file is ever hashed twice. Knows no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from together.models.folder import write_whole

Stamp = list[list[str | int]]  # name, bytes and modification time in ns of every file that was read


class Digests:
    """One small file per hash, in `home/digests`. A home that cannot be written only costs time."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "digests"

    def get(self, key: str, stamp: Stamp) -> str | None:
        """The sha256 kept for `key`, if it was of files with this very stamp."""
        try:
            kept = json.loads(self._file(key).read_bytes())
            digest = kept["sha256"] if (kept["key"], kept["stamp"]) == (key, stamp) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return digest if isinstance(digest, str) else None

    def put(self, key: str, stamp: Stamp, sha256: str) -> None:
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._file(key), json.dumps({"key": key, "stamp": stamp, "sha256": sha256}).encode())

    def _file(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.json"


def stamp_of(files: Sequence[Path]) -> Stamp:
    """What tells a changed file from an unchanged one. Raises OSError."""
    found = [(file.name, file.stat()) for file in files]
    return [[name, facts.st_size, facts.st_mtime_ns] for name, facts in found]


def sha256_of(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
