"""One served model: an engine over one ring, in all its epochs, and how its stages do against the plan."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial

import psutil

from together.cluster.loading import Placed, RingLoader
from together.cluster.survey import Speeds
from together.engine.engine import Engine
from together.errors import BadRequest, NotServing, RingBroken, TogetherError
from together.head.balance import STEPS, Balance
from together.head.load import ModelLoad
from together.head.machines import Machines
from together.head.pace import PlannedPace, estimate_of, pace_of, surroundings_of
from together.head.plan import ModelHandle, PlannedModel, plan_of
from together.head.sharing import AtWork, Place, cost_of_sharing
from together.models.eyes import SEEING
from together.models.form import form_title
from together.requests import AnswerChunk, ChatRequest, CompletionRequest, ScoreRequest, TextScore
from together.ring.client import RingClient
from together.sentences import NOTHING, Sentence, say
from together.text.answers import answer_chat, chat_ids
from together.text.scoring import score_prompts, score_text
from together.types import DTYPE_BYTES, Plan
from together.view import ServedModel, Serving, ServingState, TokenPace

LOOK_EVERY = 0.5  # seconds
NODE_PATIENCE = 120.0  # seconds that a first load waits for a node which went silent
JOIN_WITHIN = 15.0  # seconds for a stage to take its place
BALANCE_EVERY = 5.0  # seconds between two looks at the balance


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
    wanted: ModelLoad  # how it was ordered
    beside: Callable[[Service], frozenset[str]]  # the rings of all others, whose memory is theirs
    make_room: Callable[[Service], Awaitable[Plan | None]]  # take memory of others for it; the plan that fits then
    shares: Callable[[Service], tuple[int, ...]]  # of its stages' processors, now
    clock: Callable[[], float]
    keep: bool = False  # no other may have its memory
    leaving: int = 0  # models that wait for its memory
    holds: int = 0  # requests that use it
    used: float = 0.0  # when the last one ended, by the clock
    spared: float = 0.0  # until when it stays whoever needs its memory
    serving: Serving = field(default_factory=Serving)
    closed: bool = False
    loader: RingLoader = field(init=False)
    ring: RingClient = field(init=False)
    engine: Engine = field(init=False)
    change: Change | None = None
    balance: Balance | None = None  # of a plan that looked at speeds
    estimate: PlannedPace | None = None  # of this plan, or of an earlier one
    pace: TokenPace | None = None  # of this plan; None: until the first answers
    places: tuple[Place, ...] = ()  # by stage
    _alone: int = 0  # decode steps that `pace` has seen
    _process: psutil.Process = field(default_factory=psutil.Process)
    task: asyncio.Task[None] | None = None  # that runs it

    async def start(self, plan: Plan) -> None:
        """Load and join the ring. Raises TogetherError; then nothing of it is left."""
        machines, spec, name = self.machines, self.opened.spec, self.opened.ref.name
        settings = machines.settings
        self.loader = RingLoader(machines.membership, machines.inlets, settings.load_timeout)
        form, step = form_title(plan.model.form) if plan.model.form else "", say("step_loading")
        self.show(ServingState.LOADING, model=name, form=form, plan=plan, ring=self.loader.ring, step=step)
        try:
            await self.join(await self._prepare(plan, patience=NODE_PATIENCE))
        except BaseException:
            await self.loader.unload()
            raise
        token_bytes = spec.state_width * DTYPE_BYTES[plan.dtype]
        eos = self.opened.text.eos
        self.engine = Engine(self.ring, eos, settings.max_waiting, settings.step_timeout, spec.vocab_size, token_bytes)
        self.engine.shares = partial(self.shares, self)
        self.opened.text.template.warm()
        sees = not isinstance(self.opened.text.sight, Sentence)
        self.used = self.clock()
        self.show(ServingState.READY, step=NOTHING, progress=1.0, since=time.time(), sees=sees)

    def end_requests(self, cause: Sentence = NOTHING) -> None:
        """End all requests, with `cause` where it was not unloaded; none is taken any more."""
        self.closed = True
        error = NotServing(cause or say("unloaded"))
        self.give_up_change(error)
        self.engine.close(error)

    async def close(self, cause: Sentence = NOTHING) -> None:
        """End all requests, as `end_requests` does, and all stages."""
        self.end_requests(cause)
        self.opened.text.template.close()
        await self.ring.close()
        await self.loader.unload()

    @property
    def name(self) -> str:
        return self.serving.model

    @property
    def busy(self) -> bool:
        """Whether a request is open."""
        return self.holds > 0 or self.computing

    @property
    def computing(self) -> bool:
        """Whether its engine has a sequence."""
        return self.engine.running > 0 or self.engine.waiting > 0

    @property
    def at_work(self) -> AtWork:
        """What it computes now, for those that compute on the same machines."""
        processors = tuple(machine if device == "cpu" else "" for machine, device in self.places)
        return AtWork(processors, self.engine.times.use, self.engine.running + self.engine.waiting)

    @property
    def takes_more(self) -> bool:
        """Whether a request may have it now; else it waits for the model to come back."""
        return not self.leaving or self.clock() < self.spared

    def let_go(self) -> None:
        """One that had a hold of it has ended."""
        self.holds, self.used = self.holds - 1, self.clock()
        self.machines.membership.changed.notify() if self.leaving else None

    async def held(self, chunks: AsyncGenerator[AnswerChunk, None]) -> AsyncGenerator[AnswerChunk, None]:
        """The same chunks; as long as they come it is in use."""
        self.holds += 1
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
        finally:
            self.let_go()

    def shown(self, others: Mapping[str, Sequence[Place]]) -> ServedModel:
        """As the view has it; `others` are the places of other models."""
        engine, advice = self.engine, self.balance.advice if self.balance else None
        serving = replace(self.serving, running=engine.running, waiting=engine.waiting)
        stages, name_of = serving.plan.stages if serving.plan else (), self.machines.membership.name_of
        nodes = [name_of(stage.node) for stage in stages]
        known = len(nodes) == len(self.places)
        sharing = cost_of_sharing(self.name, nodes, self.places, engine.times, others if known else {})
        return ServedModel(serving, advice.sentence if advice else NOTHING, self.pace, self.keep, sharing)

    async def score(self, request: ScoreRequest) -> TextScore:
        """How likely the model finds a text. Raises as `score_text` does."""
        return await score_text(self.engine, self.opened.text, request)

    def score_prompts(self, request: CompletionRequest) -> AsyncGenerator[AnswerChunk, None]:
        """The prompts of a request with their tokens' log-probabilities. Raises as `score_prompts` of text/ does."""
        return score_prompts(self.engine, self.opened.text, request)

    def chat(self, request: ChatRequest) -> AsyncGenerator[AnswerChunk, None]:
        """The answer in chunks. Raises BadRequest, and its first step what `answer_chat` does."""
        self._check_pictures(request)
        return answer_chat(self.engine, self.opened.text, request)

    async def chat_ids(self, request: ChatRequest) -> tuple[int, ...]:
        """The tokens of its prompt. Raises as its answer does."""
        self._check_pictures(request)
        return await chat_ids(self.engine, self.opened.text, request)

    def _check_pictures(self, request: ChatRequest) -> None:
        """Raises BadRequest for pictures where the first layers run on a backend that sees none."""
        asked, plan = next((i for i, each in enumerate(request.messages) if each.pictures), None), self.serving.plan
        first = plan.stages[0] if plan else None
        if asked is None or first is None or first.backend in SEEING or isinstance(self.opened.text.sight, Sentence):
            return
        status, where = self.machines.membership.status(first.node), f"messages.{asked}.content"
        raise BadRequest(
            "{where}: the first layers run on {machine} by {backend}, which has no vision tower here; give layer 0 to "
            "a machine that runs {seeing}, or send text alone",
            where,
            where=where,
            machine=status.name if status else first.node,
            backend=first.backend,
            seeing=SEEING,
        )

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

    def expect(self, decision: PlannedModel) -> None:
        """What was measured for any plan of this model says what the plan that serves should do."""
        plan, ref = self.serving.plan, decision.opened.ref
        if plan and (plan.model.key, plan.dtype) == (ref.key, decision.sizing.dtype):
            self.estimate = estimate_of(plan, decision.survey) or self.estimate

    def look_at_pace(self) -> None:
        """Compare what a token takes with the estimate, once STEPS more were made for one person alone."""
        own = self._process.cpu_percent() / 100 / (psutil.cpu_count() or 1)  # since the last call
        plan, times = self.serving.plan, self.engine.times.alone
        if plan is None or self.serving.state is not ServingState.READY:
            return
        if times.count < self._alone:
            self._alone = 0  # another ring began
        if times.count - self._alone < STEPS:
            return
        self._alone = times.count
        score = self.estimate.score if self.estimate is not None and self.estimate.plan == plan else None
        machine, nodes = self.machines.surveyor.machine, self.machines.membership.nodes()
        self.pace = pace_of(times, score, surroundings_of(nodes, plan, machine, own), machine)
        self.machines.membership.changed.notify()

    # --- placing ------------------------------------------------------------------------------------------------------

    async def place(self, plan: Plan) -> Placed:
        """Load the plan's stages. If they do not fit beside the stages that it does not use, end those first."""
        if not self._fits_beside(plan):
            await self.loader.prune(keep=plan)
        return await self._prepare(plan)

    async def join(self, placed: Placed, within: float = JOIN_WITHIN) -> None:
        """Join stages to the ring's next epoch and end the others. Raises StageLost."""
        self.loader.placed, self.pace = placed, None
        self.ring = await self.loader.connect(self.opened.spec.state_width, within)
        status, stages = self.machines.membership.status, self.loader.plan.stages
        found = [(stage, status(stage.node)) for stage in stages]
        self.places = tuple((node.machine if node else "", stage.device) for stage, node in found)
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
        if (mine.model.key, mine.dtype) != (plan.model.key, plan.dtype):
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
