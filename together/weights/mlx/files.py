"""A safetensors file that is written front to back; its header comes last, into the room that was kept for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from math import prod
from pathlib import Path

from together.models.headers import ELEMENT_BYTES

_LENGTH = 8  # bytes in front of the header that say its own

Chunk = bytes | memoryview


class SafetensorsFile:
    """A new file. Raises OSError; a file that is not `finish`ed is none."""

    def __init__(self, file: Path, room: int) -> None:
        """`room`: bytes for the header with its length, a multiple of 8."""
        assert room % _LENGTH == 0, "tensors begin at multiples of 8"
        self.sizes: dict[str, int] = {}  # bytes of each tensor by name
        self._entries: dict[str, object] = {"__metadata__": {"format": "mlx"}}
        self._room = room
        self._at = 0  # of the data
        self._stream = file.open("xb")
        self._stream.seek(room)

    def add(self, name: str, dtype: str, shape: tuple[int, ...], chunks: Iterable[Chunk]) -> None:
        """Append a tensor of which `chunks` are the bytes."""
        start = self._at
        for chunk in chunks:
            self._at += self._stream.write(chunk)
        assert self._at - start == prod(shape) * ELEMENT_BYTES[dtype], f"{name} is {dtype} {shape}"
        self.sizes[name] = self._at - start
        self._entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, self._at]}

    def finish(self) -> None:
        """Write the header, which ends in spaces, and all of it down to the disk."""
        header = json.dumps(self._entries, separators=(",", ":")).encode()
        length = self._room - _LENGTH
        assert len(header) <= length, "the room was counted for these tensors"
        self._stream.seek(0)
        self._stream.write(length.to_bytes(_LENGTH, "little") + header.ljust(length))
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
