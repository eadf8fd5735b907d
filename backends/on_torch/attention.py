"""Attention over blocks: where a step's rows write and what they see is worked out once, and used in every layer.

Rows of one token see everything that they may, without a mask: what several of them share is read once for all, and
what lies in several places is read part by part and put together by the parts' sums of exponentials. Longer rows attend
one by one.

On CPUs a loop of our own does all of that for rows of one token (`mixing.py`), where it takes what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from backends.ledger import starts
from backends.on_torch.cache import BlockCaches, Layers
from backends.on_torch.mixing import Mixing, mixes
from backends.on_torch.states import RecurrentStates
from together.models.state import LayerState
from together.types import Row

ATTENTION = "together_packed"
GROWTH = "growth"  # of modules whose queries grow with their position: what lets them


@dataclass(frozen=True, slots=True)
class SeenPart:
    """Tokens side by side, and those of the one-token rows that see all of them."""

    places: range
    rows: list[int]
    chosen: slice | Tensor  # the same, as what takes them from among all

    @classmethod
    def of(cls, places: range, rows: list[int], device: torch.device) -> SeenPart:
        together = rows[-1] - rows[0] + 1 == len(rows)  # a slice copies nothing
        return cls(places, rows, slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows, device=device))


@dataclass(slots=True)
class LongRow:
    """A row of several tokens: where it lies among the step's tokens, and what it sees."""

    start: int
    count: int
    position: int
    first: int  # the first token that its first token sees
    chunk: int | None  # tokens that see one another and none before, where that is so
    runs: list[range]  # the places of all tokens from `first` on, its own at the end
    places: Tensor | None = None  # the same as numbers, where they are not side by side
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PartOrder:
    """Each row's parts among the results of all parts, `[rows, parts]`."""

    places: Tensor
    missing: Tensor  # -inf where a row has fewer parts than another


@dataclass(frozen=True, slots=True)
class SingleRows:
    """All rows of one token."""

    tokens: Tensor  # where they lie among the step's tokens
    places: Tensor  # where they are written
    parts: list[SeenPart]
    order: PartOrder | None  # None where each row has one part and all are in order, or `mixing` needs none
    mixing: Mixing | None  # what attends to them, where it is a loop of our own


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the rows of a step lie in the layers of one kind."""

    window: int | None  # that slides
    singles: SingleRows | None
    longs: list[LongRow]


@dataclass(frozen=True, slots=True)
class Step:
    """What a model's attention is given as `packed`."""

    caches: BlockCaches
    rows: Sequence[Row] = ()
    layouts: dict[LayerState, Layout] = field(default_factory=dict)

    @property
    def recurrent(self) -> RecurrentStates:
        return self.caches.recurrent

    @classmethod
    def of(cls, caches: BlockCaches, rows: Sequence[Row], device: torch.device) -> Step:
        """Takes the blocks for the rows' tokens."""
        caches.write(rows)
        return cls(caches, rows, {state: _layout(kind, rows, device) for state, kind in caches.kinds.items()})


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packed: Step,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Cache keys and values, and attend: query `[1, heads, tokens, head_dim]` → `[1, tokens, heads, head_dim]`.

    Values may be narrower or wider than keys: what is narrower is filled up with zeros, which change no sum.
    `s_aux`, as transformers calls it, are sinks `[heads]`: one more score for each query of a head, without a value.
    """
    state, pool = packed.caches.layers[module.layer_idx]  # type: ignore[index]
    if hasattr(module, GROWTH):
        query = getattr(module, GROWTH)(query, packed.rows)
    query, key, filled = (_filled(each, pool) for each in (query, key, value))
    found = _attend(packed.layouts[state], pool, query, key, filled, scaling, s_aux)
    return found[..., : value.shape[3]], None


def _filled(states: Tensor, pool: Tensor) -> Tensor:
    """As wide as what is kept."""
    more = pool.shape[3] - states.shape[3]
    return pad(states, (0, more)) if more else states


def _attend(
    layout: Layout, pool: Tensor, query: Tensor, key: Tensor, value: Tensor, scaling: float, sinks: Tensor | None
) -> Tensor:
    singles = None
    if layout.singles is not None:
        singles = mixed_singles(layout.singles, pool, query, key, value, scaling, sinks)
    if singles is not None and not layout.longs:
        return singles
    found = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
    if layout.singles is not None and singles is not None:
        found[:, layout.singles.tokens] = singles
    for row in layout.longs:
        here = slice(row.start, row.start + row.count)
        write_long(row, pool, key[0], value[0])
        found[:, here] = _attend_long(row, layout.window, pool, query[:, :, here], scaling, sinks)
    return found


# --- rows of one token ------------------------------------------------------------------------------------------------


def mixed_singles(
    rows: SingleRows,
    pool: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    sinks: Tensor | None = None,
) -> Tensor:
    """Cache keys and values, and attend.

    `[1, heads, tokens, head_dim]` of all of the step's tokens → `[1, rows, heads, head_dim]`.
    """
    if rows.mixing is not None:
        return rows.mixing(pool, query, key, value, scaling, sinks)
    write_singles(rows, pool, key[0], value[0])
    return attend_singles(rows, pool, query[0], scaling, sinks)[None]


def write_singles(rows: SingleRows, pool: Tensor, keys: Tensor, values: Tensor) -> None:
    """`[kv_heads, tokens, head_dim]` of all of the step's tokens."""
    for kept, new in zip(pool, (keys, values), strict=True):
        kept.index_copy_(1, rows.places, new if new.shape[1] == len(rows.places) else new[:, rows.tokens])


