"""Which tensors a layer range needs and where they lie, in a checkpoint or in a shard folder; reads them one by one.

Knows no framework: a tensor here is a name, a dtype, a shape and bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from together.models.checkpoint import checkpoint_headers
from together.models.folder import broken, inside, read_json
from together.models.headers import FileHeader, TensorInfo
from together.models.manifest import is_shard, read_manifest
from together.models.names import (
    EMBED,
    EMBED_UNIT,
    HEAD,
    HEAD_UNIT,
    NORM,
    NORM_UNIT,
    is_computed,
    layer_of,
    layer_unit,
    shifted,
    unit_of,
)
from together.models.reading import shard_tensors
from together.models.units import units_for
from together.quoting import quoted
from together.types import LayerRange

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


def read_headers(folder: Path) -> tuple[FileHeader, ...]:
    """The checked headers of the model's safetensors files as they were published, by name.

    A shard folder's manifest has them; their files are not there. Raises BrokenModel or UnsupportedModel.
    """
    return read_manifest(folder).headers if is_shard(folder) else checkpoint_headers(folder)


def all_tensors(folder: Path) -> tuple[TensorInfo, ...]:
    """Every tensor of the model, without those that implementations compute themselves.

    Of a shard folder too, which has only some of them: `tensors_for` knows where those lie.
    """
    return tensors_of(read_headers(folder))


def tensors_of(headers: Iterable[FileHeader]) -> tuple[TensorInfo, ...]:
    """Every tensor of these files, without those that implementations compute themselves."""
    tensors = (tensor for header in headers for tensor in header.tensors)
    return tuple(tensor for tensor in tensors if not is_computed(tensor.name))


def tensors_for(folder: Path, layers: LayerRange, total: int) -> tuple[TensorInfo, ...]:
    """What a stage of `layers` of `total` reads: its layers, embedding if first, norm and head if last.

    A tied model has no head tensor: its last stage reads the embedding instead, which is in the list once.
    Raises BrokenModel; for a shard folder also where layers are not in it, or are not what its manifest says.
    """
    if is_shard(folder):
        manifest = read_manifest(folder)
        return shard_tensors(folder, manifest, units_for(manifest, layers))
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
        raise broken(tensor.file, f"cannot be read ({error.strerror or error})") from error
