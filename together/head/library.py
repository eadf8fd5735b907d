"""The models that a head can show: on this machine, on its nodes, on the hub; what fits, what is fetched and made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from together.cluster_types import Blob, Endpoint, NodeStatus
from together.errors import BadSetting, TogetherError
from together.head.demand import Demands
from together.head.fits import Fits, FormFit
from together.head.jobs import JobKind, JobReport, ModelJob, ModelJobs, on_thread
from together.head.machines import Machines
from together.head.plan import in_form
from together.head.services import Services
from together.head.shelf import LibraryView, Shelf, with_nodes
from together.models.form import PUBLISHED, asked_form, form_title
from together.models.manifest import Manifest, read_manifest
from together.models.names import hub_id, is_hub_name, is_model_name
from together.ring import rpc
from together.sentences import Sentence, say
from together.types import ModelRef
from together.view import ServingState
from together.weights.find import known_models, resolve_model
from together.weights.hub import describe_hub, fetch_units
from together.weights.inspected import inspect_folder, inspect_hub, inspected_lines
from together.weights.mlx.folder import convert_folder
from together.weights.part import Progress, Waiting
from together.weights.room import CacheRoom, cache_limit
from together.weights.serve import ListedModel, read_listed
from together.weights.sketches import ModelSketch
from together.weights.store import Store, local_name
from together.weights.transfer import connected
from together.wording import MOST, cut, quoted

NEWS_EVERY = 0.3  # seconds between two of them at least
LOOK_EVERY = 1.0  # seconds between two looks at the machines
LISTED_WITHIN = 5.0  # seconds for another machine to list its models


@dataclass(frozen=True, slots=True)
class ModelFits:
    """A model in all forms that it can have on the machines that are there; `reason` says why in none."""

    name: str
    family: str
    context: int
    params: int
    bits: float
    bytes: int
    quantization: str
    forms: tuple[FormFit, ...]
    reason: Sentence
    measuring: bool  # how fast it would be is known later


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that serves or is being loaded; `bytes` are what its stages were granted."""

    name: str
    form: str  # its title
    state: ServingState
    sentence: Sentence
    keep: bool
    bytes: int
    progress: float
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LibraryNews:
    """What changes while somebody looks. `models` and `machines` are other numbers once lists or fits may be others."""

    jobs: tuple[ModelJob, ...]
    loaded: tuple[LoadedModel, ...]
    models: int
    machines: int
    on_demand: bool


