"""Models that compute on one machine at once: what each may use of it, told with every frame while that lasts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.head.test_services import NODES, ask_of, toys
from tests.support.checksum import make_checksum_model
from tests.support.cluster import GREEDY, Node, by_hand, right_answer, until
from together.engine.stats import StepTimes
from together.head.head import Head
from together.head.service import Service
from together.head.sharing import SURE, AtWork, Place, cost_of_sharing, shares_of
from together.planning.report import PlanReport
from together.planning.request import PlanRequest
from together.requests import ChatRequest, Message
from together.types import StageTiming

__all__ = ["NODES", "toys"]


def one(*processors: str, use: tuple[float, ...] = (), texts: int = 1) -> AtWork:
    return AtWork(processors, use, texts)


@pytest.mark.parametrize(
    ("own", "others", "shares"),
    [
        (one("a"), [], ()),
        (one("a"), [one("b")], ()),
        (one("a"), [one("a")], (50,)),
        (one("a"), [one("a"), one("a")], (33,)),
        (one("a", "b"), [one("b", use=(1.0,))], (100, 50)),
        (one(""), [one("")], ()),  # on devices of their own
        (one("a"), [one("a", use=(0.2,))], (80,)),  # what the other one leaves
        (one("a"), [one("a", use=(0.05,))], ()),
        (one("a"), [one("a", "b", use=(0.2, 0.9))], (80,)),
        (one("a"), [one("a", "a", use=(0.2, 0.2))], (60,)),  # both of its stages
        (one("a"), [one("a", use=(0.2, 0.9))], (50,)),  # of another ring: nothing is known yet
        (one("a"), [one("a", texts=8)], (67,)),  # somebody reads along
        (one("a", texts=8), [one("a")], (33,)),
        (one("a", texts=8), [one("a", texts=8)], (50,)),
    ],
)
def test_what_a_model_may_use(own: AtWork, others: list[AtWork], shares: tuple[int, ...]) -> None:
    assert shares_of(own, others) == shares


async def speak_on(head: Head, model: Path) -> None:
    """One long answer, until cancelled."""
    async for _ in head.chat(ChatRequest((Message("user", "hello"),), GREEDY, 400), model.name):
        pass


def frames_beside(service: Service) -> int:
    """Frames of one text alone that left while another model computed there."""
    return service.engine.times.beside.count


async def test_frames_say_it_while_another_model_computes(
    cluster: tuple[Head, list[Node]], tmp_path: Path, toys: list[Path]
) -> None:
    """Both nodes are on this machine, and so are all stages; alone a model has all, also once the other has ended."""
    head, _ = cluster
    large, small, _ = toys
    slow = make_checksum_model(tmp_path / "slow", layers=4, seed=7, step_ms=25)
    await head.load(large)
    await head.load(small, by_hand("anna=0:2,berta=2:5"), beside=True)
    await head.load(slow, beside=True)
    served, other = head.services.by_name["large"], head.services.by_name["slow"]
    assert await ask_of(head, large) == right_answer(large)
    assert (frames_beside(served), head.services.shares(served)) == (0, ())
    task = asyncio.create_task(speak_on(head, slow))
    await until(lambda: other.engine.running)
    shares = head.services.shares(served)
    assert len(shares) == len(served.places)
    assert 50 <= min(shares) < 100  # on a busy machine messages take a part of the other's time
    alone = served.engine.times.alone.count
    assert await ask_of(head, large, 60) == right_answer(large, tokens=60)
    assert served.engine.times.alone.count == alone  # what a token takes alone is not known by these
    assert frames_beside(served) > 0
    assert frames_beside(other) > 0
    task.cancel()
    await until(lambda: not other.engine.running)
    before = frames_beside(served)
    assert await ask_of(head, large) == right_answer(large)
    assert (frames_beside(served), head.services.shares(served)) == (before, ())


# --- what it costs ----------------------------------------------------------------------------------------------------

A, B, GPU = ("anna's", "cpu"), ("berta's", "cpu"), ("anna's", "cuda:0")


def times_of(alone: tuple[float, ...] = (), beside: float = 0.0) -> StepTimes:
    """Of steps that took so long in each stage, and 10 ms more; beside others so long in all."""
    times = StepTimes()
    for _ in range(SURE):
        times.alone.add(sum(alone) + 10, tuple(StageTiming(ms, 0.0) for ms in alone)) if alone else None
        times.beside.add(beside, ()) if beside else None
    return times


@pytest.mark.parametrize(
    ("places", "times", "others", "said"),
    [
        ((A, B), times_of((20.0, 20.0)), {}, ""),
        ((A, B), times_of((20.0, 20.0)), {"large": (GPU,)}, ""),
        (
            (A, B),
            StepTimes(),
            {"large": (B,)},
            "small and large share berta: while all answer, each has a part of the pro",
        ),
        (
            (A, B),
            times_of((20.0, 20.0)),
            {"large": (B,)},
            "share berta: while all answer, small makes about 14.3 tokens/s",
        ),
        (
            (A, B),
            times_of((20.0, 20.0)),
            {"x": (A, B), "y": (B,)},
            "small and x and y share anna and berta: while all a",
        ),
        ((A, B), times_of((20.0, 20.0)), {"x": (A, B), "y": (B,)}, "small makes about 9.1 tokens/s for one person"),
        ((A, B), times_of((20.0, 20.0), 80.0), {"large": (B,)}, "small makes about 12.5 tokens/s"),
    ],
)
def test_what_sharing_costs(
    places: tuple[Place, ...], times: StepTimes, others: dict[str, tuple[Place, ...]], said: str
) -> None:
    """As steps beside others took; before there were enough, a stage takes longer by those of the others there."""
    found = str(cost_of_sharing("small", ("anna", "berta"), places, times, others))
    assert said in found
    assert bool(found) == bool(said)


async def test_plan_and_view_say_what_sharing_costs(cluster: tuple[Head, list[Node]], toys: list[Path]) -> None:
    head, _ = cluster
    large, small, third = toys
    await head.load(large, by_hand("anna=0:4"))
    assert [str(model.sharing) for model in head.view().services] == [""]
    found = await head.plan(small, PlanRequest(strategy="recommend"), beside=True)
    assert isinstance(found, PlanReport)
    (said,) = (str(why) for why in found.why if "while all answer" in str(why))
    assert said.startswith("large computes on ")
    assert "too: while all answer, expect about " in said
    alone = await head.plan(third, PlanRequest(strategy="recommend"))  # in the place of the only one
    assert isinstance(alone, PlanReport)
    assert not [why for why in alone.why if "while all answer" in str(why)]
    await head.load(small, by_hand("anna=0:2,berta=2:5"), beside=True)
    large_costs, small_costs = (str(model.sharing) for model in head.view().services)
    assert "large and small share " in large_costs
    assert "small and large share " in small_costs
