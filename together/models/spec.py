"""What a model is, from config.json and the safetensors headers: shapes, sizes, fingerprint, supported families."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from together.errors import BrokenModel
from together.models.config import TOY, effective, require_family, text_config
from together.models.eyes import Eyes, eyes_of
from together.models.families import BY_NAME
from together.models.family import usual_state
from together.models.folder import folder_name, folder_revision, read_json
from together.models.form import PUBLISHED
from together.models.gguf.kinds import PACKINGS
from together.models.headers import TensorInfo
from together.models.layout import (
    check_tensors,
    has_scales,
    misshapen,
    missing,
    needs,
    quantized,
    stored_as,
)
from together.models.manifest import CONFIG, is_shard, read_manifest
from together.models.matrices import (
    PLAIN,
    Matrices,
    PartWeights,
    Shape,
    is_stored,
    weights_of,
)
from together.models.names import EMBED, HEAD, NORM, OPENING_UNIT, layer_of, unit_of
from together.models.orders import check_orders
from together.models.packing import Packing
from together.models.quantization import Zeros, declared_groups, foreign_quantization, zeros_of
from together.models.reading import Published, read_published, tensors_of
from together.models.recognise import check_groups, find_matrices
from together.models.rope import trained_length
from together.models.state import CacheSize, LayerState, endless, recurrent_widths, sequence_tokens
from together.models.stored import undone
from together.types import DTYPE_BYTES, Dtype, LayerRange, ModelRef, PackedAs, model_key

_CONFIG_DTYPES: dict[str, Dtype] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shapes and sizes of one checkpoint; `layer_weights` and `windows` have one entry per layer."""

    name: str
    family: str
    layers: int
    hidden_size: int
    inner_size: int  # of the widest states inside a layer, for each token and expert
    vocab_size: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    dtype: Dtype  # of the checkpoint: what most of its plain elements are stored in
    tied: bool  # the LM head is the embedding: there is no head tensor
    layer_weights: tuple[PartWeights, ...]
    embed_weights: PartWeights
    norm_weights: PartWeights
    head_weights: PartWeights  # none where tied
    states: tuple[LayerState, ...]  # what each layer keeps of a sequence
    quantization: str | None  # the name of one that does not run here, such as gptq or fp8
    fingerprint: str  # sha256, in hex
    revision: str = ""  # the hub's commit, where that is known
    form: str = PUBLISHED  # see models/form.py
    opening_weights: PartWeights = field(default_factory=PartWeights)  # what a first stage has beside the embedding
    layer_inputs: int = 0  # how wide is what each layer takes beside the hidden states
    joined: tuple[int, ...] = ()  # layers that no stage may begin with, as the family says
    sections: tuple[int, ...] = ()  # pairs of a head that each axis of positions turns, where there are several
    eyes: Eyes | None = None  # with which a first stage sees pictures
    trained: int | None = None  # tokens up to which its rope has factors of its own, where it has two sets

    @property
    def packings(self) -> tuple[Packing, ...]:
        """How its quantized matrices are packed, the most weights first; none where all are plain."""
        counts = dict(self.stage_weights(LayerRange(0, self.layers)).packed)
        return tuple(sorted(counts, key=lambda packing: -counts[packing]))

    @property
    def scaled(self) -> bool:
        """Whether some of its matrices are stored in 8-bit floats, and held plain."""
        return any(weights.scaled for weights in (*self.layer_weights, self.embed_weights, self.head_weights))

    def packed_as(self, *, exact: bool = False) -> PackedAs:
        """How most weights of its layers are packed, and its LM head, which may be the embedding."""
        head = self.embed_weights if self.tied else self.head_weights
        return PackedAs(sum(self.layer_weights, PartWeights()).most, head.most, exact)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Tokens that each layer sees, where it slides; None: full attention."""
        return tuple(state.window for state in self.states)

    @property
    def kv_elements_per_token_per_layer(self) -> int:
        """Of the layer that keeps most."""
        return max(state.per_token for state in self.states)

    def stage_bytes(self, layers: LayerRange, dtype: Dtype) -> int:
        """Bytes of the weights of one stage, its plain ones in `dtype`, the packed ones as they are stored."""
        return self.stage_weights(layers).nbytes(dtype)

    def stage_weights(self, layers: LayerRange) -> PartWeights:
        """What a stage holds: its layers, embedding if first, norm and head if last."""
        self._check(layers)
        first, last = layers.start == 0, layers.stop == self.layers
        found = sum(self.layer_weights[layers.start : layers.stop], PartWeights())
        if last and self.tied:  # the head is multiplied; a first stage looks rows up in the same matrix
            found += replace(self.embed_weights, picked=())
        elif first:
            found += self.embed_weights
        if first:
            found += self.opening_weights
        return found + self.norm_weights + self.head_weights if last else found

    def kv_bytes_per_token(self, layers: LayerRange, dtype: Dtype) -> int:
        """Bytes of keys and values that one token takes in these layers; sliding layers count like full ones."""
        self._check(layers)
        return sum(state.per_token for state in self.states[layers.start : layers.stop]) * DTYPE_BYTES[dtype]

    def cache_size(self, layers: LayerRange, dtype: Dtype) -> CacheSize:
        """What these layers keep of sequences; sliding layers count like full ones."""
        self._check(layers)
        return CacheSize.of(self.states[layers.start : layers.stop], dtype, sequence_tokens(self.states, dtype))

    def excerpt(self, first: int, count: int, layers: int) -> ModelSpec:
        """A model of `layers`, whose layers from 1 on keep what `count` of these do from `first` on, but no windows.

        For trials with a part of a model that could be a stage, on prompts that are shorter than any window.
        """
        kept = tuple(map(endless, self.states[first : first + count]))
        return replace(self, layers=layers, states=(self.states[0], *kept), joined=(), trained=None)

    @property
    def state_width(self) -> int:
        """Elements that one token sends from stage to stage, at most."""
        return self.hidden_size + self.inputs_behind(1)

    def inputs_behind(self, layer: int) -> int:
        """How wide is what the layers from this one on take beside the hidden states."""
        return self.layer_inputs * (self.layers - layer)

    def tail(self, least: int) -> int:
        """How many last layers could be a stage, of `least` or more."""
        start = self.layers - least
        while start in self.joined:
            start -= 1
        return self.layers - start

    def ref(self, folder: Path) -> ModelRef:
        return ModelRef(self.name, str(folder), self.fingerprint, self.layers, self.revision, self.form)

    def _check(self, layers: LayerRange) -> None:
        assert layers.stop <= self.layers, f"layers {layers} of {self.layers}"


@dataclass(frozen=True, slots=True)
class Described:
    """A spec with the effective configuration that it was made from; tensors and matrices have canonical names."""

    spec: ModelSpec
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    matrices: Matrices
    zeros: Zeros
    groups: frozenset[int]  # that config.json declares, as `declared_groups` has them


def read_spec(folder: Path) -> ModelSpec:
    """Describe the model in `folder`, also one that cannot run. Raises UnsupportedModel or BrokenModel with a sentence.

    `read_runnable` also asks whether it runs.
    """
    return described(folder, read_published(folder)).spec


def read_runnable(folder: Path, name: str = "") -> ModelSpec:
    """Describe a model that can run here: its tensors are plain, and those that its configuration asks for.

    Raises UnsupportedModel or BrokenModel, naming the tensor or key, for a model that no back end can run. `name` is as
    in `manifest.describe`.
    """
    found = described(folder, read_published(folder, name))
    require_runnable(found)
    if not is_shard(folder):
        check_orders(found.spec.name, found.matrices)
    return found.spec


def require_runnable(found: Described) -> None:
    """Raises as `read_runnable` does."""
    if found.spec.family != TOY:
        require_plain(found.spec)
        check_tensors(found.spec.name, found.config, found.tensors, found.zeros)
        check_groups(found.spec.name, found.matrices.packed.values(), found.groups)


def require_plain(spec: ModelSpec) -> None:
    """Raises UnsupportedModel for a family or a quantization that no back end runs."""
    require_family(spec.name, spec.family)
    if spec.quantization is not None:
        raise quantized(spec.name, spec.quantization)


def described(folder: Path, published: Published) -> Described:
    """What the model in `folder` is, whose files were read already. Raises UnsupportedModel or BrokenModel."""
    words = read_json(folder, CONFIG)
    shape, config = shape_of(published.name, words, published.revision)
    stored, zeros = tensors_of(published.headers), zeros_of(words)
    tensors = {tensor.name: tensor for tensor in undone(config, stored, lambda: stored)}
    shapes: Mapping[str, Shape] = {}
    needed, found = tensors, Matrices({})
    if shape.family != TOY:
        shapes = needs(config, head=True, stored=tensors)
        found = find_matrices(shapes, tensors, zeros)
        needed = _needed(shapes, tensors, found)
    weights = weights_of(needed.values(), found)
    _check_ends(shape, tensors, weights)
    spec = replace(
        shape,
        dtype=_dtype(needed) or shape.dtype,
        tied=not is_stored(HEAD, tensors),
        layer_weights=_layer_weights(shape, weights),
        embed_weights=weights[EMBED],
        norm_weights=weights[NORM],
        head_weights=weights.get(HEAD, PartWeights()),
        opening_weights=sum((each for name, each in weights.items() if unit_of(name) == OPENING_UNIT), PartWeights()),
        eyes=eyes_of(config, weights, (*found.packed, *found.scaled)),
        quantization=shape.quantization or _stored_quantized(needed, tensors, found),
        fingerprint=published.fingerprint,
        form=published.form,
    )
    return Described(spec, config, tensors, found, zeros, declared_groups(words))


def _needed(shapes: Mapping[str, Shape], tensors: Mapping[str, TensorInfo], found: Matrices) -> dict[str, TensorInfo]:
    parts = found.parts
    return {name: tensor for name, tensor in tensors.items() if name in shapes or name in parts}


def read_config(folder: Path) -> dict[str, Any]:
    """The effective configuration of the model in `folder`. Raises UnsupportedModel or BrokenModel."""
    published = read_json(folder, CONFIG)
    return effective(named(folder)[0], published)


def read_shape(folder: Path) -> ModelSpec:
    """What config.json alone says; parameter counts are 0 and the fingerprint is empty. Raises as `read_spec` does."""
    published = read_json(folder, CONFIG)  # first: a manifest checks this file, in other words
    name, revision = named(folder)
    return shape_of(name, published, revision)[0]


def shape_of(name: str, published: dict[str, Any], revision: str = "") -> tuple[ModelSpec, dict[str, Any]]:
    """What a config.json alone says, as `read_shape`, and the effective configuration."""
    config = effective(name, published)
    layers, states = config["num_hidden_layers"], _states(config)
    spec = ModelSpec(
        name=name,
        family=config["model_type"],
        layers=layers,
        hidden_size=config["hidden_size"],
        inner_size=max([config[key] for key in _INNER if key in config] + recurrent_widths(states)),
        vocab_size=config["vocab_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        context=config["max_position_embeddings"],
        dtype=_config_dtype(published),
        tied=config["tie_word_embeddings"],
        layer_weights=(PartWeights(),) * layers,
        embed_weights=PartWeights(),
        norm_weights=PartWeights(),
        head_weights=PartWeights(),
        states=states,
        quantization=foreign_quantization(published),
        fingerprint="",
        revision=revision,
    )
    if spec.family != TOY:
        family = BY_NAME[spec.family]
        rope, inputs = config["rope_parameters"], family.layer_inputs(config)
        sections, trained = tuple(rope.get("mrope_section", ())), trained_length(rope)
        spec = replace(spec, joined=family.joined(config), layer_inputs=inputs, sections=sections, trained=trained)
    return spec, config


def named(folder: Path) -> tuple[str, str]:
    """What the model is called, and its revision."""
    if is_shard(folder):
        manifest = read_manifest(folder)
        return manifest.name, manifest.revision
    return folder_name(folder), folder_revision(folder)


def fingerprint(folder: Path) -> str:
    """sha256 over config.json, and each safetensors file's header and samples of its weights, sorted by file name."""
    return read_published(folder).fingerprint


