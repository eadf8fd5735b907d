"""Which models would fit on the machines that are there, and how fast they would be: the planner's own answers.

Nothing is loaded and no model is measured for it: the machines are measured once, at the shape of a well-known model,
and what they did there is reckoned for others by what a token reads and computes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from together.cluster.survey import Placement, Speeds, Surveyor
from together.errors import TogetherError
from together.head.plan import ModelOutline, PlannedModel, dtype_of, first_that_fits, plan_of, plan_on, refuse, sizings
from together.models.form import asked_as, form_title
from together.models.spec import ModelSpec
from together.models.summary import summarize_config
from together.planning.demand import demand_of
from together.planning.explain import Infeasible
from together.planning.machines import Machine
from together.planning.problem import Link, ModelSize, NodeProfile, Problem, Sizing
from together.planning.recommend import recommend
from together.planning.request import PlanRequest
from together.planning.shapes import SHAPES
from together.sentences import NOTHING, Sentence, say
from together.settings import Settings
from together.types import LayerRange
from together.weights.sketches import ModelSketch

log = logging.getLogger(__name__)

SHAPE = "Llama-3.2-1B"  # at which machines are measured once: small enough for each, and no toy
STATE_BYTES = 8192  # of a hop that is timed: what a token of a model with 4096 elements sends
ROOM = 0.1  # of each machine's memory that must be left, or it is tight: other programs come and go
SAME = 0.02  # of a machine's memory that may come and go before answers are worked out again
MOST_KEPT = 512
MEASURED_LIFE = 600.0  # seconds that what machines did is believed: what was measured on a busy one is too slow


class Fit(StrEnum):
    """Whether a model fits on the machines that are there."""

    FITS = "fits"
    TIGHT = "tight"  # with less context or fewer users than usual, or with next to no memory left
    NO = "no"


@dataclass(frozen=True, slots=True)
class FormFit:
    """One form of a model on the machines that are there. `tokens_per_second` is for one user; None: not known yet."""

    form: str
    title: str
    quantize: str  # what asks for it
    bytes: int  # of all weights
    bits: float  # of a weight, on average
    fit: Fit = Fit.NO
    sentence: Sentence = NOTHING  # why
    why: tuple[Sentence, ...] = ()  # what each machine would have
    tokens_per_second: float | None = None
    context: int = 0  # what the plan is sized for
    users: int = 0
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MachineSpeeds:
    """What the machines were measured to do, by the names of their devices, and the links between them."""

    machines: Mapping[str, Machine] = field(default_factory=dict)
    links: tuple[Link, ...] = ()


def outlines(model: ModelSketch, settings: Settings) -> dict[str, ModelOutline]:
    """Each form of a model as a plan takes it. Raises BadSetting."""
    folder = model.folder or Path()
    return {
        form: ModelOutline(
            spec=spec,
            ref=replace(spec.ref(folder), form=form),
            config=model.config,
            dtype=dtype_of(settings, folder, spec),
            exact=settings.exact,
        )
        for form, spec in model.specs.items()
    }


async def plan_outline(
    outline: ModelOutline,
    active: float,
    settings: Settings,
    surveyor: Surveyor,
    speeds: MachineSpeeds,
    kept: Collection[str] = (),
) -> PlannedModel | Infeasible:
    """As `plan_model` by the usual strategy, by reckoned speeds. Raises NotServing without a node."""
    request = PlanRequest(form=outline.ref.form)

    async def plan_at(sizing: Sizing) -> PlannedModel | Infeasible:
        placements = surveyor.reclaimed(surveyor.placements(), kept)
        survey = await surveyor.survey(outline.spec, outline.config, sizing, Speeds.NONE, placements)
        problem = with_speeds(survey.problem, speeds, outline.spec, active)
        return await asyncio.to_thread(plan_on, replace(survey, problem=problem), outline, request, sizing)

    return await first_that_fits(sizings(outline, request, settings), plan_at)


def with_speeds(problem: Problem, speeds: MachineSpeeds, spec: ModelSpec, active: float) -> Problem:
    """The same with times for each node; unchanged where one of them was not measured."""
    able = [node for node in problem.nodes if node.max_layers != 0]
    if not able or any(node.name not in speeds.machines for node in able):
        return problem
    flops = 2 * active * sum(weights.elements for weights in spec.layer_weights) / spec.layers
    timed = {node.name: _timed(node, speeds.machines[node.name], problem.model, active, flops) for node in able}
    nodes = tuple(timed.get(node.name, node) for node in problem.nodes)
    return replace(problem, nodes=nodes, links=speeds.links)


def _timed(node: NodeProfile, machine: Machine, size: ModelSize, active: float, flops: float) -> NodeProfile:
    held = node.size or size
    read = active * sum(held.layer_bytes) / held.layers
    return replace(
        node,
        ms_per_layer=machine.layer_time(read, flops),
        ms_per_stage=machine.stage_ms,
        ms_per_head=1e3 * held.head_bytes / machine.bytes_per_s,
        ms_per_step=machine.ms_per_step,
        reserve_bytes=node.reserve_bytes + machine.overhead_bytes,
        shared=machine.shared,
    )


def fit_of(outline: ModelOutline, planned: PlannedModel | Infeasible) -> FormFit:
    """What a plan, or none, says of a form."""
    spec, form = outline.spec, outline.ref.form
    weights = spec.stage_weights(LayerRange(0, spec.layers))
    size = weights.nbytes(spec.dtype)
    bits = 8 * size / weights.elements if weights.elements else 0.0
    found = FormFit(form, form_title(form), asked_as(form), size, bits)
    if isinstance(planned, Infeasible):
        return replace(found, sentence=planned.sentence)
    score, sizing, split = planned.answer.score, planned.sizing, planned.answer.split
    lowered = next((why for why in planned.answer.why if why.code == "sized_less"), NOTHING)
    tight = lowered or (NOTHING if _leaves_room(planned.answer.problem) else say("fit_tight", part=ROOM))
    return replace(
        found,
        fit=Fit.TIGHT if tight else Fit.FITS,
        sentence=tight or say("fit_fits", nodes=split.nodes, context=sizing.context, users=sizing.users),
        why=planned.answer.why,
        tokens_per_second=1e3 / score.token_ms if score.computing_ms > 0 else None,
        context=sizing.context,
        users=sizing.users,
        nodes=split.nodes,
    )


def _leaves_room(problem: Problem) -> bool:
    """Whether a plan would also be there with a part of each machine's memory less."""
    less = tuple(
        node if node.free_bytes is None else replace(node, free_bytes=node.free_bytes * (1 - ROOM))
        for node in problem.nodes
    )
    return recommend(replace(problem, nodes=less)) is not None


