"""Brings what a stage needs of a model to a folder of this machine: from disk, from other machines, from the hub.

Copies nothing that is here, and fetches nothing that the layers do not need.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from together.cluster_types import Endpoint
from together.errors import BrokenModel, LoadFailed, RingBroken, TogetherError, Unreachable
from together.models.manifest import read_manifest, small_files
from together.models.reading import unit_digest
from together.models.units import Unit, units_for, words
from together.types import LayerRange, ModelRef
from together.weights.find import Found, find_units, not_here
from together.weights.part import DiskFull, Progress, Waiting
from together.weights.peers import PeerLink, connected
from together.weights.store import Store
from together.weights.transfer import (
    FIRST_PATIENCE,
    PATIENCE,
    Supplier,
    Suppliers,
    Transfer,
)

log = logging.getLogger(__name__)

DESCRIBE_EVERY = 1.0  # seconds between two rounds of asking the sources what the model is
STOPS_WITHIN = 5.0  # seconds that a cancelled download is waited for


class Fetcher:
    """One node's; `own` is where the node itself listens: it is never its own source."""

    def __init__(self, home: Path, node_name: str, own: Callable[[], Endpoint]) -> None:
        self._home = home
        self._node = node_name
        self._own = own
        self._store = Store(home)

    async def fetch_from(
        self, suppliers: Suppliers, model: ModelRef, layers: LayerRange, progress: Progress, waiting: Waiting
    ) -> Path:
        """The folder that has everything a stage of `layers` needs.

        A lost connection is retried, and `waiting` gets its name; meanwhile `suppliers` may become more. Raises
        BrokenModel, LoadFailed or DiskFull. Cancelling leaves what can be resumed.
        """
        folder = self._store.folder(model.fingerprint)
        found = await asyncio.to_thread(find_units, model, self._home)
        if found.folder is not None and found.folder != folder and _has(found, layers):
            return found.folder
        await self._begin(model, found, suppliers, waiting)
        missing, broken = await asyncio.to_thread(self._lacking, model, layers)
        if missing:
            await asyncio.to_thread(self._store.require_space, model.fingerprint, missing)
            transfer = Transfer(self._store, model, suppliers, self._is_other, missing, progress, waiting)
            if found.folder is not None and found.folder != folder:
                await transfer.copy(found.folder, found.units)
            await self._bring(model, missing, transfer, broken, progress, waiting)
        return folder

    async def _bring(
        self,
        model: ModelRef,
        missing: tuple[Unit, ...],
        transfer: Transfer,
        broken: list[str],
        progress: Progress,
        waiting: Waiting,
    ) -> None:
        """From other machines, else from the hub; where the hub does not answer either, machines get more time."""
        left = await transfer.run(FIRST_PATIENCE if model.revision else PATIENCE)
        if not left:
            return
        if not model.revision:
            why = "; ".join([*broken, *transfer.causes]) or "no other machine has them"
            lacks = words(unit.name for unit in left)
            raise LoadFailed(
                f"node {self._node} lacks {lacks} of {model.name} and cannot get them: {why}; "
                "start a machine that has them, or put the model's folder under models/ in the app's home folder there"
            )
        try:
            await self._download(model, missing, progress, waiting)
        except Unreachable as error:
            log.warning("fetching %s: %s", model.name, error)
            if await transfer.run(PATIENCE):
                await self._download(model, missing, progress, waiting)

    def _is_other(self, supplier: Supplier) -> bool:
        """Whether it is not this node itself."""
        endpoint, own = supplier.source.endpoint, self._own()
        return endpoint.port != own.port or not set(endpoint.addresses) & set(own.addresses)

    def _lacking(self, model: ModelRef, layers: LayerRange) -> tuple[tuple[Unit, ...], list[str]]:
        """What has to be fetched, and why units that were here are broken; those are deleted."""
        folder = self._store.folder(model.fingerprint)
        manifest = read_manifest(folder)
        broken = []
        for unit in units_for(manifest, layers):
            if unit.name not in manifest.digests or not (folder / unit.name).is_file():
                continue
            try:
                unit_digest(folder, unit, self._home)
            except BrokenModel as error:
                log.warning("%s", error)
                broken.append(str(error))
                with suppress(OSError):
                    (folder / unit.name).unlink()
        return self._store.missing(model.fingerprint, layers), broken

    # --- what the model is --------------------------------------------------------------------------------------------

    async def _begin(self, model: ModelRef, found: Found, suppliers: Suppliers, waiting: Waiting) -> None:
        """Make the model's folder in the store, without units, unless it exists."""
        if found.folder is not None and found.manifest is not None:
            if found.folder != self._store.folder(model.fingerprint):
                small = await asyncio.to_thread(small_files, found.folder)
                await asyncio.to_thread(self._store.begin, found.manifest, small)
            return
        causes: dict[str, None] = {}
        if await self._described(model, suppliers, causes, waiting):
            return
        if model.revision:
            await asyncio.to_thread(self._describe_hub, model)
            return
        if not any(map(self._is_other, suppliers.all)):
            raise await asyncio.to_thread(not_here, model, self._home, self._node)
        raise LoadFailed(
            f"node {self._node} has nothing of {model.name}, and no other machine describes it: {'; '.join(causes)}; "
            "load it again, or put its folder under models/ in the app's home folder there"
        )

    async def _described(
        self, model: ModelRef, suppliers: Suppliers, causes: dict[str, None], waiting: Waiting
    ) -> bool:
        """Whether a source described the model. It may be out of reach for a moment, or moving."""
        clock = asyncio.get_running_loop().time
        until = clock() + FIRST_PATIENCE
        while True:
            seen = suppliers.changed.version
            able = [supplier for supplier in suppliers.all if self._is_other(supplier) and not supplier.wrong]
            for supplier in able:
                if await self._describe(model, supplier, causes):
                    waiting("")
                    return True
            able = [supplier for supplier in able if not supplier.wrong]
            if not able or clock() > until:
                return False
            waiting(" and ".join(supplier.peer for supplier in able))
            await suppliers.changed.wait(seen, DESCRIBE_EVERY)

    async def _describe(self, model: ModelRef, supplier: Supplier, causes: dict[str, None]) -> bool:
        """Ask one source."""
        try:
            async with connected(supplier.source.endpoint) as link:
                await self._take_skeleton(model, link)
        except DiskFull:
            raise
        except TogetherError as error:
            log.warning("asking %s what %s is: %s", supplier.peer, model.name, error)
            causes[str(error)] = None
            supplier.wrong = not isinstance(error, (Unreachable, RingBroken))
            return False
        supplier.answered = True
        return True

    async def _take_skeleton(self, model: ModelRef, link: PeerLink) -> None:
        """The manifest and the small files; the fingerprint is computed from these very bytes.

        Hashes of units that the source may name are left out: each source answers for the units that it gives.
        """
        manifest = await link.describe(model)
        small = {file.name: await link.small(model, file.name, file.size) for file in manifest.small}
        try:
            await asyncio.to_thread(self._store.begin, replace(manifest, digests={}), small)
        except BrokenModel as error:
            raise BrokenModel(f"{link.peer} gives something else for {model.name}: {error}") from error

    # --- the hub ------------------------------------------------------------------------------------------------------

    def _describe_hub(self, model: ModelRef) -> None:
        from together.weights.hub import describe_hub  # most nodes never need it, and it is heavy

        manifest = describe_hub(model.name, self._store, model.revision)
        if manifest.fingerprint != model.fingerprint:
            raise BrokenModel(
                f"the hub has another version of {model.name}: {manifest.fingerprint[:12]} there, "
                f"{model.fingerprint[:12]} at the head; load it again"
            )

    async def _download(self, model: ModelRef, units: tuple[Unit, ...], progress: Progress, waiting: Waiting) -> None:
        """Run blocking code on a thread, and stop it when this task is cancelled."""
        from together.weights.hub import fetch_units

        loop, stop = asyncio.get_running_loop(), threading.Event()

        def on_loop(call: Callable[..., None]) -> Callable[..., None]:
            def tell(*values: object) -> None:
                if not stop.is_set():
                    loop.call_soon_threadsafe(call, *values)

            return tell

        work = asyncio.create_task(
            asyncio.to_thread(
                fetch_units, model, units, self._store, on_loop(progress), stop.is_set, waiting=on_loop(waiting)
            )
        )
        try:
            await asyncio.shield(work)
        finally:
            stop.set()
            await asyncio.wait([work], timeout=STOPS_WITHIN)
            waiting("")


def _has(found: Found, layers: LayerRange) -> bool:
    assert found.manifest is not None
    return all(unit.name in found.units for unit in units_for(found.manifest, layers))
