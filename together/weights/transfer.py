"""Brings units of one model from other machines to this one's store: several at once, resumed after a cut, checked.

Knows no hub and no stage. A source that is lost is asked again for two minutes, ever more rarely; one that sends wrong
bytes never again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from together.cluster_types import Source, UnitDigest, UnitRequest
from together.errors import BrokenModel, RingBroken, TogetherError, Unreachable
from together.models.reading import read_unit
from together.models.units import Unit
from together.ring.rpc import Broadcast
from together.types import ModelRef
from together.weights.part import DiskFull, UnitWriter
from together.weights.peers import connected
from together.weights.store import Store, UnitBusy

log = logging.getLogger(__name__)

STREAMS = 3  # units that travel to this machine at once
PATIENCE = 120.0  # seconds that a source which gave something may take to come back
FIRST_PATIENCE = 15.0  # the same for one that never answered, and where there is the hub to turn to
RETRY = (0.5, 5.0)  # seconds between attempts to reach it: at first, and at most
QUIET = 3.0  # seconds without a byte before it is said
LOOK_EVERY = 0.2  # seconds, at a unit that somebody else writes

Progress = Callable[[int, int], None]
Waiting = Callable[[str], None]  # gets whom a fetch waits for, as a phrase; empty while bytes come
T = TypeVar("T")


@dataclass(slots=True)
class Supplier:
    """A source and what became of it; `lost_since` is None while it answers, in event loop time."""

    source: Source
    streams: int = 0
    given: int = 0  # bytes
    lost_since: float | None = None
    answered: bool = False  # at least once
    heard: float = 0.0  # when a byte came last, in event loop time
    wrong: bool = False  # it has another model than it says
    refused: set[str] = field(default_factory=set)  # units it cannot give

    @property
    def peer(self) -> str:
        return f"{next(iter(self.source.endpoint.addresses), 'nowhere')}:{self.source.endpoint.port}"

    def can_give(self, unit: str, now: float, patience: float) -> bool:
        lost = self.lost_for(now) > (patience if self.answered else FIRST_PATIENCE)
        return not (lost or self.wrong) and unit in self.source.units and unit not in self.refused

    def lost_for(self, now: float) -> float:
        """Seconds; 0 while it answers."""
        return 0.0 if self.lost_since is None else now - self.lost_since

    def pause(self, now: float) -> float:
        """Seconds before it is asked again: the longer it is lost, the more."""
        return min(RETRY[1], max(RETRY[0], self.lost_for(now) / 4))


class Suppliers:
    """Everybody who is said to have units of a model; `changed` is notified when there are more.

    A machine whose address changed is a further one: the old one may still come back.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self.all = [Supplier(source) for source in sources]
        self.changed = Broadcast()

    def renew(self, sources: Iterable[Source]) -> None:
        known = {supplier.source for supplier in self.all}
        new = [Supplier(source) for source in sources if source not in known]
        self.all += new
        if new:
            self.changed.notify()


