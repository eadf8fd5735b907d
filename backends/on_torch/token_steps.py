"""Steps of few sequences by a token each, without Python between the loops: a program for all layers of a stage.

Its loops are those that the layers call one by one (`norms`, `few`, `blocks`, `rotary`, `mixing`, `gelu`), so that the
numbers are the same. A model whose layers do more than these loops keeps its own steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from backends.on_torch.added import draft_sum
from backends.on_torch.attention import Step
from backends.on_torch.blocks import Blocks, SmallRows
from backends.on_torch.cache import BlockCaches
from backends.on_torch.compiled import FLOATS, lanes
from backends.on_torch.few import draft_few
from backends.on_torch.gelu import draft_gated
from backends.on_torch.layer_parts import AttentionParts, GatedParts, LayerParts
from backends.on_torch.mixing import Mixing, mixes, mixing_loop
from backends.on_torch.mixing_loop import GIVEN
from backends.on_torch.norms import RootNorm
from backends.on_torch.program import OUTPUTS, STEP, Numbers, Program, ProgramDraft
from backends.on_torch.quantized import MatrixProduct
from together.models.state import KeysValues, LayerState
from together.types import Row

_SEEN = slice(13, 17)  # of the numbers that attention is given: those of a step's rows


class _Place(NamedTuple):
    """Of a layer's attention: its call, the first number of its job, and the layer."""

    call: int
    job: int
    layer: int


@dataclass(frozen=True, slots=True)
class _Attending:
    """The layers whose rows see the same tokens by the same code: `_Place` by columns."""

    parts: AttentionParts
    calls: Numbers
    jobs: Numbers
    layers: Numbers


@dataclass(frozen=True, slots=True)
class _Module:
    """What Python does between two parts of a program."""

    module: nn.Module
    given: Tensor
    found: Tensor

    def __call__(self) -> None:
        found = self.module(self.given[None])
        self.found.copy_((found[0] if isinstance(found, tuple) else found)[0])  # some also tell how they chose experts


@dataclass(frozen=True, slots=True)
class _Built:
    """A program for so many rows, and where it reads and writes."""

    program: Program
    between: list[_Module]  # its parts
    states: Tensor  # `[n, hidden]`
    out: Tensor
    angles: dict[str, tuple[Tensor, Tensor]]
    attending: list[tuple[LayerState, _Attending]]
    given: Numbers  # `[layers, GIVEN]`
    held: list[object]  # what the program points to


class TokenSteps:
    """Of one shard; `make` says whether there are any."""

    def __init__(self, model: Any, layers: Sequence[LayerParts], caches: BlockCaches, dtype: torch.dtype) -> None:
        self.model, self.layers, self.caches, self.dtype = model, layers, caches, dtype
        self.most = min(each.most_rows() for each in layers)
        self._by_kind = "layer_type" in signature(model.rotary_emb.forward).parameters
        self._built: dict[tuple[int, int], _Built] = {}

    @classmethod
    def make(cls, model: Any, caches: BlockCaches, dtype: torch.dtype) -> TokenSteps | None:
        """`model` is the part of a transformers model that has the layers."""
        if lanes() == 0 or dtype not in FLOATS or not hasattr(model, "rotary_emb") or not len(model.layers):
            return None
        if not isinstance(model.norm, RootNorm | nn.Identity) or model.config.hidden_size % lanes():
            return None
        kept = [caches.layers.get(place) for place in range(len(model.layers))]
        if not all(each and isinstance(each[0], KeysValues) and mixes(each[1]) for each in kept):
            return None
        found = [LayerParts.of(layer, model.config, place) for place, layer in enumerate(model.layers)]
        layers = [each for each in found if each is not None]
        made = cls(model, layers, caches, dtype) if len(layers) == len(found) else None
        return made if made is not None and made._turns_whole_heads() else None

    def _turns_whole_heads(self) -> bool:
        """Some models' angles are for a part of each head."""
        position = torch.zeros(1, 1, dtype=torch.long)
        states = torch.zeros(1, 1, self.model.config.hidden_size, dtype=self.dtype)
        parts = {each.attention.angles: each.attention for each in self.layers if each.attention.rotation is not None}
        return all(
            angle.shape == (1, 1, each.width) and angle.dtype == self.dtype
            for kind, each in parts.items()
            for angle in self._angles(states, position, kind)
        )

    def _angles(self, states: Tensor, positions: Tensor, kind: str) -> Sequence[Tensor]:
        found: Sequence[Tensor] = self.model.rotary_emb(states, positions, *([kind] if self._by_kind else []))
        return found

    def takes(self, rows: Sequence[Row]) -> bool:
        return 0 < len(rows) <= self.most and all(len(row.token_ids) == 1 and not row.pictures for row in rows)

    def __call__(self, step: Step, states: Tensor, positions: Tensor) -> Tensor:
        """`[n, hidden]` → the same, with the norm where the model has one; `positions` as transformers has them."""
        threads = torch.get_num_threads()
        built = self._built.get((len(states), threads))
        if built is None:
            built = self._built[len(states), threads] = _Draft(self, len(states), threads).written()
        built.states.copy_(states)
        for kind, places in built.angles.items():
            for place, angle in zip(places, self._angles(built.states[None], positions, kind), strict=True):
                place.copy_(angle[0])
        for state, attending in built.attending:
            singles = step.layouts[state].singles
            assert singles is not None
            assert singles.mixing is not None
            self._point(built, attending, singles.mixing)
        for part, module in enumerate(built.between):
            built.program.run(threads, part)
            module()
        built.program.run(threads, len(built.between))
        return built.out.clone()

    def _point(self, built: _Built, attending: _Attending, mixing: Mixing) -> None:
        parts = attending.parts
        shape, sinks = (parts.heads, parts.kv_heads, parts.width), parts.sinks is not None
        job = mixing.job(shape, self.dtype, parts.scaling, sinks=sinks)
        built.given[attending.layers, _SEEN] = job.seen
        built.program.change(attending.jobs, OUTPUTS, job.tasks)
        built.program.change(attending.jobs, STEP, job.step)
        built.program.call(attending.calls, job.loop)


