"""What a model is, from config.json and the safetensors headers: shapes, sizes, fingerprint, supported families."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from together.errors import BrokenModel
from together.models.config import TOY, effective, quantization_of, require_family, text_config
from together.models.folder import folder_name, folder_revision, read_json
from together.models.headers import TensorInfo
from together.models.layout import PLAIN, check_tensors, misshapen, missing, needs, quantized, stored_as
from together.models.manifest import CONFIG, is_shard, read_manifest
from together.models.names import EMBED, HEAD, NORM, layer_of
from together.models.reading import Published, read_published, tensors_for, tensors_of
from together.types import DTYPE_BYTES, Dtype, LayerRange, ModelRef

_CONFIG_DTYPES: dict[str, Dtype] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shapes and sizes of one checkpoint. Counts are elements; `windows` has one entry per layer."""

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
    dtype: Dtype  # of the checkpoint: what most of its elements are stored in
    tied: bool  # the LM head is the embedding: there is no head tensor
    layer_params: tuple[int, ...]
    embed_params: int
    norm_params: int
    head_params: int  # 0 where tied
    windows: tuple[int | None, ...]  # tokens a sliding layer sees; None: full attention
    quantization: str | None  # its name, such as gptq or fp8; None where weights are plain
    fingerprint: str  # sha256, in hex
    revision: str = ""  # the hub's commit, where that is known

    @property
    def kv_elements_per_token_per_layer(self) -> int:
        return 2 * self.kv_heads * self.head_dim

    def stage_bytes(self, layers: LayerRange, dtype: Dtype) -> int:
        """Bytes of the weights of one stage in `dtype`: its layers, embedding if first, norm and head if last."""
        self._check(layers)
        first, last = layers.start == 0, layers.stop == self.layers
        params = sum(self.layer_params[layers.start : layers.stop])
        if first or (last and self.tied):
            params += self.embed_params
        if last:
            params += self.norm_params + self.head_params
        return params * DTYPE_BYTES[dtype]

    def kv_bytes_per_token(self, layers: LayerRange, dtype: Dtype) -> int:
        """KV cache bytes that one token takes in these layers; sliding layers count like full ones."""
        self._check(layers)
        return len(layers) * self.kv_elements_per_token_per_layer * DTYPE_BYTES[dtype]

    def ref(self, folder: Path) -> ModelRef:
        return ModelRef(self.name, str(folder), self.fingerprint, self.layers, self.revision)

    def _check(self, layers: LayerRange) -> None:
        assert layers.stop <= self.layers, f"layers {layers} of {self.layers}"


@dataclass(frozen=True, slots=True)
class Described:
    """A spec with what it was made from: the effective configuration, and all tensors by canonical name."""

    spec: ModelSpec
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]


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
    return found.spec


def require_runnable(found: Described) -> None:
    """Raises as `read_runnable` does."""
    if found.spec.family != TOY:
        require_plain(found.spec)
        check_tensors(found.spec.name, found.config, found.tensors)


def require_plain(spec: ModelSpec) -> None:
    """Raises UnsupportedModel for a family or for weights that no back end runs."""
    require_family(spec.name, spec.family)
    if spec.quantization is not None:
        raise quantized(spec.name, spec.quantization)


