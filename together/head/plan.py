"""A model that is read, and its plan: from a request to load it to orders for nodes. Loads nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from backends.on_mlx.config import refuse_dtype, refuse_ignored
from together.cluster.survey import Placement, Speeds, Survey, Surveyor, best_of_each
from together.errors import BadPlan, BadSetting, BrokenModel, UnsupportedModel
from together.head.cables import cable_gain, places_of, wireless_nodes
from together.models.config import TOY
from together.models.folder import require_whole
from together.models.form import PUBLISHED, form_title
from together.models.generation import SamplingDefaults, read_sampling_defaults, sampling_mode
from together.models.manifest import SMALL_FILES, describe
from together.models.remarks import remark, remarks
from together.models.rope import is_stretched
from together.models.same_words import own_tokenizer
from together.models.spec import ModelSpec, read_config, read_runnable, read_spec
from together.models.units import missing_ranges
from together.planning.explain import Infeasible
from together.planning.memory import stage_memory
from together.planning.problem import Problem, Sizing
from together.planning.recommend import recommend
from together.planning.report import PlanReport
from together.planning.request import PlanRequest, parse_dtype, plan_for
from together.processes import trim_memory
from together.sentences import Sentence, say
from together.settings import Settings
from together.text.pictures import read_sight
from together.text.tokenizer import TextModel
from together.types import DTYPE_BYTES, Dtype, LayerRange, ModelRef, Plan, StagePlan
from together.weights.find import BUNDLED, resolve_model
from together.weights.hub import describe_hub
from together.weights.hub_orders import check_hub_orders
from together.weights.store import Store, begin_form, local_name

LESS_CONTEXT = (4096, 2048)  # tried where nobody asked for a context and the usual one does not fit


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutline:
    """What a plan asks of a model."""

    spec: ModelSpec
    ref: ModelRef
    config: bytes  # the effective configuration, as JSON
    dtype: Dtype
    exact: bool = False  # as in Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHandle(ModelOutline):
    """A model that proved readable. `folder` may lack weights: a model of the hub, or a part of one."""

    folder: Path
    text: TextModel
    defaults: SamplingDefaults
    remarks: tuple[str, ...] = ()  # what is odd about its files


async def open_model(model: str | Path, settings: Settings, form: str | None = None) -> ModelHandle:
    """Resolve a folder, a known name or a hub id, and read it: as it lies, or as it will be once it is in `form`.

    Raises BadInput or Unreachable with a sentence.
    """
    try:
        return await asyncio.to_thread(_open, model, settings, form)
    finally:
        await asyncio.to_thread(trim_memory)  # a large model's headers and words took hundreds of megabytes


def _open(model: str | Path, settings: Settings, form: str | None) -> ModelHandle:
    with remarks() as odd:
        opened = _read(model, settings, form)
    return replace(opened, remarks=tuple(odd))


def _read(model: str | Path, settings: Settings, form: str | None) -> ModelHandle:
    found = resolve_model(str(model), settings.home_path)
    plain = found if isinstance(found, Path) else _from_hub(found, settings)
    require_whole(plain, SMALL_FILES)
    name = local_name(plain, settings.home_path)
    folder = in_form(plain, name, form, Store(settings.home_path)) if form else plain
    spec, manifest, text = read_runnable(folder, name), describe(folder, name), TextModel.open(folder)
    _check_words(manifest.name, spec, text)
    text.sight = read_sight(plain, spec)
    if manifest.form != (form or PUBLISHED):
        if form == PUBLISHED:
            message = "{model} is here in {form} only; load it without --quantize no, or bring its published files back"
            raise BadSetting(message, model=manifest.name, form=form_title(manifest.form))
        remark("%s is here in %s only", manifest.name, form_title(manifest.form))
    ref = replace(manifest.ref(str(plain.resolve())), tokenizer=own_tokenizer(folder, manifest))
    config = json.dumps(read_config(folder), sort_keys=True).encode()
    return ModelHandle(
        folder=folder,
        spec=spec,
        text=text,
        ref=ref,
        config=config,
        dtype=dtype_of(settings, plain, spec),
        defaults=read_sampling_defaults(folder, sampling_mode(settings.sampling)),
        exact=settings.exact,
    )


def in_form(folder: Path, name: str, form: str, store: Store) -> Path:
    """The cache's folder for a form of the model in `folder`, begun where it is new: nothing is converted yet.

    Raises UnsupportedModel for a model that is quantized already, or that has nothing to quantize.
    """
    manifest = describe(folder, name)
    if manifest.form == form:
        return folder
    spec = read_runnable(folder, name)
    if spec.packings or spec.scaled:
        how = "; ".join([*map(str, spec.packings), *(["fp8"] if spec.scaled else [])])
        message = "{model} is quantized already ({how}); load it without --quantize, or name its published version"
        raise UnsupportedModel(message, model=manifest.name, how=how)
    made = None if spec.family == TOY else begin_form(folder, manifest, form, store)
    if made is None or not read_spec(made).packings:
        message = "{model} has no matrix that fits {form}; load it as published, or choose another quantization"
        raise UnsupportedModel(message, model=manifest.name, form=form_title(form))
    return made


def refuse(opened: ModelOutline, plan: Plan) -> None:
    """Raises UnsupportedModel for a stage whose back end cannot run this model; asked before anything is unloaded."""
    for stage in plan.stages:
        if stage.backend == "mlx" and opened.spec.family != TOY:
            config = json.loads(opened.config)
            refuse_ignored(config, opened.spec)
            refuse_dtype(config, opened.spec, plan.dtype, stage.device)


def _check_words(name: str, spec: ModelSpec, text: TextModel) -> None:
    """Tokens that were added later may lie beyond the model's (Gemma 3 has one for images); the others do not."""
    words = text.tokenizer.get_vocab_size(with_added_tokens=False)
    if words > spec.vocab_size:
        raise BrokenModel(
            "{model} has a tokenizer of {words} tokens and weights for {rows}: the tokenizer is another model's; "
            "take both from the same version of the model",
            model=name,
            words=words,
            rows=spec.vocab_size,
        )


