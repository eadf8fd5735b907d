"""The units a model is cut into: one file for the embedding, each layer, the norm and the head. Reads nothing.

A unit is canonical: it follows from the original safetensors headers alone, so every machine makes the same bytes of
the same model. Its file is a safetensors file: a header, then the tensors' bytes, pieces of the original files.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from together.errors import BrokenModel
from together.models.headers import ELEMENT_BYTES, FileHeader, TensorInfo, sorted_in_turns
from together.models.names import EMBED_UNIT, HEAD_UNIT, NORM_UNIT, canonical_names, layer_unit, unit_layer, unit_of
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
    tensors: dict[str, list[tuple[int, TensorInfo]]] = {}
    names = canonical_names(tensor.name for header in headers for tensor in header.tensors)
    for index, header in enumerate(headers):
        for tensor in header.tensors:
            known = names.get(tensor.name)
            name = unit_of(known) if known is not None else None
            if known is not None and name is not None:
                renamed = tensor if known == tensor.name else replace(tensor, name=known)
                tensors.setdefault(name, []).append((index, renamed))
    return {name: _unit(name, tensors[name]) for name in sorted(tensors, key=unit_order)}


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
    return (1, layer) if layer is not None else ((EMBED_UNIT, "", NORM_UNIT, HEAD_UNIT).index(name), 0)


def units_for(model: Cut, layers: LayerRange) -> tuple[Unit, ...]:
    """What a stage of `layers` needs, in the model's order. Raises BrokenModel for a unit that the model lacks."""
    if layers.stop > model.layers:
        raise BrokenModel(f"{model.name} has {model.layers} layers, not {layers}; choose layers of 0:{model.layers}")
    names = {layer_unit(layer) for layer in range(layers.start, layers.stop)}
    if layers.start == 0:
        names.add(EMBED_UNIT)
    if layers.stop == model.layers:
        names |= {NORM_UNIT, HEAD_UNIT if HEAD_UNIT in model.units else EMBED_UNIT}
    absent = names - model.units.keys()
    if absent:
        raise BrokenModel(f"{model.name} has no tensors for {words(absent)}; get this model again")
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


def words(names: Iterable[str]) -> str:
    """Units for a person: "embed, layers 0:4, norm"."""
    known = sorted(names, key=unit_order)
    ends = {name: name.removesuffix(".safetensors") for name in known if unit_layer(name) is None}
    runs = [f"layers {item}" for item in layer_ranges(known)]
    first = [ends.pop(EMBED_UNIT)] if EMBED_UNIT in ends else []
    return ", ".join([*first, *runs, *ends.values()]) or "nothing"


def _unit(name: str, tensors: list[tuple[int, TensorInfo]]) -> Unit:
    """Wide elements first, so that each tensor stays aligned; else in the order of files and bytes."""
    by_place = sorted_in_turns(tensors, _place)
    ordered = [tensor for _, tensor in by_place]
    return Unit(name, _header(ordered), _pieces(ordered))


def _place(item: tuple[int, TensorInfo]) -> tuple[int, int, int, str]:
    index, tensor = item
    return (-ELEMENT_BYTES.get(tensor.dtype, 1), index, tensor.start, tensor.name)


def _header(tensors: Sequence[TensorInfo]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        stop = position + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [position, stop]}
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