@dataclass(slots=True)
class Library:
    """That of one head."""

    machines: Machines
    services: Services
    demands: Demands
    jobs: ModelJobs = field(default_factory=ModelJobs)
    fits: Fits = field(init=False)
    shelf: Shelf = field(init=False)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _models: int = 0
    _elsewhere: dict[str, tuple[ModelRef, Endpoint]] = field(default_factory=dict)  # models that others alone have
    _served: dict[str, str] = field(default_factory=dict)  # keys of models by the names of their services

    def __post_init__(self) -> None:
        settings = self.machines.settings
        self.fits = Fits(settings, self.machines.surveyor)
        room = CacheRoom(settings.home_path, cache_limit(settings), self.machines.gone.note)
        self.shelf = Shelf(settings.home_path, room)
        self.jobs.ended = self._came

    @property
    def _home(self) -> Path:
        return self.machines.settings.home_path

    async def close(self) -> None:
        await self.jobs.close()
        await self.fits.close()

    # --- what is here -------------------------------------------------------------------------------------------------

    async def view(self) -> LibraryView:
        loaded = {each.opened.ref.key: each.name for each in self.services.by_name.values()}
        view, nodes = await asyncio.gather(asyncio.to_thread(self.shelf.view, loaded), self._listed())
        here, own = {model.key for model in view.models}, self.machines.surveyor.machine
        names, store = {model.name for model in view.models}, Store(self._home)
        listed = {
            node.name: tuple(each for each in found if node.machine != own or each.ref.key not in here)
            for node, found in nodes  # a node of this very machine may have another home
        }
        self._elsewhere = {  # but those whose description is here already
            each.name: (each.ref, node.endpoint)
            for node, found in nodes
            for each in found
            if each.form == PUBLISHED and each.name not in names and not store.folder(each.ref.key).is_dir()
        }
        return replace(view, models=with_nodes(view.models, listed))

    async def _listed(self) -> list[tuple[NodeStatus, tuple[ListedModel, ...]]]:
        """What each node has; who does not say so in time, or is of an older version, is left out."""
        membership = self.machines.membership
        nodes = membership.living()
        calls = [membership.call(node.id, rpc.LIST, Blob(b""), timeout=LISTED_WITHIN) for node in nodes]
        found = []
        for node, answer in zip(nodes, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            with suppress(TogetherError):
                found.append((node, read_listed(answer.data) if isinstance(answer, Blob) else ()))
        return found

    async def learn(self, model: str) -> None:
        """Take what a model is from the machine that has it, where it is on no other place of ours.

        Then it is planned and loaded by its name, as one of the hub. Raises Unreachable or BrokenModel.
        """
        ref, endpoint = self._elsewhere.pop(model, (None, None))
        if ref is None or endpoint is None:
            return
        store = Store(self._home)
        async with connected(endpoint, self.machines.credentials) as link:
            manifest = await link.describe(ref)
            small = {file.name: await link.small(ref, file.name, file.size) for file in manifest.small}
        await asyncio.to_thread(store.begin, replace(manifest, digests={}), small)

    def loaded(self) -> tuple[LoadedModel, ...]:
        names = self.demands.aliases
        return tuple(
            LoadedModel(
                name=each.serving.model,
                form=each.serving.form,
                state=each.serving.state,
                sentence=each.serving.sentence,
                keep=each.keep,
                bytes=sum(stage.memory_bytes for stage in each.serving.plan.stages) if each.serving.plan else 0,
                progress=each.serving.progress,
                aliases=tuple(name for name, meant in names.items() if meant == each.serving.model),
            )
            for each in self.services.shown()
        )

    async def news(self) -> AsyncIterator[LibraryNews]:
        """At once, and whenever it changed."""
        before = None
        while True:
            seen = self.jobs.changed.version
            now = self._news()
            if now != before:
                yield now
            before = now
            await asyncio.sleep(NEWS_EVERY)
            await self.jobs.changed.wait(seen, LOOK_EVERY - NEWS_EVERY)

    def _news(self) -> LibraryNews:
        served = {each.name: each.opened.ref.key for each in self.services.by_name.values()}
        if served != self._served:
            self._served, self._models = served, self._models + 1
        return LibraryNews(self.jobs.shown(), self.loaded(), self._models, self.fits.look(), self.demands.on)

    def _came(self) -> None:
        """Models came or went."""
        self._models += 1
        self.jobs.changed.notify()

    # --- what fits ----------------------------------------------------------------------------------------------------

    async def fits_of(self, model: str) -> ModelFits:
        """By a name, a place, or a name on the hub. Raises BadInput, Unreachable, or NotServing without a node."""
        await self.machines.settle(1)
        await self.learn(model)
        async with self._reading:  # a large model's headers take memory
            seen = await asyncio.to_thread(self._look, model)
        served = self.services.by_name
        alone = self.services.first if len(served) == 1 else None
        kept = self.services.beside(served.get(seen.name, alone))
        measuring = self.fits.measure()
        forms = await self.fits.of(seen, kept) if seen.specs else ()
        return ModelFits(
            seen.name,
            seen.family,
            seen.context,
            seen.params,
            seen.bits,
            seen.weight_bytes,
            seen.quantization,
            forms,
            seen.reason,
            measuring,
        )

    def _look(self, model: str) -> ModelSketch:
        return self.shelf.sketch(self._found(model))

    def _found(self, model: str) -> Path | str:
        """A file is not imported for a look at it. Raises BadSetting."""
        path = Path(model)
        if path.is_absolute() and path.is_file():
            return path
        if is_hub_name(hub_id(model)) and not self._is_known(hub_id(model)):
            return hub_id(model)
        return resolve_model(model, self._home)

    def _is_known(self, name: str) -> bool:
        return any(model.name == name for model in known_models(self._home))

    # --- work ---------------------------------------------------------------------------------------------------------

    def download(self, model: str) -> ModelJob:
        """All of a model of the hub, into the cache; goes on where an earlier download ended. Raises BadSetting."""
        name = hub_id(model)
        if not is_hub_name(name):
            message = "{name} is not the name of a model on the hub; write it as org/name, or org/name/file.gguf"
            raise BadSetting(message, name=quoted(name))

        async def work(report: JobReport) -> Sentence:
            manifest = await on_thread(lambda *_: describe_hub(name, Store(self._home)), report)
            units = tuple(manifest.units.values())
            await self.shelf.room.fit(manifest.key, units)

            def fetch(progress: Progress, stop: Callable[[], bool], waiting: Waiting) -> bool:
                return fetch_units(manifest.ref(), units, Store(self._home), progress, stop, waiting=waiting)

            await on_thread(fetch, report)
            return say("job_downloaded", model=manifest.name, size=sum(unit.size for unit in units))

        return self.jobs.start(JobKind.DOWNLOAD, name, PUBLISHED, work)

    def quantize(self, model: str, quantize: str) -> ModelJob:
        """Make a form of a model that is here, into the cache. Raises BadSetting."""
        form = asked_form(quantize)
        if not form:
            raise BadSetting("choose what to quantize {model} to: 4, 8 or mxfp4", model=cut(model, MOST))

        async def work(report: JobReport) -> Sentence:
            folder, made = await asyncio.to_thread(self._begun, model, form)
            await self.shelf.room.convert(folder, made.key, tuple(made.units.values()), report.progress)
            return say("job_quantized", model=made.name, form=form_title(form))

        return self.jobs.start(JobKind.QUANTIZE, model, form, work)

    def _begun(self, model: str, form: str) -> tuple[Path, Manifest]:
        """The published model, and the manifest of the form, whose folder is begun."""
        folder = self._here(model)
        made = in_form(folder, local_name(folder, self._home), form, Store(self._home))
        return folder, read_manifest(made)

    def convert(self, model: str, name: str, quantize: str | None) -> ModelJob:
        """Write a model that is here as a folder in MLX's format among the app's own models. Raises BadSetting."""
        if not is_model_name(name) or "/" in name:
            raise BadSetting("{name} is no name of a folder; use letters, digits and dashes", name=quoted(name))
        form, target = asked_form(quantize) or PUBLISHED, self._home / "models" / name

        async def work(report: JobReport) -> Sentence:
            folder = await asyncio.to_thread(self._here, model)
            target.parent.mkdir(parents=True, exist_ok=True)
            made = await convert_folder(folder, target, self._home, form, report.progress)
            return say("job_converted", model=made.name, size=made.bytes, folder=str(made.folder), facts=made.facts)

        return self.jobs.start(JobKind.CONVERT, model, name, work)

    def _here(self, model: str) -> Path:
        """Raises BadSetting where it is not on this machine."""
        found = resolve_model(model, self._home)
        if isinstance(found, str):
            raise BadSetting("{model} is not on this machine; download it first", model=found)
        return found

    async def inspect(self, model: str) -> list[tuple[str, str]]:
        """What is worth knowing of it. Raises BadInput or Unreachable."""

        def look() -> list[tuple[str, str]]:
            found = resolve_model(model, self._home)
            seen = inspect_folder(found, self._home) if isinstance(found, Path) else inspect_hub(found, self._home)
            return inspected_lines(seen)

        return await asyncio.to_thread(look)

    async def delete(self, model: str) -> None:
        """By its id in the list. Raises BadSetting where it is not here, not ours, or loaded."""
        used = {each.opened.ref.key for each in self.services.by_name.values()}
        used |= {each.opened.ref.path for each in self.services.by_name.values()}
        await asyncio.to_thread(self.shelf.delete, model, used)
        self._came()
