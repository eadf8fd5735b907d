"""Whether a stage's steps of a token may be a program: a trial, which no list of families could replace."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from backends.ledger import positions
from backends.on_torch.attention import Step
from backends.on_torch.cache import BLOCK_TOKENS, BlockCaches
from backends.on_torch.shard import TOKEN_STEPS, TORCH
from backends.on_torch.token_steps import TokenSteps
from backends.on_torch.trial import with_parts
from together.models.spec import ModelSpec
from together.types import Dtype, LayerRange, Row

log = logging.getLogger(__name__)

_PROMPTS = 29, 7  # tokens before the steps: queries and positions count where several keys are seen
_CPU = torch.device("cpu")
_NEAR = 1e-5  # how far numbers in fp32 may be apart, of the largest one
# In half precision both are the same loops, so that numbers are the same, but for few in which a sigmoid was rounded.
_OTHERS, _ROUNDINGS = 0.03, 8
_SIMPLE = bool, int, float, str, type(None)
_NUMBERED = "layer_idx"  # what is another in each layer


@torch.inference_mode()
def allow_token_steps(model: Any, spec: ModelSpec, layers: LayerRange, dtype: Dtype) -> None:
    """Mark a model on a CPU with these layers where programs compute the same as its own modules do."""
    count = _until_all_kinds(model.model.layers)
    if count == 0:
        return
    part = with_parts(model, model.model.layers[:count], model.model.norm)
    caches = BlockCaches(spec.states[layers.start :][:count], TORCH[dtype], _CPU, 2 * len(_PROMPTS) * BLOCK_TOKENS)
    steps = TokenSteps.make(part.model, caches, TORCH[dtype])
    if steps is None or not steps.most:
        return
    prompts = [Row(place, 0, (1,) * size, None) for place, size in enumerate(_PROMPTS[: steps.most])]
    tokens = [Row(row.sequence, len(row.token_ids), (1,), None) for row in prompts]
    sizes = sum(len(row.token_ids) for row in prompts), len(tokens)
    if layers.start == 0 and model.model.embed_tokens is not None:  # what is measured is without one
        before, inputs = ({"input_ids": _ids(range(1, size + 1))} for size in sizes)
        given = model.model.embed_tokens(inputs["input_ids"])
    else:
        before, inputs = ({"inputs_embeds": torch.randn(1, size, spec.hidden_size).to(TORCH[dtype])} for size in sizes)
        given = inputs["inputs_embeds"]
    _by_modules(part, caches, prompts, before)
    wanted = _by_modules(part, caches, tokens, inputs)
    found = steps(Step.of(caches, tokens, _CPU), given[0], _ids(positions(tokens)))
    caches.close()
    if _alike(found, wanted):
        setattr(model, TOKEN_STEPS, True)
    else:
        log.info("steps of a token stay as the model's own modules compute them, which do more than is known here")


def _by_modules(model: Any, caches: BlockCaches, rows: Sequence[Row], inputs: dict[str, Tensor]) -> Tensor:
    packed = Step.of(caches, rows, _CPU)
    output = model.model(**inputs, position_ids=_ids(positions(rows)), packed=packed, use_cache=False)
    found: Tensor = output.last_hidden_state[0]
    return found


def _alike(found: Tensor, wanted: Tensor) -> bool:
    """What is no number is in both."""
    largest, eps = float(wanted.float().abs().nan_to_num(0).max()), torch.finfo(wanted.dtype).eps
    apart = _NEAR if wanted.dtype == torch.float32 else _ROUNDINGS * eps
    near = torch.allclose(found.float(), wanted.float(), rtol=0, atol=apart * largest, equal_nan=True)
    others = float((found != wanted).logical_and(wanted == wanted).float().mean())
    return near and (wanted.dtype == torch.float32 or others <= _OTHERS)


def _ids(numbers: Sequence[int]) -> Tensor:
    return torch.tensor([list(numbers)], dtype=torch.long)


def _until_all_kinds(layers: nn.ModuleList) -> int:
    """How many first layers have all that is there; 0 of none."""
    seen: dict[tuple[object, ...], int] = {}
    for place, layer in enumerate(layers):
        seen.setdefault(_kind(layer), place)
    return max(seen.values(), default=-1) + 1


def _kind(layer: nn.Module) -> tuple[object, ...]:
    """All that two layers alike have in common, but for their weights."""
    return tuple(
        (path, type(module).__name__, *sorted(_simple(module).items())) for path, module in layer.named_modules()
    )


def _simple(module: nn.Module) -> dict[str, object]:
    found = vars(module).items()
    return {name: repr(value) for name, value in found if isinstance(value, _SIMPLE) and name != _NUMBERED}
