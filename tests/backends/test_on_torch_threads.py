"""How many threads steps get: what follows from a trial's times, that it is made once, and that steps obey."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.base import Shard
from backends.measuring import LIFE
from backends.on_torch import trial
from backends.on_torch.threads import FEW, PROMPT, StepThreads, ThreadTimes, confirmed, counts_to, recalled_times
from tests.backends.conftest import Checkpoints
from tests.support.chain import Chain, load_shard, new_sequence, row
from tests.support.families import BY_NAME, LAYERS, prompt_ids
from together.models.spec import read_spec
from together.ring import wire
from together.ring.links import Arrival
from together.ring.stage import StepRunner
from together.types import HEAD, Batch, Fault, Frame, LayerRange, StreamKey, Threads

QUIET_TIMES = ThreadTimes((1, 2), (1.0, 2.0), (1.0, 0.6), 0.0, 0.0)  # threads cost a token and serve a prompt


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# --- what follows from times ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "sharing", "count"),
    [
        ((1.0, 1.2, 3.0), 1, 1),  # a small model: each thread more costs
        ((1.0, 0.95, 0.93), 1, 1),  # not worth the others' time
        ((1.0, 0.6, 0.4), 1, 4),
        ((1.0, 0.6, 0.58), 1, 2),
        ((1.0, 0.95, 0.5), 1, 4),  # two are not worth it, four are
        ((1.0, 0.8, 0.7), 2, 2),  # two stages with two threads each have room, with four they do not
        ((1.0, 0.6, 0.4), 2, 4),  # a large model: worth it also where stages take one another's processors
        ((1.0, 0.87, 0.86), 4, 1),
    ],
)
def test_more_threads_must_be_worth_it(seconds: tuple[float, ...], sharing: int, count: int) -> None:
    """And more so where the stages of a ring share the processor."""
    slow = (1.0, 1.5, 2.0)
    assert ThreadTimes((1, 2, 4), seconds, slow, 0.0, 0.0).best(sharing) == Threads(count, 1)
    assert ThreadTimes((1, 2, 4), slow, seconds, 0.0, 0.0).best(sharing) == Threads(1, count)


@pytest.mark.parametrize(("most", "counts"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_what_is_tried(most: int, counts: tuple[int, ...]) -> None:
    assert counts_to(most) == counts


# --- a trial ----------------------------------------------------------------------------------------------------------


class Clock:
    """Says the times of turns, by number of threads, and the last one of each again and again."""

    def __init__(self, times: dict[int, list[float]]) -> None:
        self.times, self.asked = times, list[int]()

    def __call__(self, count: int) -> float:
        self.asked.append(count)
        times = self.times[count]
        return times.pop(0) if len(times) > 1 else times[0]


def test_a_busy_moment_does_not_choose_more_threads() -> None:
    """Here it hits every turn of one thread in the first trial."""
    clock = Clock({1: [9.0] * 3 + [1.0], 2: [8.0, 3.0, 3.0]})
    assert confirmed(clock, (1, 2)) == (1.0, 3.0)


def test_what_is_far_slower_gets_two_turns() -> None:
    clock = Clock({1: [1.0], 2: [5.0], 4: [3.0]})
    assert confirmed(clock, (1, 2, 4)) == (1.0, 5.0, 3.0)
    assert clock.asked == [1, 1, 2, 4, 1, 2, 4]  # one turn warms up


def kept_file(home: Path) -> Path:
    (file,) = (home / "kernels").glob("threads-*.json")
    return file


def test_what_a_trial_found_is_kept(tmp_path: Path) -> None:
    trials: list[str] = []

    def measure() -> ThreadTimes:
        trials.append("tried")
        return QUIET_TIMES

    for shape, count in (("small", 1), ("small", 1), ("large", 2), ("small", 2)):
        assert recalled_times(tmp_path, shape, measure) == QUIET_TIMES
        assert len(trials) == count
    spoils: list[dict[str, Any]] = [{"build": "older"}, {"times": 3}, {"times": {"small": {"counts": []}}}]
    for spoil in spoils:
        file = kept_file(tmp_path)
        file.write_text(json.dumps(json.loads(file.read_text()) | spoil))
        assert recalled_times(tmp_path, "small", measure) == QUIET_TIMES
    assert len(trials) == 5


def test_what_a_busy_machine_found_is_believed_for_a_while(tmp_path: Path) -> None:
    for age, count in ((0.0, 1), (LIFE / 2, 1), (2 * LIFE, 2)):
        trials: list[str] = []

        def measure(age: float = age, trials: list[str] = trials) -> ThreadTimes:
            trials.append("tried")
            return ThreadTimes((1,), (1.0,), (1.0,), 0.9, time.time() - age)

        home = tmp_path / str(age)
        recalled_times(home, "small", measure)
        recalled_times(home, "small", measure)
        assert len(trials) == count


def test_a_prompt_that_gains_nothing_from_threads_is_tried_again_later() -> None:
    """A busy moment that nobody saw: on a quiet machine it gains, but for the smallest models."""
    old = time.time() - 2 * LIFE
    assert ThreadTimes((1, 2), (1.0, 2.0), (2.0, 1.0), 0.0, old).lasts
    assert not ThreadTimes((1, 2), (1.0, 2.0), (2.0, 1.9), 0.0, old).lasts
    assert ThreadTimes((1, 2), (1.0, 2.0), (2.0, 1.9), 0.0, old + 2 * LIFE).lasts


def test_steps_get_what_was_chosen(two_threads: None, tmp_path: Path) -> None:
    given: list[tuple[int, int]] = []

    def step(tokens: int) -> None:
        given.append((tokens, torch.get_num_threads()))

    threads = StepThreads("a shape", lambda: step, tmp_path)
    assert threads.chosen == Threads(2, 2)
    threads.choose(1)
    assert set(given) == {(1, 1), (1, 2), (PROMPT, 1), (PROMPT, 2)}
    for few, many in ((1, 2), (2, 1)):
        threads.chosen = Threads(few, many)
        for tokens, count in ((1, few), (FEW, few), (FEW + 1, many)):
            threads.use(tokens)
            assert torch.get_num_threads() == count
    given.clear()
    for sharing in (1, 2):  # what a new plan asks is known: nothing is tried again
        threads.choose(sharing)
    assert given == []


@pytest.mark.parametrize(
    ("most", "percent", "count"),
    [(2, 100, 2), (2, 50, 1), (2, 80, 2), (2, 33, 1), (3, 50, 1), (4, 67, 3), (8, 50, 4), (16, 33, 5), (1, 50, 1)],
)
def test_a_part_of_the_processors_is_so_many_threads(most: int, percent: int, count: int) -> None:
    """Two halves of three are one each: with more threads than processors both would wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(most)
    threads = StepThreads("a shape", lambda: lambda tokens: None)
    for part, expected in ((percent, count), (100, most)):
        threads.limit(part)
        threads.use(1)
        assert torch.get_num_threads() == expected
    torch.set_num_threads(before)


