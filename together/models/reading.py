"""Reads tensors and units of a checkpoint or a shard folder, and remembers the sha256 of files it hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from together.errors import BrokenModel
from together.jsonfile import recall_json, write_json
from together.models.checkpoint import checkpoint_headers, with_samples
from together.models.folder import (
    broken,
    folder_name,
    folder_revision,
    inside,
    read_bytes,
    title,
    unreadable,
)
from together.models.form import PUBLISHED
from together.models.gguf.sources import is_imported, weights_file
from together.models.headers import FileHeader, Headers, TensorInfo
from together.models.manifest import CONFIG, Manifest, is_shard, read_manifest
from together.models.matrices import is_stored
from together.models.names import (
    EMBED_UNIT,
    HEAD,
    HEAD_UNIT,
    NORM_UNIT,
    OPENING_UNIT,
    canonical_names,
    is_computed,
    layer_unit,
    unit_of,
)
from together.models.units import ByteRange, Unit, fingerprint_of, units_for, words
from together.sentences import NOTHING, Sentence, template
from together.types import LayerRange
from together.wording import quoted


@dataclass(frozen=True, slots=True)
class Published:
    """A model as its files were published: its name, its commit on the hub, its fingerprint, the files' headers."""

    name: str
    revision: str
    fingerprint: str  # sha256, in hex
    headers: tuple[FileHeader, ...]  # of the files that hold the weights in this form
    form: str = PUBLISHED


def read_published(folder: Path, name: str = "") -> Published:
    """Of a whole checkpoint, or of a shard folder's manifest; each header is read once. `name` is as in `describe`.

    Raises BrokenModel or UnsupportedModel.
    """
    if is_shard(folder):
        manifest = read_manifest(folder)
        return Published(manifest.name, manifest.revision, manifest.fingerprint, manifest.stored, manifest.form)
    config, headers = read_bytes(folder, CONFIG), checkpoint_headers(folder)
    digest = fingerprint_of(config, with_samples(headers))
    return Published(name or folder_name(folder), folder_revision(folder), digest, headers)


def all_tensors(folder: Path) -> tuple[TensorInfo, ...]:
    """Every tensor of the model by its canonical name, without those that implementations compute themselves.

    Of a shard folder too, which has only some of them: `tensors_for` knows where those lie.
    """
    if is_shard(folder):
        return tensors_of(read_manifest(folder).stored)
    tensors = tensors_of(checkpoint_headers(folder))
    if not is_imported(folder):
        return tensors
    files = {name: weights_file(folder, name) for name in {tensor.file.name for tensor in tensors}}
    return tuple(replace(tensor, file=files[tensor.file.name]) for tensor in tensors)


def tensors_of(headers: Iterable[FileHeader]) -> tuple[TensorInfo, ...]:
    """The tensors of a whole model, of which these are all headers, as `all_tensors` gives them."""
    known = [tensor for header in headers for tensor in header.tensors]
    names = canonical_names(tensor.name for tensor in known)
    found = []
    for tensor in known:
        name = names.get(tensor.name, tensor.name)
        if is_computed(name):
            continue
        if name != tensor.name:
            found.append(replace(tensor, name=name, stored=tensor.name))
        elif tensor.name in names or unit_of(name) is None:  # else it has a decoder's name, and is of another one
            found.append(tensor)
    return tuple(found)


def tensors_for(folder: Path, layers: LayerRange, total: int, home: Path) -> tuple[TensorInfo, ...]:
    """What a stage of `layers` of `total` reads: its layers, embedding if first, norm and head if last.

    A tied model has no head tensor: its last stage reads the embedding instead, which is in the list once.
    Raises BrokenModel; for a shard folder also where layers are not in it, or are not what its manifest says. What was
    hashed for that is remembered in `home`.
    """
    if is_shard(folder):
        manifest = read_manifest(folder)
        return shard_tensors(folder, manifest, units_for(manifest, layers), home)
    tensors = all_tensors(folder)
    tied = not is_stored(HEAD, {tensor.name for tensor in tensors})
    units = _units(layers, total, tied=tied)
    return tuple(tensor for tensor in tensors if unit_of(tensor.name) in units)


def _units(layers: LayerRange, total: int, *, tied: bool) -> set[str]:
    units = {layer_unit(layer) for layer in range(layers.start, layers.stop)}
    first = {EMBED_UNIT, OPENING_UNIT} if layers.start == 0 else set()
    last = {NORM_UNIT, EMBED_UNIT if tied else HEAD_UNIT} if layers.stop == total else set()
    return units | first | last


def read_into(tensor: TensorInfo, target: memoryview) -> None:
    """Read a plain tensor, as it was published, into `target` (`tensor.nbytes` writable bytes).

    Raises BrokenModel if the file changed, or for a norm of a GGUF file in another dtype than theirs.
    """
    read_stored(tensor, target)
    if tensor.changed:
        from together.models.gguf.rows import publish  # numpy: who only reads headers has no use for it

        publish(tensor, target)