class _Draft:
    """Writes a program for `count` rows, which `threads` do."""

    def __init__(self, steps: TokenSteps, count: int, threads: int) -> None:
        self._steps, self._count, self._threads = steps, count, threads
        self._draft, self._held = ProgramDraft(), list[object]()
        self._rooms: dict[str, Tensor] = {}  # by what is in them: all layers use them in turn
        self._given = np.zeros((len(steps.layers), GIVEN), np.int64)
        self._places: dict[tuple[LayerState, float, bool], list[_Place]] = defaultdict(list)
        self._angles: dict[str, tuple[Tensor, Tensor]] = {}
        self._between: list[_Module] = []

    def written(self) -> _Built:
        steps = self._steps
        norm = steps.model.norm if isinstance(steps.model.norm, RootNorm) else None
        before = [each.before for layer in steps.layers for each in (layer.attention_norms, layer.mlp_norms)]
        states = self._room("states", steps.model.config.hidden_size)
        given = states if before[0] is None else self._room("normed", states.shape[1])
        if before[0] is not None:
            before[0].draft(self._draft, states, given)
        for place, parts in enumerate(steps.layers):
            second, third = (*before, norm)[2 * place + 1 : 2 * place + 3]
            attended = self._attended(place, parts.attention, given)
            given = self._add(states, attended, parts.attention_norms.behind, second)
            given = self._add(states, self._mlp(parts.mlp, given), parts.mlp_norms.behind, third)
        attending = [
            (state, _Attending(steps.layers[places[0].layer].attention, *np.array(places).T))
            for (state, *_), places in self._places.items()
        ]
        made = self._draft.finish()
        return _Built(made, self._between, states, given, self._angles, attending, self._given, self._held)

    def _room(self, what: str, width: int) -> Tensor:
        """`[n, width]`, for one thing after the other."""
        if what not in self._rooms or self._rooms[what].shape[1] != width:
            self._rooms[what] = torch.empty(self._count, width, dtype=self._steps.dtype)
            self._held.append(self._rooms[what])
        return self._rooms[what]

    def _attended(self, place: int, parts: AttentionParts, given: Tensor) -> Tensor:
        sizes = [heads * parts.width for heads in (parts.heads, parts.kv_heads, parts.kv_heads)]
        multiplied = self._linears(parts.qkv, given, "qkv")
        queries, keys, values = multiplied if len(multiplied) > 1 else multiplied[0].split(sizes, dim=1)
        if parts.head_norms is not None:
            for norm, heads in zip(parts.head_norms, (queries, keys), strict=True):
                for row in heads:  # whose heads follow one another
                    norm.draft(self._draft, row, row)
            self._draft.meet()
        if parts.rotation is not None:
            turned = [self._room(f"turned {what}", each.shape[1]) for what, each in (("q", queries), ("k", keys))]
            parts.rotation.draft(self._draft, (queries, keys, *self._turning(parts)), *turned)
            self._draft.meet()
            queries, keys = turned
        state, pool = self._steps.caches.layers[place]
        found, sinks = self._room("attended", queries.shape[1]), parts.sinks is not None
        self._given[place] = _numbers_of(parts, pool, (queries, keys, values), found)
        loop = mixing_loop(self._steps.dtype, parts.width, 1, parts.scaling, sinks=sinks)
        call, job = self._draft.add(loop, 0, 1, self._given[place].ctypes.data)
        self._draft.meet()
        self._places[state, parts.scaling, sinks].append(_Place(call, job, place))
        return self._linears((parts.out,), found, "out")[0]

    def _turning(self, parts: AttentionParts) -> tuple[Tensor, Tensor]:
        if parts.angles not in self._angles:
            cos, sin = (torch.empty(self._count, parts.width, dtype=self._steps.dtype) for _ in range(2))
            self._angles[parts.angles] = cos, sin
        return self._angles[parts.angles]

    def _mlp(self, mlp: GatedParts | nn.Module, given: Tensor) -> Tensor:
        if not isinstance(mlp, GatedParts):
            found = self._room("found", given.shape[1])
            self._between.append(_Module(mlp, given, found))
            self._draft.part()
            return found
        multiplied = self._linears(mlp.gate_up, given, "gate and up")
        gate, up = multiplied if len(multiplied) > 1 else multiplied[0].chunk(2, dim=1)
        inner = self._room("inner", gate.shape[1])
        draft_gated(self._draft, mlp.gated_by, gate, up, inner)
        self._draft.meet()
        return self._linears((mlp.down,), inner, "down")[0]

    def _add(self, states: Tensor, found: Tensor, behind: RootNorm | None, follow: RootNorm | None) -> Tensor:
        """To the states. Returns what the next products are given: the states, or what `follow` makes of them."""
        if behind is not None:
            behind.draft(self._draft, found, found)
            self._draft.meet()
        if follow is None:
            draft_sum(self._draft, states, found)
            self._draft.meet()
            return states
        normed = self._room("normed", states.shape[1])
        follow.draft_sum(self._draft, states, found, normed)
        self._draft.meet()
        return normed

    def _linears(self, linears: Sequence[Any], given: Tensor, what: str) -> list[Tensor]:
        """Layers with the same input, each to `[n, outputs]`: columns of one tensor, where they are one product."""
        self._draft.meet()
        small = self._small([each for each in linears if not isinstance(each, nn.Linear)], given)
        wholes: dict[int, Tensor] = {}
        found = []
        for place, linear in enumerate(linears):
            if isinstance(linear, nn.Linear):
                out = self._room(f"{what} {place}", linear.out_features)
                draft_few(self._draft, given, linear.weight, out)
            else:
                columns = linear.columns
                if id(columns.whole) not in wholes:
                    wholes[id(columns.whole)] = self._product(columns.whole, small, f"{what} {place}")
                out = wholes[id(columns.whole)][:, columns.start : columns.stop]
            found.append(out)
        self._draft.meet()
        for out, linear in zip(found, linears, strict=True):
            if linear.bias is not None:
                draft_sum(self._draft, out, linear.bias)
        self._draft.meet()
        return found

    def _small(self, linears: Sequence[Any], given: Tensor) -> dict[tuple[int, int], SmallRows]:
        """What comes in, in int8, by the forms in which these products take it."""
        parts = [part for linear in linears for part in linear.columns.whole.parts if isinstance(part, Blocks)]
        found = {form: SmallRows.of(self._count, *form) for part in parts if (form := part.form) is not None}
        for rows in found.values():
            rows.draft(self._draft, given)
            self._held.append(rows.kept)
        self._draft.meet()
        return found

    def _product(self, whole: MatrixProduct, small: dict[tuple[int, int], SmallRows], what: str) -> Tensor:
        parts = [part for part in whole.parts if isinstance(part, Blocks)]
        out, start = self._room(what, sum(part.outputs for part in parts)), 0
        for part in parts:
            assert part.form is not None
            part.draft(self._draft, small[part.form], out[:, start : start + part.outputs], self._threads)
            start += part.outputs
        return out


def _numbers_of(parts: AttentionParts, pool: Tensor, asked: tuple[Tensor, ...], found: Tensor) -> list[int]:
    """What a layer's attention is given, but for a step's rows."""
    size, width = found.element_size(), parts.width
    heads = [number for each in asked for number in (each.data_ptr(), width * size, each.stride(0) * size)]
    head = pool.shape[2] * width * size
    kept = pool.data_ptr(), head, parts.kv_heads, parts.heads // parts.kv_heads
    sinks = 0 if parts.sinks is None else parts.sinks.data_ptr()
    return [*heads, *kept, 0, 0, 0, 0, found.data_ptr(), sinks]
