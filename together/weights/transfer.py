"""Brings units of one model from other machines to this one's store: several at once, resumed and checked.

A lost source is retried for two minutes with back-off; a unit that it sends wrong is not asked of it again.
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

import grpc.aio

from together.cluster_types import Endpoint, Source, UnitDigest, UnitRequest
from together.errors import BrokenModel, RingBroken, TogetherError, Unreachable
from together.models.form import version_text
from together.models.manifest import Manifest, parse
from together.models.reading import read_unit
from together.models.units import Unit
from together.ring import rpc, wire
from together.ring.doors import find_door
from together.ring.rpc import Broadcast
from together.sentences import Sentence
from together.trust.credentials import ALONE, Credentials
from together.types import ModelRef
from together.weights.part import DiskFull, Progress, UnitWriter, Waiting, size_of
from together.weights.store import Store, UnitBusy

log = logging.getLogger(__name__)

STREAMS = 3  # units that travel to this machine at once
PATIENCE = 120.0  # seconds that a source which gave something may take to come back
FIRST_PATIENCE = 15.0  # the same for one that never answered, and where there is the hub to turn to
RETRY = (0.5, 5.0)  # seconds between attempts to reach it: at first, and at most
QUIET = 3.0  # seconds without a byte before it is reported
LOOK_EVERY = 0.2  # seconds between looks at a unit that another task writes
ANSWER_WITHIN = 60.0  # seconds; a slow disk lists a large model
HASHED_WITHIN = 1800.0  # a source may have to hash a large unit first; keepalive notices one that is gone
SILENT = 30.0  # seconds without a byte: the connection is lost

Run = Callable[..., Awaitable[Any]]  # calls a function with arguments on a thread
Take = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class PeerLink:
    """An open connection to a source; `peer` is its address, for sentences."""

    channel: grpc.aio.Channel
    peer: str

    async def describe(self, model: ModelRef) -> Manifest:
        """The source's manifest of the model. Raises Unreachable, or BrokenModel for another model."""
        answer = await rpc.call(self.channel, rpc.DESCRIBE, model, self.peer, ANSWER_WITHIN)
        manifest = await asyncio.to_thread(parse, answer.data)
        if manifest.key != model.key:
            raise BrokenModel(
                "{peer} gives the version {there} of {model}, not {wanted}; start it again",
                peer=self.peer,
                there=version_text(manifest.fingerprint, manifest.form),
                model=model.name,
                wanted=version_text(model.fingerprint, model.form),
            )
        return manifest

    async def digest(self, request: UnitRequest) -> UnitDigest:
        """Size and sha256 of a file. Raises Unreachable, or BrokenModel where the source does not have it."""
        digest: UnitDigest = await rpc.call(self.channel, rpc.DIGEST, request, self.peer, HASHED_WITHIN)
        return digest

    async def read(self, request: UnitRequest, take: Take) -> None:
        """Pass every chunk to `take`, in order; the source waits while `take` does. Raises as `digest` does."""
        stub: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(rpc.READ)
        stream = stub(wire.UNIT_REQUEST.encode(request))
        try:
            while (chunk := await self._next(stream)) is not None:
                await take(chunk)
        finally:
            stream.cancel()

    async def small(self, model: ModelRef, name: str, size: int) -> bytes:
        """A small file of at most `size` bytes. Raises as `digest` does."""
        found = bytearray()

        async def take(chunk: bytes) -> None:
            found.extend(chunk)
            if len(found) > size:
                message = "{peer} sends more of {file} than its {size} bytes; start it again"
                raise BrokenModel(message, peer=self.peer, file=name, size=size)

        await self.read(UnitRequest(model.key, name), take)
        return bytes(found)

    async def _next(self, stream: grpc.aio.UnaryStreamCall[bytes, bytes]) -> bytes | None:
        try:
            async with asyncio.timeout(SILENT):
                data = await stream.read()
        except grpc.aio.AioRpcError as error:
            raise rpc.error_of(error, self.peer) from error
        except TimeoutError:
            raise Unreachable("{peer} sent nothing for {seconds:.0f} s", peer=self.peer, seconds=SILENT) from None
        except (grpc.aio.UsageError, asyncio.CancelledError) as error:
            if rpc.is_cancelled():
                raise
            raise Unreachable("the connection to {peer} is gone", peer=self.peer) from error
        return wire.BLOB.decode(data).data if isinstance(data, bytes) else None  # else it is the stream's end


@asynccontextmanager
async def connected(source: Endpoint, credentials: Credentials = ALONE) -> AsyncIterator[PeerLink]:
    """A connection to the address that answers first. Raises Unreachable."""
    async with (door := await find_door(source, credentials)).open() as channel:
        yield PeerLink(channel, str(door))


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

    def __init__(
        self,
        sources: Iterable[Source],
        own: Callable[[], Endpoint] = lambda: Endpoint((), 0),
        credentials: Credentials = ALONE,
    ) -> None:
        """`own` is where this node itself listens, `credentials` are this node's."""
        self.all = [Supplier(source) for source in sources]
        self.changed = Broadcast()
        self.credentials, self._own = credentials, own

    def others(self) -> list[Supplier]:
        """All but this node itself."""
        own = self._own()
        return [item for item in self.all if not _same(item.source.endpoint, own)]

    def renew(self, sources: Iterable[Source]) -> None:
        known = {supplier.source for supplier in self.all}
        new = [Supplier(source) for source in sources if source not in known]
        self.all += new
        if new:
            self.changed.notify()