def _from_hub(hub_id: str, settings: Settings) -> Path:
    """Its config, words and headers, without weights: those are for the nodes to fetch, each its own layers."""
    store = Store(settings.home_path)
    manifest = describe_hub(hub_id, store)
    folder = store.folder(manifest.fingerprint)
    check_hub_orders(manifest, folder)
    return folder


def dtype_of(settings: Settings, folder: Path, spec: ModelSpec) -> Dtype:
    """What it computes in; `folder` has its published files. Raises BadSetting."""
    if not settings.dtype:
        return "fp32" if folder.resolve() == BUNDLED else spec.dtype
    return parse_dtype(settings.dtype)


def sizings(opened: ModelOutline, request: PlanRequest, settings: Settings) -> Iterator[Sizing]:
    """What to plan for: what was asked; where nothing was, the usual, then less, so that a large model fits at all."""
    most = opened.spec.context
    if request.context is not None and request.context > most:
        wrong = "{model} has a context of {most} tokens, not {context}; choose at most {most}"
        raise BadPlan(wrong, model=opened.ref.name, most=most, context=request.context)
    context, users = request.context or min(settings.context, most), request.users or settings.users
    yield Sizing(context, users, opened.dtype, opened.exact)
    if request.users is None and users > 1:
        yield Sizing(context, 1, opened.dtype, opened.exact)
    if request.context is None:
        for less in LESS_CONTEXT:
            if less < context:
                yield Sizing(less, 1 if request.users is None else users, opened.dtype, opened.exact)


