"""What tokens take against the plan: shown after the first answers, with a reason where the two are far apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.cluster.test_strain import SPINS, programs
from tests.head.test_balance import hinder
from tests.head.test_recovery import stage_of
from tests.support.checksum import EOS as END
from tests.support.checksum import QUIET, make_checksum_model
from tests.support.cluster import ask, by_hand, running_cluster
from tests.support.patience import PATIENCE
from together.cluster_types import Endpoint, NodeState, NodeStatus, Strain
from together.engine.stats import DecodeTimes
from together.head.head import Head
from together.head.pace import Surroundings, pace_of, surroundings_of
from together.planning.request import PlanRequest
from together.planning.score import Score, StageCost
from together.types import LayerRange, ModelRef, Plan, StagePlan, StageTiming
from together.view import PaceCause, TokenPace

HERE, THERE = "this", "that"  # machines
SCORE = Score((StageCost(10.0, 0, 1.0), StageCost(20.0, 0, 1.0)), ring_ms=2.0, hops=2, users=1, busiest_ms=20.0)
ANNA, BERTA = Surroundings("anna", HERE), Surroundings("berta", THERE)


def busy(place: Surroundings, others: float = 0.4) -> Surroundings:
    return replace(place, others=others)


def paging(place: Surroundings) -> Surroundings:
    return replace(place, paged=2e7)


def times_of(first: float, second: float, links: float) -> DecodeTimes:
    times = DecodeTimes(8)
    times.add(first + second + links, (StageTiming(first, 0.0), StageTiming(second, 0.0)))
    return times


@pytest.mark.parametrize(
    ("taken", "places", "cause", "node"),
    [
        ((11.0, 22.0, 3.0), (ANNA, BERTA), PaceCause.NONE, ""),
        ((12.0, 25.0, 5.0), (ANNA, busy(BERTA)), PaceCause.NONE, ""),
        ((4.0, 10.0, 1.0), (ANNA, BERTA), PaceCause.FASTER, ""),
        ((10.0, 60.0, 2.0), (busy(ANNA), BERTA), PaceCause.UNKNOWN, "berta"),
        ((10.0, 60.0, 2.0), (ANNA, busy(BERTA)), PaceCause.BUSY, "berta"),
        ((50.0, 20.0, 2.0), (paging(busy(ANNA)), BERTA), PaceCause.PAGING, "anna"),
        ((10.0, 20.0, 40.0), (ANNA, BERTA), PaceCause.LINKS, ""),
        ((10.0, 20.0, 40.0), (ANNA, busy(BERTA)), PaceCause.LINKS, ""),
        ((10.0, 20.0, 40.0), (ANNA, busy(BERTA, 0.9)), PaceCause.BUSY, "berta"),
        ((10.0, 20.0, 40.0), (ANNA, busy(replace(BERTA, machine=HERE))), PaceCause.BUSY, "berta"),
        ((10.0, 20.0, 40.0), (ANNA, replace(BERTA, machine=HERE)), PaceCause.LINKS, ""),
    ],
)
def test_the_cause_is_where_the_time_is_lost(
    taken: tuple[float, float, float], places: tuple[Surroundings, ...], cause: PaceCause, node: str
) -> None:
    pace = pace_of(times_of(*taken), SCORE, places, HERE)
    assert (pace.cause, pace.node) == (cause, node)
    assert (pace.measured_ms, pace.expected_ms) == (sum(taken), 32.0)
    assert f"measured: {sum(taken):.1f} ms per token" in str(pace.text)
    assert "expected: 32.0 ms" in str(pace.text)


def test_what_a_stage_does_for_a_message_is_time_of_the_links() -> None:
    """Stages say what they compute: 9 and 18 ms of what the plan has as 10 and 20."""
    stages = (StageCost(10.0, 0, 1.0, message_ms=1.0), StageCost(20.0, 0, 1.0, message_ms=2.0))
    score = replace(SCORE, stages=stages, head_ms=3.0)
    places = (ANNA, replace(BERTA, machine=HERE))
    planned = pace_of(times_of(9.0, 18.0, 8.0), score, places, HERE)
    assert (planned.measured_ms, planned.expected_ms, planned.cause) == (35.0, 35.0, PaceCause.NONE)
    slow = pace_of(times_of(9.0, 30.0, 19.0), score, places, HERE)
    assert slow.cause is PaceCause.UNKNOWN  # 12 ms above the plan on berta, 11 on the links
    links = pace_of(times_of(9.0, 30.0, 21.0), score, places, HERE)
    assert links.cause is PaceCause.LINKS
    assert "the messages between the app and its stages take 21.0 ms instead of 8.0 ms" in str(links.text)


@pytest.mark.parametrize(
    ("cause", "taken", "places"),
    [
        ("other programs use 40% of the processors of berta; close them", (10.0, 60.0, 2.0), busy(BERTA)),
        ("berta lacks memory and reads 20.0 MB per second back from its disk", (10, 60, 2), paging(BERTA)),
        ("the messages between the app and berta take 40.0 ms instead of 2.0 ms; use a cable", (10, 20, 40), BERTA),
        ("on that machine run: python3 launch.py doctor", (10.0, 60.0, 2.0), BERTA),
        ("the messages between the app and its stages take 40.0", (10, 20, 40), replace(BERTA, machine=HERE)),
    ],
)
def test_a_sentence_says_what_to_do(cause: str, taken: tuple[float, float, float], places: Surroundings) -> None:
    assert cause in str(pace_of(times_of(*taken), SCORE, (ANNA, places), HERE).text)
    assert "times slower: " in str(pace_of(times_of(*taken), SCORE, (ANNA, places), HERE).text)


def test_without_an_estimate_of_the_same_stages_only_the_measurement_is_shown() -> None:
    times = times_of(10.0, 60.0, 5.0)
    for score, places in ((None, (ANNA, BERTA)), (SCORE, (ANNA,)), (replace(SCORE, stages=()), (ANNA, BERTA))):
        pace = pace_of(times, score, places, HERE)
        assert (pace.expected_ms, pace.cause) == (0.0, PaceCause.NONE)
        assert str(pace.text) == "measured: 75.0 ms per token, 13.3 tokens/s for one person alone"


def test_the_work_of_all_our_nodes_on_a_machine_is_no_other_program_s() -> None:
    def node(name: str, machine: str, strain: Strain | None) -> NodeStatus:
        return NodeStatus(name, name, machine, Endpoint((), 1), 2, NodeState.READY, strain=strain)

    nodes = (node("a", HERE, Strain(0.9, 0.3)), node("b", HERE, Strain(0.85, 0.25)), node("c", THERE, None))
    stages = tuple(StagePlan(name, "torch", "cpu", LayerRange(i, i + 1), 0) for i, name in enumerate("abc"))
    plan = Plan(ModelRef("m", "", "", 3), stages, 128, 1, "fp32")
    found = surroundings_of(nodes, plan, HERE, own=0.1)
    assert [round(place.others, 2) for place in found] == [0.25, 0.25, 0.0]
    assert surroundings_of(nodes[:2], plan, HERE, own=0.0) == ()


# --- a real ring ------------------------------------------------------------------------------------------------------


async def pace_when(head: Head, true: Callable[[TokenPace], bool]) -> TokenPace:
    """Ask one question after the other until the view's pace is so."""
    async with asyncio.timeout(PATIENCE):
        while (pace := head.view().pace) is None or not true(pace):
            await ask(head, "work", 25)
    return pace


