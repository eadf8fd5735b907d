"""The last plan over a restart: remembered, offered, loaded again by the same split or, for other machines, anew."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.head.test_recovery import layout
from tests.support.checksum import EOS as END
from tests.support.checksum import QUIET, make_checksum_model
from tests.support.cluster import (
    Node,
    ask,
    by_hand,
    cluster_settings,
    right_answer,
    running_head,
    running_nodes,
)
from together.cluster_types import Device, Endpoint, NodeState, NodeStatus
from together.errors import NotServing, TogetherError
from together.head.head import Head
from together.head.load import FILE, VERSION, KeptRequest, LastPlan, LastPlans, LastStage, ModelLoad
from together.planning.request import PlanRequest, parse_layers
from together.types import LayerRange, ModelRef, Plan
from together.view import Serving, ServingState

REF = ModelRef("toy", "/models/toy", "f1", 4)
STAGES = tuple(
    LastStage(name[0], name, "torch", "cpu", layers)
    for name, layers in (("anna", LayerRange(0, 3)), ("berta", LayerRange(3, 4)))
)
LAST = LastPlan(VERSION, REF, "fp32", 1024, 2, KeptRequest(users=3), STAGES)


def node(name: str, device: str = "cpu") -> NodeStatus:
    devices = (Device("torch", device, "", 0, 0),)
    return NodeStatus(name[0], name, "m", Endpoint((), 0), 1, NodeState.IDLE, devices=devices)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert LastPlans.read(home).last is None
    LastPlans(home).keep(LAST)
    assert LastPlans.read(home).last == LAST
    assert [file.name for file in home.iterdir()] == [FILE]  # nothing half written beside it


@pytest.mark.parametrize("most", ["4GB", "4000000000"])
def test_a_file_of_an_earlier_version_is_read(most: str, tmp_path: Path) -> None:
    LastPlans(tmp_path).keep(LAST)
    data = json.loads((tmp_path / FILE).read_text())
    wish = {"tokens_per_second": 20.0, "prompt_tokens": 1000, "first_token_s": 1.0}
    data["request"] |= {"ratio": None, "layers": "anna=0:3,berta=3:4", "hidden_size": None, "dtype": "bf16"}
    data["request"] |= {"max_memory": most, "wish": wish}
    (tmp_path / FILE).write_text(json.dumps(data))
    last = LastPlans.read(tmp_path).last
    assert last is not None
    assert last.request.request("uniform") == PlanRequest(users=3, max_bytes=4 * 10**9)


@pytest.mark.parametrize("broken", ["", "{", "[]", "{}", "null", "\x00", "[" * 5000, '{"version": 2}', "wrong layers"])
def test_a_broken_file_is_ignored_with_a_log_line(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    LastPlans(tmp_path).keep(LAST)
    good = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(good.replace('"stop": 3', '"stop": 0') if broken == "wrong layers" else broken)
    with caplog.at_level(logging.WARNING):
        assert LastPlans.read(tmp_path).last is None
    assert "the last plan is ignored" in caplog.text
    assert str(tmp_path / FILE) in caplog.text


def test_a_home_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "home").write_text("a file, where a folder should be")
    plans = LastPlans(tmp_path / "home")
    plans.keep(LAST)
    assert plans.last == LAST
    assert "not remembered" in caplog.text


# --- what is offered --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "offer"),
    [
        (("anna", "berta"), "Last: toy on anna 0:3, berta 3:4."),
        (
            ("anna",),
            "Last: toy on anna 0:3, berta 3:4. berta is not here now, so loading it makes a new plan.",
        ),
        ((), "Last: toy on anna 0:3, berta 3:4. anna and berta are not here now, so loading it makes a new plan."),
    ],
)
def test_the_offer_says_what_differs(nodes: tuple[str, ...], offer: str) -> None:
    assert str(LastPlans(Path(), LAST).offer([Serving()], [node(name) for name in nodes])) == offer


def test_the_offer_uses_the_names_of_now() -> None:
    renamed = replace(node("anna"), name="studio")
    offer = LastPlans(Path(), LAST).offer([Serving()], [renamed, node("berta")])
    assert str(offer) == "Last: toy on studio 0:3, berta 3:4."


def test_the_offer_names_what_served_beside_it() -> None:
    others = tuple(replace(LAST, model=replace(REF, name=name, fingerprint=name)) for name in ("small", "third"))
    offer = LastPlans(Path(), replace(LAST, beside=others)).offer([], [node("anna"), node("berta")])
    assert str(offer) == "Last: toy on anna 0:3, berta 3:4. small and third served beside it, and come with it."


def test_another_device_is_another_machine() -> None:
    offer = LastPlans(Path(), LAST).offer([Serving()], [node("anna"), node("berta", "cuda:0")])
    assert "berta is not here now" in str(offer)


@pytest.mark.parametrize("state", ServingState)
def test_nothing_is_offered_while_it_serves_or_something_is_under_way(state: ServingState) -> None:
    other = Plan(replace(REF, fingerprint="f2"), (), 1, 1, "fp32")
    settled = state in (ServingState.EMPTY, ServingState.READY, ServingState.FAILED)
    plans = LastPlans(Path(), LAST)
    assert bool(plans.offer([Serving(state, "other", other)], [])) == settled
    assert not plans.offer([Serving(state, "other", other), Serving(state, "toy", replace(other, model=REF))], [])
    assert not LastPlans(Path()).offer([Serving(state)], [])


# --- how it is asked for again ----------------------------------------------------------------------------------------


def test_the_same_machines_get_the_same_layers_whatever_they_are_called_now() -> None:
    places = {("a", "torch", "cpu"): "studio", ("b", "torch", "cpu"): "berta", ("c", "torch", "cpu"): "carla"}
    assert LAST.again(places) == PlanRequest(
        "custom", users=2, context=1024, assignments=parse_layers("studio=0:3,berta=3:4")
    )
    del places[("b", "torch", "cpu")]
    assert LAST.again(places) is None


@pytest.mark.parametrize(
    ("asked", "anew"),
    [
        (PlanRequest(users=3), PlanRequest(users=3)),
        (PlanRequest("memory", max_bytes=4 * 10**9), PlanRequest("memory", max_bytes=4 * 10**9)),
        (
            PlanRequest("custom", assignments=parse_layers("anna=0:3,berta=3:4"), context=64),
            PlanRequest("uniform", context=64),
        ),
        (PlanRequest("ratio", ratio=(3, 1)), PlanRequest("uniform")),
    ],
)
def test_for_other_machines_a_split_by_hand_becomes_the_usual_one(asked: PlanRequest, anew: PlanRequest) -> None:
    assert KeptRequest.of(asked).request("uniform") == anew


def test_the_very_files_are_loaded_while_they_are_there_else_the_hubs(tmp_path: Path) -> None:
    hub = replace(LAST, model=ModelRef("org/name", str(tmp_path), "f", 4, "abc"))
    assert hub.place == "org/name"
    (tmp_path / "config.json").write_text("{}")
    assert hub.place == str(tmp_path)
    assert LAST.place == "/models/toy"  # a folder that is gone is an error that names it


def test_the_last_plan_keeps_its_dtype_and_its_name() -> None:
    wanted = ModelLoad.again(replace(LAST, dtype="bf16"), "uniform")
    assert (wanted.name, wanted.dtype, wanted.request) == ("toy", "bf16", PlanRequest(users=3))
    memory = PlanRequest("memory", users=3)
    assert wanted.otherwise(PlanRequest("memory")) == ModelLoad("/models/toy", memory, "bf16")


# --- real heads -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def restarted(head: Head, *nodes: Node) -> AsyncIterator[Head]:
    """Another head of the same home, as after a restart."""
    async with running_head(head.settings, *nodes) as again:
        yield again


async def test_a_restarted_head_offers_the_last_plan_and_loads_it(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy", quiet_ids=(*QUIET, END))
    settings = cluster_settings(tmp_path / "home")
    with running_nodes(settings, "anna", "berta") as nodes:
        async with running_head(settings, *nodes) as head:
            with pytest.raises(NotServing, match="no model was loaded here before"):
                await head.load_last()
            await head.load(toy, by_hand("berta=0:3,anna=3:4"))
            before = layout(head)
        async with restarted(head, *nodes) as again:
            assert str(again.view().offer) == "Last: toy on berta 0:3, anna 3:4."
            with pytest.raises(TogetherError):
                await again.load_demo()  # the toy's backend does not run it; nor is it what was applied last
            assert str(again.view().offer).startswith("Last: toy")
            await again.load_last()
            assert not again.view().offer
            assert layout(again) == before
            assert await ask(again) == right_answer(toy)
            await again.unload()
            assert str(again.view().offer).startswith("Last: toy")
        nodes[1].stop()
        async with restarted(head, nodes[0]) as alone:
            assert str(alone.view().offer).endswith(". berta is not here now, so loading it makes a new plan.")
            await alone.load_last()
            assert layout(alone) == {"anna": [LayerRange(0, 4)]}
            assert await ask(alone) == right_answer(toy)


async def test_all_that_served_is_offered_and_loaded_again(tmp_path: Path) -> None:
    """In its order, kept as it was; what was unloaded before does not come."""
    toys = [
        make_checksum_model(tmp_path / name, seed=i, quiet_ids=(*QUIET, END)) for i, name in enumerate(("a", "b", "c"))
    ]
    settings = cluster_settings(tmp_path / "home")
    with running_nodes(settings, "anna", "berta") as nodes:
        async with running_head(settings, *nodes) as head:
            await head.load(toys[0], by_hand("berta=0:3,anna=3:4"))
            await head.load(toys[1], by_hand("anna=0:4"), beside=True, keep=True)
            await head.load(toys[2], beside=True)
            await head.unload("c")
            assert not head.view().offer
            before = {name: service.loader.plan for name, service in head.services.by_name.items()}
        async with restarted(head, *nodes) as again:
            assert str(again.view().offer) == "Last: a on berta 0:3, anna 3:4. b served beside it, and comes with it."
            await again.load_last()
            assert {name: service.loader.plan for name, service in again.services.by_name.items()} == before
            assert [(each.serving.model, each.keep) for each in again.view().services] == [("a", False), ("b", True)]
            assert not again.view().offer
        (toys[1] / "config.json").unlink()
        async with restarted(head, *nodes) as third:
            with pytest.raises(TogetherError):
                await third.load_last()
            assert list(third.services.by_name) == ["a"]
        async with restarted(head, *nodes) as fourth:
            assert str(fourth.view().offer).endswith("b served beside it, and comes with it.")


@pytest.mark.full
async def test_a_last_plan_that_does_not_fit_any_more_is_made_anew(tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy", quiet_ids=(*QUIET, END), num_key_value_heads=2**12)
    settings = cluster_settings(tmp_path / "home")
    with running_nodes(settings, "anna", "berta") as nodes:
        async with running_head(settings, *nodes) as head:
            await head.load(toy, by_hand("anna=0:3,berta=3:4"))
        for each in nodes:
            each.stop()
    small = replace(settings, memory="100MB")  # room for two layers on each
    with running_nodes(small, "anna", "berta") as nodes:
        async with running_head(small, *nodes) as again:
            await again.load_last()
            assert sorted(len(ranges[0]) for ranges in layout(again).values()) == [2, 2]
            assert await ask(again) == right_answer(toy)
