"""What a head reads of a model before anything is loaded: its sizes, its words, its name. Knows no node and no ring."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backends.on_mlx.config import refuse_dtype, refuse_ignored
from together.errors import BadPlan, BadSetting, BrokenModel
from together.models.config import TOY
from together.models.folder import require_whole
from together.models.generation import SamplingDefaults, read_sampling_defaults, sampling_mode
from together.models.manifest import SMALL_FILES, describe
from together.models.spec import ModelSpec, read_config, read_runnable
from together.planning.problem import Sizing
from together.planning.request import PlanRequest
from together.processes import trim_memory
from together.settings import Settings
from together.text.tokenizer import TextModel
from together.types import DTYPES, Dtype, ModelRef, Plan
from together.weights.find import BUNDLED, resolve_model
from together.weights.hub import describe_hub
from together.weights.store import Store, local_name

LESS_CONTEXT = (4096, 2048)  # tried where nobody asked for a context and the usual one does not fit


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """A model that proved readable. `folder` may lack weights: a model of the hub, or a part of one."""

    folder: Path
    spec: ModelSpec
    text: TextModel
    ref: ModelRef
    config: bytes  # the effective configuration, as JSON
    dtype: Dtype
    defaults: SamplingDefaults


async def open_model(model: str | Path, settings: Settings) -> ModelHandle:
    """Resolve a folder, a known name or a hub id, and read it. Raises BadInput or Unreachable with a sentence."""
    try:
        return await asyncio.to_thread(_open, model, settings)
    finally:
        await asyncio.to_thread(trim_memory)  # a large model's headers and words took hundreds of megabytes


def _open(model: str | Path, settings: Settings) -> ModelHandle:
    found = resolve_model(str(model), settings.home_path)
    folder = found if isinstance(found, Path) else _from_hub(found, settings)
    require_whole(folder, SMALL_FILES)
    name = local_name(folder, settings.home_path)
    spec, manifest, text = read_runnable(folder, name), describe(folder, name), TextModel.open(folder)
    _check_words(manifest.name, spec, text)
    ref = ModelRef(manifest.name, str(folder.resolve()), spec.fingerprint, spec.layers, manifest.revision)
    config = json.dumps(read_config(folder), sort_keys=True).encode()
    defaults = read_sampling_defaults(folder, sampling_mode(settings.sampling))
    return ModelHandle(folder, spec, text, ref, config, _dtype(settings, folder, spec), defaults)


def refuse(opened: ModelHandle, plan: Plan) -> None:
    """Raises UnsupportedModel for a stage whose back end cannot run this model; asked before anything is unloaded."""
    for stage in plan.stages:
        if stage.backend == "mlx" and opened.spec.family != TOY:
            refuse_ignored(json.loads(opened.config), opened.spec)
            refuse_dtype(opened.spec, plan.dtype, stage.device)


def _check_words(name: str, spec: ModelSpec, text: TextModel) -> None:
    """Tokens that were added later may lie beyond the model's (Gemma 3 has one for images); the others do not."""
    words = text.tokenizer.get_vocab_size(with_added_tokens=False)
    if words > spec.vocab_size:
        raise BrokenModel(
            f"{name} has a tokenizer of {words} tokens and weights for {spec.vocab_size}: the tokenizer is another "
            "model's; take both from the same version of the model"
        )


def _from_hub(hub_id: str, settings: Settings) -> Path:
    """Its config, words and headers, without weights: those are for the nodes to fetch, each its own layers."""
    store = Store(settings.home_path)
    return store.folder(describe_hub(hub_id, store).fingerprint)


def _dtype(settings: Settings, folder: Path, spec: ModelSpec) -> Dtype:
    if not settings.dtype:
        return "fp32" if folder.resolve() == BUNDLED else spec.dtype
    for dtype in DTYPES:
        if dtype == settings.dtype:
            return dtype
    raise BadSetting(f"there is no dtype {settings.dtype!r}; choose one of {', '.join(DTYPES)}")


def sizings(opened: ModelHandle, request: PlanRequest, settings: Settings) -> Iterator[Sizing]:
    """What to plan for: what was asked; where nothing was, the usual, then less, so that a large model fits at all."""
    most = opened.spec.context
    if request.context is not None and request.context > most:
        raise BadPlan(f"{opened.ref.name} has a context of {most} tokens, not {request.context}; choose at most {most}")
    context, users = request.context or min(settings.context, most), request.users or settings.users
    yield Sizing(context, users, opened.dtype)
    if request.users is None and users > 1:
        yield Sizing(context, 1, opened.dtype)
    if request.context is None:
        for less in LESS_CONTEXT:
            if less < context:
                yield Sizing(less, 1 if request.users is None else users, opened.dtype)