def key_in(folder: Path) -> str:
    """Names the very bytes of the model in `folder`: its fingerprint, with its form."""
    found = read_published(folder)
    return model_key(found.fingerprint, found.form)


# --- config.json ------------------------------------------------------------------------------------------------------

_INNER = (
    "hidden_size",
    "intermediate_size",
    "intermediate_size_mlp",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "double_intermediate_size",
)


def _config_dtype(published: dict[str, Any]) -> Dtype:
    """What config.json calls the dtype, where it is one of ours; publishers also write `auto`, null or nothing."""
    words = (part.get(key) for part in (published, text_config(published)) for key in ("dtype", "torch_dtype"))
    return next((_CONFIG_DTYPES[word] for word in words if isinstance(word, str) and word in _CONFIG_DTYPES), "bf16")


def _states(config: dict[str, Any]) -> tuple[LayerState, ...]:
    """The toy keeps what attention would."""
    state = usual_state if config["model_type"] == TOY else BY_NAME[config["model_type"]].state
    return tuple(state(config, layer) for layer in range(config["num_hidden_layers"]))


# --- headers ----------------------------------------------------------------------------------------------------------


def _check_ends(spec: ModelSpec, tensors: Mapping[str, TensorInfo], weights: Mapping[str, PartWeights]) -> None:
    wanted = {EMBED: (spec.vocab_size, spec.hidden_size), NORM: (spec.hidden_size,)}
    for key, shape in wanted.items():
        if key not in weights:
            raise missing(spec.name, key, tensors, shape)
        found = tensors.get(key)
        if found is not None and found.dtype in PLAIN and found.shape != shape:
            raise misshapen(spec.name, found, shape)


