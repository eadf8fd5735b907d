"""What torch and MLX check alike: a request against its model, a frame against a shard. Knows no framework."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from backends.base import LoadRequest
from together.errors import BadPlan, FrameRefused, NotEnoughMemory, UnsupportedModel
from together.models.spec import ModelSpec, require_plain
from together.planning.memory import workspace_bytes
from together.types import BLOCK, Activation, Batch, Dtype, Row
from together.wording import sizes_text

log = logging.getLogger(__name__)


def check_model(spec: ModelSpec, request: LoadRequest) -> None:
    """Raises UnsupportedModel or BadPlan where these layers of this model cannot be a shard."""
    require_plain(spec)
    if request.layers.stop > spec.layers:
        raise BadPlan(f"{spec.name} has {spec.layers} layers, the plan asks for {request.layers}; plan again")


@contextmanager
def in_words(model: str, library: str) -> Iterator[None]:
    """What a library raises for a model that it cannot build becomes UnsupportedModel; the log has its traceback."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        log.exception("%s does not take %s", library, model)
        said = " ".join(str(error).split())[:300]
        raise UnsupportedModel(
            f"{model}: {library} does not take this model ({said}); choose another version of it"
        ) from error


def cache_capacity(spec: ModelSpec, request: LoadRequest) -> int:
    """KV tokens in whole blocks that the granted memory leaves beside weights and workspace.

    Raises NotEnoughMemory where not even one block is left.
    """
    weights = spec.stage_bytes(request.layers, request.dtype)
    block_bytes = spec.kv_bytes_per_token(request.layers, request.dtype) * BLOCK
    fixed = weights + workspace_bytes(spec)
    blocks = (request.memory_bytes - fixed) // block_bytes
    if blocks < 1:
        least, granted = sizes_text(fixed + block_bytes, request.memory_bytes)
        raise NotEnoughMemory(
            f"{spec.name}: layers {request.layers} need {least} with room for {BLOCK} tokens, "
            f"{granted} were granted; grant more, or move layers to another node"
        )
    return blocks * BLOCK


def check_batch(batch: Batch, vocab: int) -> None:
    """Raises FrameRefused, naming the sequence, for rows that no shard can run."""
    if len({row.sequence for row in batch.rows}) != len(batch.rows):
        raise FrameRefused("a sequence has two rows in one batch")
    for row in batch.rows:
        fault = _fault(row, vocab)
        if fault:
            raise FrameRefused(f"the row of sequence {row.sequence} has {fault}")


def check_activation(hidden: Activation | None, tokens: int, width: int, dtype: Dtype) -> Activation:
    """The activation, if it is `[tokens, width]` of `dtype`; else FrameRefused. Values are for the backend to check."""
    if hidden is None:
        raise FrameRefused("an inner stage was sent no hidden states")
    found, wanted = (hidden.dtype, hidden.tokens, hidden.width), (dtype, tokens, width)
    if found != wanted:
        raise FrameRefused(f"hidden states are {found}, this stage takes {wanted} (dtype, tokens, width)")
    return hidden


def not_finite() -> FrameRefused:
    return FrameRefused("hidden states hold infinite values or values that are no numbers")


def _fault(row: Row, vocab: int) -> str | None:
    if not row.token_ids:
        return "no tokens"
    if row.position < 0:
        return f"the position {row.position}"
    if not 0 <= min(row.token_ids) <= max(row.token_ids) < vocab:
        return f"a token outside the vocabulary of {vocab}"
    if row.sample and not all(0 <= offset < len(row.token_ids) for offset in row.sample.offsets):
        return f"sampling offsets outside its {len(row.token_ids)} tokens"
    return None
