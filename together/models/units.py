"""The units a model is cut into, and the samples of its weights: both follow from the original headers alone."""

from __future__ import annotations

import hashlib
import json
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Protocol

from together.errors import BrokenModel
from together.models.headers import ELEMENT_BYTES, FileHeader, TensorInfo, sorted_in_turns
from together.models.names import (
    EMBED_UNIT,
    HEAD_UNIT,
    NORM_UNIT,
    OPENING_UNIT,
    canonical_names,
    is_computed,
    layer_unit,
    unit_layer,
    unit_of,
)
from together.types import LayerRange

_AT_ONCE = 5000  # tensors of a header that are written in one go: some milliseconds
_ALIGNED = 8  # bytes: the data begin at a multiple of it, as safetensors' own writer does


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes `[start, stop)` of an original safetensors file, by its plain name."""

    file: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit's file: `header` (with its 8 length bytes), then the pieces in order. `name` is the file's name."""

    name: str
    header: bytes
    pieces: tuple[ByteRange, ...]

    @property
    def size(self) -> int:
        return len(self.header) + sum(piece.size for piece in self.pieces)

    def spans(self, offset: int = 0) -> Iterator[bytes | ByteRange]:
        """What remains of the file from byte `offset` on, in order: header bytes, then pieces of original files."""
        if offset < len(self.header):
            yield self.header[offset:]
        position = len(self.header)
        for piece in self.pieces:
            skip = max(0, offset - position)
            if skip < piece.size:
                yield ByteRange(piece.file, piece.start + skip, piece.stop)
            position += piece.size


@dataclass(frozen=True, slots=True)
class Sample:
    """A few bytes that a unit's file must have from byte `at` on."""

    at: int
    data: bytes


class Cut(Protocol):
    """A model cut into units: what a manifest is."""

    @property
    def name(self) -> str: ...

    @property
    def layers(self) -> int: ...

    @property
    def units(self) -> Mapping[str, Unit]: ...


def units_of(headers: Sequence[FileHeader]) -> dict[str, Unit]:
    """All units of a model by name: embedding, layers, norm, head. `headers` are in the order of their files' names.

    Tensors that no stage reads are in no unit; a tied model has no head. Tensors have their canonical names in units.
    """
    return {name: _unit(name, tensors) for name, tensors in tensors_by_unit(headers).items()}


def tensors_by_unit(headers: Sequence[FileHeader]) -> dict[str, list[tuple[int, TensorInfo]]]:
    """Every unit's tensors under their canonical names, each with the place of its file among the headers."""
    tensors: dict[str, list[tuple[int, TensorInfo]]] = {}
    names = canonical_names(tensor.name for header in headers for tensor in header.tensors)
    for index, header in enumerate(headers):
        for tensor in header.tensors:
            known = names.get(tensor.name)
            name = unit_of(known) if known is not None else None
            if known is not None and name is not None:
                renamed = tensor if known == tensor.name else replace(tensor, name=known)
                tensors.setdefault(name, []).append((index, renamed))
    return {name: tensors[name] for name in sorted(tensors, key=unit_order)}


def samples_in(unit: Unit, taken: Mapping[str, Sequence[tuple[int, bytes]]]) -> tuple[Sample, ...]:
    """Those of the samples that lie in the unit. `taken` are, per original file, (byte, data) in order."""
    found: list[Sample] = []
    at = len(unit.header)
    for piece in unit.pieces:
        samples = taken[piece.file]
        first, last = (bisect_left(samples, edge, key=lambda item: item[0]) for edge in (piece.start, piece.stop))
        found += [Sample(at + start - piece.start, data) for start, data in samples[first:last]]
        at += piece.size
    return tuple(found)


def unit_order(name: str) -> tuple[int, int]:
    """Sorts units in the order of the model: embedding, layers, norm, head."""
    layer = unit_layer(name)
    return (2, layer) if layer is not None else ((EMBED_UNIT, OPENING_UNIT, "", NORM_UNIT, HEAD_UNIT).index(name), 0)


