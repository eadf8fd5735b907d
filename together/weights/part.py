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

from filelock import BaseFileLock

from together.errors import BrokenModel, TogetherError
from together.models.manifest import Manifest
from together.models.reading import CHUNK, require_samples
from together.models.units import ByteRange, Unit
from together.sentences import Sentence, Value, template
from together.wording import exact_size_text, reason_of

Progress = Callable[[int, int], None]  # gets (bytes here, bytes in all)
Converting = Callable[[bool], None]  # gets whether those bytes are made here from now on
Waiting = Callable[[str], None]  # gets the sources that a fetch waits for, as a phrase; "" while bytes come

NO_ROOM = {errno.ENOSPC, errno.EFBIG} | ({errno.EDQUOT} if hasattr(errno, "EDQUOT") else set())
_ADVICE = template("free some space there, or set TOGETHER_HOME to a folder on a larger disk")


class DiskFull(TogetherError):
    """No room, or no right, to write a model's bytes."""


def size_of(file: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def require_space(folder: Path, size: int, what: str, advice: Sentence = _ADVICE) -> None:
    """Raises DiskFull unless `size` bytes more fit on the disk of `folder`, which need not exist yet."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        raise DiskFull(
            "{what} needs {sizes:sizes 0} in {folder}, has {sizes:sizes 1} free; {advice}",
            what=what,
            sizes=(size, free),
            folder=str(folder),
            advice=advice,
        )


@contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """Turns what a disk refuses into a sentence. Raises DiskFull."""
    try:
        yield
    except OSError as error:
        values: dict[str, Value] = {"what": what, "folder": str(folder), "reason": reason_of(error)}
        if error.errno in NO_ROOM:
            raise DiskFull(
                "{what}: the disk of {folder} takes no more bytes ({reason}, {free} free); {advice}; what is there is "
                "kept",
                free=exact_size_text(shutil.disk_usage(folder).free) if folder.exists() else template("no room"),
                advice=_ADVICE,
                **values,
            ) from error
        raise DiskFull(
            "{what}: {folder} cannot be written ({reason}); give this user the right to write there, or set "
            "TOGETHER_HOME to another folder",
            **values,
        ) from error


class UnitWriter:
    """The only writer of its unit while it is open; close it, or use it as a context, so that another may go on.

    Blocking: call it from a thread. What was written stays on disk until `finish` or a wrong hash.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        unit: Unit,
        lock: BaseFileLock,
        done: Callable[[str], None],
        *,
        anew: bool = False,
    ) -> None:
        """`lock` is held, and released on close; `done` gets the sha256 once the unit is in place.

        `anew`: what an earlier writer left is no part of it.
        """
        self.unit = unit
        self.size = 0  # bytes that are here: the offset to go on at
        self._manifest = manifest
        self._what = f"{unit.name} of {manifest.name}"
        self._lock = lock
        self._done = done
        self._file = folder / unit.name
        self._part = folder / f"{unit.name}.part"
        self._hash = hashlib.sha256()
        self._stream: FileIO | None = None
        try:
            if anew:
                self._part.unlink(missing_ok=True)
            self._open()
        except BaseException:
            self.close()
            raise

    def spans(self) -> Iterator[bytes | ByteRange]:
        """What is still to be written: header bytes, then pieces of original files."""
        return self.unit.spans(self.size)

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises DiskFull, after which what fitted is kept, or BrokenModel for more bytes than the unit has."""
        if self.size + len(data) > self.unit.size:
            raise self._wrong("has {size} bytes and more were sent", size=self.unit.size)
        assert self._stream is not None, "this part is finished or closed"
        view = memoryview(data)
        with writing(self._part.parent, self._what):
            while view.nbytes:
                count = self._stream.write(view) or 0
                self._hash.update(view[:count])
                self.size += count
                view = view[count:]

    def finish(self, sha256: str | None = None) -> str:
        """Put the whole unit in its place; returns its sha256. `sha256` is what the sender claims.

        Raises BrokenModel: with the part kept where bytes are missing; with the part deleted where they are wrong.
        """
        if self.size != self.unit.size:
            message = "{what} has {done} of {size} bytes; go on fetching it"
            raise BrokenModel(message, what=self._what, done=self.size, size=self.unit.size)
        found = self._hash.hexdigest()
        for wanted in (sha256, self._manifest.digests.get(self.unit.name)):
            if wanted is not None and wanted != found:
                raise self._wrong("is broken: its sha256 is {found}, it should be {wanted}", found=found, wanted=wanted)
        self._check_content()
        if self._stream is not None:
            with writing(self._part.parent, self._what):
                os.fsync(self._stream.fileno())
                self._stream.close()
                os.replace(self._part, self._file)
        self._done(found)
        self.close()
        return found

    def close(self) -> None:
        """Let go; the next writer of this unit resumes. May be called twice."""
        self._end_stream()
        self._lock.release()

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self) -> None:
        """Resume what an earlier writer left, or take the whole unit where another writer was faster."""
        if self._file.is_file() and self._file.stat().st_size == self.unit.size:
            self._resume(self._file)
            return
        self._resume(self._part)
        require_space(self._part.parent, self.unit.size - self.size, self._what)
        with writing(self._part.parent, self._what):
            self._stream = self._part.open("ab", buffering=0)

    def _resume(self, file: Path) -> None:
        """Hash what is here; a file longer than the unit is not a part of it."""
        if not file.is_file():
            return
        if file.stat().st_size > self.unit.size:
            file.unlink()
            return
        with file.open("rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK):
                self._hash.update(chunk)
                self.size += len(chunk)

    @property
    def _place(self) -> Path:
        return self._file if self._stream is None else self._part

    def _check_content(self) -> None:
        """The header, and samples of the weights: another fine-tune's unit has the same size and header."""
        with self._place.open("rb") as stream:
            begin = stream.read(len(self.unit.header))
        if begin != self.unit.header:
            raise self._wrong("has another header than this model's")
        try:
            require_samples(self._manifest, self.unit, self._place)
        except BrokenModel:
            self._drop()
            raise

    def _wrong(self, english: str, **values: Value) -> BrokenModel:
        """Delete what is wrong, and let go."""
        self._drop()
        what_is_wrong = template(english, **values)
        return BrokenModel(
            "{what} {wrong}; get it again, or from another machine", what=self._what, wrong=what_is_wrong
        )

    def _drop(self) -> None:
        place = self._place
        self._end_stream()
        place.unlink(missing_ok=True)
        self._lock.release()

    def _end_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
