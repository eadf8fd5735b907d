"""A layer range of a checkpoint as mlx-lm modules with weights, and activations as arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from math import log, pi
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from backends.base import LAYER_INPUTS, Computing, LoadRequest
from backends.on_mlx.config import Growth, Rope, dialect, growth, ropes, runs_packed
from backends.on_mlx.latent import LatentAttention, parted
from backends.on_mlx.layer_inputs import MlxLayerInputs, layer_inputs, opened
from backends.on_mlx.packed import kernel_of, pack_modules
from backends.on_mlx.parts import fit_rows
from backends.on_mlx.recurrent import own_name, pack_recurrent, prepared, take_apart
from backends.on_mlx.routers import group_expert_select
from backends.on_mlx.scored import TunedAttention
from backends.on_mlx.tensors import MX, held_arrays, unfused, unfused_names
from together.errors import BadSetting, BrokenModel, UnsupportedModel
from together.models.families import BY_NAME
from together.models.form import STACK
from together.models.names import HEAD, shifted
from together.models.needed import needed_tensors
from together.models.rope import FACTORS, LONG, settled
from together.models.spec import ModelSpec, read_config
from together.models.state import Latent, Recurrent
from together.sentences import template
from together.types import DTYPE_BYTES, Activation, Dtype, LayerRange, NamedTensor

Bits = NDArray[np.uint16] | NDArray[np.uint32]
_BITS: dict[Dtype, mx.Dtype] = {"fp32": mx.uint32, "bf16": mx.uint16, "fp16": mx.uint16}


def read_activation(hidden: Activation) -> mx.array:
    """Hidden states as `[1, tokens, width]`, with what travels beside them as more columns."""
    kind, shape = f"<u{DTYPE_BYTES[hidden.dtype]}", (1, hidden.tokens, -1)
    parts: list[Bits] = [np.frombuffer(hidden.data, kind).reshape(shape)]
    parts += [np.frombuffer(other.data, kind).reshape(shape) for other in hidden.others]
    bits = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    return mx.array(bits).view(MX[hidden.dtype])  # numpy has no bf16, so the bits travel as whole numbers


def bits_of(states: mx.array, dtype: Dtype) -> mx.array:
    """States in `dtype` as whole numbers, not computed yet."""
    return states.view(_BITS[dtype])


def write_activation(bits: mx.array, dtype: Dtype, beside: int = 0) -> Activation:
    """`[1, tokens, width]` as what travels; a copy, because MLX's memory belongs to this thread.

    The last `beside` columns travel beside the hidden states.
    """
    _, tokens, width = bits.shape
    if not beside:
        return Activation(dtype, tokens, width, np.array(bits).data.cast("B"))
    found, hidden = np.array(bits)[0], width - beside
    states, inputs = (np.ascontiguousarray(part).data.cast("B") for part in np.split(found, [hidden], axis=1))
    return Activation(dtype, tokens, hidden, states, (NamedTensor(LAYER_INPUTS, dtype, beside, inputs),))


_SELECT = "group_expert_select"  # of routers with corrected scores, what several files have
_PACKAGE = "backends.mlx_lm_models"  # a name only: there is no such folder


class AttentionCache(Protocol):
    """What layers that attend get as their `cache`: it attends itself, because only it knows the sequences."""

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None = None
    ) -> mx.array: ...


def model_module(name: str) -> ModuleType:
    """`mlx_lm/models/<name>.py`, calling our attention. Raises BadSetting where mlx-lm is not installed."""
    if _PACKAGE not in sys.modules:
        sys.modules.setdefault(_PACKAGE, _package())
    base = import_module(f"{_PACKAGE}.base")
    base.__dict__["scaled_dot_product_attention"] = _attention  # before the model's file takes the name from there
    found = import_module(f"{_PACKAGE}.{name}")
    if hasattr(found, _SELECT):
        found.__dict__[_SELECT] = group_expert_select
    return found


def _package() -> ModuleType:
    library = find_spec("mlx_lm")  # finds a top-level package without running it
    if library is None or not library.submodule_search_locations:
        raise BadSetting("mlx-lm is not installed here; run python3 launch.py again to install it")
    spec = ModuleSpec(_PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [str(Path(library.submodule_search_locations[0]) / "models")]
    return module_from_spec(spec)


def _attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: AttentionCache,
    scale: float,
    mask: None = None,
    sinks: mx.array | None = None,
) -> mx.array:
    """In the place of mlx-lm's `scaled_dot_product_attention`; the layers are called without a mask."""
    return cache.attend(queries, keys, values, scale, sinks)


