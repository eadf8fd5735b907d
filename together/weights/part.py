"""One unit on its way to the disk: room for it, and a `.part` file that grows, resumes and becomes the unit."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType

from filelock import BaseFileLock

from together.errors import BrokenModel, TogetherError
from together.models.manifest import Manifest
from together.models.reading import CHUNK, require_samples
from together.models.units import ByteRange, Unit
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


class UnitWriter:
    """The only writer of its unit while it is open; close it, or use it as a context, so that another may go on.

    Blocking: call it from a thread. What was written stays on disk until `finish` or a wrong hash.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, unit: Unit, lock: BaseFileLock, done: Callable[[str], None]
    ) -> None:
        """`lock` is held already, and released on close; `done` is told the sha256 once the unit is in place."""
        self.unit = unit
        self._manifest = manifest
        self._model = manifest.name
        self._known = manifest.digests.get(unit.name)
        self._lock = lock
        self._done = done
        self._file = folder / unit.name
        self._path = folder / f"{unit.name}.part"
        self._hash = hashlib.sha256()
        self._size = 0
        self._stream: FileIO | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes that are there: the offset to go on at."""
        return self._size

    def spans(self) -> Iterator[bytes | ByteRange]:
        """What is still to be written: header bytes, then pieces of original files."""
        return self.unit.spans(self._size)

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises DiskFull, after which what fitted is kept, or BrokenModel for more bytes than the unit has."""
        if self._size + len(data) > self.unit.size:
            self._drop()
            raise BrokenModel(
                f"{self.unit.name} of {self._model} has {self.unit.size} bytes and more were sent; get it again, "
                "or from another machine"
            )
        assert self._stream is not None, "this part is finished or closed"
        view = memoryview(data)
        with writing(self._path.parent, f"{self.unit.name} of {self._model}"):
            while view.nbytes:
                count = self._stream.write(view) or 0
                self._hash.update(view[:count])
                self._size += count
                view = view[count:]

    def finish(self, sha256: str | None = None) -> str:
        """Put the whole unit in its place; returns its sha256. `sha256` is what the sender says, if it says so.

        Raises BrokenModel: with the part kept where bytes are missing; with the part deleted where they are wrong.
        """
        if self._size != self.unit.size:
            raise BrokenModel(
                f"{self.unit.name} of {self._model} has {self._size} of {self.unit.size} bytes; go on fetching it"
            )
        found = self._hash.hexdigest()
        for wanted in (sha256, self._known):
            if wanted is not None and wanted != found:
                self._drop()
                raise BrokenModel(
                    f"{self.unit.name} of {self._model} is broken: its sha256 is {found}, it should be {wanted}; get "
                    "it again, or from another machine"
                )
        self._check_content()
        with writing(self._path.parent, f"{self.unit.name} of {self._model}"):
            if self._stream is not None:
                os.fsync(self._stream.fileno())
                self._stream.close()
                os.replace(self._path, self._file)
        self._done(found)
        self.close()
        return found

    def close(self) -> None:
        """Let go; the next `part` of this unit resumes. Closing twice is nothing."""
        self._end_stream()
        self._lock.release()

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self) -> None:
        """Take up what an earlier writer left, or the whole unit where another one was faster."""
        whole = self._file.is_file() and self._file.stat().st_size == self.unit.size
        self._resume(self._file if whole else self._path)
        if whole:
            return
        require_space(self._path.parent, self.unit.size - self._size, f"{self.unit.name} of {self._model}")
        with writing(self._path.parent, f"{self.unit.name} of {self._model}"):
            self._stream = self._path.open("ab", buffering=0)

    def _resume(self, file: Path) -> None:
        """Hash what is there; a file longer than the unit is none of it."""
        if not file.is_file():
            return
        if file.stat().st_size > self.unit.size:
            file.unlink()
            return
        with file.open("rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK):
                self._hash.update(chunk)
                self._size += len(chunk)

    def _check_content(self) -> None:
        """The header, and samples of the weights: another fine-tune's unit has the same size and header."""
        file = self._file if self._stream is None else self._path
        with file.open("rb") as stream:
            begin = stream.read(len(self.unit.header))
        if begin != self.unit.header:
            self._drop()
            raise BrokenModel(f"{self.unit.name} of {self._model} does not begin as it must; get it again")
        try:
            require_samples(self._manifest, self.unit, file)
        except BrokenModel:
            self._drop()
            raise

    def _drop(self) -> None:
        """Delete what is wrong, and let go."""
        file = self._file if self._stream is None else self._path
        self._end_stream()
        file.unlink(missing_ok=True)
        self._lock.release()

    def _end_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
