"""The code of attention of rows of one token: what a task does, in LLVM's language.

A query's slot in a span's room holds itself, the sums of values, the sums of exponentials by lanes, and the largest
score, all in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from backends.on_torch.compiled import CompiledLoop, lanes, registers
from backends.on_torch.vectors import VectorCode

GIVEN = 19  # numbers that a job is given
_TILE = 2**12  # numbers of a head's keys that stay in the nearest cache, with its values, while all queries see them
_TILE_TOKENS = 64  # at most
_IN_ORDER = 2**8  # numbers of keys that are read at a time: memory is fast where it is read in order
_CHAINS = 4  # sums that do not wait for one another
_LOWEST = float(torch.finfo(torch.float32).min)
_NUMBER = 8  # bytes


class SeenSpan(NamedTuple):
    """Tokens from `start` to `stop`, and the rows that see them: `seers` numbers at `rows` of the table."""

    start: int
    stop: int
    rows: int
    seers: int
    slots: int  # those of all spans before


class OneToken(NamedTuple):
    token: int  # of the step's
    place: int  # where its key and value are kept
    spans: int  # how many it sees
    shares: int  # where they are in the table


class RowShare(NamedTuple):
    """A row's part in a span: it is the one at `place` of so many."""

    slots: int
    seers: int
    place: int


class _Heads(NamedTuple):
    """`[heads, tokens, width]`, and how many bytes further the next ones are."""

    pointer: Any
    head: Any
    token: Any


def slot_numbers(width: int) -> int:
    return 2 * width + 2 * lanes()


