"""Prefix reuse: who begins with whose caches, what it costs, and who gives way. Frames answered by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.frames import answered, next_frame, request, rows, run, scheduler, start_decoding, step
from together.engine.prefixes import common
from together.engine.scheduler import Scheduler
from together.engine.sequence import WORTH, Sequence
from together.requests import GenerateRequest
from together.types import Fork, Orders, Sampling


def had(found: Scheduler, length: int, answer: int = 5, start: int = 1) -> Sequence:
    """A conversation that is over and cached."""
    sequence = found.submit(request(length, answer, start))
    run(found)
    assert not found.running
    return sequence


def follow_up(sequence: Sequence, more: int = 4, max_tokens: int = 5) -> GenerateRequest:
    return GenerateRequest((*sequence.tokens, *range(500, 500 + more)), Sampling(0.0), max_tokens)


# --- beginning with others' tokens ------------------------------------------------------------------------------------


def test_the_next_turn_goes_on_in_the_same_caches() -> None:
    found = scheduler()
    first = had(found, 30)
    second = found.submit(follow_up(first))
    frame = next_frame(found)
    assert rows(frame) == [(1, 34, 5, True)]  # the last token of the answer was never sent, and four are new
    assert frame.batch.orders == Orders()
    assert second.reused == found.counters.reused_tokens == 34


def test_another_question_to_the_same_system_prompt_begins_with_a_copy() -> None:
    found = scheduler()
    had(found, 60)
    found.submit(GenerateRequest((*range(1, 41), 700, 701), Sampling(0.0), 5))
    frame = next_frame(found)
    assert frame.batch.orders.forks == (Fork(1, 2, 40),)
    assert rows(frame) == [(2, 40, 2, True)]
    assert list(found.prefixes.held) == [1]


def test_the_same_prompt_again_computes_its_last_token() -> None:
    found = scheduler()
    first = had(found, 40, answer=1)
    again = found.submit(first.request)
    assert rows(next_frame(found)) == [(1, 39, 1, True)]
    assert again.reused == 39


def test_little_in_common_is_not_worth_a_copy() -> None:
    found = scheduler()
    had(found, 60)
    found.submit(GenerateRequest((*range(1, WORTH), 700, 701), Sampling(0.0), 5))
    assert rows(next_frame(found)) == [(2, 0, WORTH + 1, True)]


def test_a_running_sequence_gives_a_copy_of_what_it_has() -> None:
    found = scheduler()
    start_decoding(found, 50)
    found.submit(request(45, start=1))
    frame = next_frame(found)
    assert frame.batch.orders.forks == (Fork(1, 2, 44),)
    assert rows(frame) == [(1, 50, 1, True), (2, 44, 1, True)]


def test_who_comes_while_the_same_prompt_is_computed_waits_for_it() -> None:
    found = scheduler(chunk=20)
    found.submit(request(60, 5))
    second = found.submit(GenerateRequest((*range(1, 51), 700), Sampling(0.0), 5))
    frames = [next_frame(found) for _ in range(3)]
    assert [rows(frame) for frame in frames] == [[(1, 0, 20, False)], [(1, 20, 20, False)], [(1, 40, 20, True)]]
    assert second.waits_for == 50
    found.commit(answered(frames[0]))
    frame = next_frame(found)
    assert frame.batch.orders.forks == (Fork(1, 2, 50),)
    assert rows(frame) == [(2, 50, 1, True)]


def test_who_waits_begins_alone_when_the_other_is_set_back() -> None:
    found = scheduler(chunk=20)
    first = found.submit(request(60, 5))
    second = found.submit(request(60, 5))
    found.commit(answered(next_frame(found)))
    assert second.waits_for == 59
    found._preempt(first)
    found.waiting.clear()
    assert rows(next_frame(found)) == [(2, 0, 20, False)]
    assert (second.waits_for, second.reused) == (0, 0)


def test_who_waits_takes_what_a_cancelled_one_left() -> None:
    found = scheduler(chunk=20)
    first = found.submit(request(60, 5))
    found.submit(request(60, 5))
    found.commit(answered(next_frame(found)))
    found.cancel(first)
    frame = next_frame(found)
    assert frame.batch.orders.forks == (Fork(1, 2, 20),)
    assert rows(frame) == [(2, 20, 20, False)]


def test_a_stopped_answer_is_cached() -> None:
    found = scheduler()
    (sequence,) = start_decoding(found, 30)
    for _ in range(4):
        step(found)
    found.cancel(sequence)
    found.submit(follow_up(sequence))
    assert rows(next_frame(found))[0][:2] == (1, 34)


def test_late_answers_to_the_former_owner_are_not_the_new_ones() -> None:
    found = scheduler()
    (sequence,) = start_decoding(found, 30)
    frame = next_frame(found)
    found.cancel(sequence)
    heir = found.submit(GenerateRequest((*sequence.tokens, 500, 501), Sampling(0.0), 5))
    late = next_frame(found)
    assert [row.sequence for row in late.batch.rows] == [1]
    assert found.commit(answered(frame, token=3)) == ()
    assert found.commit(answered(late, token=4))[0].sequence is heir
    assert heir.tokens[-2:] == [501, 4]


# --- sliding windows --------------------------------------------------------------------------------------------------


def test_windows_allow_to_go_back_only_so_far() -> None:
    found = scheduler(rewind=20, block=1)
    had(found, 60, answer=1)
    found.submit(GenerateRequest((*range(1, 41), 700), Sampling(0.0), 5))
    assert rows(next_frame(found)) == [(2, 40, 1, True)]  # 60 − 20
    run(found)
    found.submit(GenerateRequest((*range(1, 40), 701), Sampling(0.0), 5))
    assert rows(next_frame(found)) == [(3, 0, 40, True)]  # too far for the source, and so for its copy


def test_a_copy_can_go_back_no_further_than_its_source() -> None:
    found = scheduler(rewind=20, block=1)
    had(found, 100, answer=1)
    found.submit(GenerateRequest((*range(1, 82), 700), Sampling(0.0), 1))
    run(found)
    assert [prefix.rewind_floor for prefix in found.prefixes.held.values()] == [80, 80]


# --- room -------------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_prefix_goes_first_and_before_any_sequence() -> None:
    found = scheduler(capacity=320, context=320)
    oldest, older = had(found, 100, 1), had(found, 100, 1, start=1001)
    found.submit(follow_up(oldest, max_tokens=1))
    run(found)  # used again: now the other one is the oldest
    found.submit(request(150, 5, start=2001))
    frame = next_frame(found)
    assert frame.batch.orders.drops == (older.id,)
    assert list(found.prefixes.held) == [oldest.id]
    assert found.counters.preempted == 0


def test_without_room_for_a_copy_the_prefix_itself_is_used() -> None:
    found = scheduler(capacity=320, context=320)
    had(found, 200, answer=1)
    found.submit(GenerateRequest((*range(1, 151), *range(700, 740)), Sampling(0.0), 5))
    frame = next_frame(found)
    assert frame.batch.orders.forks == ()
    assert rows(frame) == [(1, 150, 40, True)]
    assert not found.prefixes.held


def test_a_copy_waits_until_the_stages_have_room_for_it() -> None:
    """They fork before they drop, so what is dropped for a copy has to be dropped a frame earlier."""
    found = scheduler(capacity=320, context=320)
    had(found, 96, 1)
    had(found, 200, 1, start=1001)
    found.submit(GenerateRequest((*range(1, 65), *range(700, 790)), Sampling(0.0), 5))
    first, second = next_frame(found), next_frame(found)
    assert (first.batch.rows, first.batch.orders.drops, first.batch.orders.forks) == ((), (2,), ())
    assert second.batch.orders.forks == (Fork(1, 3, 64),)
    assert rows(second) == [(3, 64, 64, False)]


def test_dropping_the_cache_frees_all_prefixes_and_no_sequence() -> None:
    found = scheduler()
    had(found, 40)
    had(found, 40, start=1001)
    start_decoding(found, 3)
    found.prefixes.clear()
    assert next_frame(found).batch.orders.drops == (1, 2)
    assert len(found.running) == 1
    assert not found.prefixes.held


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_a_copy_that_a_stage_could_not_make_is_computed_and_its_source_given_up() -> None:
    found = scheduler()
    had(found, 60)
    found.submit(GenerateRequest((*range(1, 41), 700, 701), Sampling(0.0), 5))
    assert found.commit(answered(next_frame(found), refuse=(2,))) == ()
    frame = next_frame(found)
    assert frame.batch.orders.drops == (1, 2)
    assert rows(frame) == [(3, 0, 42, True)]


def test_a_new_epoch_trusts_no_prefix_and_repeats_the_drops_that_were_lost() -> None:
    found = scheduler()
    had(found, 60)
    found.prefixes.clear()
    assert next_frame(found).batch.orders.drops == (1,)
    had_again = found.submit(request(60, 5))
    found.replay()
    frame = next_frame(found)
    assert frame.batch.orders.drops == (1,)
    assert rows(frame) == [(had_again.id, 0, 60, True)]


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40))
def test_common_is_what_a_loop_finds(first: list[int], second: list[int]) -> None:
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    assert common(first, second) == count
    assert common([*first, 5, *second], [*first, 6]) == len(first)


@pytest.mark.parametrize(("shares", "at_once"), [(True, 8), (False, 2)])
def test_choices_of_one_prompt_run_at_once_where_stages_share_blocks(shares: bool, at_once: int) -> None:
    """Where forks are copies, as many as there is room for."""
    found = scheduler(capacity=1024, context=512, chunk=512, shares=shares)
    prompt = tuple(range(1, 401))
    asked = [found.submit(GenerateRequest(prompt, Sampling(0.0, seed=seed), 20)) for seed in range(8)]
    most = 0
    while (frame := found.schedule()) is not None:
        found.commit(answered(frame))
        most = max(most, len(found.running))
    assert most == at_once
    assert all(len(sequence.tokens) == 420 for sequence in asked)
    assert found.counters.preempted == 0
    assert found.counters.prefilled_tokens < (450 if shares else 500)


def test_what_runs_beside_a_shared_prefix_does_not_push_it_out() -> None:
    """Three people with one long beginning: their prefixes stay in room for two."""
    found = scheduler(capacity=640, context=512, chunk=512, shares=True)
    for person in range(3):
        found.submit(GenerateRequest((*range(1, 257), *range(1000 * person, 1000 * person + 40)), Sampling(0.0), 4))
        run(found)
    assert len(found.prefixes.held) == 3
    assert found.books.held([]) == 3 * 48 + 256


# --- a machine of the ring needs its memory ---------------------------------------------------------------------------


def test_prefixes_go_and_none_is_kept_while_memory_is_needed() -> None:
    found = scheduler()
    had(found, 60)
    found.prefixes.be_lean(True)
    frame = next_frame(found)
    assert (rows(frame), frame.batch.orders) == ([], Orders(drops=(1,), trim=True))
    found.commit(answered(frame))
    assert found.schedule() is None  # it is said once
    had(found, 60, start=100)
    assert not found.prefixes.held
    assert found.books.held_now == 0
    found.prefixes.be_lean(False)
    had(found, 60, start=200)
    assert list(found.prefixes.held) == [3]
    assert not found.prefixes.take_orders().trim


def test_freed_memory_is_given_back_though_nothing_is_cached() -> None:
    """What a stage freed before may still be its own."""
    found = scheduler()
    found.prefixes.be_lean(True)
    assert next_frame(found).batch.orders == Orders(trim=True)


def test_a_running_answer_goes_on_while_memory_is_needed() -> None:
    found = scheduler()
    (sequence,) = start_decoding(found, 50, max_tokens=20)
    found.prefixes.be_lean(True)
    run(found)
    assert not found.running
    assert sequence.attempts == found.counters.preempted == 0


def test_a_new_epoch_says_again_that_memory_is_needed() -> None:
    found = scheduler()
    found.prefixes.be_lean(True)
    next_frame(found)
    found.replay()
    assert next_frame(found).batch.orders.trim