def test_where_there_is_one_thread_nothing_is_tried() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def fail() -> Any:
        raise AssertionError("it was tried")

    assert StepThreads("a shape", fail).choose(1) == Threads(1, 1)
    torch.set_num_threads(before)


# --- of a loaded shard ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shares", "count"), [((), 2), ((50,), 1), ((100, 50), 2), ((0,), 1), ((5000,), 2)])
def test_a_frame_says_what_its_stages_may_use(
    two_threads: None, checkpoint: Checkpoints, shares: tuple[int, ...], count: int
) -> None:
    """And goes on with what those behind may."""
    shard = load_shard(checkpoint("llama"), "torch", LayerRange(0, 1))
    runner = StepRunner(shard, LAYERS, "anna", lambda error: Fault.OTHER)
    frame = Frame(1, Batch((row(new_sequence(), 0, [1, 2], at="none"),)), shares=shares)
    answer = runner(Arrival(StreamKey("ring", 0, HEAD), wire.FRAME.encode(frame), 0.0), 0.0)
    assert torch.get_num_threads() == count
    found = wire.FRAME.decode(answer)
    assert (found.failure, found.shares) == (None, shares)
    shard.close()


def keep(home: Path, times: ThreadTimes) -> None:
    """Replace what was found for every shape."""
    file = kept_file(home)
    kept = json.loads(file.read_text())
    fields = {"counts": times.counts, "few": times.few, "many": times.many, "busy": times.busy, "at": times.at}
    file.write_text(json.dumps(kept | {"times": dict.fromkeys(kept["times"], fields)}))


SHORT = ("qwen3_moe",)
LONG = [pytest.param(name, marks=pytest.mark.full) for name in BY_NAME if name not in SHORT]


@pytest.mark.parametrize("name", [*SHORT, *LONG])
def test_every_family_is_tried_with_its_own_layers(
    two_threads: None, checkpoint: Checkpoints, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial leaves nothing in the caches, and a second load tries nothing."""
    folder, made = checkpoint(name), list[int]()
    original, joined = trial.trial_step, read_spec(folder).joined
    cut = next(layer for layer in range(1, BY_NAME[name].layers) if layer not in joined)
    last = LayerRange(cut, BY_NAME[name].layers)

    def spy(*arguments: Any, **settings: Any) -> Any:
        made.append(1)
        return original(*arguments, **settings)

    monkeypatch.setattr(trial, "trial_step", spy)
    for layers, count in ((LayerRange(0, cut), 1), (last, 2), (last, 2)):
        shard = load_shard(folder, "torch", layers)
        chosen = shard.share(1)
        assert chosen is not None
        assert {chosen.few, chosen.many} <= {1, 2}
        assert shard.sequences == 0
        keep(folder.parent, QUIET_TIMES)
        assert len(made) <= count
        shard.close()
    assert kept_file(folder.parent).is_file()


def test_a_shard_computes_the_same_with_any_number_of_threads(two_threads: None, checkpoint: Checkpoints) -> None:
    folder, prompt = checkpoint("llama"), prompt_ids(40)
    shard = load_shard(folder, "torch", LayerRange(0, LAYERS))
    shard.share(1)
    found = []
    others = ThreadTimes((1, 2), (2, 1), (1, 2), 0, time.time())
    for times, chosen in ((QUIET_TIMES, Threads(1, 2)), (others, Threads(2, 1))):
        keep(folder.parent, times)
        assert shard.share(1) == chosen
        found.append(_answer(shard, prompt))
        assert torch.get_num_threads() == chosen.few  # the last step was a token's
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def _answer(shard: Shard, prompt: Sequence[int]) -> torch.Tensor:
    """The logits of a prompt and of a token after it."""
    chain, sequence = Chain([shard]), new_sequence()
    logits = [chain.logits(row(sequence, 0, prompt[:-1])), chain.logits(row(sequence, len(prompt) - 1, prompt[-1:]))]
    return torch.cat([torch.as_tensor(each) for each in logits])
