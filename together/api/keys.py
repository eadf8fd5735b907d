"""API keys: shown once, kept as hashes in a file that nobody else reads. Other processes make and revoke them, too.

A key has 256 random bits, so that its sha256 tells nothing of it. A browser's cookie is made of the key and kept as
a hash as well: neither is found by the file, and a cookie is no key.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
import time
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path

from filelock import FileLock

from together.errors import AppError, BadSetting, TogetherError
from together.jsonfile import read_json, write_json
from together.requests import LOCAL
from together.wording import quoted

logger = logging.getLogger(__name__)

START = "tg-"  # of every key, so that a person and a scanner of secrets know one
LONGEST = 200  # letters that are looked at
MOST_KEYS = 100
MOST_NAME = 60


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key. `digest` and `cookie` are sha256 in hex, `made` is Unix time."""

    id: str
    name: str
    made: int
    digest: str
    cookie: str


@dataclass(frozen=True, slots=True)
class _Kept:
    keys: tuple[ApiKey, ...] = ()


def new_key() -> str:
    return START + secrets.token_urlsafe(32)


def cookie_of(key: str) -> str:
    """What a browser that showed this key has as its cookie."""
    return hashlib.sha256(b"together: a browser's cookie\0" + key.encode()).hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


class KeyFile:
    """The keys of one home folder. What another process changes holds from the next look on."""

    def __init__(self, home: Path) -> None:
        self._file = home / "keys.json"
        self._lock = FileLock(home / "keys.lock")
        self._seen: tuple[int, ...] | None = None  # what the file was when it was read
        self._keys: tuple[ApiKey, ...] = ()

    # --- for who changes them -----------------------------------------------------------------------------------------

    def make(self, name: str) -> tuple[ApiKey, str]:
        """A new key, and its text, which is never to be had again. Raises BadSetting, or AppError."""
        name = name.strip()
        if not name or len(name) > MOST_NAME or not name.isprintable():
            raise BadSetting("a key's name has 1 to {most} letters, as phone", most=MOST_NAME)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            keys = self.kept()
            if name == LOCAL or any(name in (key.name, key.id) for key in keys):
                text = "there is a key {name} already; give another name, or: python3 launch.py keys revoke {name}"
                raise BadSetting(text, name=quoted(name))
            if len(keys) >= MOST_KEYS:
                raise BadSetting("there are {most} keys already; revoke one that nobody uses", most=MOST_KEYS)
            text = new_key()
            made = ApiKey(secrets.token_hex(4), name, int(time.time()), _digest(text), _digest(cookie_of(text)))
            write_json(self._file, _Kept((*keys, made)), private=True)
        return made, text

    def revoke(self, name: str) -> ApiKey:
        """Of a name, or an id. Raises BadSetting, or AppError."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            keys = self.kept()
            gone = next((key for key in keys if name in (key.name, key.id)), None)
            if gone is None:
                raise BadSetting("there is no key {name}; see: python3 launch.py keys list", name=quoted(name))
            write_json(self._file, _Kept(tuple(key for key in keys if key is not gone)), private=True)
        return gone

    def kept(self) -> tuple[ApiKey, ...]:
        """All keys, as the file has them now. Raises AppError where others may write it, or BrokenFile."""
        if os.name != "nt" and self._file.exists() and self._file.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            text = "others may write {file}, so that its keys are nobody's; delete it, and make new ones"
            raise AppError(text, file=str(self._file))
        return (read_json(self._file, _Kept) or _Kept()).keys

    # --- for who asks for them ----------------------------------------------------------------------------------------

    def now(self) -> tuple[ApiKey, ...]:
        """As `kept`, read only where the file changed; none where it cannot be read, and the log says why."""
        seen: tuple[int, ...]
        try:
            found = self._file.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode)
        except OSError:
            seen = ()
        if seen != self._seen:
            self._seen, self._keys = seen, ()
            try:
                self._keys = self.kept()
            except TogetherError as error:
                logger.error("no key is accepted: %s", error)
        return self._keys

    def by_key(self, text: str) -> ApiKey | None:
        return self._found(_digest(text), "digest") if len(text) <= LONGEST else None

    def by_cookie(self, text: str) -> ApiKey | None:
        return self._found(_digest(text), "cookie") if len(text) <= LONGEST else None

    def _found(self, digest: str, field: str) -> ApiKey | None:
        """Compares with all, each in constant time."""
        found = [key for key in self.now() if compare_digest(getattr(key, field).encode(), digest.encode())]
        return found[0] if found else None
