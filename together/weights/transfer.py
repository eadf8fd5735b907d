"""Brings units of one model from other machines to this one's store: several at once, resumed and checked.

A source that is lost is retried for two minutes with back-off; one that sends wrong bytes is not asked again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from together.cluster_types import Source, UnitRequest
from together.errors import BrokenModel, RingBroken, TogetherError, Unreachable
from together.models.reading import read_unit
from together.models.units import Unit
from together.ring.rpc import Broadcast
from together.types import ModelRef
from together.weights.part import DiskFull, Progress, UnitWriter, Waiting, size_of
from together.weights.peers import connected
from together.weights.store import Store, UnitBusy

log = logging.getLogger(__name__)

STREAMS = 3  # units that travel to this machine at once
PATIENCE = 120.0  # seconds that a source which gave something may take to come back
FIRST_PATIENCE = 15.0  # the same for one that never answered, and where there is the hub to turn to
RETRY = (0.5, 5.0)  # seconds between attempts to reach it: at first, and at most
QUIET = 3.0  # seconds without a byte before it is reported
LOOK_EVERY = 0.2  # seconds between looks at a unit that another task writes

Run = Callable[..., Awaitable[Any]]  # calls a function with arguments on a thread


@dataclass(slots=True)
class Supplier:
    """A source and its state; times are of the event loop, `lost_since` is None while it answers."""

    source: Source
    streams: int = 0
    given: int = 0  # bytes
    lost_since: float | None = None
    answered: bool = False  # at least once
    heard: float = 0.0  # when the last byte came
    wrong: bool = False  # it has another model than it claims
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
        """Seconds before it is asked again; they grow while it is lost."""
        return min(RETRY[1], max(RETRY[0], self.lost_for(now) / 4))


class Suppliers:
    """The sources of a model's units; `changed` is notified when there are more.

    A machine whose address changed is added: it may come back at the old one.
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
    """One fetch of units: `run` returns those that no source gave, and `causes` says why."""

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
        self._waits = waiting
        self._patience = PATIENCE
        self._heard = 0.0  # event loop time of the last byte
        self._sizes = {unit.name: 0 for unit in units}  # bytes that are here
        self._total = sum(unit.size for unit in units)
        self._origins: dict[str, set[str]] = {}  # the peers whose bytes a part is made of
        self._queue = deque(sorted(units, key=lambda unit: -unit.size))  # so that no large one is left for the end
        self._left: list[Unit] = []

    async def run(self, patience: float) -> tuple[Unit, ...]:
        """Fetch, giving up a source that is lost for `patience` seconds; may run again for what was left.

        Raises DiskFull. What was fetched until then, or until it is cancelled, stays as parts.
        """
        self._patience, self._heard = patience, asyncio.get_running_loop().time()
        self._queue.extend(self._left)
        self._left.clear()
        workers = [asyncio.create_task(self._work()) for _ in range(STREAMS)]
        reporter = asyncio.create_task(self._report_silence())
        try:
            await asyncio.gather(*workers)
        finally:
            for task in (reporter, *workers):
                task.cancel()
            await asyncio.gather(reporter, *workers, return_exceptions=True)
            self._waits("")
        return tuple(self._left)

    async def _report_silence(self) -> None:
        """Say why nothing moves, also before a connection counts as lost."""
        while True:
            await asyncio.sleep(QUIET / 4)
            now = asyncio.get_running_loop().time()
            quiet = now - self._heard
            whom = " and ".join(dict.fromkeys(supplier.peer for supplier in self._able(None, now)))
            self._waits(f"{whom or 'its sources'}: nothing came for {quiet:.0f} s" if quiet > QUIET else "")

    def _able(self, unit: Unit | None, now: float) -> list[Supplier]:
        """The sources that may give a unit, or any that is not here."""
        names = [unit.name] if unit else [name for name in self._sizes if not (self._folder / name).is_file()]
        usable = filter(self._usable, self._suppliers.all)
        return [item for item in usable if any(item.can_give(name, now, self._patience) for name in names)]

    async def copy(self, folder: Path, units: frozenset[str]) -> None:
        """Take what a folder of this machine has: an exported part of the model."""
        for unit in [unit for unit in self._queue if unit.name in units]:
            try:
                await self._copy(folder, unit)
            except DiskFull:
                raise
            except TogetherError as error:
                self.causes[str(error)] = None
            else:
                self._queue.remove(unit)

    async def _copy(self, folder: Path, unit: Unit) -> None:
        async with self._opened(unit) as (part, run):
            chunks = read_unit(folder, unit, part.size)
            while chunk := await asyncio.to_thread(next, chunks, b""):
                await run(part.write, chunk)
                self._show(unit, part.size)
            await run(part.finish)

    @asynccontextmanager
    async def _opened(self, unit: Unit) -> AsyncIterator[tuple[UnitWriter, Run]]:
        """The unit's part, and what runs its calls one after another, also those whose caller is cancelled.

        Raises UnitBusy, DiskFull or BrokenModel.
        """
        thread = ThreadPoolExecutor(1, "unit")
        opening = thread.submit(self._store.part, self._model.fingerprint, unit.name)
        try:
            part = await asyncio.wrap_future(opening)
            yield part, partial(asyncio.get_running_loop().run_in_executor, thread)
        finally:
            closing = thread.submit(_close, opening)
            thread.shutdown(wait=False)
            await asyncio.wrap_future(closing)

    # --- one unit -----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while self._queue:
            unit = self._queue.popleft()
            if not await self._get(unit):
                self._left.append(unit)

    async def _get(self, unit: Unit) -> bool:
        """Try one source after the other until the unit is here; False when none is left."""
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
            size = size_of(self._folder / f"{unit.name}.part")
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
        """Leave a silent source when new ones are known: its machine may have another address now."""
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
        async with self._opened(unit) as (part, run):
            origins = self._origins.setdefault(unit.name, {"an earlier start"} if part.size else set())
            async with connected(supplier.source.endpoint) as link:
                digest = await link.digest(request)
                supplier.answered = True
                origins.add(link.peer)

                async def take(chunk: bytes) -> None:
                    supplier.lost_since = None
                    self._heard = supplier.heard = asyncio.get_running_loop().time()
                    supplier.given += len(chunk)
                    await run(part.write, chunk)
                    self._show(unit, part.size)

                await link.read(UnitRequest(request.fingerprint, unit.name, part.size), take)
                await self._checked(unit, run(part.finish, digest.sha256), link.peer)

    async def _checked(self, unit: Unit, finishing: Awaitable[Any], peer: str) -> None:
        """Raises BrokenModel where `peer` alone is to blame; a part of several origins is fetched again."""
        try:
            await finishing
        except BrokenModel as error:
            mixed = self._origins.pop(unit.name) != {peer}
            sentence = f"{peer} gave bytes that do not match its own hash: {error}"
            if not mixed:
                raise BrokenModel(sentence) from error
            self._note(BrokenModel(f"{sentence}; it continued a part from elsewhere, so the unit is fetched again"))

    def _note(self, error: TogetherError) -> None:
        log.warning("fetching %s: %s", self._model.name, error)
        self.causes[str(error)] = None

    def _show(self, unit: Unit, size: int) -> None:
        self._sizes[unit.name] = size
        self._progress(sum(self._sizes.values()), self._total)


def _close(opening: Future[UnitWriter]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