def units_for(model: Cut, layers: LayerRange) -> tuple[Unit, ...]:
    """What a stage of `layers` needs, in the model's order. Raises BrokenModel for a unit that the model lacks."""
    if layers.stop > model.layers:
        raise BrokenModel(
            "{model} has {layers} layers, not {asked}; choose layers of 0:{layers}",
            model=model.name,
            asked=str(layers),
            layers=model.layers,
        )
    names = {layer_unit(layer) for layer in range(layers.start, layers.stop)}
    if layers.start == 0:
        names |= {EMBED_UNIT, *({OPENING_UNIT} & model.units.keys())}
    if layers.stop == model.layers:
        names |= {NORM_UNIT, HEAD_UNIT if HEAD_UNIT in model.units else EMBED_UNIT}
    absent = names - model.units.keys()
    if absent:
        raise BrokenModel(
            "{model} has no tensors for {units}; get this model again", model=model.name, units=words(absent)
        )
    return tuple(model.units[name] for name in sorted(names, key=unit_order))


def layer_ranges(names: Iterable[str]) -> tuple[LayerRange, ...]:
    """The runs of consecutive layers among units."""
    ranges: list[LayerRange] = []
    for layer in sorted(layer for layer in map(unit_layer, names) if layer is not None):
        if ranges and ranges[-1].stop == layer:
            ranges[-1] = LayerRange(ranges[-1].start, layer + 1)
        else:
            ranges.append(LayerRange(layer, layer + 1))
    return tuple(ranges)


def missing_ranges(layers: int, held: list[LayerRange]) -> tuple[LayerRange, ...]:
    """The ranges of `layers` layers that none of `held` covers."""
    gaps: list[LayerRange] = []
    reached = 0
    for item in sorted(item for item in held if item.start < layers):
        if item.start > reached:
            gaps.append(LayerRange(reached, item.start))
        reached = max(reached, item.stop)
    if reached < layers:
        gaps.append(LayerRange(reached, layers))
    return tuple(gaps)


def words(names: Iterable[str]) -> str:
    """Units for a person: "embed, layers 0:4, norm"."""
    known = sorted(names, key=unit_order)
    ends = {name: name.removesuffix(".safetensors") for name in known if unit_layer(name) is None}
    runs = [f"layers {item}" for item in layer_ranges(known)]
    first = [ends.pop(unit) for unit in (EMBED_UNIT, OPENING_UNIT) if unit in ends]
    return ", ".join([*first, *runs, *ends.values()]) or "nothing"


def _unit(name: str, tensors: list[tuple[int, TensorInfo]]) -> Unit:
    """Wide elements first, so that each tensor stays aligned; else in the order of files and bytes."""
    by_place = sorted_in_turns(tensors, _place)
    ordered = [tensor for _, tensor in by_place]
    stored = [(tensor.name, tensor.written, tensor.shape, tensor.nbytes) for tensor in ordered]
    return Unit(name, header_of(stored, {"format": "pt"}), _pieces(ordered))


def _place(item: tuple[int, TensorInfo]) -> tuple[int, int, int, str]:
    index, tensor = item
    return (-ELEMENT_BYTES.get(tensor.dtype, 1), index, tensor.start, tensor.name)


def header_of(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """The header of a safetensors file of these tensors (name, dtype, shape, bytes), with its 8 length bytes."""
    entries: dict[str, object] = {"__metadata__": metadata}
    position = 0
    for name, dtype, shape, size in tensors:
        stop = position + size
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, stop]}
        position = stop
    text = _compact(entries)
    text += b" " * (-len(text) % _ALIGNED)
    return struct.pack("<Q", len(text)) + text


