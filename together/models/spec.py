"""What a model is, from config.json and the safetensors headers: shapes, sizes, fingerprint. Knows no framework.

Of the weights it reads the fingerprint's few samples alone, so it costs milliseconds on any folder, and every machine
reads the same from the same files.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.models.checkpoint import checkpoint_files, checkpoint_headers, sampled_files
from together.models.families import TOY, require_family
from together.models.files import EMBED, HEAD, NORM, layer_of, read_json, tensors_of
from together.models.folder import folder_name, folder_revision, read_bytes
from together.models.headers import TensorInfo
from together.models.manifest import CONFIG, MAX_LAYERS, is_shard, read_manifest
from together.models.original import fingerprint_of
from together.quoting import cut, quoted
from together.types import DTYPE_BYTES, Dtype, LayerRange, ModelRef

_DTYPES: dict[str, Dtype] = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
_CONFIG_DTYPES: dict[str, Dtype] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_NEVER = 10**9
_MOST_WORD = 60  # characters of a name that a config gives


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
    eos: tuple[int, ...]
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


def read_spec(folder: Path) -> ModelSpec:
    """Describe the model in `folder`. Raises UnsupportedModel or BrokenModel, naming the file and the reason."""
    spec = read_shape(folder)
    manifest = read_manifest(folder) if is_shard(folder) else None
    headers = manifest.headers if manifest else checkpoint_headers(folder)
    tensors = {tensor.name: tensor for tensor in tensors_of(headers)}
    _check_ends(spec, tensors)
    return replace(
        spec,
        dtype=_dtype(tensors),
        tied=HEAD not in tensors,
        layer_params=_layer_params(spec, tensors),
        embed_params=tensors[EMBED].elements,
        norm_params=tensors[NORM].elements,
        head_params=tensors[HEAD].elements if HEAD in tensors else 0,
        quantization=spec.quantization or _stored_quantized(tensors),
        fingerprint=(
            manifest.fingerprint if manifest else fingerprint_of(read_bytes(folder, CONFIG), sampled_files(headers))
        ),
    )


def read_shape(folder: Path) -> ModelSpec:
    """What config.json alone says; parameter counts are 0 and the fingerprint is empty. Raises as `read_spec` does."""
    config = read_json(folder, CONFIG)
    name, revision = _name(folder)
    family = _family(name, config)
    numbers = _Numbers(name, config)
    layers = numbers.get("num_hidden_layers", maximum=MAX_LAYERS)
    hidden, heads = numbers.get("hidden_size"), numbers.get("num_attention_heads")
    return ModelSpec(
        name=name,
        family=family,
        layers=layers,
        hidden_size=hidden,
        inner_size=max(numbers.get("intermediate_size", hidden), numbers.get("moe_intermediate_size", hidden)),
        vocab_size=numbers.get("vocab_size"),
        heads=heads,
        kv_heads=numbers.get("num_key_value_heads", heads),
        head_dim=numbers.get("head_dim", _HEAD_DIMS.get(family, hidden // heads)),
        context=numbers.get("max_position_embeddings"),
        dtype=_CONFIG_DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), "bf16"),
        tied=bool(config.get("tie_word_embeddings", family == "gemma3_text")),
        layer_params=(0,) * layers,
        embed_params=0,
        norm_params=0,
        head_params=0,
        windows=_windows(name, family, config, layers),
        eos=_eos(folder, config),
        quantization=_quantization(config),
        fingerprint="",
        revision=revision,
    )


def _name(folder: Path) -> tuple[str, str]:
    """What the model is called, and its revision."""
    if is_shard(folder):
        manifest = read_manifest(folder)
        return manifest.name, manifest.revision
    return folder_name(folder), folder_revision(folder)


def fingerprint(folder: Path) -> str:
    """sha256 over config.json, and each safetensors file's header and samples of its weights, sorted by file name."""
    if is_shard(folder):
        return read_manifest(folder).fingerprint  # checked there
    return fingerprint_of(read_bytes(folder, CONFIG), checkpoint_files(folder))


# --- config.json ------------------------------------------------------------------------------------------------------

