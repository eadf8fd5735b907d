"""Room on a disk: asked for before writing, and the sentence when it runs out. Knows no model."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from together.errors import TogetherError
from together.wording import sizes_text

_NO_ROOM = {errno.ENOSPC, errno.EFBIG} | ({errno.EDQUOT} if hasattr(errno, "EDQUOT") else set())
_ADVICE = "free some space there, or set TOGETHER_HOME to a folder on a larger disk"


class DiskFull(TogetherError):
    """No room, or no right, to write a model's bytes."""


def require_space(folder: Path, size: int, what: str) -> None:
    """Raises DiskFull unless `size` bytes more fit on the disk of `folder`, which need not exist yet."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        need, have = sizes_text(size, free)
        raise DiskFull(f"{what} needs {need} in {folder}, has {have} free; {_ADVICE}")


@contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """Turns what a disk refuses into a sentence. Raises DiskFull."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            free = gigabytes(shutil.disk_usage(folder).free) if folder.exists() else "no room"
            raise DiskFull(
                f"{what}: the disk of {folder} takes no more bytes ({error.strerror}, {free} free); {_ADVICE}; what "
                "is there is kept"
            ) from error
        raise DiskFull(
            f"{what}: {folder} cannot be written ({error.strerror or error}); give this user the right to write "
            "there, or set TOGETHER_HOME to another folder"
        ) from error


def gigabytes(size: int) -> str:
    """`9.1 GB`; small sizes in smaller units."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"
