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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hmac import compare_digest
from pathlib import Path

from filelock import FileLock

from together.errors import AppError, BadSetting, TogetherError
from together.jsonfile import MOST, BrokenFile, decode_json, write_json
from together.requests import LOCAL
from together.settings import Settings
from together.wording import quoted, reason_of

logger = logging.getLogger(__name__)

FILE = "keys.json"
ID = "[0-9a-f]{8}"  # what a key is called in what it owns
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
    """The keys of one folder. What another process changes holds from the next look on."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._lock = FileLock(folder / "keys.lock")
        self._seen: tuple[int, ...] | None = None  # what the file was when it was read
        self._keys: tuple[ApiKey, ...] = ()
        self._failing = False  # since the last good look; the log says so once

    @classmethod
    def of(cls, settings: Settings) -> KeyFile:
        """This user's. Those that an earlier version kept in the cache come along."""
        keys = cls(settings.config_path)
        before = settings.home_path / FILE
        if before != keys._file and before.exists():
            keys._take_over(before)
        return keys

    def _take_over(self, before: Path) -> None:
        """Move the keys of another file here, where there are none yet. A revoked one never comes back so."""
        try:
            with self._changing():
                if self._file.exists():
                    logger.warning("the keys in %s are an earlier version's and open nothing; delete that file", before)
                    return
                write_json(self._file, _Kept(KeyFile(before.parent).kept()), private=True)
                before.unlink()
                before.with_name("keys.lock").unlink(missing_ok=True)
        except TogetherError as error:
            logger.warning("keys of an earlier version are not taken over: %s", error)

    # --- for who changes them -----------------------------------------------------------------------------------------

    def make(self, name: str) -> tuple[ApiKey, str]:
        """A new key, and its text, which is never to be had again. Raises BadSetting, or AppError."""
        name = name.strip()
        if not name or len(name) > MOST_NAME or not name.isprintable():
            raise BadSetting("a key's name has 1 to {most} letters, as phone", most=MOST_NAME)
        with self._changing() as keys:
            if name == LOCAL or any(name in (key.name, key.id) for key in keys):
                text = "there is a key {name} already; give another name, or: python3 launch.py keys revoke {name}"
                raise BadSetting(text, name=quoted(name))
            if len(keys) >= MOST_KEYS:
                raise BadSetting("there are {most} keys already; revoke one that nobody uses", most=MOST_KEYS)
            text = new_key()
            made = ApiKey(secrets.token_hex(4), name, int(time.time()), _digest(text), _digest(cookie_of(text)))
            write_json(self._file, _Kept((*keys, made)), private=True)
        return made, text

    def renew(self, name: str) -> tuple[ApiKey, str]:
        """Another text for the key of a name, or an id: what it owns stays its own. Raises BadSetting, or AppError."""
        with self._changing() as keys:
            old, text = _named(keys, name), new_key()
            made = replace(old, made=int(time.time()), digest=_digest(text), cookie=_digest(cookie_of(text)))
            write_json(self._file, _Kept(tuple(made if key is old else key for key in keys)), private=True)
        return made, text

    def revoke(self, name: str) -> ApiKey:
        """Of a name, or an id. Raises BadSetting, or AppError."""
        with self._changing() as keys:
            gone = _named(keys, name)
            write_json(self._file, _Kept(tuple(key for key in keys if key is not gone)), private=True)
        return gone

    def kept(self) -> tuple[ApiKey, ...]:
        """All keys, as the file has them now. Raises AppError where others may write it, or BrokenFile."""
        try:
            return self._read()
        except OSError as error:
            raise self._broken(error) from None

    def _read(self) -> tuple[ApiKey, ...]:
        """As `kept`, but raises OSError where the file could not be read this time."""
        try:
            with self._file.open("rb") as stream:
                mode, data = os.fstat(stream.fileno()).st_mode, stream.read(MOST + 1)
        except FileNotFoundError:
            return ()
        if os.name != "nt" and mode & (stat.S_IWGRP | stat.S_IWOTH):
            text = "others may write {file}, so that its keys are nobody's; delete it, and make new ones"
            raise AppError(text, file=str(self._file))
        if len(data) > MOST:
            raise self._broken(ValueError(f"it has more than {MOST} bytes"))
        try:
            return decode_json(data, _Kept).keys
        except ValueError as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> BrokenFile:
        return BrokenFile("{file} cannot be read: {error}", file=str(self._file), error=reason_of(error))

    @contextmanager
    def _changing(self) -> Iterator[tuple[ApiKey, ...]]:
        """The keys, while nobody else changes them."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                yield self.kept()
        except OSError as error:
            text = "keys cannot be kept in {folder}: {error}; make it yours to write"
            raise AppError(text, folder=str(self._file.parent), error=reason_of(error)) from None

    # --- for who asks for them ----------------------------------------------------------------------------------------

    def now(self) -> tuple[ApiKey, ...]:
        """As `kept`, read only where the file changed; none where it is broken or not ours alone, and the log says why.

        A file that cannot be read this time, as where no descriptor is free, says nothing: the keys that were known
        hold until the next look.
        """
        try:
            seen = self._mark()
            if seen != self._seen:
                self._keys = self._read()
                self._seen = seen
            self._failing = False
        except OSError as error:
            if not self._failing:
                logger.warning("keys cannot be looked up, those known hold: %s", self._broken(error))
            self._failing = True
        except TogetherError as error:
            self._seen, self._keys = seen, ()
            logger.error("no key is accepted: %s", error)
        return self._keys

    def _mark(self) -> tuple[int, ...]:
        """Another one as soon as the file is another."""
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode

    def by_key(self, text: str) -> ApiKey | None:
        return self._found(_digest(text), "digest") if len(text) <= LONGEST else None

    def by_cookie(self, text: str) -> ApiKey | None:
        return self._found(_digest(text), "cookie") if len(text) <= LONGEST else None

    def _found(self, digest: str, field: str) -> ApiKey | None:
        """Compares with all, each in constant time."""
        found = [key for key in self.now() if compare_digest(getattr(key, field).encode(), digest.encode())]
        return found[0] if found else None


def _named(keys: tuple[ApiKey, ...], name: str) -> ApiKey:
    """Of a name, or an id. Raises BadSetting."""
    found = next((key for key in keys if name in (key.name, key.id)), None)
    if found is None:
        raise BadSetting("there is no key {name}; see: python3 launch.py keys list", name=quoted(name))
    return found
