"""Wi-Fi is told where it costs, by the planner's own figures, and a battery where it holds layers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from pydantic_core import to_json

from tests.support.checksum import make_checksum_model
from tests.support.cluster import by_hand, cluster_settings, until
from together.api.app import view_json
from together.cluster import life
from together.cluster.node import run_node
from together.cluster.survey import THIS_MACHINE, Placement, Survey
from together.cluster_types import Device, LinkKind
from together.desktop.app_status import AppStatus
from together.head import cables
from together.head.cables import cable_gain, places_of, with_cables
from together.head.head import Head
from together.jsonfile import decode_json
from together.models.summary import summarize_config
from together.planning import network
from together.planning.demand import demand_of
from together.planning.machines import Machine, problem_of
from together.planning.network import USUAL, WIRES, Way, Wire
from together.planning.problem import Assignment, Problem, Split
from together.planning.report import PlanReport
from together.planning.score import score_of
from together.planning.shapes import SHAPES
from together.sentences import NOTHING, Sentence
from together.settings import Settings
from together.types import LayerRange
from together.view import NoteKind

MODEL = "Llama-3.2-1B"
DEMAND = demand_of(MODEL, summarize_config(MODEL, SHAPES[MODEL]), None)
SIZE = int(DEMAND.state_bytes)
SPLIT = Split((Assignment("a", LayerRange(0, 8)), Assignment("b", LayerRange(8, 16))))


def two(wire: Wire | None = None, ms: float | None = None) -> Problem:
    machines = [replace(Machine.published(name, 16, 400, 20), stage_ms=0.0) for name in "ab"]
    return problem_of(machines, DEMAND, (Way("a", "b", ms, wire),), head="a")


def gain(problem: Problem, *wireless: str, split: Split = SPLIT) -> Sentence:
    return cable_gain(MODEL, problem, split, wireless, SIZE)


def test_a_cable_gives_what_the_same_plan_has_with_a_cable_s_figures() -> None:
    told = dict(gain(two(WIRES["wifi"]), "b").values)
    assert told["nodes"] == ("b",)
    assert told["now"] == score_of(two(WIRES["wifi"]), SPLIT).tokens_per_second
    assert told["then"] == pytest.approx(score_of(two(WIRES[USUAL]), SPLIT).tokens_per_second)
    assert str(gain(two(WIRES["wifi"]), "b")).startswith(
        f"b is on Wi-Fi: with a cable {MODEL} would make about {told['then']:.1f} tokens/s instead of {told['now']:.1f}"
    )
    both = str(gain(two(WIRES["wifi"]), "a", "b"))
    assert both.startswith("a and b are on Wi-Fi: with cables ")


def test_where_wifi_costs_nothing_nothing_is_told() -> None:
    slow = two(WIRES["wifi"])
    assert gain(slow) == NOTHING  # a slow cable is no Wi-Fi
    assert gain(slow, "c") == NOTHING
    assert gain(two(WIRES["10 Gbit ethernet"]), "b") == NOTHING  # a good one
    assert gain(slow, "a", split=Split((Assignment("a", LayerRange(0, 16)),))) == NOTHING  # no token travels
    hardly = replace(slow, nodes=tuple(node.slowed(100.0) for node in slow.nodes))
    assert gain(hardly, "b") == NOTHING


def test_a_way_that_cannot_be_used_stays_one() -> None:
    cut = two()
    assert [link.ms for link in with_cables(cut, ["b"], SIZE).links] == [link.ms for link in cut.links] == [None]
    assert gain(cut, "b") == NOTHING


def test_nodes_are_named_as_their_plan_names_them() -> None:
    device = Device("torch", "cpu", "", 1, 1)
    places = {name: Placement(name, device, name[0], name[0]) for name in ("a/cpu", "a/cuda", "b")}
    survey = Survey(two(), places)
    assert places_of(survey, {"a"}) == {"a/cpu", "a/cuda"}
    assert places_of(survey, {"b", THIS_MACHINE}) == {"b", THIS_MACHINE}


# --- real nodes -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def nodes_here(settings: Settings, *names: str) -> AsyncIterator[None]:
    """In this process, so that they see the machine that the test makes of it."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(run_node(replace(settings, name=name), stop=stop)) for name in names]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def test_a_head_tells_of_wifi_and_of_batteries_in_its_plan_and_its_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loopback is on Wi-Fi, and cables are much faster than it: one cannot make it slower."""
    (tmp_path / "net" / "lo" / "wireless").mkdir(parents=True)
    monkeypatch.setattr(life, "NETWORKS", tmp_path / "net")
    monkeypatch.setattr(life, "_interfaces", lambda addresses: ["lo"] if "127.0.0.1" in addresses else [])
    battery = SimpleNamespace(percent=40.0, power_plugged=False)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    monkeypatch.setattr(network, "OWN_HOP_MS", 0.0)
    monkeypatch.setitem(WIRES, USUAL, Wire(1e9, 0.0))
    monkeypatch.setattr(cables, "WORTH_TELLING", 0.0)
    cables._kind_of.cache_clear()
    toy = make_checksum_model(tmp_path / "toy")
    settings = cluster_settings(tmp_path / "home")
    async with nodes_here(settings, "anna", "berta"):
        head = Head(settings)
        await head.start()
        try:
            await until(lambda: sum(bool(node.life) for node in head.view().nodes) == 2)
            assert {node.life.link for node in head.view().nodes if node.life} == {LinkKind.WIFI}
            split = by_hand("anna=0:2,berta=2:4")
            await head.load(toy, split)
            await until(lambda: [note.kind for note in head.view().notes] == [NoteKind.BATTERY] * 2)
            (first, _) = head.view().notes
            assert str(first.text) == "anna runs on its battery, 40 % of it are left, and computes for toy; plug it in"
            report = await head.plan(None, split)
            assert isinstance(report, PlanReport)
            told = next(why for why in report.why if why.code == "cable_gain")
            assert str(told).startswith("anna and berta are on Wi-Fi: with cables toy would make about ")
            await until(lambda: [note for note in head.view().notes if note.kind is NoteKind.LINK])
            (link,) = (note for note in head.view().notes if note.kind is NoteKind.LINK)
            assert link.text.code == "cable_gain"
            assert link.node in {node.id for node in head.view().nodes}
            told_outside = decode_json(to_json(view_json(head.view())), AppStatus)  # as commands and the page hear it
            assert [note.text for note in told_outside.notes] == [str(note.text) for note in head.view().notes]
            assert {note.kind for note in told_outside.notes} == {NoteKind.BATTERY, NoteKind.LINK}
            battery.power_plugged = True
            monkeypatch.setattr(life, "BATTERY_EVERY", 0.0)
            await until(lambda: [note.kind for note in head.view().notes] == [NoteKind.LINK])
            await head.unload()
            await until(lambda: head.view().notes == ())
        finally:
            cables._kind_of.cache_clear()
            await head.stop()