def _compact(entries: Mapping[str, object]) -> bytes:
    """JSON without spaces, made in parts: other threads wait for each."""
    encode, items = json.JSONEncoder(separators=(",", ":")).encode, list(entries.items())
    parts = (encode(dict(items[at : at + _AT_ONCE]))[1:-1] for at in range(0, len(items), _AT_ONCE))
    return f"{{{','.join(parts)}}}".encode()


def _pieces(tensors: Sequence[TensorInfo]) -> tuple[ByteRange, ...]:
    """The tensors' places, neighbours joined."""
    pieces: list[ByteRange] = []
    for tensor in tensors:
        file = tensor.file.name
        if pieces and pieces[-1].file == file and pieces[-1].stop == tensor.start:
            pieces[-1] = ByteRange(file, pieces[-1].start, tensor.stop)
        elif tensor.nbytes:
            pieces.append(ByteRange(file, tensor.start, tensor.stop))
    return tuple(pieces)


SAMPLES = 128  # tensors of a model that are sampled, at most
SAMPLE_BYTES = 64  # from the middle of each; all of a smaller one


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A safetensors file as it was published; `header` is its raw JSON, without the 8 length bytes.

    `samples` are the bytes at this file's `sample_places`, one after the other.
    """

    name: str
    size: int
    header: bytes
    samples: bytes


def fingerprint_of(config: bytes, files: Iterable[PublishedFile]) -> str:
    """sha256 over the bytes of config.json, then of each file's raw header and samples, in the order of their names."""
    digest = hashlib.sha256(config)
    for file in files:
        digest.update(file.header)
        digest.update(file.samples)
    return digest.hexdigest()


def sample_places(headers: Iterable[FileHeader]) -> Mapping[str, tuple[ByteRange, ...]]:
    """Where samples of the weights are taken: per file, in the order of its bytes. It follows from headers alone.

    Matrices first, for they are what fine-tuning changes; where there are fewer than SAMPLES, other tensors too.
    """
    found: dict[str, list[TensorInfo]] = {header.file.name: [] for header in headers}
    for tensor in _chosen(tensor for header in headers for tensor in header.tensors):
        found[tensor.file.name].append(tensor)
    return {file: tuple(map(_middle, sorted(of, key=lambda t: t.start))) for file, of in found.items()}


def _chosen(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    known = sorted_in_turns((t for t in tensors if t.nbytes and not is_computed(t.name)), attrgetter("name"))
    matrices = _spread([tensor for tensor in known if len(tensor.shape) > 1], SAMPLES)
    return matrices + _spread([tensor for tensor in known if len(tensor.shape) < 2], SAMPLES - len(matrices))


def _spread(tensors: Sequence[TensorInfo], count: int) -> list[TensorInfo]:
    """Up to `count` of sorted tensors: all kinds alike, and with each step the next kind, evenly over the names.

    An even step over the names alone would miss kinds: among 36,000 expert matrices it meets few of attention. Stepping
    from kind to kind meets each of up to about 120 layers as well.
    """
    kinds: dict[str, list[TensorInfo]] = {}
    for tensor in tensors:
        kinds.setdefault(_kind(tensor.name), []).append(tensor)
    groups, chosen = sorted(kinds.values(), key=len), list[TensorInfo]()
    while groups and len(groups[0]) * len(groups) <= count - len(chosen):  # all of the rare ones
        chosen += groups.pop(0)
    left = count - len(chosen) if groups else 0
    if len(groups) > left:
        groups = [groups[slot * len(groups) // left] for slot in range(left)]
    for slot in range(left):
        group = groups[slot % len(groups)]
        chosen.append(group[slot * len(group) // left])
    return chosen


def _kind(name: str) -> str:
    """The name without numbers of layers and experts."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def _middle(tensor: TensorInfo) -> ByteRange:
    start = tensor.start + max(0, tensor.nbytes - SAMPLE_BYTES) // 2
    return ByteRange(tensor.file.name, start, min(start + SAMPLE_BYTES, tensor.stop))