class Transfer:
    """One fetch of units: `run` returns those that nobody gave, and `causes` says why."""

    def __init__(
        self,
        store: Store,
        model: ModelRef,
        suppliers: Suppliers,
        usable: Callable[[Supplier], bool],
        units: tuple[Unit, ...],
        progress: Progress,
        waiting: Waiting,
    ) -> None:
        self.causes: dict[str, None] = {}  # sentences, each once, in order
        self._store = store
        self._model = model
        self._folder = store.folder(model.fingerprint)
        self._suppliers = suppliers
        self._usable = usable
        self._progress = progress
        self._tell = waiting
        self._patience = PATIENCE
        self._heard = 0.0  # event loop time of the last byte
        self._sizes = {unit.name: 0 for unit in units}  # bytes that are here
        self._total = sum(unit.size for unit in units)
        self._origins: dict[str, set[str]] = {}  # whose bytes a part is made of
        self._waiting = deque(sorted(units, key=lambda unit: -unit.size))  # so that no large one is left for the end
        self._left: list[Unit] = []

    async def run(self, patience: float) -> tuple[Unit, ...]:
        """Raises DiskFull; what was fetched until then, or until it is cancelled, stays as parts.

        A source that is lost for `patience` seconds is given up. May run again for what was left.
        """
        self._patience, self._heard = patience, asyncio.get_running_loop().time()
        self._waiting.extend(self._left)
        self._left.clear()
        workers = [asyncio.create_task(self._work()) for _ in range(STREAMS)]
        teller = asyncio.create_task(self._tell_of_silence())
        try:
            await asyncio.gather(*workers)
        finally:
            for task in (teller, *workers):
                task.cancel()
            await asyncio.gather(teller, *workers, return_exceptions=True)
            self._tell("")
        return tuple(self._left)

    async def _tell_of_silence(self) -> None:
        """A person sees why nothing moves: also before the connection counts as lost."""
        while True:
            await asyncio.sleep(QUIET / 4)
            now = asyncio.get_running_loop().time()
            quiet = now - self._heard
            whom = " and ".join(dict.fromkeys(supplier.peer for supplier in self._able(None, now)))
            self._tell(f"{whom or 'its sources'}: nothing came for {quiet:.0f} s" if quiet > QUIET else "")

    def _able(self, unit: Unit | None, now: float) -> list[Supplier]:
        """Who may give a unit, or any that is not here."""
        names = [unit.name] if unit else [name for name in self._sizes if not (self._folder / name).is_file()]
        usable = filter(self._usable, self._suppliers.all)
        return [item for item in usable if any(item.can_give(name, now, self._patience) for name in names)]

    async def copy(self, folder: Path, units: frozenset[str]) -> None:
        """First take what a folder of this machine has: an exported part of the model."""
        for unit in [unit for unit in self._waiting if unit.name in units]:
            try:
                await self._copy(folder, unit)
            except DiskFull:
                raise
            except TogetherError as error:
                self.causes[str(error)] = None
            else:
                self._waiting.remove(unit)

    async def _copy(self, folder: Path, unit: Unit) -> None:
        async with writing(lambda: self._store.part(self._model.fingerprint, unit.name)) as writer:
            chunks = read_unit(folder, unit, writer.size)
            while chunk := await asyncio.to_thread(next, chunks, b""):
                await writer.write(chunk)
                self._show(unit, writer.size)
            await writer.finish(None)

    # --- one unit -----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while self._waiting:
            unit = self._waiting.popleft()
            if not await self._get(unit):
                self._left.append(unit)

    async def _get(self, unit: Unit) -> bool:
        """From one source after the other until it is here; False when none is left."""
        clock = asyncio.get_running_loop().time
        while not (self._folder / unit.name).is_file():
            seen = self._suppliers.changed.version
            able = self._able(unit, clock())
            if not able:
                return False
            supplier = min(able, key=lambda item: (item.lost_since is not None, item.streams, item.given))
            if supplier.lost_since is not None:
                news = await self._suppliers.changed.wait(seen, supplier.pause(clock()))
                if news != seen:
                    continue
            await self._try(unit, supplier)
        self._show(unit, unit.size)
        return True

    async def _try(self, unit: Unit, supplier: Supplier) -> None:
        supplier.streams += 1
        try:
            await self._unless_moved(asyncio.create_task(self._receive(unit, supplier)), supplier)
        except DiskFull:
            raise
        except UnitBusy:  # another stage or node of this machine fetches it
            size = _size(self._folder / f"{unit.name}.part")
            if size > self._sizes.get(unit.name, 0):
                self._heard = asyncio.get_running_loop().time()
            self._show(unit, size)
            await asyncio.sleep(LOOK_EVERY)
        except (Unreachable, RingBroken) as error:
            self._note(error)
            if supplier.lost_since is None:
                supplier.lost_since = asyncio.get_running_loop().time()
        except TogetherError as error:
            self._note(error)
            supplier.refused.add(unit.name)
        finally:
            supplier.streams -= 1

    async def _unless_moved(self, receiving: asyncio.Task[None], supplier: Supplier) -> None:
        """What is silent while there is news of sources is left for them: its machine may have another address now."""
        clock, seen = asyncio.get_running_loop().time, self._suppliers.changed.version
        supplier.heard = clock()
        try:
            while not (await asyncio.wait({receiving}, timeout=QUIET / 4))[0]:
                if self._suppliers.changed.version != seen and clock() - supplier.heard > QUIET:
                    raise Unreachable(f"{supplier.peer} sent nothing for {QUIET:.0f} s, and there are other sources")
            receiving.result()
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    async def _receive(self, unit: Unit, supplier: Supplier) -> None:
        request = UnitRequest(self._model.fingerprint, unit.name)
        async with writing(lambda: self._store.part(self._model.fingerprint, unit.name)) as writer:
            origins = self._origins.setdefault(unit.name, {"an earlier start"} if writer.size else set())
            async with connected(supplier.source.endpoint) as link:
                digest = await link.digest(request)
                supplier.answered = True
                origins.add(link.peer)

                async def take(chunk: bytes) -> None:
                    supplier.lost_since = None
                    self._heard = supplier.heard = asyncio.get_running_loop().time()
                    supplier.given += len(chunk)
                    await writer.write(chunk)
                    self._show(unit, writer.size)

                await link.read(UnitRequest(request.fingerprint, unit.name, writer.size), take)
                await self._finish(unit, writer, digest, link.peer)

    async def _finish(self, unit: Unit, writer: Writer, digest: UnitDigest, peer: str) -> None:
        """Raises BrokenModel where `peer` alone is to blame; a part of several origins is started anew."""
        try:
            await writer.finish(digest.sha256)
        except BrokenModel as error:
            mixed = self._origins.pop(unit.name) != {peer}
            sentence = f"{peer} gave bytes that do not match its own hash: {error}"
            if not mixed:
                raise BrokenModel(sentence) from error
            self._note(BrokenModel(f"{sentence}; a part from elsewhere was continued, so it is fetched anew"))

    def _note(self, error: TogetherError) -> None:
        log.warning("fetching %s: %s", self._model.name, error)
        self.causes[str(error)] = None

    def _show(self, unit: Unit, size: int) -> None:
        self._sizes[unit.name] = size
        self._progress(sum(self._sizes.values()), self._total)


