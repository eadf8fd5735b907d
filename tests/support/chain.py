"""A ring without processes: shards chained through the wire encoding, as stages are. Knows no socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from backends.base import LoadRequest, Shard, open_backend
from together.ring import wire
from together.types import (
    Activation,
    Batch,
    Continuation,
    Dtype,
    Frame,
    LayerRange,
    Orders,
    Row,
    RowResult,
    Sampled,
    SampleRequest,
    Sampling,
)

MEMORY = 128 * 2**20  # plenty for the tiny models
Logits = npt.NDArray[np.float32]
GREEDY = Sampling(temperature=0.0)
NO_ORDERS = Orders()
_sequences = count(1)


def new_sequence() -> int:
    """A sequence id that no other test uses: shards are shared between tests."""
    return next(_sequences)


def row(sequence: int, position: int, ids: Sequence[int], at: str = "all", settings: Sampling = GREEDY) -> Row:
    """A row that samples everywhere ("all"), at its end ("last") or nowhere ("none")."""
    offsets = {"all": tuple(range(len(ids))), "last": (len(ids) - 1,), "none": ()}[at]
    return Row(sequence, position, tuple(ids), SampleRequest(offsets, settings, len(ids)) if offsets else None)


def load_shard(
    folder: Path,
    backend: str,
    layers: LayerRange,
    dtype: Dtype = "fp32",
    memory: int = MEMORY,
    *,
    exact: bool = True,
    stretched: bool = False,
) -> Shard:
    device = "gpu" if backend == "mlx" and _has_metal() else "cpu"
    request = LoadRequest(folder, layers, device, dtype, memory, folder.parent, exact=exact, stretched=stretched)
    return open_backend(backend).load(request)


def _has_metal() -> bool:
    import mlx.core as mx

    return bool(mx.metal.is_available())


@dataclass
class Chain:
    """Stages in ring order; every frame between them is encoded and decoded."""

    shards: Sequence[Shard]
    steps: count[int] = field(default_factory=lambda: count(1))

    def results(self, batch: Batch) -> tuple[RowResult, ...]:
        """One step through all stages: a result per row, in the order in which stages gave them."""
        frame, results = self._to_last(batch)
        output = self.shards[-1].step(frame.batch, frame.activation)
        assert output.activation is None
        return (*results, *output.results)

    def sampled(self, *rows: Row, orders: Orders = NO_ORDERS) -> dict[int, tuple[Sampled, ...]]:
        """By sequence, what was drawn; no row may be refused."""
        results = self.results(Batch(rows, orders))
        assert [result.refusal for result in results] == [None] * len(rows)
        return {result.sequence: result.sampled for result in results}

    def logits(self, *rows: Row, orders: Orders = NO_ORDERS) -> Logits:
        """Raw logits at all sampled offsets, `[offsets, vocab]`, of a step in which no row is refused."""
        frame, results = self._to_last(Batch(rows, orders))
        assert not results, results
        return cast(Logits, cast(Any, self.shards[-1]).logits(frame.batch, frame.activation))

    def scored(self, text: Sequence[int], chunk: int = 10**9) -> list[float]:
        """The log-probability of every token but the first, in rows of `chunk` tokens."""
        scores: list[float] = []
        sequence = new_sequence()
        for begin in range(0, len(text), chunk):
            ids = tuple(text[begin : begin + chunk])
            score = tuple(Continuation(offset, token) for offset, token in enumerate(text[begin + 1 :][: len(ids)]))
            ask = SampleRequest((), GREEDY, len(text), score=score)
            (result,) = self.results(Batch((Row(sequence, begin, ids, ask),)))
            assert result.refusal is None
            scores.extend(result.scores)
        return scores

    def greedy(self, sequence: int, prompt: Sequence[int], tokens: int) -> tuple[int, ...]:
        """Prefill and decode, as the engine does."""
        answer: list[int] = []
        position, ids = 0, list(prompt)
        while len(answer) < tokens:
            drawn = self.sampled(row(sequence, position, ids, "last"))[sequence][0].token_id
            answer.append(drawn)
            position, ids = position + len(ids), [drawn]
        return tuple(answer)

    def _to_last(self, batch: Batch) -> tuple[Frame, tuple[RowResult, ...]]:
        frame = Frame(next(self.steps), batch)
        results: tuple[RowResult, ...] = ()
        for shard in self.shards[:-1]:
            output = shard.step(frame.batch, frame.activation)
            results += output.results
            refused = {result.sequence for result in output.results}
            rows = tuple(item for item in frame.batch.rows if item.sequence not in refused)
            frame = Frame(frame.step, replace(frame.batch, rows=rows).onwards, output.activation)
            frame = wire.FRAME.decode(wire.FRAME.encode(frame))
        return frame, results


def assert_close(found: Logits, wanted: Logits, bound: float = 1e-5) -> None:
    """Within `bound`, relative to the largest logit."""
    assert found.shape == wanted.shape
    worst = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    assert worst <= bound, f"logits differ by {worst:.2e} of the largest"


def activation_of(shard: Shard, *rows: Row) -> Activation:
    """What the stage sends on for these rows."""
    activation = shard.step(Batch(rows), None).activation
    assert activation is not None
    return activation
