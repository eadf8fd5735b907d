"""A torch shard: runs a batch's rows through its layers, all packed, and draws tokens at the end. Knows no checkpoint.

All rows go through every matrix together, so a step reads each weight once; only attention goes row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.base import StepOutput
from backends.checks import check_batch
from backends.ledger import Ledger, LedgerShard, spans
from backends.on_torch.cache import CacheShape, PackedRow, TorchSequenceCaches
from backends.on_torch.model import TORCH, read_activation, sampled_places, starts, to_numpy, write_activation
from together.errors import FrameRefused
from together.models.spec import ModelSpec
from together.sampling import argmax_answers, draws_for, sample
from together.types import BLOCK, Activation, Batch, Dtype, LayerRange, Row, RowResult, Sampled


@dataclass(slots=True)
class Pass:
    """One run: which rows ran, which did not, and the states `[tokens, hidden]` after the last layer."""

    rows: tuple[Row, ...]
    refusals: tuple[RowResult, ...]
    states: Tensor


class TorchShard(LedgerShard):
    """The contract's Shard over `model`, a transformers causal LM that holds the layers of the range only."""

    def __init__(
        self, spec: ModelSpec, layers: LayerRange, dtype: Dtype, device: torch.device, capacity: int, model: Any
    ) -> None:
        self._spec, self._layers, self._dtype, self._device, self._model = spec, layers, dtype, device, model
        shape = CacheShape(spec.kv_heads, spec.head_dim, TORCH[dtype], device)
        self._caches = TorchSequenceCaches(shape, spec.windows[layers.start : layers.stop])
        self._ledger = Ledger(self._caches, capacity, BLOCK, self._caches.rewind)

    @torch.inference_mode()
    def step(self, batch: Batch, hidden: Activation | None) -> StepOutput:
        with self._pass(batch, hidden) as done:
            if not self._last:
                return StepOutput(write_activation(done.states, self._dtype), done.refusals)
            return StepOutput(None, _in_order(batch, done.refusals, self._answers(done)))

    @torch.inference_mode()
    def logits(self, batch: Batch, hidden: Activation | None) -> NDArray[np.float32]:
        """Last stage only: a step that draws nothing and gives raw logits, `[offsets of the rows that ran, vocab]`."""
        with self._pass(batch, hidden) as done:
            return to_numpy(self._logits(done))

    def close(self) -> None:
        self._caches.sequences.clear()
        self._model = None
        if self._device.type != "cpu":
            torch.accelerator.empty_cache()

    @property
    def _last(self) -> bool:
        return self._layers.stop == self._spec.layers

    @contextmanager
    def _pass(self, batch: Batch, hidden: Activation | None) -> Iterator[Pass]:
        """Run the batch, and commit when the caller is done with the states; the ledger undoes what fails before."""
        given = self._read(batch, hidden)
        rows, refusals = self._ledger.begin(batch)
        if given is not None and refusals:
            given = torch.cat([given[span] for span in spans(batch, rows)] or [given[:0]])
        yield Pass(rows, refusals, self._run(rows, given))
        self._ledger.commit(rows)

    def _read(self, batch: Batch, hidden: Activation | None) -> Tensor | None:
        """The checked input of inner stages, `[tokens, hidden]`. Raises FrameRefused before anything has changed."""
        check_batch(batch, self._spec.vocab_size)
        if self._layers.start > 0:
            return read_activation(hidden, batch.tokens, self._spec.hidden_size, self._dtype, self._device)
        if hidden is not None:
            raise FrameRefused("the first stage takes token ids and was sent hidden states as well")
        return None

    def _run(self, rows: tuple[Row, ...], given: Tensor | None) -> Tensor:
        """The states of the rows after the last layer (and the norm, on the last stage), `[tokens, hidden]`."""
        if not rows:
            return torch.empty(0, self._spec.hidden_size, dtype=TORCH[self._dtype], device=self._device)
        caches = self._caches
        packed = [PackedRow(at, len(row.token_ids), row.position, caches.of(row.sequence)) for row, at in starts(rows)]
        positions = [row.position + i for row in rows for i in range(len(row.token_ids))]
        inputs: dict[str, Tensor] = (
            {"input_ids": self._ids([token for row in rows for token in row.token_ids])}
            if given is None
            else {"inputs_embeds": given[None]}
        )
        output = self._model.model(**inputs, position_ids=self._ids(positions), packed=packed, use_cache=False)
        states: Tensor = output.last_hidden_state[0]
        return states

    def _ids(self, numbers: list[int]) -> Tensor:
        return torch.tensor([numbers], dtype=torch.long, device=self._device)

    def _logits(self, done: Pass) -> Tensor:
        """Raw logits where samples are asked for, `[offsets, vocab]`: the head runs over nothing else."""
        logits: Tensor = self._model.lm_head(done.states[sampled_places(done.rows)])
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _answers(self, done: Pass) -> Iterator[RowResult]:
        """One result per row that ran."""
        drawn = iter(self._draw(done))
        for row in done.rows:
            offsets = row.sample.offsets if row.sample else ()
            yield RowResult(row.sequence, row.position, tuple(next(drawn) for _ in offsets))

    def _draw(self, done: Pass) -> list[Sampled]:
        """The tokens at all offsets, in order: plain greedy ones on the device, the others by the shared sampler."""
        plain = [argmax_answers(row.sample) for row in done.rows if row.sample for _ in row.sample.offsets]
        if not plain:
            return []
        logits = self._logits(done)
        best = logits.argmax(dim=-1, keepdim=True)
        if not torch.isfinite(logits.gather(-1, best)).all():
            raise ValueError(f"{self._spec.name} computes no finite logits in {self._dtype}; load it as bf16 or fp32")
        ids = best[:, 0].tolist()
        draws = [draw for row in done.rows for draw in draws_for(row, self._ledger.tokens.get(row.sequence, ()))]
        rest = [i for i, answered in enumerate(plain) if not answered]
        others = iter(sample(to_numpy(logits[rest]), [draws[i] for i in rest]) if rest else ())
        return [Sampled(token) if answered else next(others) for token, answered in zip(ids, plain, strict=True)]


def _in_order(batch: Batch, *results: tuple[RowResult, ...] | Iterator[RowResult]) -> tuple[RowResult, ...]:
    """The results in the batch's order of rows."""
    found = {result.sequence: result for group in results for result in group}
    return tuple(found[row.sequence] for row in batch.rows if row.sequence in found)
