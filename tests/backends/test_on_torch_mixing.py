"""Attention of rows of one token: right against the reference, whoever does it, and however tasks are shared out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from backends.on_torch import compiled, mixing, mixing_loop, vectors
from backends.on_torch.attention import SingleRows, attend_singles, mix_plainly, single_rows, write_singles
from backends.on_torch.compiled import lanes
from backends.on_torch.mixing import Mixing, mixes
from backends.on_torch.mixing_loop import slot_numbers

CPU = torch.device("cpu")
KV_HEADS, PLACES = 2, 2100
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
WIDTHS = [width for width in (16, 8) if width <= lanes()]
ONE, TWO_SPANS, SCATTERED = [[range(3, 40)]], [[range(5, 1400)]], [[range(900, 964), range(32, 64), range(320, 333)]]
SHARED = [[range(64, 640), range(end, end + 7)] for end in (640, 736, 1504)]
MIXED = [[range(64, 128), range(512, 513)], [range(33)], [range(64, 128), range(256, 320), range(1000, 1021)]]
FIRST = [[range(7, 8)]]

compiles = pytest.mark.skipif(lanes() == 0, reason="llvmlite has no build for this system")
DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=str)


@dataclass(frozen=True, slots=True)
class Case:
    """What a step has: one-token rows that see `runs`, among three other tokens."""

    pool: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    tokens: list[int]
    runs: list[list[range]]

    @classmethod
    def of(cls, dtype: torch.dtype, group: int, width: int, runs: list[list[range]]) -> Case:
        made = torch.Generator().manual_seed(group * width)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=made).to(dtype)

        count = len(runs) + 3
        query, key, value = (random(1, count, KV_HEADS * each, width).transpose(1, 2) for each in (group, 1, 1))
        return cls(random(2, KV_HEADS, PLACES, width), query, key, value, list(range(3, count)), runs)

    @property
    def rows(self) -> SingleRows:
        return single_rows(self.tokens, self.runs, CPU, self.pool)

    @property
    def scaling(self) -> float:
        return float(self.query.shape[3] ** -0.5)

    def mixed(self, rows: SingleRows | None = None) -> Tensor:
        """`[rows, heads, width]`; changes the pool."""
        given = (rows or self.rows).mixing
        assert given is not None
        return given(self.pool, self.query, self.key, self.value, self.scaling)[0]

    def by_torch(self) -> Tensor:
        write_singles(self.rows, self.pool, self.key[0], self.value[0])
        return attend_singles(self.rows, self.pool, self.query[0], self.scaling)

    def kept(self) -> Tensor:
        """The pool as it has to be afterwards."""
        found = self.pool.clone()
        for token, runs in zip(self.tokens, self.runs, strict=True):
            found[0, :, runs[-1][-1]], found[1, :, runs[-1][-1]] = self.key[0, :, token], self.value[0, :, token]
        return found

    def wanted(self) -> Tensor:
        keys, values = self.kept().float()
        heads, width = self.query.shape[1], self.query.shape[3]
        rows = []
        for token, runs in zip(self.tokens, self.runs, strict=True):
            places = list(chain(*runs))
            asked = self.query[0, :, token].float().view(KV_HEADS, heads // KV_HEADS, width)
            rows.append(mix_plainly(asked, keys[:, places], values[:, places], self.scaling)[0].view(heads, width))
        return torch.stack(rows)


def assert_near(found: Tensor, wanted: Tensor) -> None:
    bound, largest = BOUNDS[found.dtype], float(wanted.nan_to_num(0, 0, 0).abs().max())
    torch.testing.assert_close(found.float(), wanted, rtol=bound, atol=bound * min(largest, 1), equal_nan=True)


@pytest.fixture(params=WIDTHS)
def width_of_vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a processor with such vectors."""
    for module in (compiled, mixing, mixing_loop, vectors):
        monkeypatch.setattr(module, "lanes", lambda: request.param)
    mixing.mixing_loop.cache_clear()
    yield
    mixing.mixing_loop.cache_clear()


@compiles
@DTYPES
@pytest.mark.usefixtures("width_of_vectors")
@pytest.mark.parametrize(("group", "width"), [(1, 64), pytest.param(4, 64, marks=pytest.mark.full), (7, 48), (3, 256)])
def test_the_loop_is_the_reference(dtype: torch.dtype, group: int, width: int) -> None:
    """And keeps what is new, and nothing else."""
    for runs in (FIRST, ONE, TWO_SPANS, SCATTERED, SHARED, MIXED):
        case = Case.of(dtype, group, width, runs)
        kept, wanted = case.kept(), case.wanted()
        assert_near(case.mixed(), wanted)
        assert torch.equal(case.pool, kept)


@DTYPES
@pytest.mark.parametrize("runs", [FIRST, ONE, SCATTERED, SHARED, MIXED], ids=len)
def test_without_a_loop_it_is_the_same(dtype: torch.dtype, runs: list[list[range]], monkeypatch: Any) -> None:
    monkeypatch.setattr("backends.on_torch.attention.mixes", lambda pool: False)
    case = Case.of(dtype, 4, 64, runs)
    kept, wanted = case.kept(), case.wanted()
    assert_near(case.by_torch(), wanted)
    assert torch.equal(case.pool, kept)