def read_stored(tensor: TensorInfo, target: memoryview) -> None:
    """Read a tensor's bytes as they lie. Raises BrokenModel if the file changed."""
    assert target.nbytes == tensor.nbytes
    _read_runs(tensor, (tensor.start,), tensor.nbytes, target)


def read_columns(tensor: TensorInfo, start: int, stop: int, target: memoryview) -> None:
    """Read from `start` to `stop` of a matrix's second axis, row after row. Raises BrokenModel if the file changed."""
    rows, columns = tensor.shape
    width, size = tensor.nbytes // rows, tensor.nbytes // rows // columns
    if stop - start == columns:
        return read_stored(tensor, target)
    first = tensor.start + start * size
    return _read_runs(tensor, range(first, first + rows * width, width), (stop - start) * size, target)


def _read_runs(tensor: TensorInfo, starts: Iterable[int], size: int, target: memoryview) -> None:
    """Runs of `size` bytes of the tensor's file, one after the other."""
    try:
        with tensor.file.open("rb", buffering=0) as stream:
            done = end = 0
            for start in starts:
                stream.seek(start)
                end += size
                while done < end:
                    count = stream.readinto(target[done:end])
                    if not count:
                        raise broken(tensor.file, "it ends within tensor {tensor}", tensor=quoted(tensor.name))
                    done += count
    except OSError as error:
        raise unreadable(tensor.file, error) from error


Stamp = tuple[tuple[str, int, int], ...]  # name, bytes and modification time in ns of every file that was read


@dataclass(frozen=True, slots=True)
class _KeptDigest:
    key: str
    stamp: Stamp
    sha256: str


class Digests:
    """One small file per hash, in `home/digests`. A home that cannot be written only costs time."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "digests"

    def get(self, key: str, stamp: Stamp) -> str | None:
        """The sha256 kept for `key`, if it was of files with this very stamp."""
        kept = recall_json(self._file(key), _KeptDigest)
        return kept.sha256 if kept is not None and (kept.key, kept.stamp) == (_text(key), stamp) else None

    def put(self, key: str, stamp: Stamp, sha256: str) -> None:
        with suppress(OSError):
            write_json(self._file(key), _KeptDigest(_text(key), stamp, sha256))

    def _file(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(_text(key).encode()).hexdigest()[:32]}.json"


def _text(key: str) -> str:
    """A path may hold bytes that are no text."""
    return key.encode("utf-8", "backslashreplace").decode()


def stamp_of(files: Sequence[Path]) -> Stamp:
    """What tells a changed file from an unchanged one. Raises OSError."""
    found = [(file.name, file.stat()) for file in files]
    return tuple((name, facts.st_size, facts.st_mtime_ns) for name, facts in found)


def sha256_of(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


CHUNK = 2**20  # bytes


def read_unit(folder: Path, unit: Unit, offset: int = 0) -> Iterator[bytes]:
    """The bytes of a unit's file from `offset` on, in chunks of at most 1 MiB.

    `folder` is a whole checkpoint or a shard folder that has the unit. Raises BrokenModel, also between chunks where a
    file changes meanwhile.
    """
    if not 0 <= offset <= unit.size:
        raise BrokenModel(
            "{unit} of {model} has {size} bytes, none at {offset}; start again",
            unit=unit.name,
            model=title(folder),
            size=unit.size,
            offset=offset,
        )
    if not is_shard(folder):
        return _chunks(folder, unit.spans(offset))
    fault = _size_fault(folder, unit)
    if fault:
        raise broken(folder / unit.name, fault)
    return _chunks(folder, [ByteRange(unit.name, offset, unit.size)])


def unit_digest(folder: Path, unit: Unit, home: Path) -> str:
    """sha256 in hex of the unit's file as `folder` gives it, remembered in `home` until its files change.

    Raises BrokenModel where a shard folder's manifest knows another one, or other weights.
    """
    digest = _digest(folder, unit, home)
    if is_shard(folder):
        manifest = read_manifest(folder)
        require_digest(manifest, unit, digest)
        require_samples(manifest, unit, inside(folder, unit.name))
    return digest


def units_here(folder: Path, manifest: Manifest) -> frozenset[str]:
    """The names of the units of `manifest` that `folder` has: all of them in a whole checkpoint."""
    if not is_shard(folder):
        return frozenset(manifest.units)
    return frozenset(name for name, unit in manifest.units.items() if _size(folder / name) == unit.size)


def shard_tensors(folder: Path, manifest: Manifest, units: Iterable[Unit], home: Path) -> tuple[TensorInfo, ...]:
    """Where the units' tensors lie in a shard folder; size, header, samples and known sha256 are checked.

    Raises BrokenModel: all that is missing in one sentence, or the first unit that is broken.
    """
    wanted = tuple(units)
    require_here(folder, manifest, wanted)
    return tuple(tensor for unit in wanted for tensor in _tensors(folder, manifest, unit, home))


def require_here(folder: Path, manifest: Manifest, units: Iterable[Unit]) -> None:
    """Raises BrokenModel with all units that a shard folder lacks."""
    missing = [unit.name for unit in units if _size(folder / unit.name) is None]
    if missing:
        raise BrokenModel(
            "{folder} lacks {units} of {model}; get these layers, or choose others",
            folder=str(folder),
            units=words(missing),
            model=manifest.name,
        )


def require_samples(manifest: Manifest, unit: Unit, file: Path) -> None:
    """Raises BrokenModel unless `file`, which has the unit's size and header, has the weights of this very model."""
    try:
        with file.open("rb", buffering=0) as stream:
            for sample in manifest.samples(unit):
                stream.seek(sample.at)
                if stream.read(len(sample.data)) != sample.data:
                    raise BrokenModel(
                        "{unit} of {model} has other weights than the version {version} of this model; get it again, "
                        "or from another machine",
                        unit=unit.name,
                        model=manifest.name,
                        version=manifest.fingerprint[:12],
                    )
    except OSError as error:
        raise unreadable(file, error) from error


