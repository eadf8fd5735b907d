"""The transformers model of one layer range from its own tensors, and activations as tensors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from backends.base import LoadRequest
from backends.on_torch.attention import ATTENTION
from backends.on_torch.fused import fuse
from backends.on_torch.kernels import Precision
from backends.on_torch.latent import keep_latents, register_attention, take_heads, whole_shapes
from backends.on_torch.layer_inputs import absent_behind, drop_opening
from backends.on_torch.library import library, uninitialised
from backends.on_torch.linear import EXPERTS, linear_weights, packs, register_experts, speed_up
from backends.on_torch.parts import join_rows
from backends.on_torch.recurrent import pack_recurrent, with_parts
from backends.on_torch.replaced import Source, replace_modules, sort_sources
from backends.on_torch.scored import use_scores
from backends.on_torch.shard import TORCH
from backends.on_torch.tensors import STORED, Lazy, Quantized, Reader, Rows, Scaled, mapped, typed
from backends.on_torch.vision import TorchVision, text_class
from together.errors import BrokenModel
from together.models.eyes import TOWER
from together.models.families import BY_NAME
from together.models.names import EMBED, HEAD, NORM, OPENING_UNIT, shifted, unit_of
from together.models.needed import needed_tensors
from together.models.rope import settled
from together.models.spec import ModelSpec, read_config
from together.types import Dtype, LayerRange


def model_class(family: str) -> Any:
    """The family's causal LM class; imports its module alone, not all of transformers."""
    found, module = BY_NAME[family], _module(family)
    return getattr(module, found.class_name, None) or text_class(module, found.torch[1])


def _module(family: str) -> Any:
    name = BY_NAME[family].torch[0]
    return library(f"transformers.models.{name}.modeling_{name}")


def range_config(folder: Path, family: str, layers: LayerRange, *, tied: bool, stretched: bool = False) -> Any:
    """The configuration of a model that has these layers only, and one rope."""
    raw = settled(read_config(folder), stretched=stretched)
    changes = {"num_hidden_layers": len(layers), "tie_word_embeddings": tied, "use_cache": False}
    ranged = BY_NAME[family].ranged(raw, layers)
    with _quiet_and_in_order():
        config = _config(model_class(family).config_class, raw | ranged | changes)
    if "layer_types" in ranged:  # Gemma 4's class makes the last one of any model see everything
        config.layer_types = list(ranged["layer_types"])
    return config


def _config(kind: Any, values: dict[str, Any]) -> Any:
    try:
        return kind.from_dict(deepcopy(values))
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error


def read_model(request: LoadRequest, spec: ModelSpec, device: torch.device) -> Any:
    """The request's layers on `device`, ready to run. Raises BrokenModel for missing or misshapen tensors."""
    layers, dtype = request.layers, request.dtype
    first, last = layers.start == 0, layers.stop == spec.layers
    kind, reader = TORCH[dtype], Reader(TORCH[dtype], device, request.progress)
    needed = needed_tensors(request.folder, layers, request.home).text
    stored: dict[str, Source] = {info.name: Lazy(info, reader) for info in needed.plain}
    stored |= {name: Quantized(matrix, reader) for name, matrix in needed.packed.items()}
    stored |= {name: Scaled(matrix, reader) for name, matrix in needed.scaled.items()}
    block = f".{BY_NAME[spec.family].block}."
    sources = {shifted(name, layers.start).replace(block, ".mlp."): source for name, source in stored.items()}
    tied = spec.tied and first and last
    if spec.tied and last and not first:
        sources[HEAD] = sources.pop(EMBED)
    pack = packs(kind, device, request.home)
    looked_up = _apart(sources, kind, pack=pack) if tied else None
    reader.total = sum(source.nbytes for source in sources.values())
    made = LayerRange(0, spec.layers) if first and spec.layer_inputs else layers  # it makes the inputs of all layers
    alone = tied and looked_up is None
    config = range_config(request.folder, spec.family, made, tied=alone, stretched=request.stretched)
    heads = take_heads(sources)
    join_rows(sources, BY_NAME[spec.family], read_config(request.folder), layers)
    found = sort_sources(sources, turned=BY_NAME[spec.family].scored)
    state: dict[str, Any] = {**found.state, **(looked_up or {})}
    packed = {name: state[name] for name in _linear_names(spec, config, state) if name in state} if pack else {}
    found_rows = {name: _rows(source, reader) for name, source in packed.items()}
    rows = {name: matrix for name, matrix in found_rows.items() if matrix is not None}
    shapes = _absent(spec, config, layers) | {name: matrix.shape for name, matrix in (rows | found.matrices).items()}
    shapes |= whole_shapes(heads) | (_expert_shapes(spec, config, found.experts) if found.experts else {})
    missing = {name: shape for name, shape in shapes.items() if name in rows or name not in state}
    for name, shape in missing.items():
        state[name] = torch.zeros((), dtype=kind).expand(shape)  # takes no memory, and goes again
    model = build(spec, config, state, dtype, device)
    drop_absent(model, first=first, last=last)
    model.model.layers = model.model.layers[: len(layers)]
    keep_latents(model, heads)
    replace_modules(model, found, Precision(kind, device, request.exact, request.home))
    return fuse(speed_up(model.to(device), rows, request.home))


