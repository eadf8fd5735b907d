"""Which tensors a layer range needs and where they lie, in a checkpoint or in a shard folder; reads them one by one.

Knows no framework: a tensor here is a name, a dtype, a shape and bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from together.models.checkpoint import checkpoint_headers, with_samples
from together.models.fingerprint import fingerprint_of
from together.models.folder import broken, folder_name, folder_revision, inside, read_bytes, read_json, unreadable
from together.models.headers import FileHeader, TensorInfo
from together.models.manifest import CONFIG, is_shard, read_manifest
from together.models.names import (
    EMBED,
    EMBED_UNIT,
    HEAD,
    HEAD_UNIT,
    NORM,
    NORM_UNIT,
    canonical_names,
    is_computed,
    layer_of,
    layer_unit,
    shifted,
    unit_of,
)
from together.models.reading import shard_tensors
from together.models.units import units_for
from together.types import LayerRange
from together.wording import quoted

__all__ = [
    "EMBED",
    "HEAD",
    "NORM",
    "all_tensors",
    "inside",
    "layer_of",
    "read_headers",
    "read_into",
    "read_json",
    "shifted",
    "tensors_for",
    "tensors_of",
]


@dataclass(frozen=True, slots=True)
class Published:
    """A model as its files were published: its name, its commit on the hub, its fingerprint, the files' headers."""

    name: str
    revision: str
    fingerprint: str  # sha256, in hex
    headers: tuple[FileHeader, ...]


def read_published(folder: Path, name: str = "") -> Published:
    """Of a whole checkpoint, or of a shard folder's manifest; each header is read once. Raises as `read_headers`.

    `name` is as in `describe`.
    """
    if is_shard(folder):
        manifest = read_manifest(folder)
        return Published(manifest.name, manifest.revision, manifest.fingerprint, manifest.headers)
    config, headers = read_bytes(folder, CONFIG), checkpoint_headers(folder)
    digest = fingerprint_of(config, with_samples(headers))
    return Published(name or folder_name(folder), folder_revision(folder), digest, headers)


def read_headers(folder: Path) -> tuple[FileHeader, ...]:
    """The checked headers of the model's safetensors files as they were published, by name.

    A shard folder's manifest has them; their files are not there. Raises BrokenModel or UnsupportedModel.
    """
    return read_manifest(folder).headers if is_shard(folder) else checkpoint_headers(folder)


def all_tensors(folder: Path) -> tuple[TensorInfo, ...]:
    """Every tensor of the model by its canonical name, without those that implementations compute themselves.

    Of a shard folder too, which has only some of them: `tensors_for` knows where those lie.
    """
    return tensors_of(read_headers(folder))


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
    tied = HEAD not in {tensor.name for tensor in tensors}
    units = _units(layers, total, tied=tied)
    return tuple(tensor for tensor in tensors if unit_of(tensor.name) in units)


def _units(layers: LayerRange, total: int, *, tied: bool) -> set[str]:
    units = {layer_unit(layer) for layer in range(layers.start, layers.stop)}
    first = {EMBED_UNIT} if layers.start == 0 else set()
    last = {NORM_UNIT, EMBED_UNIT if tied else HEAD_UNIT} if layers.stop == total else set()
    return units | first | last


def read_into(tensor: TensorInfo, target: memoryview) -> None:
    """Read a tensor's bytes into `target` (`tensor.nbytes` writable bytes). Raises BrokenModel if the file changed."""
    assert target.nbytes == tensor.nbytes
    try:
        with tensor.file.open("rb", buffering=0) as stream:
            stream.seek(tensor.start)
            done = 0
            while done < tensor.nbytes:
                count = stream.readinto(target[done:])
                if not count:
                    raise broken(tensor.file, f"it ends within tensor {quoted(tensor.name)}")
                done += count
    except OSError as error:
        raise unreadable(tensor.file, error) from error