class Layer(Protocol):
    """A decoder layer of mlx-lm: `[1, tokens, hidden]` to the same, which some return before other things.

    `given` ends with a mask, which we have none of. `cache` is an AttentionCache, or PackedStates.
    """

    def __call__(
        self, x: mx.array, *given: mx.array | None, cache: Any
    ) -> mx.array | tuple[mx.array, *tuple[Any, ...]]: ...


class Project(Protocol):
    def __call__(self, x: mx.array) -> mx.array: ...


class PackedRope(Module):
    """A RoPE of mlx-lm's over packed tokens: each token is a batch row with its own position."""

    def __init__(self, rope: Callable[..., mx.array], sections: tuple[int, ...] = ()) -> None:
        """`sections`: how many pairs of a head each axis of positions turns; they take turns."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._rope, self._sections = rope, sections

    def __call__(self, x: mx.array, offset: mx.array) -> mx.array:  # [1, heads, tokens, head_dim]
        """`offset` is `[tokens]`, or `[axes, tokens]` where the axes differ."""
        packed = x.transpose(2, 1, 0, 3)
        if offset.ndim == 1:
            return self._rope(packed, offset=offset).transpose(2, 1, 0, 3)
        found = self._rope(packed, offset=offset[0])
        places = np.arange(x.shape[-1]) % (x.shape[-1] // 2)  # the pair of each value
        for axis in range(1, len(self._sections)):
            own = (places % 3 == axis) & (places < 3 * self._sections[axis])
            found = mx.where(mx.array(own), self._rope(packed, offset=offset[axis]), found)
        return found.transpose(2, 1, 0, 3)


@dataclass(frozen=True, slots=True)
class Slice:
    """The modules of one layer range; `embed` on the first stage, `norm` and `head` on the last."""

    layers: tuple[Layer, ...]
    embed: Project | None
    embed_scale: float
    logits_scale: float
    logits_cap: float | None
    growth: Growth | None
    norm: Project | None
    head: Project | None
    inputs: MlxLayerInputs | None = None  # on a first stage whose layers take some

    @property
    def computing(self) -> Computing:
        """MLX's functions by the number of matrices that they multiply; how many threads it takes it does not say."""
        trees = [cast(Module, layer).leaf_modules() for layer in self.layers]
        leaves = cast(list[tuple[str, Module]], tree_flatten(trees, is_leaf=Module.is_module))
        head = getattr(self.head, "__self__", self.head)  # a tied one is its embedding's method
        return Computing.of(map(kernel_of, (*(leaf for _, leaf in leaves), head)))

    def embedding(self, ids: list[int]) -> mx.array:
        """`[1, tokens, hidden]`, and behind them what all layers take beside, where they take something.

        Gemma's scale is rounded to the weights' dtype, as transformers does it.
        """
        assert self.embed is not None
        states = self.embed(mx.array(ids, mx.int32)[None])
        scale = mx.array(self.embed_scale, mx.float32).astype(states.dtype)
        states = states if self.embed_scale == 1.0 else states * scale
        return states if self.inputs is None else mx.concatenate([states, self.inputs(ids, states)], axis=-1)

    def given(self, positions: list[int], kind: mx.Dtype) -> tuple[mx.array | None, ...]:
        """What layers get between states and cache: what their queries are multiplied by, and no mask."""
        if self.growth is None:
            return (None,)
        passed = mx.floor(mx.array(positions, mx.int32) / self.growth.length)
        scale = 1.0 + self.growth.beta * mx.log(1.0 + passed)  # [tokens]
        return scale.astype(kind)[:, None], None

    def logits(self, states: mx.array) -> mx.array:
        """`[rows, hidden]` to float32 `[rows, vocab]`."""
        assert self.norm is not None
        assert self.head is not None
        found = self.head(self.norm(states)).astype(mx.float32)
        if self.logits_scale != 1.0:
            found = found * self.logits_scale
        return found if self.logits_cap is None else mx.tanh(found / self.logits_cap) * self.logits_cap


