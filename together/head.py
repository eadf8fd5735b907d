"""The head: joins membership, planner, loading, epochs and engine. Knows no HTTP, no page and no framework."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from together.cluster.finder import BUNDLED
from together.cluster.identity import own_addresses
from together.cluster.loading import RingLoader
from together.cluster.local import LocalNodes
from together.cluster.membership import Membership
from together.engine.engine import Engine
from together.engine.text import TextModel, generate_text
from together.errors import BadPlan, BadSetting, NotServing, RingBroken, TogetherError
from together.models.spec import ModelSpec, read_spec
from together.planning.split import Sizing, make_plan
from together.requests import ChatRequest, GenerateRequest, Piece
from together.ring import rpc
from together.ring.client import RingClient
from together.ring.links import Inlets
from together.settings import Settings
from together.types import (
    DTYPES,
    ClusterView,
    Dtype,
    Endpoint,
    LayerRange,
    ModelRef,
    NodeState,
    NodeStatus,
    Plan,
    Serving,
    ServingState,
)

log = logging.getLogger(__name__)

HEAD_PORTS = 64  # tried above the first node block's start, for answers from last stages
NODES_TIMEOUT = 60.0  # seconds to wait for the nodes that this head started
SETTLE = 1.0  # seconds to hear of other machines before the first plan
CAUSE_WITHIN = 1.0  # seconds from a broken link to the news of the stage that broke it
VIEWS_EVERY = 0.2  # seconds between two views at most


@dataclass(frozen=True, slots=True)
class Opened:
    """A model folder that proved readable, and how its ring is wanted; `ranges` None: equal parts."""

    spec: ModelSpec
    text: TextModel
    ref: ModelRef
    sizing: Sizing
    ranges: tuple[LayerRange, ...] | None


@dataclass(slots=True)
class Service:
    """A ring that serves: everything that ends with it."""

    loader: RingLoader
    client: RingClient
    engine: Engine
    text: TextModel
    plan: Plan


class Head:
    """One head. `start` before anything else, `stop` at the end; all methods belong to one event loop."""

    def __init__(self, settings: Settings, peers: tuple[Endpoint, ...] = (), local_nodes: int = 0) -> None:
        self.settings = settings
        self.id = secrets.token_hex(8)
        self.local = LocalNodes(settings)
        self._wanted_local = local_nodes
        self._membership = Membership(settings, self.id, peers)
        self._inlets = Inlets()
        self._server = rpc.make_server({rpc.PUSH: self._inlets.handler()})
        self._own = Endpoint((), 0)
        self._serving = Serving()
        self._service: Service | None = None
        self._last: tuple[Path, tuple[int, ...] | None] = (BUNDLED, None)
        self._loading = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._load_task: asyncio.Task[object] | None = None
        self._ring_task: asyncio.Task[None] | None = None
        self._first_load = True

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen for answers, look for nodes, start the local ones."""
        addresses = own_addresses(self.settings.host)  # a name without one is said before ports are tried
        first = self.settings.node_port - HEAD_PORTS
        port = rpc.bind(self._server, self.settings.host, range(first, first + HEAD_PORTS))
        await self._server.start()
        self._own = Endpoint(addresses, port)
        self._tasks = [asyncio.create_task(self._membership.run()), asyncio.create_task(self._renew_leases())]
        await self.local.start(self._wanted_local) if self._wanted_local else None

    async def stop(self) -> None:
        """Unload, end the local nodes, leave nothing behind."""
        for task in (self._load_task, self._ring_task, *self._tasks[1:]):
            if task is not None:
                task.cancel()
        with suppress(TogetherError, TimeoutError):
            async with asyncio.timeout(2.0):
                async with self._loading:  # a load that was cancelled gives back what it has
                    await self._end_service()
        self._tasks[0].cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.local.close()
        await self._server.stop(0.2)

    async def start_local_node(self) -> None:
        await self.local.start_one()

    async def stop_local_node(self) -> None:
        await self.local.stop_one()

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(self.settings.lease / 6)
            serves = self._serving.state in (ServingState.LOADING, ServingState.READY)
            await self._membership.end_strays(self._serving.ring if serves else "")
            await self._membership.renew()

    # --- what is seen -------------------------------------------------------------------------------------------------

    def view(self) -> ClusterView:
        """Nodes and serving state now."""
        serving = self._serving
        if self._service is not None:
            engine = self._service.engine
            serving = replace(serving, running=engine.running, waiting=engine.waiting)
        return ClusterView(self.id, self._membership.nodes(), serving)

    async def changes(self) -> AsyncIterator[ClusterView]:
        """The view at once, on every change, and at least every second."""
        changed = self._membership.changed
        while True:
            seen = changed.version
            yield self.view()
            await asyncio.sleep(VIEWS_EVERY)
            await changed.wait(seen, timeout=1.0 - VIEWS_EVERY)

    def _show(self, serving: Serving) -> None:
        self._serving = serving
        self._membership.changed.notify()

    # --- loading ------------------------------------------------------------------------------------------------------

    async def load(self, folder: Path | None = None, boundaries: tuple[int, ...] | None = None) -> None:
        """Load a model folder, or the last one again; `boundaries` are the layers where stages meet.

        What serves is unloaded once the folder has proved readable. Raises TogetherError; where nothing serves then,
        the view has the cause, too.
        """
        wanted = (folder, boundaries) if folder is not None else self._last
        async with self._loading:
            self._load_task = asyncio.current_task()
            try:
                model = await self._open(*wanted)
                self._last = wanted
                await self._end_service()
                await self._load(model)
            except TogetherError as error:
                if self._service is None:
                    self._show(replace(self._serving, state=ServingState.FAILED, cause=str(error), progress=0.0))
                raise
            finally:
                self._load_task = None

    async def unload(self) -> None:
        async with self._loading:
            await self._end_service()
            self._show(Serving())

    async def _open(self, folder: Path, boundaries: tuple[int, ...] | None) -> Opened:
        """Read what the head itself needs of a model. Raises BrokenModel, UnsupportedModel, BadPlan or BadSetting."""
        if self._service is None:
            self._show(Serving(ServingState.LOADING, folder.name))
        spec = await asyncio.to_thread(read_spec, folder)
        text = await asyncio.to_thread(TextModel.open, folder)
        sizing = Sizing(min(self.settings.context, spec.context), self.settings.users, self._dtype(folder, spec))
        return Opened(
            spec, text, spec.ref(await asyncio.to_thread(folder.resolve)), sizing, _ranges(boundaries, spec.layers)
        )

    async def _load(self, model: Opened) -> None:
        spec, text = model.spec, model.text
        self._show(Serving(ServingState.LOADING, spec.name))
        nodes = await self._nodes_with(model.ref, len(model.ranges) if model.ranges else 1)
        plan = make_plan(spec, model.ref, nodes, model.sizing, model.ranges)
        loader = RingLoader(self._membership, plan, self._inlets, self._own, self.settings.load_timeout)
        self._show(Serving(ServingState.LOADING, spec.name, plan, loader.ring))
        try:
            await loader.load((), lambda done: self._show(replace(self._serving, progress=done)))
            client = await loader.connect(spec.hidden_size)
        except BaseException:
            await loader.unload()
            raise
        engine = Engine(client, text.eos, self.settings.max_waiting, self.settings.step_timeout, spec.vocab_size)
        self._service = Service(loader, client, engine, text, plan)
        self._ring_task = asyncio.create_task(self._serve(self._service))
        self._show(replace(self._serving, state=ServingState.READY, progress=1.0))

    def _dtype(self, folder: Path, spec: ModelSpec) -> Dtype:
        if not self.settings.dtype:
            return "fp32" if folder.resolve() == BUNDLED else spec.dtype
        for dtype in DTYPES:
            if dtype == self.settings.dtype:
                return dtype
        raise BadSetting(f"there is no dtype {self.settings.dtype!r}; choose one of {', '.join(DTYPES)}")

    async def _nodes_with(self, model: ModelRef, least: int) -> tuple[NodeStatus, ...]:
        """The living nodes that have the model, those on this machine first. Raises what the others answered."""
        await self._settle(max(least, self._wanted_local))
        nodes = [node for node in self._membership.living() if node.state is not NodeState.DRAINING]
        calls = [self._membership.call(node.id, rpc.FIND_CALL, model) for node in nodes]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        refusals = [answer for answer in answers if isinstance(answer, BaseException)]
        able = [node for node, answer in zip(nodes, answers, strict=True) if not isinstance(answer, BaseException)]
        if len(able) < least:
            if refusals:
                raise refusals[0]
            raise NotServing(f"{len(able)} of {least} needed nodes are here; start one with: python3 launch.py node")
        own = self._own.addresses
        return tuple(sorted(able, key=lambda node: (node.endpoint.addresses != own, node.name, node.id)))

    async def _settle(self, least: int) -> None:
        """Wait for the nodes that are surely coming, then a moment for others."""
        changed = self._membership.changed
        with suppress(TimeoutError):
            async with asyncio.timeout(NODES_TIMEOUT if self.local.count else SETTLE):
                while len(self._membership.living()) < least:
                    await changed.wait(changed.version, timeout=1.0)
        if self._first_load:
            self._first_load = False
            await asyncio.sleep(SETTLE)

    # --- serving ------------------------------------------------------------------------------------------------------

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Piece, None]:
        """The answer in pieces; closing it cancels. Raises NotServing, QueueFull or BadRequest at the first step."""
        service = self._service
        if service is None:
            raise NotServing(self._why_not())
        generate = GenerateRequest(
            service.text.prompt_ids(request.messages), request.sampling, request.max_tokens, request.stop
        )
        async with aclosing(generate_text(service.engine, service.text, generate)) as pieces:
            async for piece in pieces:
                yield piece

    def _why_not(self) -> str:
        serving = self._serving
        if serving.state is ServingState.LOADING:
            return f"{serving.model} is being loaded ({serving.progress:.0%}); try again in a moment"
        if serving.state is ServingState.FAILED:
            return serving.cause
        return "no model is loaded; load one on the page or start with: python3 launch.py up --model FOLDER"

    async def _serve(self, service: Service) -> None:
        """Run the engine until it is closed or the ring breaks; then free what is left of the ring."""
        watcher = asyncio.create_task(self._watch_ring(service))
        try:
            await service.engine.run()
        except RingBroken as error:
            log.warning("%s", error)
            await self._lose(service, str(error))
        except Exception:  # a bug of ours: whoever waits was told, the model can be loaded again
            log.exception("the engine failed")
            await self._lose(
                service, "the engine stopped by an error of its own; see the log, then load the model again"
            )
        finally:
            watcher.cancel()

    async def _lose(self, service: Service, cause: str) -> None:
        self._service = None
        self._show(replace(self._serving, state=ServingState.FAILED, cause=cause, progress=0.0))
        await service.client.close()
        await service.loader.unload()

    async def _watch_ring(self, service: Service) -> None:
        changed = self._membership.changed
        while True:
            seen = changed.version
            if trouble := service.loader.trouble():
                service.client.fail(trouble)
                return
            if link := service.loader.broken_link():
                await asyncio.sleep(CAUSE_WITHIN)
                service.client.fail(service.loader.trouble() or link)
                return
            await changed.wait(seen, timeout=1.0)

    async def _end_service(self) -> None:
        """Returns when the stages are gone, also those of a ring that broke a moment ago."""
        service, self._service = self._service, None
        if service is not None:
            service.engine.close()
            await service.client.close()
            await service.loader.unload()
        if self._ring_task is not None:
            await asyncio.gather(self._ring_task, return_exceptions=True)
            self._ring_task = None
        await self._membership.end_strays("")


def _ranges(boundaries: tuple[int, ...] | None, layers: int) -> tuple[LayerRange, ...] | None:
    """Cut points → ranges: (4,) of 8 layers is 0:4 and 4:8. Raises BadPlan."""
    if not boundaries:
        return None
    points = (0, *boundaries, layers)
    try:
        return tuple(LayerRange(start, stop) for start, stop in pairwise(points))
    except ValueError:
        raise BadPlan(f"the boundaries {boundaries} do not rise from 1 to {layers - 1}") from None