NEED_SPEEDS = ("recommend", "compute", "mixed")  # strategies that look at measured times


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A split that fits, what it was sized for, and whom its names stand for."""

    opened: ModelOutline
    sizing: Sizing
    survey: Survey
    answer: PlanReport


async def plan_model(
    opened: ModelOutline,
    request: PlanRequest,
    settings: Settings,
    surveyor: Surveyor,
    speeds: Speeds,
    without: Collection[str] = (),
    kept: Collection[str] = (),
) -> PlannedModel | Infeasible:
    """A plan for the first sizing that fits, on all nodes but those whose ids are in `without`.

    It may have all memory of this head's rings but those in `kept`.

    Raises BadInput for a wrong request, NotServing without a node.
    """

    async def plan_at(sizing: Sizing) -> PlannedModel | Infeasible:
        placements = surveyor.reclaimed(surveyor.placements(without), kept)
        if not request.names_nodes and request.strategy not in NEED_SPEEDS:
            placements = best_of_each(placements)
        survey = await surveyor.survey(opened.spec, opened.config, sizing, speeds, placements)
        found = await asyncio.to_thread(plan_on, survey, opened, request, sizing)  # up to 0.3 s for eight nodes
        if isinstance(found, Infeasible) or speeds is Speeds.NONE:
            return found
        return _with_cables(found, await wireless_nodes(surveyor))

    return await first_that_fits(sizings(opened, request, settings), plan_at)


def _with_cables(planned: PlannedModel, wireless: Collection[str]) -> PlannedModel:
    """It says what cables would give."""
    opened, answer = planned.opened, planned.answer
    size, places = opened.spec.state_width * DTYPE_BYTES[planned.sizing.dtype], places_of(planned.survey, wireless)
    gain = cable_gain(opened.ref.name, answer.problem, answer.split, places, size)
    return replace(planned, answer=replace(answer, why=(*answer.why, gain))) if gain else planned


async def first_that_fits(
    sizings: Iterable[Sizing], plan_at: Callable[[Sizing], Awaitable[PlannedModel | Infeasible]]
) -> PlannedModel | Infeasible:
    """The plan of the first sizing that has one, else what is missing for the first: that one was wanted."""
    missing: Infeasible | None = None
    for sizing in sizings:
        found = await plan_at(sizing)
        if isinstance(found, PlannedModel):
            why = (*found.answer.why, *_lowered(sizing, missing))
            return replace(found, answer=replace(found.answer, why=why))
        missing = missing or found
    assert missing is not None, "there is at least one sizing"
    return missing


def plan_on(survey: Survey, opened: ModelOutline, request: PlanRequest, sizing: Sizing) -> PlannedModel | Infeasible:
    """A plan for the problem of a survey, which was made for this sizing. Raises BadPlan."""
    request = replace(request, users=None, context=None, hidden_size=opened.spec.state_width, dtype=sizing.dtype)
    answer = plan_for(request, survey.problem)
    if isinstance(answer, Infeasible):
        return answer
    answer = replace(answer, why=(*answer.why, *survey.skipped))
    return PlannedModel(opened, sizing, survey, answer)


def plan_of(decision: PlannedModel) -> Plan:
    """The split as orders for nodes: each stage is granted what it needs."""
    spec, sizing, placements = decision.opened.spec, decision.sizing, decision.survey.placements
    shares = decision.answer.split.shares
    stages = tuple(_stage(spec, placements[share.node], share.layers, sizing) for share in shares)
    return Plan(decision.opened.ref, stages, sizing.context, sizing.users, sizing.dtype, decision.opened.exact)


async def repair(
    opened: ModelHandle, plan: Plan, kept: tuple[StagePlan, ...], surveyor: Surveyor, speeds: Speeds
) -> Plan | None:
    """A plan that keeps those stages and adds stages for the layers that none of them holds; None where none fits.

    A node may get a further stage: what lives is not loaded again.
    """
    sizing = Sizing(plan.context, plan.users, plan.dtype, plan.exact)
    placements = surveyor.placements()
    if speeds is Speeds.NONE:
        placements = best_of_each(placements)
    survey = await surveyor.survey(opened.spec, opened.config, sizing, speeds, placements)
    problem, stages = survey.problem, list(kept)
    for gap in missing_ranges(plan.model.layers, [stage.layers for stage in kept]):
        split = recommend(problem.part(gap))
        if split is None:
            return None
        for share in split.shares:
            layers = LayerRange(share.layers.start + gap.start, share.layers.stop + gap.start)
            stages.append(_stage(opened.spec, survey.placements[share.node], layers, sizing))
            problem = _less(problem, share.node, stages[-1].memory_bytes)
    return replace(plan, stages=tuple(sorted(stages, key=lambda stage: stage.layers)))


def _less(problem: Problem, name: str, size: int) -> Problem:
    nodes = (
        replace(node, free_bytes=(node.free_bytes or 0) - size) if node.name == name else node for node in problem.nodes
    )
    return replace(problem, nodes=tuple(nodes))


def _stage(spec: ModelSpec, place: Placement, layers: LayerRange, sizing: Sizing) -> StagePlan:
    memory = stage_memory(spec, layers, sizing.dtype, sizing.context, sizing.users, place.device.backend)
    stretched = is_stretched(spec.trained, sizing.context)
    return StagePlan(place.node, place.device.backend, place.device.name, layers, memory, stretched)


def _lowered(sizing: Sizing, missing: Infeasible | None) -> tuple[Sentence, ...]:
    return () if missing is None else (say("sized_less", context=sizing.context, users=sizing.users),)