_HEAD_DIMS = {"gemma3_text": 256, "qwen3": 128}  # what the family's own configuration assumes where the file is silent


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Positive whole numbers of a config."""

    name: str
    config: dict[str, Any]

    def get(self, key: str, default: int | None = None, maximum: int = _NEVER) -> int:
        value = self.config.get(key)
        if value is None:
            value = default
        if type(value) is not int or not 0 < value <= maximum:
            raise BrokenModel(f"config.json of {self.name} has {key} = {quoted(value)}; get this model again")
        return value


def _family(name: str, config: dict[str, Any]) -> str:
    family = config.get("model_type")
    if family != TOY:
        require_family(name, family)
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModel(f"{name} attends in both directions, which does not run here; choose a causal model")
    return str(family)


def _windows(name: str, family: str, config: dict[str, Any], layers: int) -> tuple[int | None, ...]:
    """Each layer's sliding window, by the family's own rules for what the file leaves out."""
    if family == "llama" or (family.startswith("qwen") and not config.get("use_sliding_window")):
        return (None,) * layers
    if config.get("sliding_window", 4096) is None:
        return (None,) * layers
    window = _Numbers(name, config).get("sliding_window", 4096)
    return tuple(window if sliding else None for sliding in _sliding(name, family, config, layers))


def _sliding(name: str, family: str, config: dict[str, Any], layers: int) -> list[bool]:
    if family in ("mistral", "qwen3_moe"):
        return [True] * layers
    kinds = config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise BrokenModel(f"config.json of {name} lists layer_types for other layers; get this model again")
        return [kind == "sliding_attention" for kind in kinds]
    numbers = _Numbers(name, config)
    if family == "gemma3_text":
        pattern = numbers.get("sliding_window_pattern", 6)
        return [(layer + 1) % pattern != 0 for layer in range(layers)]
    first = config.get("max_window_layers", 28)
    if type(first) is not int:
        raise BrokenModel(f"config.json of {name} has max_window_layers = {quoted(first)}; get this model again")
    return [layer >= first for layer in range(layers)]


def _eos(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """End-of-text ids: generation_config.json knows all of them, config.json often only one."""
    generation = read_json(folder, "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    ids = generation.get("eos_token_id")
    if ids is None:
        ids = config.get("eos_token_id")
    return tuple(item for item in (ids if isinstance(ids, list) else [ids]) if type(item) is int)


def _quantization(config: dict[str, Any]) -> str | None:
    for key in ("quantization_config", "quantization"):
        settings = config.get(key)
        if settings:
            known = settings if isinstance(settings, dict) else {}
            bits = f"{cut(str(known['bits']), _MOST_WORD)}-bit" if "bits" in known else key
            return cut(str(known.get("quant_method") or bits), _MOST_WORD)
    return None


# --- headers ----------------------------------------------------------------------------------------------------------


def _check_ends(spec: ModelSpec, tensors: dict[str, TensorInfo]) -> None:
    wanted = {EMBED: (spec.vocab_size, spec.hidden_size), NORM: (spec.hidden_size,)}
    for key, shape in wanted.items():
        if key not in tensors:
            raise BrokenModel(f"{spec.name} has no tensor {key}; get this model again")
        found = tensors[key]
        if found.dtype in _DTYPES and found.shape != shape:
            raise BrokenModel(
                f"{spec.name}: config.json says {key} is {shape}, it is {found.shape}; get this model again"
            )


def _layer_params(spec: ModelSpec, tensors: dict[str, TensorInfo]) -> tuple[int, ...]:
    counts = [0] * spec.layers
    for tensor in tensors.values():
        layer = layer_of(tensor.name)
        if layer is not None and layer < spec.layers:
            counts[layer] += tensor.elements
    if 0 in counts:
        raise BrokenModel(
            f"{spec.name} has no tensors for layer {counts.index(0)} of {spec.layers}; get this model again"
        )
    return tuple(counts)


def _dtype(tensors: dict[str, TensorInfo]) -> Dtype:
    elements: Counter[Dtype] = Counter()
    for tensor in tensors.values():
        if tensor.dtype in _DTYPES:
            elements[_DTYPES[tensor.dtype]] += tensor.elements
    return elements.most_common(1)[0][0] if elements else "bf16"


def _stored_quantized(tensors: dict[str, TensorInfo]) -> str | None:
    """Matrices in a dtype that is none of ours were quantized, whatever config.json says."""
    odd = next((t for t in tensors.values() if t.dtype not in _DTYPES and len(t.shape) > 1), None)
    return odd.dtype.lower() if odd else None