def described(folder: Path, published: Published) -> Described:
    """What the model in `folder` is, whose files were read already. Raises UnsupportedModel or BrokenModel."""
    shape, config = _shape(folder, read_json(folder, CONFIG), published.name, published.revision)
    tensors = {tensor.name: tensor for tensor in tensors_of(published.headers)}
    _check_ends(shape, tensors)
    needed = tensors
    if shape.family != TOY:
        wanted = needs(config, head=True)
        needed = {name: tensor for name, tensor in tensors.items() if name in wanted}
    spec = replace(
        shape,
        dtype=_dtype(needed),
        tied=HEAD not in tensors,
        layer_params=_layer_params(shape, needed),
        embed_params=tensors[EMBED].elements,
        norm_params=tensors[NORM].elements,
        head_params=tensors[HEAD].elements if HEAD in tensors else 0,
        quantization=shape.quantization or _stored_quantized(needed, tensors),
        fingerprint=published.fingerprint,
    )
    return Described(spec, config, tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """The effective configuration of the model in `folder`. Raises UnsupportedModel or BrokenModel."""
    published = read_json(folder, CONFIG)
    return effective(_name(folder)[0], published)


def needed_tensors(folder: Path, layers: LayerRange, home: Path) -> tuple[TensorInfo, ...]:
    """What a stage of `layers` reads: `tensors_for` without what no layer needs. Raises as that and `read_config`."""
    config = read_config(folder)
    wanted = needs(config, head=True)
    found = tensors_for(folder, layers, config["num_hidden_layers"], home)
    return tuple(tensor for tensor in found if tensor.name in wanted)


def read_shape(folder: Path) -> ModelSpec:
    """What config.json alone says; parameter counts are 0 and the fingerprint is empty. Raises as `read_spec` does."""
    published = read_json(folder, CONFIG)
    return _shape(folder, published, *_name(folder))[0]


def _shape(folder: Path, published: dict[str, Any], name: str, revision: str) -> tuple[ModelSpec, dict[str, Any]]:
    config = effective(name, published)
    layers = config["num_hidden_layers"]
    spec = ModelSpec(
        name=name,
        family=config["model_type"],
        layers=layers,
        hidden_size=config["hidden_size"],
        inner_size=max(config[key] for key in _INNER if key in config),
        vocab_size=config["vocab_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        context=config["max_position_embeddings"],
        dtype=_config_dtype(published),
        tied=config["tie_word_embeddings"],
        layer_params=(0,) * layers,
        embed_params=0,
        norm_params=0,
        head_params=0,
        windows=_windows(config),
        quantization=quantization_of(published),
        fingerprint="",
        revision=revision,
    )
    return spec, config


def _name(folder: Path) -> tuple[str, str]:
    """What the model is called, and its revision."""
    if is_shard(folder):
        manifest = read_manifest(folder)
        return manifest.name, manifest.revision
    return folder_name(folder), folder_revision(folder)


def fingerprint(folder: Path) -> str:
    """sha256 over config.json, and each safetensors file's header and samples of its weights, sorted by file name."""
    return read_published(folder).fingerprint


# --- config.json ------------------------------------------------------------------------------------------------------

_INNER = ("hidden_size", "intermediate_size", "moe_intermediate_size")


def _config_dtype(published: dict[str, Any]) -> Dtype:
    """What config.json calls the dtype, where it is one of ours; publishers also write `auto`, null or nothing."""
    words = (part.get(key) for part in (published, text_config(published)) for key in ("dtype", "torch_dtype"))
    return next((_CONFIG_DTYPES[word] for word in words if isinstance(word, str) and word in _CONFIG_DTYPES), "bf16")


def _windows(config: dict[str, Any]) -> tuple[int | None, ...]:
    """Each layer's sliding window."""
    window, layers = config.get("sliding_window"), config["num_hidden_layers"]
    kinds = config.get("layer_types", ["sliding_attention"] * layers)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


# --- headers ----------------------------------------------------------------------------------------------------------


def _check_ends(spec: ModelSpec, tensors: dict[str, TensorInfo]) -> None:
    wanted = {EMBED: (spec.vocab_size, spec.hidden_size), NORM: (spec.hidden_size,)}
    for key, shape in wanted.items():
        if key not in tensors:
            raise missing(spec.name, key, tensors)
        found = tensors[key]
        if found.dtype in PLAIN and found.shape != shape:
            raise misshapen(spec.name, found, shape)


def _layer_params(spec: ModelSpec, tensors: dict[str, TensorInfo]) -> tuple[int, ...]:
    counts = [0] * spec.layers
    for tensor in tensors.values():
        layer = layer_of(tensor.name)
        if layer is not None and layer < spec.layers:
            counts[layer] += tensor.elements
    if 0 in counts:
        layer = counts.index(0)
        raise BrokenModel(
            "{model} has no tensors for layer {layer} of the {layers} in config.json; get this model again, or choose "
            "one whose layers are as published",
            model=spec.name,
            layer=layer,
            layers=spec.layers,
        )
    return tuple(counts)


def _dtype(tensors: dict[str, TensorInfo]) -> Dtype:
    elements: Counter[Dtype] = Counter()
    for tensor in tensors.values():
        if tensor.dtype in PLAIN:
            elements[PLAIN[tensor.dtype]] += tensor.elements
    return elements.most_common(1)[0][0] if elements else "bf16"


def _stored_quantized(needed: Mapping[str, TensorInfo], tensors: Mapping[str, TensorInfo]) -> str | None:
    """Needed matrices in a dtype that is none of ours were quantized, whatever config.json says."""
    odd = next((t for t in needed.values() if t.dtype not in PLAIN and len(t.shape) > 1), None)
    return stored_as(odd, tensors) if odd else None