# --- the disk ---------------------------------------------------------------------------------------------------------


class Writer:
    """A part whose calls run one after another on a thread of its own, also when their caller is cancelled."""

    def __init__(self, opening: Callable[[], UnitWriter]) -> None:
        self._opening = opening
        self._part: UnitWriter | None = None
        self._thread = ThreadPoolExecutor(1, "unit")

    @property
    def size(self) -> int:
        return self._opened.size

    @property
    def _opened(self) -> UnitWriter:
        assert self._part is not None
        return self._part

    async def open(self) -> None:
        """Raises UnitBusy, DiskFull or BrokenModel, as the others do."""
        await self._do(self._open)

    async def write(self, data: bytes) -> None:
        await self._do(lambda: self._opened.write(data))

    async def finish(self, sha256: str | None) -> None:
        await self._do(lambda: self._opened.finish(sha256))

    async def close(self) -> None:
        closing = self._thread.submit(self._close)
        self._thread.shutdown(wait=False)
        await asyncio.wrap_future(closing)

    def _open(self) -> None:
        self._part = self._opening()

    def _close(self) -> None:
        if self._part is not None:
            self._part.close()

    async def _do(self, call: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._thread.submit(call))


@asynccontextmanager
async def writing(opening: Callable[[], UnitWriter]) -> AsyncIterator[Writer]:
    """The part that `opening` opens; closed after, whatever happens."""
    writer = Writer(opening)
    try:
        await writer.open()
        yield writer
    finally:
        await writer.close()


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
