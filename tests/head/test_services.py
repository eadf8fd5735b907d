"""Several models behind one head: each is loaded, answers, changes, mends and goes without the others' noticing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.checksum import EOS as END
from tests.support.checksum import QUIET, make_checksum_model
from tests.support.cluster import (
    GREEDY,
    Node,
    by_hand,
    cluster_settings,
    fresh_head,
    right_answer,
    running_cluster,
    running_head,
    running_node,
    until,
)
from together.cluster.loading import Placed
from together.cluster_types import NodeStatus
from together.errors import BadRequest, BadSetting, NoRoom, NotEnoughMemory, NotServing
from together.head.head import Head
from together.head.leaving import if_stopped, stop_node
from together.head.service import Service
from together.planning.request import PlanRequest
from together.requests import ChatRequest, Message
from together.settings import Settings
from together.types import LayerRange, Plan
from together.view import Serving, ServingState

NODES = ("anna", "berta")
ENDLESS = (*QUIET, END)
LONG = 120  # tokens


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models with other weights and other numbers of layers."""
    root = tmp_path_factory.mktemp("toys")
    names = ("large", "small", "third")
    return [
        make_checksum_model(root / name, layers=4 + i, seed=i, quiet_ids=ENDLESS, step_ms=1)
        for i, name in enumerate(names)
    ]


async def ask_of(head: Head, model: Path | str, tokens: int = 12, text: str = "hello") -> str:
    name = model.name if isinstance(model, Path) else model
    request = ChatRequest((Message("user", text),), GREEDY, tokens)
    return "".join([piece.text async for piece in head.chat(request, name)])


async def always_right(head: Head, model: Path) -> None:
    """One answer after another, until cancelled."""
    expected = right_answer(model, tokens=LONG)
    while True:
        assert await ask_of(head, model, LONG) == expected


def shown(head: Head) -> dict[str, ServingState]:
    return {model.serving.model: model.serving.state for model in head.view().services}


@pytest.mark.full  # tests/api/test_models.py asks by names
async def test_each_answers_by_its_name(cluster: tuple[Head, list[Node]], toys: list[Path]) -> None:
    head, nodes = cluster
    large, small, third = toys
    await head.load(large)
    await head.load(small, by_hand("anna=0:2,berta=2:5"), beside=True)
    assert shown(head) == {"large": ServingState.READY, "small": ServingState.READY}
    assert head.view().serving.model == "large"  # what older programs read
    texts = await asyncio.gather(*(ask_of(head, toy, LONG) for toy in (large, small) for _ in range(3)))
    assert texts == [right_answer(toy, tokens=LONG) for toy in (large, small) for _ in range(3)]
    with pytest.raises(BadRequest, match="several models serve here: large and small; name one of them"):
        await ask_of(head, "")
    with pytest.raises(BadSetting, match="large and small serve here; to load third as well, add --beside"):
        await head.load(third)
    with pytest.raises(BadSetting, match="no model other is loaded here; loaded are: large, small"):
        await head.unload("other")
    assert shown(head) == {"large": ServingState.READY, "small": ServingState.READY}
    await head.unload("small")
    assert [len(node.stages()) for node in nodes] == [1, 1]
    assert await ask_of(head, "") == right_answer(large)  # the only one again


async def test_an_answer_of_one_goes_on_while_others_come_change_and_go(
    cluster: tuple[Head, list[Node]], toys: list[Path]
) -> None:
    head, nodes = cluster
    large, small, third = toys
    await head.load(large, by_hand("anna=0:2,berta=2:4"))
    answering = asyncio.create_task(always_right(head, large))
    service = head.ready()
    await head.load(small, beside=True)
    await head.load(third, by_hand("anna=0:6"), beside=True)
    await head.load("third", by_hand("anna=0:3,berta=3:6"))  # by its name: another split of it
    changed = head.ready("third").serving.plan
    assert changed is not None
    assert [stage.layers for stage in changed.stages] == [LayerRange(0, 3), LayerRange(3, 6)]
    assert await ask_of(head, third) == right_answer(third)
    await head.unload("small")
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert service.loader.epoch == 0  # it was never joined again
    await head.unload("third")
    assert [len(node.stages()) for node in nodes] == [1, 1]


async def test_what_fails_beside_others_leaves_them_and_nothing_else(
    cluster: tuple[Head, list[Node]], toys: list[Path], tmp_path: Path
) -> None:
    head, nodes = cluster
    huge = make_checksum_model(tmp_path / "huge", num_key_value_heads=2**18)
    await head.load(toys[0])
    with pytest.raises(NotEnoughMemory, match="the model does not fit"):
        await head.load(huge, beside=True)
    slow = make_checksum_model(tmp_path / "slow", load_ms=60_000)
    loading = asyncio.create_task(head.load(slow, beside=True))
    await until(lambda: shown(head).get("slow") is ServingState.LOADING and len(nodes[0].stages()) == 2)
    with pytest.raises(NotServing, match=r"slow is being loaded.*try again in a moment"):
        await ask_of(head, slow)
    with pytest.raises(BadSetting, match="more than one model is loaded here"):
        await head.unload()
    await head.unload("slow")
    with pytest.raises(NotServing, match="loading slow was given up"):
        await loading
    assert shown(head) == {"large": ServingState.READY}
    assert await ask_of(head, "") == right_answer(toys[0])
    await until(lambda: [len(node.stages()) for node in nodes] == [1, 1])


