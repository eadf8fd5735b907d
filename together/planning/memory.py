"""What a stage needs in memory. Pure arithmetic over a model's sizes."""

from __future__ import annotations

from together.models.spec import ModelSpec
from together.planning.problem import ModelSize
from together.types import BLOCK, DTYPE_BYTES, STEP_TOKENS, Dtype, LayerRange

PACKING_BYTES = 68 * 2**20  # most that a backend may take while it brings weights into another form
_LIBRARIES = 12 * 2**20  # what a framework loads only when it first computes
_STEP_BYTES = 16  # per element of a token's widest states: input, output and both in fp32
_DRAWN, _DRAWN_BYTES = 8, 12  # rows drawn at once, and bytes per logit: as computed, in fp32, sorted


def cache_tokens(context: int, users: int) -> int:
    """KV tokens for `users` sequences of `context` tokens, in whole blocks."""
    return users * (-(-context // BLOCK) * BLOCK)


def stage_memory(spec: ModelSpec, layers: LayerRange, dtype: Dtype, context: int, users: int) -> int:
    """Bytes that a stage is granted: its weights, the KV cache of `users` full contexts, and workspace."""
    cache = cache_tokens(context, users) * spec.kv_bytes_per_token(layers, dtype)
    return spec.stage_bytes(layers, dtype) + cache + workspace_bytes(spec)


def workspace_bytes(spec: ModelSpec) -> int:
    """Bytes that come and go beside weights and KV cache: while layers are loaded, and in a step of STEP_TOKENS.

    Fitted to the peaks of `bench estimate`; a backend's own code is not in it: it takes no memory from the model.
    """
    step = STEP_TOKENS * _STEP_BYTES * (spec.hidden_size + spec.inner_size)
    drawing = _DRAWN * _DRAWN_BYTES * spec.vocab_size
    packing = min(PACKING_BYTES, 2 * 4 * spec.hidden_size * spec.inner_size)
    return _LIBRARIES + max(step + drawing, packing)


def model_size(spec: ModelSpec, dtype: Dtype) -> ModelSize:
    """A model's sizes in `dtype`, as the planner takes them."""
    width = DTYPE_BYTES[dtype]
    tied = spec.embed_params * width if spec.tied else 0
    return ModelSize(
        layer_bytes=tuple(count * width for count in spec.layer_params),
        embed_bytes=spec.embed_params * width,
        head_bytes=(spec.norm_params + spec.head_params) * width + tied,
        kv_bytes_per_token_per_layer=spec.kv_elements_per_token_per_layer * width,
        tied_bytes=tied,
    )