def _layer_weights(spec: ModelSpec, weights: dict[str, PartWeights]) -> tuple[PartWeights, ...]:
    found: dict[int, list[PartWeights]] = {}
    for name, each in weights.items():
        layer = layer_of(name)
        if layer is not None:
            found.setdefault(layer, []).append(each)
    sums = [sum(found.get(layer, ()), PartWeights()) for layer in range(spec.layers)]
    if PartWeights() in sums:
        layer = sums.index(PartWeights())
        raise BrokenModel(
            "{model} has no tensors for layer {layer} of the {layers} in config.json; get this model again, or choose "
            "one whose layers are as published",
            model=spec.name,
            layer=layer,
            layers=spec.layers,
        )
    return tuple(sums)


def _dtype(tensors: dict[str, TensorInfo]) -> Dtype | None:
    """What most plain elements are stored in.

    Norms of GGUF files do not count, nor routers beside blocks: they are in fp32 whatever the model is.
    """
    elements: Counter[Dtype] = Counter()
    blocks = any(tensor.gguf and tensor.dtype not in PLAIN for tensor in tensors.values())
    for tensor in tensors.values():
        always = tensor.gguf and (len(tensor.shape) < 2 or (blocks and tensor.dtype == "F32"))
        if tensor.dtype in PLAIN and not always:
            elements[PLAIN[tensor.dtype]] += tensor.elements
    return elements.most_common(1)[0][0] if elements else None


def _stored_quantized(
    needed: Mapping[str, TensorInfo], tensors: Mapping[str, TensorInfo], found: Matrices
) -> str | None:
    """Needed matrices in a dtype that is none of ours were quantized, whatever config.json says.

    Blocks of a known type that are in no matrix of ours have a wrong shape, which is for `check_tensors` to say.
    """
    parts, known = found.parts, PLAIN.keys() | PACKINGS.keys()
    odd = (t for t in needed.values() if t.dtype not in known and len(t.shape) > 1 and t.name not in parts)
    first = next((tensor for tensor in odd if not has_scales(tensor.name, tensors)), None)
    return stored_as(first, tensors) if first else None