@compiles
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_share_the_tasks_out(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every layer again: the same numbers, however many there are and whoever ends a row's last span."""
    monkeypatch.setattr(mixing, "_SPAN", 2**10)
    monkeypatch.setattr(mixing, "_ALONE", 0)
    case = Case.of(torch.bfloat16, 4, 64, SHARED)
    before = case.mixed()
    rows = case.rows
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    own = compiled._by_own_threads
    monkeypatch.setattr(compiled, "_parallel", lambda: lambda function, job, _: own(function, job, threads))
    for _ in range(30):
        assert torch.equal(case.mixed(rows), before)


@compiles
@pytest.mark.parametrize("threads", [1, 2])
def test_torchs_threads_share_the_tasks_out(threads: int) -> None:
    case = Case.of(torch.float32, 4, 64, SHARED)
    wanted, before = case.wanted(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_near(case.mixed(), wanted)
    finally:
        torch.set_num_threads(before)


@compiles
@DTYPES
@pytest.mark.parametrize("group", [1, 3, 4])
def test_a_row_finds_the_same_beside_others(dtype: torch.dtype, group: int) -> None:
    """Whether others see other tokens or the same: not a bit changes."""
    case = Case.of(dtype, group, 64, [[range(700)], [range(700), range(800, 833)], [range(1200, 1300)]])
    together = case.mixed()
    for place in range(3):
        alone = Case(case.pool, case.query, case.key, case.value, case.tokens[place : place + 1], [case.runs[place]])
        assert torch.equal(alone.mixed()[0], together[place])


@compiles
@DTYPES
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, 1e-39], ids=str)
@pytest.mark.parametrize("where", ["query", "key", "value", "new key", "new value"])
def test_hostile_numbers_are_as_in_the_reference(dtype: torch.dtype, value: float, where: str) -> None:
    case = Case.of(dtype, 4, 64, [[range(10, 300), range(600, 640)], [range(320, 420)]])
    places = {"query": case.query[0, 1, 3], "new key": case.key[0, 1, 3], "new value": case.value[0, 1, 3]}
    places |= {"key": case.pool[0, 1, 17], "value": case.pool[1, 1, 17]}
    places[where][5] = value
    wanted = case.wanted().to(dtype).float()
    assert_near(case.mixed(), wanted)


@compiles
def test_tokens_that_cannot_be_seen_count_for_nothing() -> None:
    """Scores of -inf; where all are, there is nothing to see, which is no number."""
    case = Case.of(torch.float32, 2, 64, [[range(300), range(640, 700)], [range(320, 420)]])
    case.query[..., 0], case.key[..., 0] = 1.0, float("-inf")
    case.pool[0, :, :200, 0] = case.pool[0, :, 320:420, 0] = float("-inf")
    wanted = case.wanted()
    assert wanted[0].isfinite().all()
    assert wanted[1].isnan().all()
    assert_near(case.mixed(), wanted)


@compiles
def test_shares_are_exact() -> None:
    """Of two tokens, where one counts from as much as the other to next to nothing."""
    scores = -torch.arange(0, 86, 0.37).double()
    heads = len(scores)
    pool = torch.zeros(2, heads, 32, 16)
    pool[0, :, 0, 0], pool[1, :, 0] = scores.float(), 1.0
    rows = single_rows([0], [[range(2)]], CPU, pool)
    query, nothing = torch.zeros(1, heads, 1, 16), torch.zeros(1, heads, 1, 16)
    query[..., 0] = 1.0
    assert rows.mixing is not None
    found = rows.mixing(pool, query, nothing, nothing, 1.0)[0, 0, :, 0]
    wanted = torch.sigmoid(scores.float().double())
    assert ((found - wanted).abs() / wanted).max() < 4e-7


@pytest.mark.parametrize(
    "pool",
    [torch.zeros(2, 1, 32, 12), torch.zeros(2, 1, 32, 64, dtype=torch.float64), torch.zeros(2, 1, 32, 64).to("meta")],
    ids=["width", "dtype", "device"],
)
def test_what_it_does_not_take_is_left_to_torch(pool: Tensor) -> None:
    assert not mixes(pool)


def test_without_a_compiler_nothing_is_mixed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "lanes", lambda: 0)
    assert not mixes(torch.zeros(2, 1, 32, 64))
    assert Case.of(torch.float32, 4, 64, ONE).rows.mixing is None


@compiles
def test_what_several_rows_see_is_read_once() -> None:
    plan = Case.of(torch.float32, 4, 64, SHARED).rows.mixing
    assert plan is not None
    assert (plan.spans, plan.slots) == (2 + 3, 2 * 3 + 3)  # 576 tokens in two spans, and the ends


@compiles
def test_long_contexts_take_little_room() -> None:
    plan = Mixing.of([(range(2**20), list(range(8)))], list(range(8)), [2**20 - 1] * 8, torch.zeros(2, 1, 1, 64))
    assert plan.slots * 32 * slot_numbers(64) * 4 < 8e6