@pytest.mark.full
async def test_a_killed_node_mends_both_rings(tmp_path: Path, toys: list[Path]) -> None:
    large, small, _ = toys
    async with running_cluster(tmp_path / "home", "anna", "berta", "carla") as (head, nodes):
        await head.load(large, by_hand("anna=0:2,berta=2:4"))
        await head.load(small, by_hand("berta=0:2,anna=2:5"), beside=True)
        asking = [asyncio.create_task(ask_of(head, toy, 400)) for toy in (large, small)]
        await until(lambda: all(each.engine.running for each in head.services.by_name.values()))
        nodes[1].kill()
        assert await asyncio.gather(*asking) == [right_answer(toy, tokens=400) for toy in (large, small)]
        await until(lambda: set(shown(head).values()) == {ServingState.READY})
        held = sorted(len(s.layers) for node in head.machines.membership.living() for s in node.stages)
        assert sum(held) == 4 + 5


async def test_a_load_given_up_while_it_ends_another_leaves_no_request_open(
    cluster: tuple[Head, list[Node]], toys: list[Path]
) -> None:
    head, nodes = cluster
    large, small, _ = toys
    await head.load(large)
    service = head.ready()
    asking = asyncio.create_task(ask_of(head, large, 3000))
    await until(lambda: service.engine.running)
    loading = asyncio.create_task(head.load(small))
    while "large" in head.services.by_name:  # noqa: ASYNC110  # the very moment in which it is taken
        await asyncio.sleep(0)
    await head.unload("small")
    with pytest.raises(NotServing, match="loading small was given up"):
        await loading
    with pytest.raises(NotServing, match="unloaded"):
        await asking
    await until(lambda: not any(node.stages() for node in nodes))


async def test_an_unload_by_name_gives_up_no_load_of_another_model(
    tmp_path: Path, shared: tuple[Settings, list[Node]]
) -> None:
    first = make_checksum_model(tmp_path / "toy", quiet_ids=ENDLESS)
    other = make_checksum_model(tmp_path / "home/models/org/toy", seed=1, quiet_ids=ENDLESS, load_ms=1500)
    async with fresh_head(tmp_path / "home", *shared) as head:
        await head.load(first)
        loading = asyncio.create_task(head.load("org/toy", beside=True))
        await until(lambda: head.services.starting)
        await head.unload("toy")
        assert await loading == "org/toy"
        assert await ask_of(head, "org/toy") == right_answer(other)


async def test_another_model_of_the_same_name_does_not_end_the_first(
    cluster: tuple[Head, list[Node]], tmp_path: Path
) -> None:
    head, _ = cluster
    one, other = (make_checksum_model(tmp_path / name / "toy", seed=i) for i, name in enumerate("ab"))
    await head.load(one)
    service = head.ready()
    with pytest.raises(BadSetting, match=r"another toy serves here, from .*; unload it first, or rename the folder"):
        await head.load(other, beside=True)
    assert head.ready("toy") is service
    await head.load(one, by_hand("anna=0:2,berta=2:4"), beside=True)  # the same: another split of it
    await head.load(other)  # in its place


async def test_what_fell_and_comes_back_is_shown_once(cluster: tuple[Head, list[Node]], toys: list[Path]) -> None:
    head, _ = cluster
    large, small, _ = toys
    await head.load(small)
    head.services.fallen["large"] = Serving(ServingState.FAILED, "large")
    loading = asyncio.create_task(head.load(large, beside=True))
    await until(lambda: head.services.starting)
    assert [each.serving.model for each in head.view().services] == ["small", "large"]
    await loading
    assert [each.serving.model for each in head.view().services] == ["small", "large"]


async def test_a_node_is_drained_of_all_models_or_of_none(tmp_path: Path) -> None:
    big = make_checksum_model(tmp_path / "big", quiet_ids=ENDLESS, num_key_value_heads=17_500)
    small = make_checksum_model(tmp_path / "small", seed=1, quiet_ids=ENDLESS)
    settings = cluster_settings(tmp_path / "home")
    memory = {"anna": "450MB", "berta": "140MB"}
    with ExitStack() as stack:
        nodes = [stack.enter_context(running_node(replace(settings, name=n, memory=m))) for n, m in memory.items()]
        async with running_head(settings, *nodes) as head:
            await head.load(small, by_hand("anna=0:4"))
            await head.load(big, by_hand("anna=0:4"), beside=True)
            plans = [service.loader.plan for service in head.services.by_name.values()]
            with pytest.raises(NotEnoughMemory):
                await head.drain("anna")
            assert [service.loader.plan for service in head.services.by_name.values()] == plans
            assert not head.machines.surveyor.drained


