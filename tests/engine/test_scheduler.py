"""Every policy of the scheduler, each by a few frames answered by hand. Knows no ring."""

from __future__ import annotations

import pytest

from tests.support.frames import EOS, answered, next_frame, request, rows, scheduler, start_decoding, step
from together.engine.scheduler import ATTEMPTS, HEADROOM, Scheduler
from together.engine.sequence import Sequence, TokenEvent
from together.errors import ContextTooLong, QueueFull, RingBroken
from together.types import Batch, Failure, Frame

# --- frames -----------------------------------------------------------------------------------------------------------


def test_nothing_to_do_is_no_frame() -> None:
    assert scheduler().schedule() is None


def test_a_prompt_samples_at_its_last_token() -> None:
    found = scheduler()
    found.submit(request(5))
    (row,) = next_frame(found).batch.rows
    assert (row.position, row.token_ids) == (0, (1, 2, 3, 4, 5))
    assert row.sample is not None
    assert (row.sample.offsets, row.sample.prompt_length) == ((4,), 5)


def test_a_decode_row_carries_the_sampled_token() -> None:
    found = scheduler()
    found.submit(request(5))
    step(found, token=42)
    (row,) = next_frame(found).batch.rows
    assert (row.position, row.token_ids) == (5, (42,))
    assert row.sample is not None
    assert (row.sample.offsets, row.sample.prompt_length) == ((0,), 5)


def test_steps_and_ids_rise() -> None:
    found = scheduler()
    start_decoding(found, 3)
    found.submit(request(4))
    frame = next_frame(found)
    assert frame.step == 2
    assert [row.sequence for row in frame.batch.rows] == [1, 2]


def test_a_long_prompt_goes_in_chunks_and_only_the_last_samples() -> None:
    found = scheduler(stages=4, chunk=10)
    found.submit(request(25))
    frames = [next_frame(found) for _ in range(3)]
    assert [rows(frame) for frame in frames] == [[(1, 0, 10, False)], [(1, 10, 10, False)], [(1, 20, 5, True)]]


def test_an_outstanding_sample_keeps_the_sequence_out() -> None:
    found = scheduler()
    found.submit(request(5))
    next_frame(found)
    assert found.schedule() is None


def test_at_most_stages_and_one_frames_are_in_flight() -> None:
    found = scheduler(stages=2, chunk=10)
    found.submit(request(100))
    frames = [next_frame(found) for _ in range(3)]
    assert found.schedule() is None
    found.commit(answered(frames[0]))
    assert rows(next_frame(found)) == [(1, 30, 10, False)]
    assert found.unanswered == 3


def test_decode_goes_first_and_a_prompt_gets_the_rest_of_the_chunk() -> None:
    found = scheduler(chunk=10)
    start_decoding(found, 3, 3)
    found.submit(request(50))
    assert rows(next_frame(found)) == [(1, 3, 1, True), (2, 3, 1, True), (3, 0, 8, False)]


def test_several_short_prompts_share_a_frame() -> None:
    found = scheduler(chunk=10)
    for _ in range(3):
        found.submit(request(4))
    assert rows(next_frame(found)) == [(1, 0, 4, True), (2, 0, 4, True), (3, 0, 2, False)]


def test_one_lane_all_decode_rows_travel_together() -> None:
    found = scheduler()
    start_decoding(found, 3)
    decode = next_frame(found)
    late = found.submit(request(4))
    assert found.schedule() is None  # the newcomer's prompt joins the lane instead of delaying it
    found.commit(answered(decode))
    both = next_frame(found)
    assert rows(both) == [(1, 4, 1, True), (2, 0, 4, True)]
    found.commit(answered(both))
    assert late.decoding
    assert sorted(row.sequence for row in next_frame(found).batch.rows) == [1, 2]


def test_too_many_decode_rows_take_turns() -> None:
    found = scheduler(chunk=2)
    start_decoding(found, 2, 2, 2)
    seen = []
    for _ in range(3):
        frame = next_frame(found)
        seen += [row.sequence for row in frame.batch.rows]
        found.commit(answered(frame))
    assert sorted(seen) == [1, 1, 2, 2, 3, 3]


def test_a_prompt_of_one_token_is_a_prompt() -> None:
    found = scheduler()
    found.submit(request(1))
    assert rows(next_frame(found)) == [(1, 0, 1, True)]


# --- admission --------------------------------------------------------------------------------------------------------


def test_a_sequence_enters_when_prompt_and_headroom_fit() -> None:
    found = scheduler(capacity=HEADROOM + 64, block=16)
    found.submit(request(32))
    found.submit(request(33))  # 32 are held; 33 + 256 are 19 blocks of 16: 304, and 32 + 304 is more than 320
    next_frame(found)
    assert (len(found.running), len(found.waiting)) == (1, 1)


def test_fewer_max_tokens_need_less_room() -> None:
    found = scheduler(capacity=HEADROOM + 64, block=16)
    found.submit(request(32))
    found.submit(request(33, max_tokens=10))
    next_frame(found)
    assert (len(found.running), len(found.waiting)) == (2, 0)