def read_slice(request: LoadRequest, spec: ModelSpec) -> Slice:
    """Build the range and read its tensors, layer by layer. Raises UnsupportedModel or BrokenModel."""
    layers = request.layers
    config = settled(read_config(request.folder), stretched=request.stretched)
    model = empty_model(config, spec, layers)
    needed, dtype = needed_tensors(request.folder, layers, request.home).text, MX[request.dtype]
    path = partial(_path, spec, layers.start)
    weights = {path(name): array for name, array in unfused(held_arrays(needed, dtype))}
    stored = {name: matrix.packing for name, matrix in needed.packed.items() if runs_packed(matrix.packing)}
    kept = {part: packing for name, packing in stored.items() for part in unfused_names(name)}
    packings = {path(name).removesuffix(".weight"): packing for name, packing in kept.items()}
    weights, packings = parted(model, weights, packings)
    take_apart(model, weights)
    fit_rows(model, weights, packings, read_config(request.folder), spec, layers, dtype)
    pack_modules(model, packings, dtype)
    fill(model, weights, spec)
    del weights  # from here on every array is held by the model alone, so a source is freed once it is converted
    try:
        for done, part in enumerate(_parts(model), 1):
            mx.eval(part)
            request.progress(done / (len(layers) + 1))
    except RuntimeError as error:
        raise BrokenModel(
            "{model} cannot be read: {error}; get this model again", model=spec.name, error=str(error)
        ) from error
    return slice_of(model, config, spec)


def empty_model(config: dict[str, Any], spec: ModelSpec, layers: LayerRange) -> Module:
    """mlx-lm's model with only this range's modules, its weights not computed. Raises UnsupportedModel."""
    module = model_module(BY_NAME[spec.family].file)
    try:
        args = module.ModelArgs.from_dict(_wrapped(module, dialect(config, spec, layers)))
    except (TypeError, ValueError) as error:
        raise _refusal(spec, "does not take its config.json", error) from error
    model: Module = _text_model(module.Model(args))
    _use_names(model, spec)
    _set_kinds(model, config, spec, layers)
    for layer, rope in zip(model.model.layers, ropes(config, spec, layers), strict=True):
        if rope is not None:
            layer.self_attn.rope = PackedRope(_rope(spec, rope), spec.sections)
    for layer, state in zip(model.model.layers, spec.states[layers.start : layers.stop], strict=True):
        if isinstance(state, Latent):
            layer.self_attn = LatentAttention(layer.self_attn, config["rope_parameters"])
        elif BY_NAME[spec.family].scored:
            layer.self_attn = TunedAttention(layer.self_attn, config)
    first, last = layers.start == 0, layers.stop == spec.layers
    if not (first or (last and spec.tied)):
        model.model.pop("embed_tokens")
    if not last:
        model.model.pop("norm")
    if spec.layer_inputs:
        opened(model, spec, config["vocab_size_per_layer_input"], first=first)
    return model


def _wrapped(module: ModuleType, values: dict[str, Any]) -> dict[str, Any]:
    """As files want it that know the text model inside of a wrapper alone."""
    wraps = "text_config" in module.ModelArgs.__dataclass_fields__
    return {"model_type": values["model_type"], "text_config": values} if wraps else values


def _text_model(model: Module) -> Module:
    """Out of a wrapper of text and pictures."""
    found: Module = model.get("language_model", model)
    return found


def _use_names(model: Module, spec: ModelSpec) -> None:
    """Give what mlx-lm's file calls otherwise the usual names: our slices call these modules themselves."""
    family = BY_NAME[spec.family]
    if family.mlx_inner != "model":
        model["model"] = model.pop(family.mlx_inner)
    for usual, own in family.ends.items():
        model.model[usual] = model.model.pop(own)


def _set_kinds(model: Module, config: Mapping[str, Any], spec: ModelSpec, layers: LayerRange) -> None:
    """Make layers anew where mlx-lm goes by their numbers, and let recurrent ones run packed rows."""
    family = BY_NAME[spec.family]
    make = type(model.model.layers[0])
    for place, layer in enumerate(range(layers.start, layers.stop)):
        if family.mlx_number is not None:
            model.model.layers[place] = make(model.args, family.mlx_number(config, layer))
        if isinstance(spec.states[layer], Recurrent):
            pack_recurrent(model.model.layers[place][family.recurrent], model_module)


