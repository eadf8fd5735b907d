"""What a stage needs in memory. Pure arithmetic over a model's sizes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from together.models.config import TOY
from together.models.eyes import MOST_PARTS
from together.models.matrices import PartWeights
from together.models.spec import ModelSpec
from together.models.state import cache_bytes
from together.planning.held import held_bits, held_bytes
from together.planning.problem import STATES, ModelSize, Smaller
from together.types import BLOCK, DTYPE_BYTES, STEP_TOKENS, Dtype, LayerRange, Packing

PACKING_BYTES = 68 * 2**20  # most that a backend may take while it brings weights into another form
# What a stage's process has of main memory before its weights: its code and libraries, without the files that it maps.
PROCESS_BYTES = {
    "torch": 220_000_000,
    "mlx": 50_000_000,
}  # as measured on Linux; the toy is for tests, which count bytes
_LIBRARIES = 12 * 2**20  # what a framework loads only when it first computes
_STEP_BYTES = 16  # per element of a token's widest states: input, output and both in fp32
_LOOK_BYTES = 24  # per element of a patch's widest states: fitted to peaks of a 4B model's tower in fp32
_DRAWN, _DRAWN_BYTES = 8, 12  # rows drawn at once, and bytes per logit: as computed, in fp32, sorted


def cache_tokens(context: int, users: int) -> int:
    """KV tokens for `users` sequences of `context` tokens, in whole blocks."""
    return users * (-(-context // BLOCK) * BLOCK)


def stage_memory(spec: ModelSpec, layers: LayerRange, dtype: Dtype, context: int, users: int, backend: str) -> int:
    """Bytes that a stage is granted: its process, its weights as `backend` holds them, the caches of `users` full
    contexts, and workspace.

    Where a sequence has a state of a fixed size, each user has two: a conversation goes on from one that is kept.
    """
    cache = spec.cache_size(layers, dtype).nbytes(cache_tokens(context, users), STATES * users)
    looking = 0 if layers.start else looking_bytes(spec)
    weights = held_bytes(spec.stage_weights(layers), dtype, backend)
    return process_bytes(backend) + weights + cache + workspace_bytes(spec) + looking


def process_bytes(backend: str) -> int:
    """Of main memory, whatever the device: on one with memory of its own it stands for what the driver takes there."""
    return PROCESS_BYTES.get(backend, 0)


def looking_bytes(spec: ModelSpec) -> int:
    """Bytes that come and go on a first stage while it looks at the largest picture, and what it keeps of that."""
    eyes = spec.eyes
    if eyes is None:
        return 0
    parts = MOST_PARTS * (eyes.merge**2 * eyes.width * _LOOK_BYTES + (1 + eyes.layers) * spec.hidden_size * 4)
    return parts + 2 * MOST_PARTS * eyes.side**2 * 3 * 4  # its pixels, in fp32


def workspace_bytes(spec: ModelSpec) -> int:
    """Bytes that come and go beside weights and KV cache: while layers are loaded, and in a step of STEP_TOKENS.

    Fitted to the peaks of `bench estimate`; what the process has before is not in it.
    """
    return workspace_of(spec.hidden_size + spec.inputs_behind(0), spec.inner_size, spec.vocab_size)


def workspace_of(hidden: int, inner: int, vocabulary: int) -> int:
    """The same by a model's numbers; `inner` as in ModelSpec."""
    step = STEP_TOKENS * _STEP_BYTES * (hidden + inner)
    drawing = _DRAWN * _DRAWN_BYTES * vocabulary
    packing = min(PACKING_BYTES, 2 * 4 * hidden * inner)
    return _LIBRARIES + max(step + drawing, packing)


def quantized_sizes(spec: ModelSpec, dtype: Dtype, backends: Collection[str]) -> tuple[Smaller, ...]:
    """What the model would take in the quantizations that `--quantize` makes, on the backend that holds most.

    None where its weights are quantized, or in a GGUF file: that is never quantized again.
    """
    if spec.packings or spec.scaled or spec.quantization is not None or spec.norm_weights.gguf or spec.family == TOY:
        return ()
    whole, plain = model_size(spec, dtype), 8 * DTYPE_BYTES[dtype]
    packings = {bits: Packing("affine", bits, 64) for bits in (8, 4)}
    held = {bits: max(held_bits(packing, backend) for backend in backends) for bits, packing in packings.items()}
    return tuple(_shrunk(whole, bits, most / plain) for bits, most in held.items())


def _shrunk(size: ModelSize, bits: int, share: float) -> Smaller:
    parts = {key: round(getattr(size, key) * share) for key in ("embed_bytes", "head_bytes", "tied_bytes")}
    layers = tuple(round(layer * share) for layer in size.layer_bytes)
    return Smaller(bits, replace(size, layer_bytes=layers, **parts))


def model_size(spec: ModelSpec, dtype: Dtype, backend: str = "") -> ModelSize:
    """A model's sizes in `dtype`, as the planner takes them: as stored, or as `backend` holds the weights."""

    def size(weights: PartWeights) -> int:
        return held_bytes(weights, dtype, backend)

    head = replace(spec.embed_weights, picked=()) if spec.tied else spec.head_weights
    caches = cache_bytes(spec.states, dtype)
    by_token, by_sequence = (max(each) for each in zip(*caches, strict=True))
    return ModelSize(
        layer_bytes=tuple(map(size, spec.layer_weights)),
        embed_bytes=size(spec.embed_weights) + size(spec.opening_weights) + looking_bytes(spec),
        head_bytes=size(spec.norm_weights + head),
        kv_bytes_per_token_per_layer=by_token,
        tied_bytes=size(spec.embed_weights) if spec.tied else 0,
        bytes_per_sequence_per_layer=by_sequence,
        joined=spec.joined,
        caches=caches if len(set(caches)) > 1 else (),
    )