def read_vision(request: LoadRequest, spec: ModelSpec, device: torch.device) -> TorchVision | None:
    """What the request's stage sees pictures with; None where it is no first one, or the model sees none."""
    if spec.eyes is None or request.layers.start:
        return None
    config, module, kind = read_config(request.folder), _module(spec.family), TORCH[request.dtype]
    reader = Reader(kind, device, lambda _: None, total=1)
    needed = needed_tensors(request.folder, request.layers, request.home).tower
    state = {info.name.removeprefix(TOWER): Lazy(info, reader) for info in needed}
    found = getattr(module, f"{BY_NAME[spec.family].torch[1]}VisionModel")
    with _quiet_and_in_order():
        inner = _config(found.config_class, config["vision_config"])
    tower = _loaded(spec, found, inner, state, kind, attn_implementation="sdpa")
    return TorchVision(tower.eval().requires_grad_(False).to(device), spec.eyes, device)


def _rows(source: Any, reader: Reader) -> Rows | Scaled | None:
    """What can be read part by part, in the order of its rows; None for what cannot."""
    if isinstance(source, Lazy) and not source.info.heads:
        return Rows(source.info, reader)
    return source if isinstance(source, Scaled) else None


def _apart(sources: dict[str, Source], kind: torch.dtype, *, pack: bool) -> dict[str, Any] | None:
    """Give a tied head the embedding's source where the head is packed; None where it is not.

    Rows are looked up in the file then, so that the matrix is not there twice: the state has the embedding, where
    transformers looks them up.
    """
    embedding = sources[EMBED]
    if isinstance(embedding, Quantized):
        sources[HEAD] = embedding
        return {}
    if isinstance(embedding, Scaled) or not pack or STORED.get(embedding.info.dtype) != kind:
        return None
    sources[HEAD] = sources.pop(EMBED)
    return {EMBED: typed(mapped(embedding.info), embedding.info)}


def _class(spec: ModelSpec, stored: Iterable[str]) -> Any:
    kind = model_class(spec.family)
    return with_parts(kind, stored) if BY_NAME[spec.family].regrouped else kind


def _linear_names(spec: ModelSpec, config: Any, stored: Iterable[str]) -> set[str]:
    """The parameters that are not read into the model where weights are packed, but packed part by part."""
    with torch.device("meta"), uninitialised():
        return linear_weights(_class(spec, stored)(config))


def _expert_shapes(spec: ModelSpec, config: Any, paths: Container[str]) -> dict[str, tuple[int, ...]]:
    """Of the parameters of these modules, as transformers has them."""
    with torch.device("meta"), uninitialised():
        parameters = model_class(spec.family)(config).named_parameters()
    return {name: tuple(each.shape) for name, each in parameters if name.rpartition(".")[0] in paths}


