"""Converts units of a model in a child process, and puts them into this machine's cache.

`python -m together.weights.converting` reads an Order as a line on its input and prints, line by line, how many bytes
are made. It leaves when its input closes; whole units stay, a part of one is begun anew.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil

from together.errors import BrokenModel, LoadFailed
from together.jsonfile import decode_json
from together.models.form import form_of
from together.models.headers import TensorInfo
from together.models.manifest import Manifest, describe, is_shard, read_manifest
from together.models.names import unit_of
from together.models.reading import Stamp, all_tensors, shard_tensors, stamp_of
from together.models.units import Unit
from together.processes import claim_stdout, leave_with_parent
from together.sentences import Sentence, template
from together.weights.children import do, run_child
from together.weights.convert import converted
from together.weights.part import Progress, UnitWriter
from together.weights.store import Store, UnitBusy

LOOK_EVERY = 0.2  # seconds between looks at a unit that another process makes
TOLD_EVERY = 2**22  # bytes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Order:
    """Make these units of the model with this key from the plain one in `source`; `home` has the cache."""

    home: str
    source: str
    key: str
    units: tuple[str, ...]


async def convert_units(home: Path, source: Path, key: str, units: Sequence[Unit], progress: Progress) -> None:
    """Make units that the cache lacks; its folder of the model was begun. `progress` gets bytes made and in all.

    The child ends when this is cancelled. Raises BrokenModel, UnsupportedModel or LoadFailed.
    """
    total = sum(unit.size for unit in units)
    order = Order(str(home), str(source), key, tuple(unit.name for unit in units))
    progress(0, total)
    await run_child("together.weights.converting", order, lambda done: progress(done, total), _ended)


def _ended(code: int, said: str | Sentence) -> LoadFailed:
    message = (
        "the process that converts weights ended with code {code} ({said}); load the model again: what was made is kept"
    )
    return LoadFailed(message, code=code, said=said)


# --- in the child -----------------------------------------------------------------------------------------------------


def make_units(store: Store, source: Path, key: str, names: Sequence[str], tell: Callable[[int], None]) -> None:
    """Make units one after the other; one that is here, or that another process made meanwhile, is left alone.

    Raises BrokenModel where `source` is another model, or DiskFull.
    """
    stamp = _stamp(source)
    manifest, plain = read_manifest(store.folder(key)), describe(source)
    if plain.key != manifest.fingerprint:
        message = "{folder} does not hold {model} as it was published; load it again"
        raise BrokenModel(message, folder=str(source), model=manifest.name)
    tensors = _Tensors(source, plain, store.home, stamp)
    done = 0
    for name in names:
        _make(store, manifest, name, tensors, partial(_tell_on, tell, done))
        done += manifest.units[name].size
        tell(done)


def _tell_on(tell: Callable[[int], None], before: int, size: int) -> None:
    tell(before + size)


@dataclass(slots=True)
class _Tensors:
    """Where the plain tensors lie."""

    folder: Path
    manifest: Manifest
    home: Path
    stamp: Stamp  # of the published files, before anything was read of them
    _all: tuple[TensorInfo, ...] = ()

    def of(self, unit: str) -> list[TensorInfo]:
        """Of one unit. Raises BrokenModel where it is not here, or damaged."""
        if is_shard(self.folder):
            return list(shard_tensors(self.folder, self.manifest, (self.manifest.units[unit],), self.home))
        self._all = self._all or all_tensors(self.folder)
        return [tensor for tensor in self._all if unit_of(tensor.name) == unit]

    def require_same(self) -> None:
        """Raises BrokenModel where somebody wrote to the published files: what was read may be of two versions."""
        if _stamp(self.folder) != self.stamp:
            message = "the files of {model} in {folder} changed while they were converted; load it again"
            raise BrokenModel(message, model=self.manifest.name, folder=str(self.folder))


def _stamp(folder: Path) -> Stamp:
    return stamp_of(sorted(folder.glob("*.safetensors"))) if not is_shard(folder) else ()


def _make(store: Store, manifest: Manifest, name: str, tensors: _Tensors, tell: Callable[[int], None]) -> None:
    unit, file = manifest.units[name], store.folder(manifest.key) / name
    while not file.is_file() or file.stat().st_size != unit.size:
        try:
            with store.part(manifest.key, name, anew=True) as part:
                if not part.size:  # else another process has made it since
                    _write(part, converted(tensors.of(name), form_of(manifest.form), os.cpu_count() or 1), tell)
                    tensors.require_same()
                part.finish()
        except UnitBusy:
            time.sleep(LOOK_EVERY)


def _write(part: UnitWriter, chunks: Iterator[bytes | memoryview], tell: Callable[[int], None]) -> None:
    part.write(part.unit.header)
    told = 0
    for chunk in chunks:
        part.write(chunk)
        if part.size - told >= TOLD_EVERY:
            told = part.size
            tell(told)


def give_way() -> None:
    """Other programs, and stages that serve, come first."""
    if sys.platform == "win32":
        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
    else:
        os.nice(10)


def serve_order(kind: type[T], work: Callable[[T, Callable[[int], None]], None]) -> None:
    """A child's whole life: read its order, do the `work`, which tells how many bytes are done, and leave."""
    answers = claim_stdout()
    order = decode_json(sys.stdin.buffer.readline(), kind)
    leave_with_parent(1)
    give_way()
    do(lambda: work(order, lambda done: print(done, file=answers)), template("the converted weights"))


def _make_ordered(order: Order, tell: Callable[[int], None]) -> None:
    make_units(Store(Path(order.home)), Path(order.source), order.key, order.units, tell)


if __name__ == "__main__":
    serve_order(Order, _make_ordered)