@dataclass(slots=True)
class Transfer:
    """One fetch of units: `run` returns those that no source gave, and `causes` says why."""

    store: Store
    model: ModelRef
    suppliers: Suppliers
    units: tuple[Unit, ...]
    progress: Progress
    waiting: Waiting
    causes: dict[Sentence, None] = field(default_factory=dict)  # each once, in order
    _patience: float = PATIENCE
    _heard: float = 0.0  # event loop time of the last byte
    _origins: dict[str, set[str]] = field(default_factory=dict)  # the peers whose bytes a part is made of
    _left: list[Unit] = field(default_factory=list)
    _folder: Path = field(init=False)
    _sizes: dict[str, int] = field(init=False)  # bytes that are here
    _queue: deque[Unit] = field(init=False)

    def __post_init__(self) -> None:
        self._folder = self.store.folder(self.model.key)
        self._sizes = {unit.name: 0 for unit in self.units}
        self._queue = deque(sorted(self.units, key=lambda unit: -unit.size))  # no large one is left for the end

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
            self.waiting("")
        return tuple(self._left)

    async def _report_silence(self) -> None:
        """Say why nothing moves, also before a connection counts as lost."""
        while True:
            await asyncio.sleep(QUIET / 4)
            now = asyncio.get_running_loop().time()
            quiet = now - self._heard
            whom = " and ".join(dict.fromkeys(supplier.peer for supplier in self._able(None, now)))
            makes = " (it may have to convert the weights first)" if self.model.form else ""
            said = f"{whom or 'its sources'}: nothing came for {quiet:.0f} s{makes}"
            self.waiting(said if quiet > QUIET else "")

    def _able(self, unit: Unit | None, now: float) -> list[Supplier]:
        """The sources that may give a unit, or any that is not here."""
        names = [unit.name] if unit else [name for name in self._sizes if not (self._folder / name).is_file()]
        others = self.suppliers.others()
        return [item for item in others if any(item.can_give(name, now, self._patience) for name in names)]

    async def copy(self, folder: Path, units: frozenset[str]) -> None:
        """Take what a folder of this machine has: an exported part of the model."""
        for unit in [unit for unit in self._queue if unit.name in units]:
            try:
                await self._copy(folder, unit)
            except DiskFull:
                raise
            except TogetherError as error:
                self.causes[error.sentence] = None
            else:
                self._queue.remove(unit)

    @property
    def wanted(self) -> bool:
        """Whether units are still to come."""
        return bool(self._queue or self._left)

    def take(self, names: frozenset[str]) -> tuple[Unit, ...]:
        """Leave those of the units to the caller, who gets them in another way."""
        taken = tuple(unit for unit in self._queue if unit.name in names)
        self._queue = deque(unit for unit in self._queue if unit.name not in names)
        for unit in taken:
            self._sizes[unit.name] = unit.size
        return taken

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
        opening = thread.submit(self.store.part, self.model.key, unit.name)
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
            seen = self.suppliers.changed.version
            able = self._able(unit, clock())
            if not able:
                return False
            supplier = min(able, key=lambda item: (item.lost_since is not None, item.streams, item.given))
            if supplier.lost_since is not None:
                news = await self.suppliers.changed.wait(seen, supplier.pause(clock()))
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
        clock, seen = asyncio.get_running_loop().time, self.suppliers.changed.version
        supplier.heard = clock()
        try:
            while not (await asyncio.wait({receiving}, timeout=QUIET / 4))[0]:
                if self.suppliers.changed.version != seen and clock() - supplier.heard > QUIET:
                    message = "{peer} sent nothing for {seconds:.0f} s, and there are other sources"
                    raise Unreachable(message, peer=supplier.peer, seconds=QUIET)
            receiving.result()
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    async def _receive(self, unit: Unit, supplier: Supplier) -> None:
        request = UnitRequest(self.model.key, unit.name)
        async with self._opened(unit) as (part, run):
            origins = self._origins.setdefault(unit.name, {"an earlier start"} if part.size else set())
            async with connected(supplier.source.endpoint, self.suppliers.credentials) as link:
                digest = await link.digest(request)
                supplier.answered = True
                origins.add(link.peer)

                async def take(chunk: bytes) -> None:
                    supplier.lost_since = None
                    self._heard = supplier.heard = asyncio.get_running_loop().time()
                    supplier.given += len(chunk)
                    await run(part.write, chunk)
                    self._show(unit, part.size)

                await link.read(UnitRequest(request.key, unit.name, part.size), take)
                await self._checked(unit, run(part.finish, digest.sha256), link.peer)

    async def _checked(self, unit: Unit, finishing: Awaitable[Any], peer: str) -> None:
        """Raises BrokenModel where `peer` alone is to blame; a part of several origins is fetched again."""
        try:
            await finishing
        except BrokenModel as error:
            wrong = BrokenModel(
                "{peer} gave bytes that do not match its own hash: {error}", peer=peer, error=error.sentence
            )
            if self._origins.pop(unit.name) == {peer}:
                raise wrong from error
            again = "{error}; it continued a part from elsewhere, so the unit is fetched again"
            self._note(BrokenModel(again, error=wrong.sentence))

    def _note(self, error: TogetherError) -> None:
        log.info("fetching %s: %s", self.model.name, error)
        self.causes[error.sentence] = None

    def _show(self, unit: Unit, size: int) -> None:
        self._sizes[unit.name] = size
        self.progress(sum(self._sizes.values()), sum(unit.size for unit in self.units))


def _same(one: Endpoint, other: Endpoint) -> bool:
    return one.port == other.port and not set(one.addresses).isdisjoint(other.addresses)


def _close(opening: Future[UnitWriter]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