def _absent(spec: ModelSpec, config: Any, layers: LayerRange) -> dict[str, tuple[int, ...]]:
    """What a range may lack, although the model's class has it."""
    matrix = (spec.vocab_size, spec.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {EMBED: matrix, NORM: matrix[1:], HEAD: matrix}
    if config.tie_word_embeddings:
        del shapes[HEAD]
    if spec.layer_inputs:
        with torch.device("meta"), uninitialised():
            found = model_class(spec.family)(config).state_dict()
        shapes |= absent_behind(found, len(layers))
        shapes |= {name: tuple(each.shape) for name, each in found.items() if unit_of(name) == OPENING_UNIT}
    return shapes


def build(spec: ModelSpec, config: Any, state: Mapping[str, Any], dtype: Dtype, device: torch.device) -> Any:
    """transformers' own loading of `state` into the family's class, on the CPU, with what runs best on `device`."""
    register_attention()
    register_experts()
    experts = EXPERTS if device.type == "cpu" else None
    how = {"attn_implementation": ATTENTION, "experts_implementation": experts}
    model = _loaded(spec, _class(spec, state), config, state, TORCH[dtype], **how)
    if BY_NAME[spec.family].scored:
        use_scores(model)
    if BY_NAME[spec.family].recurrent:
        pack_recurrent(model, BY_NAME[spec.family].recurrent)
    return model.eval().requires_grad_(False)


def _loaded(
    spec: ModelSpec, found: Any, config: Any, state: Mapping[str, Any], kind: torch.dtype, **how: str | None
) -> Any:
    with _quiet_and_in_order(), uninitialised():
        model, info = found.from_pretrained(
            None,
            config=config,
            state_dict=renamed(state, BY_NAME[spec.family].ends),
            dtype=kind,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # checked below, in words of ours
            **how,
        )
    _check_loaded(spec.name, info)
    use_names(model, BY_NAME[spec.family].ends)
    return model


def renamed(state: Mapping[str, Any], ends: Mapping[str, str]) -> dict[str, Any]:
    """By transformers' names, where its class calls the embedding and the last norm otherwise."""
    names = {f"model.{usual}.weight": f"model.{own}.weight" for usual, own in ends.items()}
    return {names.get(name, name): value for name, value in state.items()}


def use_names(model: Any, ends: Mapping[str, str]) -> None:
    """Give these modules the usual names; what the class looks up by its own still finds them."""
    if not ends:
        return
    inner = model.model
    for usual, own in ends.items():
        inner._modules[usual] = inner._modules.pop(own)
    found = {own: property(attrgetter(usual)) for usual, own in ends.items()}
    inner.__class__ = type(type(inner).__name__, (type(inner),), found)


def _check_loaded(name: str, info: Mapping[str, Any]) -> None:
    """transformers fills what is missing with random numbers: that is not the model."""
    texts = {
        "missing_keys": "{model} lacks {key}; get this model again",
        "mismatched_keys": "{model} has the wrong shape for {key}; get this model again",
    }
    for what, text in texts.items():
        if info[what]:
            key = sorted(info[what], key=str)[0]
            raise BrokenModel(text, model=name, key=key if isinstance(key, str) else key[0])


def drop_absent(model: Any, *, first: bool, last: bool) -> None:
    if not first:
        model.model.embed_tokens = None
        drop_opening(model)
    if not last:
        model.model.norm = nn.Identity()
        model.lm_head = None


@contextmanager
def _quiet_and_in_order() -> Iterator[None]:
    """No bars or reports; tensors one after the other, or a pool of threads reads all before the first is in place."""
    from transformers.utils import logging

    key = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")
            yield
    finally:
        logging.set_verbosity(level)
        os.environ.pop(key) if before is None else os.environ.update({key: before})