# --- kept answers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seen:
    """The machines as an answer was worked out for them: free bytes of each device, and whose memory was left alone."""

    free: Mapping[tuple[str, str, str], float]
    kept: frozenset[str]
    speeds: int

    def same(self, other: _Seen) -> bool:
        if (self.free.keys(), self.kept, self.speeds) != (other.free.keys(), other.kept, other.speeds):
            return False
        return all(abs(free - other.free[place]) <= SAME * max(free, 1.0) for place, free in self.free.items())


@dataclass(slots=True)
class Fits:
    """Those of one head, worked out when they are asked for and kept until the machines change."""

    settings: Settings
    surveyor: Surveyor
    _kept: OrderedDict[tuple[str, str], tuple[_Seen, FormFit]] = field(default_factory=OrderedDict)
    _speeds: MachineSpeeds = field(default_factory=MachineSpeeds)
    _unable: frozenset[str] = frozenset()  # that could not be measured, by name
    _measured: int = 0  # how often they were others
    _at: float = 0.0  # when they were measured last, on a clock of the machine
    _last: _Seen | None = None
    _version: int = 0
    _measuring: asyncio.Task[None] | None = None
    _one_by_one: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def measuring(self) -> bool:
        return self._measuring is not None and not self._measuring.done()

    async def of(self, model: ModelSketch, kept: frozenset[str]) -> tuple[FormFit, ...]:
        """Each form of the model, when all memory may be had but that of the rings in `kept`.

        Raises NotServing without a node, BadSetting.
        """
        found = []
        for form, outline in outlines(model, self.settings).items():
            seen, key = self._seen(kept), (f"{model.name} {model.folder}", form)
            known = self._kept.get(key)
            if known is None or not known[0].same(seen):
                async with self._one_by_one:
                    known = seen, await self._work_out(model, outline, kept)
                self._kept[key] = known
                if len(self._kept) > MOST_KEPT:
                    self._kept.popitem(last=False)
            found.append(known[1])
        return tuple(found)

    async def _work_out(self, model: ModelSketch, outline: ModelOutline, kept: frozenset[str]) -> FormFit:
        planned = await plan_outline(outline, model.active, self.settings, self.surveyor, self._speeds, kept)
        found = await asyncio.to_thread(fit_of, outline, planned)
        if isinstance(planned, PlannedModel):
            try:
                refuse(outline, plan_of(planned))
            except TogetherError as error:  # the machine that would have it cannot run it
                return replace(found, fit=Fit.NO, sentence=error.sentence, tokens_per_second=None)
        return found

    def _seen(self, kept: frozenset[str]) -> _Seen:
        places = self.surveyor.reclaimed(self.surveyor.placements(), kept)
        return _Seen({_key(place): place.device.free_bytes for place in places}, kept, self._measured)

    def look(self) -> int:
        """A number that is another one once answers may be others."""
        seen = self._seen(frozenset())
        if self._last is None or not self._last.same(seen):
            self._last, self._version = seen, self._version + 1
        return self._version

    # --- what machines do ---------------------------------------------------------------------------------------------

    def measure(self) -> bool:
        """Have machines measured that were not, in the background; whether that goes on. Nodes keep what they found."""
        names = {place.name for place in self.surveyor.placements()}
        known = self._speeds.machines.keys() | self._unable
        if not self.measuring and (not names <= known or time.monotonic() - self._at > MEASURED_LIFE):
            self._measuring = asyncio.create_task(self._measure(names))
        return self.measuring

    async def _measure(self, names: set[str]) -> None:
        config = SHAPES[SHAPE]
        read = demand_of(SHAPE, summarize_config(SHAPE, config)).read_bytes
        try:
            found, links = await self.surveyor.measured(json.dumps(config).encode(), "bf16", STATE_BYTES)
        except TogetherError as error:
            log.info("the machines were not measured: %s", error)
            found, links = {}, ()
        machines = {
            place.name: Machine.of_profile(place.name, profile, place.device.free_bytes, read)
            for place, profile in found.items()
            if profile.ms_per_layer and profile.memory_bytes_per_s and profile.matrix_flops_per_s
        }
        self._measured += self._speeds != MachineSpeeds(machines, links)
        self._speeds, self._unable = MachineSpeeds(machines, links), frozenset(names - machines.keys())
        self._at = time.monotonic()

    async def close(self) -> None:
        if self._measuring is not None:
            self._measuring.cancel()
            await asyncio.gather(self._measuring, return_exceptions=True)


def _key(place: Placement) -> tuple[str, str, str]:
    return (place.node, place.name, place.device.key)