def fill(model: Module, weights: dict[str, mx.array], spec: ModelSpec) -> None:
    """Put the weights, lazy still, in their places, by mlx-lm's rules. Raises UnsupportedModel for any that differ."""
    try:
        if BY_NAME[spec.family].recurrent:
            named = prepared(weights, BY_NAME[spec.family])  # not by `sanitize`, which goes by what else a range has
        else:
            named = model.sanitize(weights) if hasattr(model, "sanitize") else weights
        if HEAD not in named:
            model.pop("lm_head", None)
        model.load_weights(list(named.items()), strict=True)
    except (ValueError, KeyError) as error:
        raise _refusal(spec, "has other tensors", error) from error


def slice_of(model: Module, config: Mapping[str, Any], spec: ModelSpec) -> Slice:
    """`config` is the effective one of the whole model."""
    inner, family = model.model, BY_NAME[spec.family]
    embed = inner.get("embed_tokens")
    norm = inner.get("norm")
    head = embed.as_linear if spec.tied and norm is not None else model.get("lm_head")
    return Slice(
        layers=tuple(cast(Layer, layer) for layer in inner.layers),
        embed=embed,
        embed_scale=family.embedding_scale(config),
        logits_scale=family.logits_scale(config),
        logits_cap=config.get("final_logit_softcapping"),
        growth=growth(config),
        norm=norm,
        head=head,
        inputs=layer_inputs(model, spec),
    )


def _rope(spec: ModelSpec, rope: Rope) -> Callable[..., mx.array]:
    """With its periods spelled out: `mx.fast.rope` is off by 2e-4 at position 4,000 given the base, and by 3e-7 so."""
    dims, neighbours = rope.width, BY_NAME[spec.family].interleaved
    with mx.stream(mx.cpu):  # exact powers, whatever the device's own are
        if rope.kind in ("default", "linear", "proportional"):
            periods = rope.theta ** (mx.arange(0, dims, 2) / dims) * rope.settings.get("factor", 1.0)
            if rope.kind == "proportional":
                periods[rope.pairs :] = mx.inf
            return partial(mx.fast.rope, dims=dims, traditional=neighbours, base=None, scale=1.0, freqs=periods)
        library: Any = model_module("rope_utils")
        if rope.kind == LONG:
            scale, factors = rope.settings["attention_factor"], rope.settings[FACTORS[0]]
            long: Callable[..., mx.array] = library.SuScaledRoPE(
                dims, rope.theta, long_factor=factors, long_mscale=scale
            )
            return long
        made: Any = library.initialize_rope(dims, rope.theta, neighbours, rope.settings, spec.context)
        if rope.kind == "yarn" and rope.settings.get("truncate") is False:
            made._freqs = _yarn(rope, dims)
        turned: Callable[..., mx.array] = made
        return turned


def _yarn(rope: Rope, dims: int) -> mx.array:
    """YaRN's periods with bounds that are not rounded (`truncate`), where mlx-lm always rounds them."""
    given = rope.settings

    def bound(turns: float) -> float:
        """The place of the period that turns so often in the length of the training."""
        length = given["original_max_position_embeddings"] / (turns * 2 * pi)
        return dims * log(length) / (2 * log(rope.theta))

    low, high = max(bound(given.get("beta_fast", 32.0)), 0.0), min(bound(given.get("beta_slow", 1.0)), dims - 1.0)
    slope = max(high - low, 0.0) or 0.001
    stretched = mx.clip((mx.arange(dims // 2) - low) / slope, 0.0, 1.0)
    found: mx.array = rope.theta ** (mx.arange(0, dims, 2) / dims) / (stretched / given["factor"] + 1.0 - stretched)
    return found


def _path(spec: ModelSpec, first: int, name: str) -> str:
    """mlx-lm's name of a tensor, in a model that begins with layer `first`."""
    family = BY_NAME[spec.family]
    return own_name(shifted(name, first).replace(STACK, f".{family.mlx_experts}."), family)


def _parts(model: Module) -> Iterable[object]:
    """What to evaluate one after the other, so that loading never holds more than one layer twice."""
    for layer in model.model.layers:
        yield layer.parameters()
    yield model.parameters()


def _refusal(spec: ModelSpec, reason: str, error: Exception) -> UnsupportedModel:
    return UnsupportedModel(
        "{model}: mlx-lm's {family} {reason} ({error}); load it with torch, or get another version of it",
        model=spec.name,
        family=spec.family,
        reason=template(reason),
        error=" ".join(str(error).split()),
    )