def far_apart(pace: TokenPace) -> bool:
    return not 2 / 3 <= pace.measured_ms / pace.expected_ms <= 4 / 3


async def test_a_ring_s_pace_is_measured(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy", quiet_ids=(*QUIET, END), step_ms=2)
    async with running_cluster(tmp_path / "home", "anna", "berta") as (head, _):
        await head.load(toy, PlanRequest(users=4, context=256))
        assert head.view().pace is None
        usual = await pace_when(head, lambda pace: True)
        assert min(usual.expected_ms, usual.measured_ms) > 8.0  # four layers that sleep
        assert far_apart(usual) == (usual.cause is not PaceCause.NONE)
        await head.load(toy, by_hand("0:1,1:4"))
        assert head.view().pace is None  # what was measured was another plan's


@pytest.mark.full  # every core is busy for half a minute; the causes alone are above
async def test_a_ring_s_pace_is_explained(tmp_path: Path) -> None:
    toy = make_checksum_model(
        tmp_path / "toy", layers=12, quiet_ids=(*QUIET, END), step_ms=2, num_key_value_heads=2**12
    )
    async with running_cluster(tmp_path / "home", "anna", "berta", memory="420MB") as (head, _):
        await head.load(toy, PlanRequest(users=4, context=256))
        usual = await pace_when(head, lambda pace: True)
        assert min(usual.expected_ms, usual.measured_ms) > 24.0  # twelve layers that sleep
        hindering = asyncio.create_task(hinder(psutil.Process(stage_of(head, "berta").pid)))
        slow = await pace_when(head, lambda pace: pace.cause in (PaceCause.UNKNOWN, PaceCause.BUSY))
        assert slow.node in ("anna", "berta")
        with programs(SPINS, count=2 * (psutil.cpu_count() or 1)):
            disturbed = await pace_when(head, lambda pace: pace.cause is PaceCause.BUSY)
        assert "other programs use " in str(disturbed.text)
        hindering.cancel()
        await asyncio.gather(hindering, return_exceptions=True)


async def test_a_plan_that_was_only_asked_for_says_what_to_expect(tmp_path: Path) -> None:
    """One machine needs no measurement to be planned for, so nothing is expected until a person asks."""
    toy = make_checksum_model(tmp_path / "toy", quiet_ids=(*QUIET, END), step_ms=2)
    async with running_cluster(tmp_path / "home", "anna") as (head, _):
        await head.load(toy, by_hand("0:4"))
        assert (await pace_when(head, lambda pace: True)).expected_ms == 0.0
        await head.plan(None, PlanRequest())
        assert (await pace_when(head, lambda pace: pace.expected_ms > 0)).expected_ms > 8.0


@pytest.mark.full  # the first one is above
async def test_another_plan_s_pace_is_known_as_soon_as_the_first_one_s(tmp_path: Path) -> None:
    """However many tokens the plan before it made."""
    toy = make_checksum_model(tmp_path / "toy", quiet_ids=(*QUIET, END))
    async with running_cluster(tmp_path / "home", "anna", "berta") as (head, _):
        for split, questions in (("0:1,1:4", 8), ("0:3,3:4", 2)):
            await head.load(toy, by_hand(split))
            for _ in range(questions):
                await ask(head, "work", 25)
            assert head.service is not None
            head.service.look_at_pace()
            assert head.view().pace is not None, split