@pytest.mark.parametrize(("other", "moves"), [("140MB", True), ("30MB", False)])
async def test_what_would_have_to_go_may_be_moved_instead(tmp_path: Path, other: str, moves: bool) -> None:
    """The advice is a command that is true: by it the new one has room."""
    one = make_checksum_model(tmp_path / "one", quiet_ids=ENDLESS, num_key_value_heads=2_700)
    big = make_checksum_model(tmp_path / "big", layers=2, seed=1, quiet_ids=ENDLESS, num_key_value_heads=20_000)
    settings = cluster_settings(tmp_path / "home")
    memory, two = {"anna": "400MB", "berta": other}, PlanRequest(strategy="uniform", users=2)
    with ExitStack() as stack:
        nodes = [stack.enter_context(running_node(replace(settings, name=n, memory=m))) for n, m in memory.items()]
        async with running_head(settings, *nodes) as head:
            await head.load(one, by_hand("anna=0:4"))
            with pytest.raises(NoRoom) as refused:
                await head.load(big, two, beside=True)
            assert "unload one, which has 0.1 GB: python3 launch.py unload one" in str(refused.value)
            advice = "or move one: python3 launch.py load one --layers berta=0:4"
            assert (advice in str(refused.value)) == moves
            assert refused.value.goers == ("one",)
            if moves:
                await head.load("one", by_hand("berta=0:4"))
                await head.load(big, two, beside=True)
                assert shown(head) == {"one": ServingState.READY, "big": ServingState.READY}


async def test_rings_that_are_mended_at_once_plan_with_other_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would have halves of theirs on the small node, where one has room: nothing is ordered twice."""
    toys = [
        make_checksum_model(tmp_path / name, seed=i, quiet_ids=ENDLESS, num_key_value_heads=2_700)
        for i, name in enumerate(("one", "two"))
    ]
    settings = cluster_settings(tmp_path / "home")
    memory = {"anna": "450MB", "berta": "250MB", "carla": "60MB"}
    placed: list[str] = []
    place = Service.place

    async def noted(service: Service, plan: Plan) -> Placed:
        placed.append(service.name)
        return await place(service, plan)

    monkeypatch.setattr(Service, "place", noted)
    with ExitStack() as stack:
        nodes = [stack.enter_context(running_node(replace(settings, name=n, memory=m))) for n, m in memory.items()]
        async with running_head(settings, *nodes) as head:
            for toy in toys:
                await head.load(toy, by_hand("anna=0:4"), beside=True)
            nodes[0].kill()
            await until(lambda: set(shown(head).values()) == {ServingState.RECOVERING})
            await until(lambda: set(shown(head).values()) == {ServingState.READY})
            assert sorted(placed) == ["one", "two"]
            texts = await asyncio.gather(*(ask_of(head, toy) for toy in toys))
            assert texts == [right_answer(toy) for toy in toys]


@asynccontextmanager
async def head_beside_berta(folder: Path) -> AsyncIterator[tuple[Head, NodeStatus]]:
    """A head with a node of its own, which has room, beside berta, which has little."""
    settings = cluster_settings(folder / "home", memory="450MB")
    with running_node(replace(settings, name="berta", memory="140MB")) as node:
        head = Head(settings, (node.endpoint,), local_nodes=1)
        await head.start()
        try:
            await until(lambda: len(head.view().nodes) == 2)
            yield head, next(each for each in head.view().nodes if each.owner == head.id)
        finally:
            await head.stop()


async def test_two_models_that_fit_alone_elsewhere_but_not_both_stay(tmp_path: Path) -> None:
    """Neither moves, and what stopping the node would mean is true of both together."""
    toys = [
        make_checksum_model(tmp_path / name, seed=i, quiet_ids=ENDLESS, num_key_value_heads=2_700)
        for i, name in enumerate(("one", "two"))
    ]
    async with head_beside_berta(tmp_path) as (head, own):
        for toy in toys:
            await head.load(toy, by_hand(f"{own.name}=0:4"), beside=True)
        services = list(head.services.by_name.values())
        sizes = [stage.memory_bytes for service in services for stage in service.loader.plan.stages]
        assert max(sizes) < 140e6 < sum(sizes)
        meant = str(await if_stopped(head, own.id))
        assert "they move to berta" in meant
        assert "no other machine has room" in meant
        with pytest.raises(NotEnoughMemory):
            await head.drain(own.name)
        assert [service.loader.plan.stages[0].node for service in services] == [own.id, own.id]


async def test_a_node_that_is_stopped_gives_away_what_has_room(tmp_path: Path) -> None:
    """The first model has none elsewhere; the second moves nevertheless."""
    big = make_checksum_model(tmp_path / "big", quiet_ids=ENDLESS, num_key_value_heads=17_500)
    small = make_checksum_model(tmp_path / "small", seed=1, quiet_ids=ENDLESS)
    async with head_beside_berta(tmp_path) as (head, own):
        await head.load(big, by_hand(f"{own.name}=0:4"))
        await head.load(small, by_hand(f"{own.name}=0:4"), beside=True)
        await stop_node(head, own.id)
        assert head.ready("small").loader.plan.stages[0].node != own.id  # before its ring broke
        assert await ask_of(head, small) == right_answer(small)
        await until(lambda: shown(head)["big"] is not ServingState.READY)
