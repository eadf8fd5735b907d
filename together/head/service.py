"""One served model: an engine over one ring, in all its epochs. Loads it, and changes its plan while it answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from functools import partial

from together.cluster.loading import Placed, RingLoader
from together.cluster.survey import Speeds
from together.engine.engine import Engine
from together.errors import NotServing, RingBroken, TogetherError
from together.head.balance import Balance
from together.head.machines import Machines
from together.head.model import ModelHandle
from together.head.plan import plan_of
from together.ring.client import RingClient
from together.sentences import NOTHING, Sentence, say
from together.types import DTYPE_BYTES, Plan
from together.view import Serving, ServingState

LOOK_EVERY = 0.5  # seconds
NODE_PATIENCE = 120.0  # seconds that a first load waits for a node which went silent
JOIN_WITHIN = 15.0  # seconds for a stage to take its place


@dataclass(frozen=True, slots=True)
class Change:
    """A plan to switch to once no frame is in flight. `done` ends for whoever ordered it."""

    plan: Plan
    done: asyncio.Future[None]


@dataclass(slots=True)
class Service:
    """`start` it, let a `Recovery` run it, and `close` it."""

    machines: Machines
    opened: ModelHandle
    speeds: Speeds  # what its next plan looks at
    serving: Serving = field(default_factory=Serving)
    closed: bool = False
    loader: RingLoader = field(init=False)
    ring: RingClient = field(init=False)
    engine: Engine = field(init=False)
    change: Change | None = None
    balance: Balance | None = None  # of a plan that looked at speeds
    task: asyncio.Task[None] | None = None  # that runs it

    async def start(self, plan: Plan) -> None:
        """Load and join the ring. Raises TogetherError; then nothing of it is left."""
        machines, spec, name = self.machines, self.opened.spec, self.opened.ref.name
        settings = machines.settings
        self.loader = RingLoader(machines.membership, machines.inlets, settings.load_timeout)
        self.show(ServingState.LOADING, model=name, plan=plan, ring=self.loader.ring, step=say("step_loading"))
        try:
            await self.join(await self._prepare(plan, patience=NODE_PATIENCE))
        except BaseException:
            await self.loader.unload()
            raise
        token_bytes = spec.hidden_size * DTYPE_BYTES[plan.dtype]
        eos = self.opened.text.eos
        self.engine = Engine(self.ring, eos, settings.max_waiting, settings.step_timeout, spec.vocab_size, token_bytes)
        self.opened.text.template.warm()
        self.show(ServingState.READY, step=NOTHING, progress=1.0)

    async def close(self) -> None:
        """End all requests and all stages."""
        self.closed = True
        self.give_up_change(NotServing(say("unloaded")))
        self.engine.close()
        self.opened.text.template.close()
        await self.ring.close()
        await self.loader.unload()

    def show(self, state: ServingState, **values: object) -> None:
        """Change `serving` and notify those who watch the view."""
        self.serving = replace(self.serving, state=state, **values)  # type: ignore[arg-type]
        self.machines.membership.changed.notify()

    def look_at_balance(self) -> bool:
        """Compare what stages take with the plan. Whether no request is open, so that layers may move."""
        balance, engine = self.balance, self.engine
        if balance is None or self.serving.state is not ServingState.READY:
            return False
        if self.serving.plan != plan_of(balance.decision):
            self.balance = None  # a ring that was mended has another plan
            return False
        balance.look(engine)
        return not engine.running and not engine.waiting

    # --- placing ------------------------------------------------------------------------------------------------------

    async def place(self, plan: Plan) -> Placed:
        """Load the plan's stages. If they do not fit beside the stages that it does not use, end those first."""
        if not self._fits_beside(plan):
            await self.loader.prune(keep=plan)
        return await self._prepare(plan)

    async def join(self, placed: Placed, within: float = JOIN_WITHIN) -> None:
        """Join stages to the ring's next epoch and end the others. Raises StageLost."""
        self.loader.placed = placed
        self.ring = await self.loader.connect(self.opened.spec.hidden_size, within)
        await self.loader.prune()

    async def _prepare(self, plan: Plan, patience: float = 0.0) -> Placed:
        """The plan's stages, ready. While it waits for a node, `serving.step` says so."""
        step = self.serving.step

        def show(progress: float, waiting: Sentence) -> None:
            shown = say("step_waiting", step=step, waiting=waiting) if waiting else step
            self.show(self.serving.state, progress=progress, step=shown)

        return await self.loader.prepare(plan, partial(self.machines.sources, self.opened.ref), show, patience)

    def _fits_beside(self, plan: Plan) -> bool:
        needed: dict[tuple[str, str], int] = {}
        for stage in self.loader.missing(plan):
            place = (stage.node, f"{stage.backend}/{stage.device}")
            needed[place] = needed.get(place, 0) + stage.memory_bytes
        return all(size <= self._free(*place) for place, size in needed.items())

    def _free(self, node: str, device: str) -> int:
        status = self.machines.membership.status(node)
        return next((each.free_bytes for each in status.devices if each.key == device), 0) if status else 0

    # --- planned changes ----------------------------------------------------------------------------------------------

    def reopen(self, opened: ModelHandle) -> None:
        """Use the same weights with newly read words, ends of text and sampling defaults, for later requests."""
        self.opened.text.template.retire()
        self.opened = opened
        opened.text.template.warm()
        self.engine.use_ends(opened.text.eos)

    async def serves(self, plan: Plan) -> bool:
        """Whether it has the plan's model and dtype, so that a change of plan is enough.

        Waits for a ring that is being mended: its open answers wait too, and would end with it.
        """
        mine, changed = self.loader.plan, self.machines.membership.changed
        if (mine.model.fingerprint, mine.dtype) != (plan.model.fingerprint, plan.dtype):
            return False
        while self.serving.state is ServingState.RECOVERING and not self.closed:
            await changed.wait(changed.version, timeout=LOOK_EVERY)
        return self.serving.state is ServingState.READY and not self.closed

    async def change_to(self, plan: Plan, speeds: Speeds) -> None:
        """Run the same model by another plan; open answers go on.

        Raises TogetherError; then the old plan goes on, or what is left of it is mended. Once all stages are loaded,
        the change happens even if the caller is cancelled.
        """
        if self._fits_beside(plan):
            await self.place(plan)  # while answers go on; else room must be made first
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_heard)
        self.change = Change(plan, done)
        self.engine.pause()
        await asyncio.shield(done)
        self.speeds = speeds

    def give_up_change(self, error: TogetherError) -> None:
        """End a change that waits, with `error`."""
        change, self.change = self.change, None
        if change is not None:
            change.done.set_exception(error)

    async def switch(self, change: Change) -> None:
        """Carry out a change; no frame is in flight. Raises RingBroken."""
        self.show(ServingState.READY, step=say("step_changing"))
        self.change = None
        try:
            placed = await self.place(change.plan)
            await self.ring.close()
            await self.join(placed)
        except TogetherError as error:
            change.done.set_exception(error)
            raise RingBroken(say("not_changed", error=error.sentence)) from error
        self.show(ServingState.READY, plan=self.loader.plan, step=NOTHING, progress=1.0)
        change.done.set_result(None)


def _heard(done: asyncio.Future[None]) -> None:
    """Retrieve the error, which nobody may await any more."""
    if not done.cancelled():
        done.exception()