class MixingLoop:
    """Code for `queries` queries of a key head at a time; with `sinks` each head has a score more, without a value."""

    def __init__(self, dtype: torch.dtype, width: int, queries: int, scaling: float, *, sinks: bool = False) -> None:
        self._dtype, self._queries, self._scaling = dtype, queries, scaling
        self._row, self._vector, self._vectors = width * dtype.itemsize, lanes() * dtype.itemsize, width // lanes()
        self._wide = 4 * lanes()  # bytes of a vector in fp32
        self._slot, self._sums, self._totals, self._most = (
            4 * numbers for numbers in (slot_numbers(width), width, 2 * width, 2 * width + lanes())
        )
        self._tile = max(1, min(_TILE_TOKENS, _TILE // width) // lanes()) * lanes()
        self._tokens = _power_of_2(min(registers() // 2 // queries, max(_CHAINS // queries, _IN_ORDER // width)))
        self._code = code = VectorCode()
        *heads, pool, self._head, self._kv_heads, self._group, table, self._spans, left, room, out, sunk = code.numbers(
            code.field(3, pointer=True), GIVEN
        )
        self._sinks = code.address(sunk) if sinks else None
        self._asked, self._new_keys, self._new_values = (
            _Heads(code.address(heads[at]), *heads[at + 1 : at + 3]) for at in (0, 3, 6)
        )
        self._pool, self._table, self._left, self._room, self._out = map(code.address, (pool, table, left, room, out))
        self._heads = code.build.mul(self._kv_heads, self._group)
        self._scores = code.scratch(queries * self._tile)

    def compiled(self) -> CompiledLoop:
        code = self._code
        with code.loop(code.start, code.stop, 1) as (task, _):
            self._task(code.build.urem(task, self._kv_heads), code.build.udiv(task, self._kv_heads))
        return code.finish(unrolled=False)  # else sums would leave the registers

    def _task(self, head: Any, number: Any) -> None:
        code, build = self._code, self._code.build
        span = SeenSpan(*self._listed(self._times(number, len(SeenSpan._fields)), SeenSpan))
        keys = code.at(self._pool, build.mul(head, self._head))
        values = code.at(keys, build.mul(self._kv_heads, self._head))
        with code.loop(code.number(0), span.seers, 1) as (place, _):
            (row,) = self._numbers(build.add(span.rows, place), 1)
            slots = self._slots(RowShare(span.slots, span.seers, place), head)
            one = self._one(row)
            self._keep(one, head, span, keys, values)
            self._ask(one, head, slots)
        first = self._slots(RowShare(span.slots, span.seers, code.number(0)), head)
        queries = build.mul(span.seers, self._group)
        last = build.sub(queries, code.number(1))
        with (
            code.loop(span.start, span.stop, self._tile) as (start, _),
            code.loop(code.number(0), queries, self._queries) as (query, _),
        ):
            places = (code.least(build.add(query, code.number(each)), last) for each in range(self._queries))
            slots = [code.at(first, self._times(place, self._slot)) for place in places]  # the last one maybe again
            tokens = code.least(build.sub(span.stop, start), code.number(self._tile))
            offset = self._times(start, self._row)
            self._see(tokens, code.at(keys, offset), code.at(values, offset), slots)
        with code.loop(code.number(0), span.seers, 1) as (place, _):
            (row,) = self._numbers(build.add(span.rows, place), 1)
            self._end(row, head)

    # --- where things are

    def _times(self, index: Any, size: int) -> Any:
        return self._code.build.mul(index, self._code.number(size))

    def _numbers(self, at: Any, count: int) -> list[Any]:
        """Of the table."""
        code = self._code
        return code.numbers(code.at(self._table, self._times(at, _NUMBER)), count)

    def _listed(self, at: Any, kind: type[Any]) -> list[Any]:
        return self._numbers(at, len(kind._fields))

    def _one(self, row: Any) -> OneToken:
        first = self._times(self._spans, len(SeenSpan._fields))
        at = self._code.build.add(first, self._times(row, len(OneToken._fields)))
        return OneToken(*self._listed(at, OneToken))

    def _slots(self, share: RowShare, head: Any) -> Any:
        """Those of a row's queries of a key head."""
        build = self._code.build
        before = build.mul(build.add(build.mul(head, share.seers), share.place), self._group)
        number = build.add(build.mul(share.slots, self._heads), before)
        return self._code.at(self._room, self._times(number, self._slot))

    def _in_wide(self, vector: int, first: int = 0) -> Any:
        return self._code.number(first + vector * self._wide)

    # --- before

    def _keep(self, one: OneToken, head: Any, span: SeenSpan, keys: Any, values: Any) -> None:
        """The row's key and value, if their place is in the span."""
        code, build = self._code, self._code.build
        here = build.and_(build.icmp_signed(">=", one.place, span.start), build.icmp_signed("<", one.place, span.stop))
        with build.if_then(here):
            for heads, kept in ((self._new_keys, keys), (self._new_values, values)):
                source, target = self._given_row(heads, head, one), code.at(kept, self._times(one.place, self._row))
                for at in range(0, self._row, self._vector):
                    code.store(code.load(source, code.raw(self._dtype), code.number(at)), target, code.number(at))

    def _given_row(self, heads: _Heads, head: Any, one: OneToken) -> Any:
        build = self._code.build
        offset = build.add(build.mul(head, heads.head), build.mul(one.token, heads.token))
        return self._code.at(heads.pointer, offset)

    def _ask(self, one: OneToken, head: Any, slots: Any) -> None:
        """Bring the row's queries of a key head into their slots, which have seen nothing."""
        code, build = self._code, self._code.build
        with code.loop(code.number(0), self._group, 1) as (query, _):
            source = self._given_row(self._asked, build.add(build.mul(head, self._group), query), one)
            slot = code.at(slots, self._times(query, self._slot))
            for vector in range(self._vectors):
                found = code.read(self._dtype, source, code.number(vector * self._vector))
                code.store(found, slot, self._in_wide(vector))
                code.store(code.zero(), slot, self._in_wide(vector, self._sums))
            code.store(code.zero(), slot, code.number(self._totals))
            code.store(code.float(_LOWEST), slot, code.number(self._most))

    # --- a tile of tokens

    def _see(self, tokens: Any, keys: Any, values: Any, slots: list[Any]) -> None:
        code, build = self._code, self._code.build
        before = [code.load(slot, code.f32, code.number(self._most)) for slot in slots]
        totals = [code.load(slot, code.vector, code.number(self._totals)) for slot in slots]
        largest = self._score(tokens, keys, slots)
        most = [code.greater(code.joined(each, code.greater), old) for each, old in zip(largest, before, strict=True)]
        kept = [code.exp(code.splat(build.fsub(old, new))) for old, new in zip(before, most, strict=True)]
        totals = self._share(tokens, most, [build.fmul(*pair) for pair in zip(totals, kept, strict=True)])
        for slot, new, total in zip(slots, most, totals, strict=True):
            code.store(new, slot, code.number(self._most))
            code.store(total, slot, code.number(self._totals))
        self._mix(tokens, values, slots, kept)

    def _score_at(self, query: int, token: Any) -> Any:
        return self._times(self._code.build.add(token, self._code.number(query * self._tile)), 4)

    def _score(self, tokens: Any, keys: Any, slots: list[Any]) -> list[Any]:
        """Bring all scores into the scratch, -inf for those behind the last token. Returns the largest by lanes."""
        code, build = self._code, self._code.build
        with code.loop(code.number(0), tokens, lanes(), [code.every(_LOWEST)] * len(slots)) as (token, largest):
            left = code.splat(build.trunc(build.sub(tokens, token), code.i32))
            there = build.icmp_signed("<", code.places(), left)
            for query, products in enumerate(self._products(token, tokens, keys, slots)):
                scaled = build.fmul(products, code.every(self._scaling))
                score = build.select(there, scaled, code.every(float("-inf")))
                code.store(score, self._scores, self._score_at(query, token))
                largest[query] = code.greater(score, largest[query])
        return largest

    def _products(self, token: Any, tokens: Any, keys: Any, slots: list[Any]) -> list[Any]:
        """Of each query with the keys of as many tokens as there are lanes, of the last one again behind it."""
        code, build = self._code, self._code.build
        last, each = build.sub(tokens, code.number(1)), self._tokens
        found: list[list[Any]] = [[] for _ in slots]
        for start in range(0, lanes(), each):
            places = (code.least(build.add(token, code.number(start + more)), last) for more in range(each))
            rows = [code.at(keys, self._times(place, self._row)) for place in places]
            zeros = [code.zero()] * (each * len(slots))
            with code.loop(code.number(0), code.number(self._vectors), 1, zeros) as (vector, sums):
                read = [code.read(self._dtype, row, self._times(vector, self._vector)) for row in rows]
                asked = [code.load(slot, code.vector, self._times(vector, self._wide)) for slot in slots]
                sums[:] = self._added([(key, query) for query in asked for key in read], sums)
            for query, parts in enumerate(found):
                parts.append(code.gathered(sums[query * each : (query + 1) * each]))
        return [code.gathered(parts, each) for parts in found]

    def _added(self, pairs: list[tuple[Any, Any]], sums: Sequence[Any]) -> list[Any]:
        return [self._code.fma(*pair, before) for pair, before in zip(pairs, sums, strict=True)]

    def _share(self, tokens: Any, most: list[Any], totals: list[Any]) -> list[Any]:
        """Scores become exponentials. Returns the totals with them."""
        code, build = self._code, self._code.build
        every = [code.splat(each) for each in most]
        with code.loop(code.number(0), tokens, lanes(), totals) as (token, sums):
            for query, sum_ in enumerate(sums):
                at = self._score_at(query, token)
                share = code.exp(build.fsub(code.load(self._scores, code.vector, at), every[query]))
                code.store(share, self._scores, at)
                sums[query] = build.fadd(sum_, share)
        return sums

    def _mix(self, tokens: Any, values: Any, slots: list[Any], kept: list[Any]) -> None:
        """Add each token's values times their shares to what is kept of those before."""
        code, build = self._code, self._code.build
        most = max(1, registers() * 5 // 8 // len(slots))  # vectors at a time
        for start in range(0, self._vectors, most):
            vectors = range(start, min(start + most, self._vectors))
            places = [(slot, self._in_wide(vector, self._sums)) for slot in slots for vector in vectors]
            shares = [share for share in kept for _ in vectors]
            before = [
                build.fmul(code.load(place[0], code.vector, place[1]), share)
                for place, share in zip(places, shares, strict=True)
            ]
            with code.loop(code.number(0), tokens, 1, before) as (token, sums):
                row = code.at(values, self._times(token, self._row))
                read = [code.read(self._dtype, row, code.number(vector * self._vector)) for vector in vectors]
                here = [code.load(self._scores, code.f32, self._score_at(query, token)) for query in range(len(slots))]
                sums[:] = self._added([(value, share) for share in map(code.splat, here) for value in read], sums)
            for place, sum_ in zip(places, sums, strict=True):
                code.store(sum_, *place)

    # --- afterwards

    def _end(self, row: Any, head: Any) -> None:
        """Write what the row's queries of a key head found, if this was its last span."""
        code, build = self._code, self._code.build
        left = code.at(self._left, self._times(build.add(build.mul(row, self._kv_heads), head), _NUMBER))
        before = build.atomic_rmw("sub", left, code.number(1), "acq_rel")
        with build.if_then(build.icmp_signed("==", before, code.number(1))):
            one = self._one(row)
            code.store(one.spans, left, code.number(0))  # for the next layer
            with code.loop(code.number(0), self._group, 1) as (query, _):
                number = build.add(build.mul(row, self._heads), build.add(build.mul(head, self._group), query))
                self._put_together(one, head, query, code.at(self._out, self._times(number, self._row)))

    def _put_together(self, one: OneToken, head: Any, query: Any, target: Any) -> None:
        code, build = self._code, self._code.build
        sink = code.float(_LOWEST)
        if self._sinks is not None:
            sink = code.load(self._sinks, code.f32, self._times(build.add(build.mul(head, self._group), query), 4))
        with code.loop(code.number(0), one.spans, 1, [sink]) as (place, largest):
            found = code.load(self._found(one, place, head, query), code.f32, code.number(self._most))
            largest[:] = [code.greater(found, largest[0])]
        zeros = [code.zero()] * (self._vectors + 1)
        with code.loop(code.number(0), one.spans, 1, zeros) as (place, sums):
            slot = self._found(one, place, head, query)
            most = code.load(slot, code.f32, code.number(self._most))
            share = code.exp(code.splat(build.fsub(most, largest[0])))
            parts = (code.load(slot, code.vector, self._in_wide(at, self._sums)) for at in range(len(sums)))
            sums[:] = self._added([(part, share) for part in parts], sums)
        total = code.splat(code.total(sums.pop()))  # they lie behind those of values
        if self._sinks is not None:
            total = build.fadd(total, code.exp(code.splat(build.fsub(sink, largest[0]))))
        for vector, sum_ in enumerate(sums):
            code.write(self._dtype, build.fdiv(sum_, total), target, code.number(vector * self._vector))

    def _found(self, one: OneToken, place: Any, head: Any, query: Any) -> Any:
        """The slot of a query in one of the spans that its row sees."""
        at = self._code.build.add(one.shares, self._times(place, len(RowShare._fields)))
        slots = self._slots(RowShare(*self._listed(at, RowShare)), head)
        return self._code.at(slots, self._times(query, self._slot))


def _power_of_2(most: int) -> int:
    return 1 << (most.bit_length() - 1)
