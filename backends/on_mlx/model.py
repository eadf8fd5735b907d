"""A layer range of a checkpoint as mlx-lm modules with weights, and activations as arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from numpy.typing import NDArray

from backends.base import LoadRequest
from backends.on_mlx.config import Rope, dialect, ropes
from together.errors import BadSetting, BrokenModel, UnsupportedModel
from together.models.config import FAMILIES
from together.models.headers import TensorInfo
from together.models.layout import PLAIN
from together.models.names import HEAD, shifted
from together.models.reading import read_into
from together.models.spec import ModelSpec, needed_tensors, read_config
from together.sentences import template
from together.types import DTYPE_BYTES, Activation, Dtype, LayerRange

Bits = NDArray[np.uint16] | NDArray[np.uint32]
MX: dict[Dtype, mx.Dtype] = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}
_BITS: dict[Dtype, mx.Dtype] = {"fp32": mx.uint32, "bf16": mx.uint16, "fp16": mx.uint16}


def read_activation(hidden: Activation) -> mx.array:
    """Hidden states as `[1, tokens, width]`."""
    bits: Bits = np.frombuffer(hidden.data, f"<u{DTYPE_BYTES[hidden.dtype]}").reshape(1, hidden.tokens, hidden.width)
    return mx.array(bits).view(MX[hidden.dtype])  # numpy has no bf16, so the bits travel as whole numbers


def write_activation(states: mx.array, dtype: Dtype) -> Activation:
    """`[1, tokens, width]` in `dtype` as what travels; a copy, because MLX's memory belongs to this thread."""
    _, tokens, width = states.shape
    return Activation(dtype, tokens, width, np.array(states.view(_BITS[dtype])).tobytes())


_PACKAGE = "backends.mlx_lm_models"  # a name only: there is no such folder


class AttentionCache(Protocol):
    """What the layers here get as their `cache`: it attends itself, because only it knows the sequences."""

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array: ...


def model_module(name: str) -> ModuleType:
    """`mlx_lm/models/<name>.py`, calling our attention. Raises BadSetting where mlx-lm is not installed."""
    if _PACKAGE not in sys.modules:
        sys.modules.setdefault(_PACKAGE, _package())
    base = import_module(f"{_PACKAGE}.base")
    base.__dict__["scaled_dot_product_attention"] = _attention  # before the model's file takes the name from there
    return import_module(f"{_PACKAGE}.{name}")