def attend_singles(
    rows: SingleRows, pool: Tensor, queries: Tensor, scaling: float, sinks: Tensor | None = None
) -> Tensor:
    """`[heads, tokens, head_dim]` of all of the step's tokens → `[rows, heads, head_dim]`."""
    heads, _, width = queries.shape
    kv_heads, count = pool.shape[1], len(rows.tokens)
    asked = queries if queries.shape[1] == count else queries[:, rows.tokens]
    grouped = asked.reshape(kv_heads, heads // kv_heads, count, width)
    found = [_read(part, pool, grouped, scaling) for part in rows.parts]
    states = found[0][0] if len(found) == 1 else torch.cat([states for states, _ in found], dim=2)
    if rows.order is None and sinks is None:
        return states.reshape(heads, count, width).transpose(0, 1)
    sums = torch.cat([sums for _, sums in found], dim=2)
    if rows.order is not None:
        sums = sums[:, :, rows.order.places] + rows.order.missing
        shares = torch.softmax(sums, dim=-1)[..., None]  # [kv_heads, group, rows, parts, 1]
        states = (states[:, :, rows.order.places] * shares).sum(dim=3).to(queries.dtype)
        sums = sums.logsumexp(dim=-1)
    if sinks is not None:
        states = sunk(states, sums, sinks.view(kv_heads, heads // kv_heads, 1))
    return states.reshape(heads, count, width).transpose(0, 1)


def _read(part: SeenPart, pool: Tensor, grouped: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Heads that share a key head, of all rows that see these tokens, are that head's queries: nothing is repeated.

    Returns the mixed values, `[kv_heads, group, rows, head_dim]`, and the logarithms of the sums of exponentials.
    """
    asked = grouped[:, :, part.chosen]
    kv_heads, group, count, width = asked.shape
    keys, values = pool[:, :, part.places.start : part.places.stop]
    states, sums = mix(asked.reshape(kv_heads, group * count, width), keys, values, scaling)
    return states.view(kv_heads, group, count, width), sums.view(kv_heads, group, count)


def mix(queries: Tensor, keys: Tensor, values: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention without a mask of `[heads, queries, head_dim]` over `[heads, tokens, head_dim]`.

    Returns the mixed values, and the logarithms of the sums of exponentials, `[heads, queries]` in fp32.
    """
    if queries.device.type != "cpu":
        return mix_plainly(queries, keys, values, scaling)
    states, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries[None], keys[None], values[None], scale=scaling
    )
    return states[0], sums[0].contiguous()


def mix_plainly(
    queries: Tensor, keys: Tensor, values: Tensor, scaling: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same by its definition, with scores in fp32: the reference, and what runs where no kernel returns sums."""
    scores = (queries.float() @ keys.float().transpose(1, 2)) * scaling
    if mask is not None:
        scores += mask
    sums = scores.logsumexp(dim=-1)
    shares = torch.exp(scores - sums[..., None])
    return (shares @ values.float()).to(queries.dtype), sums


def sunk(states: Tensor, sums: Tensor, sinks: Tensor) -> Tensor:
    """Mixed values `[…, head_dim]` where each head has one score more, its sink, without a value.

    `sums` `[…]` are logarithms of the sums of exponentials without it.
    """
    return (states * torch.sigmoid(sums - sinks.float())[..., None]).to(states.dtype)


# --- longer rows ------------------------------------------------------------------------------------------------------


def write_long(row: LongRow, pool: Tensor, keys: Tensor, values: Tensor) -> None:
    """`[kv_heads, tokens, head_dim]` of all of the step's tokens: the row's own, to where it lies."""
    at, left = row.start, row.count
    skipped = sum(map(len, row.runs)) - row.count
    for run in row.runs:
        own = run[max(0, skipped) :] if skipped < len(run) else run[:0]
        skipped -= len(run)
        if own:
            pool[0, :, own.start : own.stop] = keys[:, at : at + len(own)]
            pool[1, :, own.start : own.stop] = values[:, at : at + len(own)]
            at, left = at + len(own), left - len(own)
    assert not left, "a row's own tokens are the last ones that it sees"


def _attend_long(
    row: LongRow, window: int | None, pool: Tensor, query: Tensor, scaling: float, sinks: Tensor | None
) -> Tensor:
    """`[1, heads, count, head_dim]` → `[1, count, heads, head_dim]`."""
    if row.places is not None:
        keys, values = pool.index_select(2, row.places)
    else:
        (run,) = row.runs
        keys, values = pool[:, :, run.start : run.stop]
    if sinks is not None:
        states, sums = mix_masked(query[0], keys, values, _mask(row, window, query), scaling)
        return sunk(states, sums, sinks[:, None]).transpose(0, 1)[None]
    mask = long_mask(row, window, query)
    out = scaled_dot_product_attention(
        query, keys[None], values[None], attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2)


def mix_masked(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention of `[heads, queries, head_dim]` over `[kv_heads, tokens, head_dim]`, and the sums, as `mix` has them.

    `mask` `[queries, tokens]` is added to the scores.
    """
    if queries.device.type != "cpu":
        return mix_by_heads(queries, keys, values, mask, scaling)
    group = queries.shape[0] // keys.shape[0]
    seen = [each.repeat_interleave(group, dim=0)[None] for each in (keys, values)]
    states, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries[None], *seen, attn_mask=mask[None, None], scale=scaling
    )
    return states[0], sums[0]


def mix_by_heads(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """The same where no kernel returns sums: the scores of one key head are there at a time."""
    group = queries.shape[0] // keys.shape[0]
    parts = [
        mix_plainly(asked, key[None], value[None], scaling, mask)
        for asked, key, value in zip(queries.split(group), keys, values, strict=True)
    ]
    states, sums = (torch.cat(each) for each in zip(*parts, strict=True))
    return states, sums


def long_mask(row: LongRow, window: int | None, query: Tensor) -> Tensor | None:
    """What is added to a row's scores; None where each token sees all before it, and the row is all there is."""
    return None if _plainly_causal(row, window) else _mask(row, window, query)


def _plainly_causal(row: LongRow, window: int | None) -> bool:
    return row.position == 0 and all(most is None or row.count <= most for most in (window, row.chunk))


def _mask(row: LongRow, window: int | None, query: Tensor) -> Tensor:
    """What is added to the scores, `[count, keys]`: 0 where a token sees a key, -inf elsewhere."""
    if row.mask is None:
        tokens = torch.arange(row.position, row.position + row.count, device=query.device)[:, None]
        keys = torch.arange(row.first, row.position + row.count, device=query.device)
        seen = keys <= tokens
        if window is not None:
            seen &= keys > tokens - window
        if row.chunk is not None:
            seen &= keys // row.chunk == tokens // row.chunk
        row.mask = torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, float("-inf"))
    return row.mask


# --- where rows lie ---------------------------------------------------------------------------------------------------


def _layout(kind: Layers, rows: Sequence[Row], device: torch.device) -> Layout:
    firsts = [kind.first(row.position) for row in rows]
    stops = [row.position + len(row.token_ids) for row in rows]
    runs = kind.blocks.runs([row.sequence for row in rows], firsts, stops)
    longs, tokens, seen = [], [], []
    for (row, at), first, found in zip(starts(rows), firsts, runs, strict=True):
        count = len(row.token_ids)
        if count == 1:
            tokens.append(at)
            seen.append(found)
        else:
            longs.append(LongRow(at, count, row.position, first, kind.state.chunk, found, _numbers(found, device)))
    singles = single_rows(tokens, seen, device, kind.pools[0]) if tokens else None
    return Layout(kind.state.slides, singles, longs)


def _numbers(runs: list[range], device: torch.device) -> Tensor | None:
    if len(runs) == 1:
        return None
    return torch.cat([torch.arange(run.start, run.stop) for run in runs]).to(device)


def single_rows(tokens: list[int], runs: list[list[range]], device: torch.device, pool: Tensor) -> SingleRows:
    """Rows that see the same tokens become one part."""
    seen: dict[range, list[int]] = {}
    for row, found in enumerate(runs):
        for run in found:
            seen.setdefault(run, []).append(row)
    places = [found[-1][-1] for found in runs]
    mixing = Mixing.of(list(seen.items()), tokens, places, pool) if mixes(pool) else None
    parts = [SeenPart.of(run, rows, device) for run, rows in seen.items()]
    order = _order(parts, len(runs), device) if mixing is None else None
    step, kept = (torch.tensor(each, device=device) for each in (tokens, places))
    return SingleRows(step, kept, parts, order, mixing)


def _order(parts: list[SeenPart], rows: int, device: torch.device) -> PartOrder | None:
    answers = [row for part in parts for row in part.rows]
    if answers == list(range(rows)):
        return None
    found: list[list[int]] = [[] for _ in range(rows)]
    for place, row in enumerate(answers):
        found[row].append(place)
    most = max(map(len, found))
    places = [each + [0] * (most - len(each)) for each in found]
    missing = [[0.0] * len(each) + [float("-inf")] * (most - len(each)) for each in found]
    return PartOrder(torch.tensor(places, device=device), torch.tensor(missing, device=device))
