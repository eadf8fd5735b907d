"""Brings what a stage needs of a model to a folder of this machine: from disk, from other machines, from the hub.

Of a form that machines make, it converts what is here as published, and fetches the converted units of the rest.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from together.errors import BrokenModel, LoadFailed, RingBroken, TogetherError, Unreachable
from together.models.form import PUBLISHED, form_title
from together.models.manifest import read_manifest, small_files
from together.models.reading import unit_digest
from together.models.same_words import tokenizer_digest
from together.models.units import Unit, units_for, words
from together.sentences import Sentence, say, template
from together.types import LayerRange, ModelRef
from together.weights.find import Found, find_units, not_here, plain_units
from together.weights.part import Converting, DiskFull, Progress, Waiting
from together.weights.room import CacheRoom
from together.weights.store import Store, begin_form
from together.weights.transfer import FIRST_PATIENCE, PATIENCE, PeerLink, Supplier, Suppliers, Transfer, connected

log = logging.getLogger(__name__)

DESCRIBE_EVERY = 1.0  # seconds between two rounds of asking the sources what the model is
STOPS_WITHIN = 5.0  # seconds that a cancelled download is waited for


@dataclass(slots=True)
class Fetch:
    """One stage's fetch. A lost connection is retried, and `waiting` gets its name; `suppliers` may become more."""

    home: Path
    node_name: str
    suppliers: Suppliers
    model: ModelRef
    layers: LayerRange
    progress: Progress
    waiting: Waiting
    converting: Converting
    room: CacheRoom
    _store: Store = field(init=False)
    _folder: Path = field(init=False)

    async def run(self) -> Path:
        """The folder that has everything a stage of `layers` needs, with the tokenizer that the head has.

        Copies nothing that is here and fetches nothing that the layers do not need. Raises BrokenModel, LoadFailed or
        DiskFull. Cancelling leaves what can be resumed.
        """
        folder = await self._run()
        await asyncio.to_thread(self._compare_words, folder)
        return folder

    def _compare_words(self, folder: Path) -> None:
        """Raises BrokenModel for another tokenizer than the head's, whose ids mean other words."""
        there = tokenizer_digest(folder) if self.model.tokenizer else ""
        if there not in ("", self.model.tokenizer):
            raise BrokenModel(
                "node {node} has another tokenizer for {model} in {folder}: {there} there, {here} at the head; copy "
                "the same files to both machines, or delete the model on one of them: python3 launch.py rm {model}",
                folder=str(folder),
                there=there[:12],
                here=self.model.tokenizer[:12],
                **self._names,
            )

    async def _run(self) -> Path:
        self._store = Store(self.home)
        self._folder = self._store.folder(self.model.key)
        found = await asyncio.to_thread(find_units, self.model, self.home)
        elsewhere = found.folder if found.folder != self._folder else None
        if elsewhere is not None and self._is_enough(found):
            return elsewhere
        await self._begin(found)
        missing, broken = await asyncio.to_thread(self._lacking)
        if missing:
            await self.room.fit(self.model.key, missing)
            transfer = Transfer(self._store, self.model, self.suppliers, missing, self.progress, self.waiting)
            if elsewhere is not None:
                await transfer.copy(elsewhere, found.units)
            await self._convert(transfer)
            await self._bring(missing, transfer, broken)
        return self._folder

    async def _convert(self, transfer: Transfer) -> None:
        """Make those units whose published ones are here."""
        plain = await asyncio.to_thread(plain_units, self.model, self.home)
        units = transfer.take(plain.units)
        if plain.folder is None or not units:
            return
        await self._make(plain.folder, units)

    async def _make(self, folder: Path, units: tuple[Unit, ...]) -> None:
        """Convert units whose published ones are in `folder`, and compare them with those of other machines."""
        self.converting(True)
        try:
            await self.room.convert(folder, self.model.key, units, self.progress)
        finally:
            self.converting(False)
        for supplier in self.suppliers.others():
            if not supplier.wrong and any(unit.name in supplier.source.units for unit in units):
                await self._compare(supplier, units)

    async def _compare(self, supplier: Supplier, units: tuple[Unit, ...]) -> None:
        """Every machine makes the same bytes. Raises BrokenModel, and deletes ours, where a source has others."""
        try:
            async with connected(supplier.source.endpoint, self.suppliers.credentials) as link:
                theirs = (await link.describe(self.model)).digests
        except TogetherError as error:
            log.info("comparing with %s: %s", supplier.peer, error)
            return
        for unit in units:
            ours = await asyncio.to_thread(unit_digest, self._folder, unit, self.home)
            if theirs.get(unit.name, ours) != ours:
                await asyncio.to_thread(self._store.discard, self.model.key, [unit.name])
                raise BrokenModel(
                    "{unit} of {model} in {form} has other bytes on {peer} than here, so one of the two is wrong: "
                    "delete that form on both machines with python3 launch.py rm, and load it again",
                    unit=unit.name,
                    model=self.model.name,
                    form=form_title(self.model.form),
                    peer=supplier.peer,
                )

    def _is_enough(self, found: Found) -> bool:
        assert found.manifest is not None
        return all(unit.name in found.units for unit in units_for(found.manifest, self.layers))

    async def _bring(self, missing: tuple[Unit, ...], transfer: Transfer, broken: list[Sentence]) -> None:
        """From other machines, else from the hub; where the hub does not answer either, machines get more time."""
        if not transfer.wanted:
            return
        left = await transfer.run(FIRST_PATIENCE if self.model.revision else PATIENCE)
        if not left:
            return
        if not self.model.revision:
            causes = (*broken, *transfer.causes) or (template("no other machine has them"),)
            raise LoadFailed(
                "node {node} lacks {units} of {model} and cannot get them: {why}; start a machine that has them, or "
                "put the model's folder under models/ in the app's home folder there",
                units=words(unit.name for unit in left),
                why=say("all", sentences=causes),
                **self._names,
            )
        try:
            await self._download(left if self.model.form else missing)
        except Unreachable as error:
            log.info("fetching %s: %s", self.model.name, error)
            if left := await transfer.run(PATIENCE):
                await self._download(left if self.model.form else missing)

    @property
    def _names(self) -> dict[str, str]:
        return {"node": self.node_name, "model": self.model.name}

    def _lacking(self) -> tuple[tuple[Unit, ...], list[Sentence]]:
        """What has to be fetched, and why units that were here are broken; those are deleted."""
        manifest = read_manifest(self._folder)
        broken = []
        for unit in units_for(manifest, self.layers):
            if unit.name not in manifest.digests or not (self._folder / unit.name).is_file():
                continue
            try:
                unit_digest(self._folder, unit, self.home)
            except BrokenModel as error:
                log.warning("%s", error)
                broken.append(error.sentence)
                with suppress(OSError):
                    (self._folder / unit.name).unlink()
        return self._store.missing(self.model.key, self.layers), broken

    # --- what the model is --------------------------------------------------------------------------------------------

    async def _begin(self, found: Found) -> None:
        """Make the model's folder in the store, without units, unless it exists."""
        if found.folder is not None and found.manifest is not None:
            if found.folder != self._folder:
                small = await asyncio.to_thread(small_files, found.folder)
                await asyncio.to_thread(self._store.begin, found.manifest, small)
            return
        plain = await asyncio.to_thread(plain_units, self.model, self.home)
        if plain.folder is not None and plain.manifest is not None:
            await asyncio.to_thread(begin_form, plain.folder, plain.manifest, self.model.form, self._store)
            return
        causes: dict[Sentence, None] = {}
        if await self._described(causes):
            return
        if self.model.revision:
            await asyncio.to_thread(self._begin_from_hub)
            return
        if not self.suppliers.others():
            raise await asyncio.to_thread(not_here, self.model, self.home, self.node_name)
        raise LoadFailed(
            "node {node} has nothing of {model}, and no other machine describes it: {why}; load it again, or put its "
            "folder under models/ in the app's home folder there",
            why=say("all", sentences=tuple(causes)),
            **self._names,
        )

    async def _described(self, causes: dict[Sentence, None]) -> bool:
        """Whether a source described the model. It may be out of reach for a moment, or moving."""
        clock = asyncio.get_running_loop().time
        until = clock() + FIRST_PATIENCE
        while True:
            seen = self.suppliers.changed.version
            for supplier in self.suppliers.others():
                if not supplier.wrong and await self._describe(supplier, causes):
                    self.waiting("")
                    return True
            able = [supplier.peer for supplier in self.suppliers.others() if not supplier.wrong]
            if not able or clock() > until:
                return False
            self.waiting(" and ".join(able))
            await self.suppliers.changed.wait(seen, DESCRIBE_EVERY)

    async def _describe(self, supplier: Supplier, causes: dict[Sentence, None]) -> bool:
        """Ask one source."""
        try:
            async with connected(supplier.source.endpoint, self.suppliers.credentials) as link:
                await self._take_skeleton(link)
        except DiskFull:
            raise
        except TogetherError as error:
            log.info("asking %s what %s is: %s", supplier.peer, self.model.name, error)
            causes[error.sentence] = None
            supplier.wrong = not isinstance(error, (Unreachable, RingBroken))
            return False
        supplier.answered = True
        return True

    async def _take_skeleton(self, link: PeerLink) -> None:
        """The manifest and the small files; the fingerprint is computed from these very bytes.

        Hashes of units that the source may name are left out: each source answers for the units that it gives.
        """
        manifest = await link.describe(self.model)
        small = {file.name: await link.small(self.model, file.name, file.size) for file in manifest.small}
        try:
            await asyncio.to_thread(self._store.begin, replace(manifest, digests={}), small)
        except BrokenModel as error:
            message = "{peer} gives something else for {model}: {error}"
            raise BrokenModel(message, peer=link.peer, model=self.model.name, error=error.sentence) from error

    # --- the hub ------------------------------------------------------------------------------------------------------

    def _begin_from_hub(self) -> None:
        from together.weights.hub import require_manifest  # most nodes never need it, and it is heavy

        plain = self.published
        require_manifest(plain, self._store)
        if self.model.form:
            folder = self._store.folder(plain.key)
            begin_form(folder, read_manifest(folder), self.model.form, self._store)

    @property
    def published(self) -> ModelRef:
        """The model that the hub has."""
        return replace(self.model, form=PUBLISHED)

    async def _download(self, units: tuple[Unit, ...]) -> None:
        """From the hub; of a form the published units, which are converted then."""
        if not self.model.form:
            await self._download_published(units)
            return
        await asyncio.to_thread(self._begin_from_hub)
        names = {unit.name for unit in units}
        folder = self._store.folder(self.published.key)
        plain = (await asyncio.to_thread(read_manifest, folder)).units
        wanted = tuple(unit for name, unit in plain.items() if name in names)
        need, _ = await asyncio.to_thread(self._store.lacking, self.model.key, units)
        await self.room.fit(self.published.key, wanted, beside=need)
        await self._download_published(wanted)
        await self._make(folder, units)

    async def _download_published(self, units: tuple[Unit, ...]) -> None:
        """Run blocking code on a thread, and stop it when this task is cancelled."""
        from together.weights.hub import fetch_units

        loop, stop = asyncio.get_running_loop(), threading.Event()

        def on_loop(call: Callable[..., None]) -> Callable[..., None]:
            def tell(*values: object) -> None:
                if not stop.is_set():
                    loop.call_soon_threadsafe(call, *values)

            return tell

        progress, waiting = on_loop(self.progress), on_loop(self.waiting)
        work = asyncio.create_task(
            asyncio.to_thread(fetch_units, self.published, units, self._store, progress, stop.is_set, waiting=waiting)
        )
        try:
            await asyncio.shield(work)
        finally:
            stop.set()
            await asyncio.wait([work], timeout=STOPS_WITHIN)
            self.waiting("")
