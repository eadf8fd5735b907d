"""A model's safetensors files as they were published: headers, samples of their weights, the fingerprint of both.

Knows no unit, and not where the bytes come from. Fine-tunes share config and headers: only samples tell them apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from together.models.headers import FileHeader, TensorInfo, sorted_in_turns
from together.models.names import is_computed
from together.models.units import ByteRange

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
