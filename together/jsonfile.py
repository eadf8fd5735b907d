"""Files at rest: written in one step, and JSON read strictly into a type."""

from __future__ import annotations

import os
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from threading import get_ident
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from together.errors import TogetherError
from together.wording import reason_of

MOST = 2**20  # bytes of a file that holds no model

T = TypeVar("T")


class BrokenFile(TogetherError):
    """A file of ours that is there and does not hold what it should."""


def write_whole(file: Path, data: bytes, *, private: bool = False) -> None:
    """Replace `file` in one step, so that a reader sees the old bytes or the new ones. Raises OSError.

    `private`: nobody but this user may read it.
    """
    part = file.with_name(f"{file.name}.{os.getpid()}-{get_ident()}.new")
    try:
        write_synced(part, data, private=private)
        os.replace(part, file)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def write_synced(file: Path, data: bytes, *, private: bool = False) -> None:
    """Write a new file down to the disk, and its folder if it is new; `private` as above. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if private:
        file.unlink(missing_ok=True)  # the mode is a new file's only
    with open(file, "wb", opener=_for_its_owner if private else None) as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_json(file: Path, value: object, *, private: bool = False) -> None:
    """Write dataclasses, dicts and lists as JSON in one step; `private` as in `write_whole`. Raises OSError."""
    write_whole(file, to_json(value, indent=1), private=private)


def read_json(file: Path, kind: type[T], most: int = MOST) -> T | None:
    """The value of type `kind` in a file of at most `most` bytes; None where there is no file. Raises BrokenFile."""
    try:
        with file.open("rb") as stream:
            data = stream.read(most + 1)
        if len(data) > most:
            raise ValueError(f"it has more than {most} bytes")
        return decode_json(data, kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BrokenFile("{file} cannot be read: {error}", file=str(file), error=reason_of(error)) from None


def recall_json(file: Path, kind: type[T]) -> T | None:
    """As `read_json`, for what can be found out again: None where the file is broken, too."""
    try:
        return read_json(file, kind)
    except BrokenFile:
        return None


def decode_json(data: bytes, kind: type[T]) -> T:
    """JSON as a value of type `kind`, without conversions. Raises ValueError, naming the first field that is wrong."""
    try:
        value: T = _adapter(cast(Hashable, kind)).validate_json(data, strict=True)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None
    return value


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, as `field.field: message`."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = ".".join(map(str, found["loc"]))
    return f"{path}: {found['msg']}" if path else found["msg"]


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
