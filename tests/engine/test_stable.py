"""Copies that are kept where a next turn begins, on rings whose caches cannot go back."""

from __future__ import annotations

from tests.support.frames import EOS, run
from together.engine.scheduler import Scheduler
from together.requests import GenerateRequest
from together.types import Limits, Sampling

PROMPT = tuple(range(1, 101))
STABLE = 90


def scheduler(capacity: int = 4096, per_sequence: int = 0) -> Scheduler:
    limits = Limits(2, capacity, 16, 2048, 64, rewind=0, per_sequence=per_sequence)
    return Scheduler(limits, frozenset((EOS,)), 100)


def asked(start: int = 0, max_tokens: int = 5) -> GenerateRequest:
    prompt = tuple(start + token for token in PROMPT)
    return GenerateRequest(prompt, Sampling(0.0), max_tokens, ignore_eos=True, stable=STABLE)


def copies(found: Scheduler) -> list[list[int]]:
    return [prefix.tokens for prefix in found.prefixes.held.values() if len(prefix.tokens) == STABLE]


def test_a_chunk_ends_where_the_copy_is_made_and_the_copy_comes_before_the_next_row() -> None:
    found = scheduler()
    found.submit(asked())
    frames = run(found)
    sizes = [(row.position, len(row.token_ids)) for frame in frames for row in frame.batch.rows][:3]
    assert sizes == [(0, 64), (64, 26), (90, 10)]
    (fork,) = [fork for frame in frames for fork in frame.batch.orders.forks]
    assert fork.length == STABLE
    assert frames[2].batch.orders.forks == (fork,)


def test_choices_of_one_prompt_keep_one_copy() -> None:
    found = scheduler()
    for _ in range(4):
        found.submit(asked())
    run(found)
    assert copies(found) == [list(PROMPT[:STABLE])]


def test_the_copy_goes_after_the_answer_that_nobody_begins_with() -> None:
    """Where thoughts are dropped, the next turn has the copy's tokens and not the answer's."""
    found = scheduler()
    found.submit(asked())
    run(found)
    assert [len(prefix.tokens) for prefix in found.prefixes.held.values()] == [len(PROMPT) + 4, STABLE]
    found.prefixes.evict()
    assert copies(found) == [list(PROMPT[:STABLE])]


def test_what_never_fits_costs_no_other_prefix() -> None:
    """Two sequences and their states take all; the copy's would not fit even if all prefixes went."""
    found = scheduler(capacity=16 * 54, per_sequence=16 * 20)
    found.submit(GenerateRequest(tuple(range(1, 101)), Sampling(0.0), 5, ignore_eos=True, stable=STABLE))
    found.submit(GenerateRequest(tuple(range(501, 601)), Sampling(0.0), 5, ignore_eos=True, stable=STABLE))
    run(found)
    assert not copies(found)
    assert found.counters.preempted == 0