def remember(folder: Path, unit: Unit, digest: str, home: Path) -> None:
    """Keep what is known of a unit's file in a shard folder, so that its first use need not read it."""
    Digests(home).put(_key(folder, unit), stamp_of([folder / unit.name]), digest)


def _tensors(folder: Path, manifest: Manifest, unit: Unit, home: Path) -> tuple[TensorInfo, ...]:
    fault = _size_fault(folder, unit) or _header_fault(folder, unit)
    if fault:
        raise BrokenModel(
            "{unit} of {model} in {folder} is broken: {found}; get it again",
            unit=unit.name,
            model=manifest.name,
            folder=str(folder),
            found=fault,
        )
    if unit.name in manifest.digests:
        require_digest(manifest, unit, _digest(folder, unit, home))
    require_samples(manifest, unit, inside(folder, unit.name))
    return Headers().check(inside(folder, unit.name), unit.header[8:], unit.size).tensors


def _size_fault(folder: Path, unit: Unit) -> Sentence:
    """What is wrong with the size of the unit's file; empty where nothing is."""
    size = _size(inside(folder, unit.name))
    if size is None:
        return template("it is missing")
    if size != unit.size:
        return template("it has {size} bytes and should have {asked}", size=size, asked=unit.size)
    return NOTHING


def _header_fault(folder: Path, unit: Unit) -> Sentence:
    begin = b"".join(_chunks(folder, [ByteRange(unit.name, 0, len(unit.header))]))
    return template("its header is not the one of this model") if begin != unit.header else NOTHING


def require_digest(manifest: Manifest, unit: Unit, digest: str) -> None:
    """Raises BrokenModel where the manifest knows another sha256 of the unit."""
    known = manifest.digests.get(unit.name, digest)
    if digest != known:
        raise BrokenModel(
            "{unit} of {model} is broken: its sha256 is {digest}, it should be {known}; get it again",
            unit=unit.name,
            model=manifest.name,
            digest=digest,
            known=known,
        )


def _digest(folder: Path, unit: Unit, home: Path) -> str:
    kept, key = Digests(home), _key(folder, unit)
    names = [unit.name] if is_shard(folder) else sorted({piece.file for piece in unit.pieces})
    try:
        stamp = stamp_of([weights_file(folder, name) for name in names])
    except OSError as error:
        raise unreadable(folder / names[0], error) from error
    digest = kept.get(key, stamp)
    if digest is None:
        digest = sha256_of(read_unit(folder, unit))
        kept.put(key, stamp, digest)
    return digest


def _key(folder: Path, unit: Unit) -> str:
    """Names a unit's bytes on this machine; with the header, for another model may come to lie in this folder."""
    return f"{folder.resolve() / unit.name} {hashlib.sha256(unit.header).hexdigest()}"


def _chunks(folder: Path, spans: Iterable[bytes | ByteRange]) -> Iterator[bytes]:
    places = cache(partial(weights_file, folder))  # a unit has hundreds of ranges of a file
    for span in spans:
        if isinstance(span, bytes):
            yield from (span[i : i + CHUNK] for i in range(0, len(span), CHUNK))
        else:
            yield from _piece(places(span.file), span)


def _piece(file: Path, piece: ByteRange) -> Iterator[bytes]:
    try:
        with file.open("rb", buffering=0) as stream:
            stream.seek(piece.start)
            left = piece.size
            while left:
                chunk = stream.read(min(CHUNK, left))
                if not chunk:
                    raise broken(file, "it ends {left} bytes before a unit does", left=left)
                left -= len(chunk)
                yield chunk
    except OSError as error:
        raise unreadable(file, error) from error


def _size(file: Path) -> int | None:
    """Bytes of a regular file; None where there is none."""
    try:
        return file.stat().st_size if file.is_file() else None
    except OSError:
        return None