def _package() -> ModuleType:
    library = find_spec("mlx_lm")  # finds a top-level package without running it
    if library is None or not library.submodule_search_locations:
        raise BadSetting("mlx-lm is not installed here; run launch.py again to install it")
    spec = ModuleSpec(_PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [str(Path(library.submodule_search_locations[0]) / "models")]
    return module_from_spec(spec)


def _attention(
    queries: mx.array, keys: mx.array, values: mx.array, cache: AttentionCache, scale: float, mask: None = None
) -> mx.array:
    """In the place of mlx-lm's `scaled_dot_product_attention`; the layers are called without a mask."""
    return cache.attend(queries, keys, values, scale)


_FILES = {"mistral": "llama"}  # families whose classes stand in another family's file


class Layer(Protocol):
    """A decoder layer of mlx-lm: `[1, tokens, hidden]` to the same."""

    def __call__(self, x: mx.array, mask: None, cache: AttentionCache) -> mx.array: ...


class Project(Protocol):
    def __call__(self, x: mx.array) -> mx.array: ...


class PackedRope(Module):
    """A RoPE of mlx-lm's over packed tokens: each token is a batch row with its own position."""

    def __init__(self, rope: Callable[..., mx.array]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rope = rope

    def __call__(self, x: mx.array, offset: mx.array) -> mx.array:  # [1, heads, tokens, head_dim]
        return self._rope(x.transpose(2, 1, 0, 3), offset=offset).transpose(2, 1, 0, 3)


@dataclass(frozen=True, slots=True)
class Slice:
    """The modules of one layer range; `embed` on the first stage, `norm` and `head` on the last."""

    layers: tuple[Layer, ...]
    embed: Project | None
    embed_scale: float
    norm: Project | None
    head: Project | None

    def embedding(self, ids: list[int]) -> mx.array:
        """`[1, tokens, hidden]`. Gemma's scale is rounded to the weights' dtype, as transformers does it."""
        assert self.embed is not None
        states = self.embed(mx.array(ids, mx.int32)[None])
        scale = mx.array(self.embed_scale, mx.float32).astype(states.dtype)
        return states if self.embed_scale == 1.0 else states * scale

    def logits(self, states: mx.array) -> mx.array:
        """`[rows, hidden]` to float32 `[rows, vocab]`."""
        assert self.norm is not None
        assert self.head is not None
        return self.head(self.norm(states)).astype(mx.float32)


def read_slice(request: LoadRequest, spec: ModelSpec) -> Slice:
    """Build the range and read its tensors, layer by layer. Raises UnsupportedModel or BrokenModel."""
    layers = request.layers
    model = empty_model(read_config(request.folder), spec, layers)
    tensors = needed_tensors(request.folder, layers, request.home)
    weights = {shifted(tensor.name, layers.start): array for tensor, array in _open(tensors)}
    fill(model, {name: array.astype(MX[request.dtype]) for name, array in weights.items()}, spec)
    del weights  # from here on every array is held by the model alone, so a source is freed once it is converted
    try:
        for done, part in enumerate(_parts(model), 1):
            mx.eval(part)
            request.progress(done / (len(layers) + 1))
    except RuntimeError as error:
        raise BrokenModel(
            "{model} cannot be read: {error}; get this model again", model=spec.name, error=str(error)
        ) from error
    return slice_of(model, spec)


def empty_model(config: dict[str, Any], spec: ModelSpec, layers: LayerRange) -> Module:
    """mlx-lm's model with only this range's modules, its weights not computed. Raises UnsupportedModel."""
    module = model_module(_FILES.get(spec.family, spec.family))
    try:
        args = module.ModelArgs.from_dict(dialect(config, spec, layers))
    except (TypeError, ValueError) as error:
        raise _refusal(spec, "does not take its config.json", error) from error
    model: Module = module.Model(args)
    for layer, rope in zip(model.model.layers, ropes(config, spec, layers), strict=True):
        layer.self_attn.rope = PackedRope(_rope(spec, rope))
    first, last = layers.start == 0, layers.stop == spec.layers
    if not (first or (last and spec.tied)):
        model.model.pop("embed_tokens")
    if not last:
        model.model.pop("norm")
    return model


def fill(model: Module, weights: dict[str, mx.array], spec: ModelSpec) -> None:
    """Put the weights, lazy still, in their places, by mlx-lm's rules. Raises UnsupportedModel for any that differ."""
    try:
        named = model.sanitize(weights)
        if HEAD not in named:
            model.pop("lm_head", None)
        model.load_weights(list(named.items()), strict=True)
    except (ValueError, KeyError) as error:
        raise _refusal(spec, "has other tensors", error) from error


def slice_of(model: Module, spec: ModelSpec) -> Slice:
    inner = model.model
    embed = inner.get("embed_tokens")
    norm = inner.get("norm")
    head = embed.as_linear if spec.tied and norm is not None else model.get("lm_head")
    return Slice(
        layers=tuple(cast(Layer, layer) for layer in inner.layers),
        embed=embed,
        embed_scale=spec.hidden_size**0.5 if spec.family == "gemma3_text" else 1.0,
        norm=norm,
        head=head,
    )


def _rope(spec: ModelSpec, rope: Rope) -> Callable[..., mx.array]:
    """With its periods spelled out: `mx.fast.rope` is off by 2e-4 at position 4,000 given the base, and by 3e-7 so."""
    dims = spec.head_dim
    with mx.stream(mx.cpu):  # exact powers, whatever the device's own are
        if rope.kind in ("default", "linear"):
            periods = rope.theta ** (mx.arange(0, dims, 2) / dims) * rope.settings.get("factor", 1.0)
            return partial(mx.fast.rope, dims=dims, traditional=False, base=None, scale=1.0, freqs=periods)
        made: Callable[..., mx.array] = model_module("rope_utils").initialize_rope(
            dims, rope.theta, False, rope.settings, spec.context
        )
        return made


def _parts(model: Module) -> Iterable[object]:
    """What to evaluate one after the other, so that loading never holds more than one layer twice."""
    for layer in model.model.layers:
        yield layer.parameters()
    yield model.parameters()


def _open(tensors: tuple[TensorInfo, ...]) -> Iterable[tuple[TensorInfo, mx.array]]:
    """Lazy arrays: MLX reads a tensor's bytes when it is evaluated."""
    for file in sorted({tensor.file for tensor in tensors}):
        own = [tensor for tensor in tensors if tensor.file == file]
        try:
            arrays = cast(dict[str, mx.array], mx.load(str(file)))
        except RuntimeError:  # MLX has no name for the dtype of a tensor that nobody needs
            yield from ((tensor, _read(tensor)) for tensor in own)
            continue
        yield from ((tensor, arrays[tensor.key]) for tensor in own)


def _read(tensor: TensorInfo) -> mx.array:
    raw = np.empty(tensor.nbytes, np.uint8)
    read_into(tensor, raw.data)
    return mx.array(raw).view(MX[PLAIN[tensor.dtype]]).reshape(tensor.shape)


def _refusal(spec: ModelSpec, reason: str, error: Exception) -> UnsupportedModel:
    return UnsupportedModel(
        "{model}: mlx-lm's {family} {reason} ({error}); families that run here: {families}",
        model=spec.name,
        family=spec.family,
        reason=template(reason),
        error=" ".join(str(error).split()),
        families=FAMILIES,
    )