def test_nobody_overtakes_a_sequence_that_waits_for_room() -> None:
    found = scheduler(capacity=320, block=16, context=320)
    found.submit(request(200, max_tokens=50))
    large = found.submit(request(200, max_tokens=50))
    found.submit(request(2, max_tokens=2))
    next_frame(found)
    assert found.waiting[0] is large
    assert len(found.waiting) == 2


def test_a_sequence_that_fits_alone_always_enters() -> None:
    found = scheduler(capacity=64, block=16, context=2048)
    found.submit(request(60, max_tokens=None))
    assert rows(next_frame(found)) == [(1, 0, 60, True)]


def test_the_queue_is_bounded() -> None:
    found = scheduler(max_waiting=2)
    found.submit(request(3))
    found.submit(request(3))
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        found.submit(request(3))
    next_frame(found)
    found.submit(request(3))  # those two have entered


@pytest.mark.parametrize(("capacity", "context"), [(4096, 50), (63, 1000)])
def test_a_prompt_without_room_for_an_answer_is_refused(capacity: int, context: int) -> None:
    found = scheduler(capacity=capacity, context=context, block=16)
    longest = found.limits.longest
    found.submit(request(longest - 1))
    with pytest.raises(ContextTooLong) as caught:
        found.submit(request(longest))
    assert (caught.value.tokens, caught.value.context) == (longest, min(context, 48 if capacity == 63 else capacity))


# --- room -------------------------------------------------------------------------------------------------------------


def crowded() -> tuple[Scheduler, Sequence, Sequence]:
    """Two sequences that fit when they enter and no longer after about a hundred tokens each."""
    found = scheduler(capacity=320, block=16, context=320, chunk=320)
    oldest, newest = start_decoding(found, 100, 10, max_tokens=190)
    return found, oldest, newest


def test_the_newest_is_set_back_when_space_runs_out() -> None:
    found, oldest, newest = crowded()
    while not found.waiting:
        frame = next_frame(found)
        found.commit(answered(frame))
    assert (found.waiting, list(found.running.values())) == ([newest], [oldest])
    assert frame.batch.orders.drops == (2,)  # before the row that needs its room
    assert [row.sequence for row in frame.batch.rows] == [1]
    assert 200 < len(oldest.tokens) + len(newest.tokens) <= 320


def test_a_sequence_set_back_goes_on_where_it_was() -> None:
    found, oldest, newest = crowded()
    while not found.waiting:
        step(found)
    known = list(newest.tokens)
    while newest in found.waiting:
        frame = next_frame(found)
        found.commit(answered(frame))
    assert len(oldest.tokens) == 290  # it finished undisturbed
    assert frame.batch.rows[-1].token_ids == tuple(known)
    assert newest.tokens == [*known, 7]


def test_a_set_back_sequence_enters_before_those_that_came_later() -> None:
    found = scheduler()
    first, second = start_decoding(found, 5, 5)
    later = found.submit(request(5))
    found._preempt(second)
    found._preempt(first)
    assert found.waiting == [first, second, later]


def test_late_answers_of_a_set_back_sequence_are_ignored() -> None:
    found = scheduler()
    (sequence,) = start_decoding(found, 5)
    frame = next_frame(found)
    found._preempt(sequence)
    assert found.commit(answered(frame, token=1)) == ()
    assert sequence.tokens == [1, 2, 3, 4, 5, 7]
    assert rows(next_frame(found)) == [(2, 0, 6, True)]


def test_capacity_counts_whole_blocks() -> None:
    found = scheduler(capacity=64, block=16, context=64)
    found.submit(request(17, max_tokens=1))
    found.submit(request(17, max_tokens=1))
    found.submit(request(1, max_tokens=1))
    next_frame(found)
    assert len(found.running) == 2  # 32 + 32, though only 36 tokens are known


# --- the end of a sequence --------------------------------------------------------------------------------------------


def test_max_tokens_ends_by_length() -> None:
    found = scheduler()
    found.submit(request(3, max_tokens=2))
    assert [(event.token_ids, event.finish) for event in step(found)] == [((7,), None)]
    assert [(event.token_ids, event.finish) for event in step(found)] == [((7,), "length")]
    assert not found.running


def test_the_context_ends_by_length() -> None:
    found = scheduler(context=6)
    found.submit(request(4, max_tokens=None))
    assert [step(found)[0].finish, step(found)[0].finish] == [None, "length"]


def test_eos_stops_and_is_not_shown() -> None:
    found = scheduler()
    found.submit(request(3))
    (event,) = step(found, token=EOS)
    assert (event.token_ids, event.finish) == ((), "stop")
    assert not found.running


def test_ignore_eos_goes_on() -> None:
    found = scheduler()
    found.submit(request(3, ignore_eos=True))
    (event,) = step(found, token=EOS)
    assert (event.token_ids, event.finish) == ((EOS,), None)


def test_a_finished_sequence_is_dropped_alone_when_nothing_else_travels() -> None:
    found = scheduler()
    found.submit(request(3, max_tokens=1))
    step(found)
    frame = next_frame(found)
    assert (frame.batch.rows, frame.batch.orders.drops) == ((), (1,))
    assert found.commit(answered(frame)) == ()
    assert found.schedule() is None


def test_drops_ride_beside_rows() -> None:
    found = scheduler()
    start_decoding(found, 3, 3)
    found.cancel(found.running[1])
    frame = next_frame(found)
    assert ([row.sequence for row in frame.batch.rows], frame.batch.orders.drops) == ([2], (1,))


def test_cancelling_in_flight_ignores_the_answer() -> None:
    found = scheduler()
    (sequence,) = start_decoding(found, 3)
    frame = next_frame(found)
    found.cancel(sequence)
    assert found.commit(answered(frame)) == ()
    assert next_frame(found).batch.orders.drops == (1,)


def test_cancelling_while_waiting_leaves_no_trace() -> None:
    found = scheduler()
    sequence = found.submit(request(3))
    found.cancel(sequence)
    found.cancel(sequence)
    assert found.schedule() is None
    assert not found.waiting


# --- refusals, failures, epochs ---------------------------------------------------------------------------------------


def test_a_refused_sequence_starts_again_under_a_new_id() -> None:
    found = scheduler()
    start_decoding(found, 3, 3)
    frame = next_frame(found)
    (event,) = found.commit(answered(frame, refuse=(1,)))
    assert event.sequence.id == 2
    frame = next_frame(found)
    assert rows(frame) == [(2, 4, 1, True), (3, 0, 4, True)]
    assert frame.batch.orders.drops == (1,)


def test_refused_chunks_that_follow_are_ignored() -> None:
    found = scheduler(chunk=10)
    sequence = found.submit(request(25))
    frames = [next_frame(found) for _ in range(3)]
    for frame in frames:
        assert found.commit(answered(frame, refuse=(1,))) == ()
    assert sequence.attempts == 1


def test_refused_for_ever_is_an_error_of_that_request_alone() -> None:
    found = scheduler()
    victim, other = start_decoding(found, 3, 3)
    events: tuple[TokenEvent, ...] = ()
    for _ in range(ATTEMPTS + 1):
        events = found.commit(answered(next_frame(found), refuse=(victim.id,)))
    (error,) = [event for event in events if event.error is not None]
    assert error.sequence is victim
    assert "cache full" in str(error.error)
    assert list(found.running.values()) == [other]


def test_a_token_in_between_forgives_refusals() -> None:
    found = scheduler()
    (sequence,) = start_decoding(found, 3)
    for _ in range(2 * ATTEMPTS):
        assert found.commit(answered(next_frame(found), refuse=(sequence.id,))) == ()
        assert [event.error for event in step(found)] == [None]


def test_a_failure_names_node_and_cause() -> None:
    found = scheduler()
    found.submit(request(3))
    frame = next_frame(found)
    with pytest.raises(RingBroken, match="node studio: stage 1 failed \\(out of memory\\)") as caught:
        found.commit(Frame(frame.step, frame.batch, failure=Failure("studio", 1, "out of memory")))
    assert (caught.value.node, caught.value.cause) == ("studio", "out of memory")


def test_a_failure_of_a_frame_that_could_not_be_read_names_node_and_cause() -> None:
    found = scheduler()
    found.submit(request(3))
    next_frame(found)
    with pytest.raises(RingBroken, match="node studio: stage 1 failed \\(not a valid Frame\\)"):
        found.commit(Frame(0, Batch(), failure=Failure("studio", 1, "not a valid Frame")))


@pytest.mark.parametrize("skipped", [1, -1])
def test_an_answer_out_of_order_breaks_the_ring(skipped: int) -> None:
    found = scheduler()
    found.submit(request(3))
    frame = next_frame(found)
    with pytest.raises(RingBroken, match="while 1 was due"):
        found.commit(Frame(frame.step + skipped, frame.batch))


def test_an_answer_without_a_result_breaks_the_ring() -> None:
    found = scheduler()
    found.submit(request(3))
    frame = next_frame(found)
    with pytest.raises(RingBroken, match="no result for sequence 1"):
        found.commit(Frame(frame.step, frame.batch))


def test_replay_starts_every_live_sequence_again_in_order() -> None:
    found = scheduler(chunk=8)
    start_decoding(found, 3, 3)
    found.submit(request(20))
    next_frame(found)
    found.replay()
    assert found.unanswered == 0
    frame = next_frame(found)
    assert frame.batch.orders.drops == (1, 2, 3)
    assert rows(frame) == [(4, 0, 4, True), (5, 0, 4, True)]
    assert frame.batch.rows[0].token_ids == (1, 2, 3, 7)
    found.commit(answered(frame))
    assert [sequence.tokens[-2:] for sequence in found.running.values()][:2] == [[7, 7], [7, 7]]
