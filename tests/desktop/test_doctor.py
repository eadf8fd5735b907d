"""The doctor: what it decides of given facts, how it finds them, and the command on a real machine and app."""

from __future__ import annotations

import io
import json
import os
import socket
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support.checksum import make_checksum_model
from tests.support.cluster import cluster_settings
from tests.support.patience import PATIENCE
from together.cluster.claims import NodeHere, SharedOut
from together.cluster_types import (
    Device,
    DeviceProfile,
    Endpoint,
    KeptChoices,
    NodeState,
    NodeStatus,
    StageState,
    StageStatus,
)
from together.desktop.app_status import AppNote, AppServing, AppStatus
from together.desktop.doctor import doctor_json, problems, show
from together.desktop.doctor_facts import (
    App,
    Disk,
    Facts,
    Measured,
    MeasuredShape,
    Multicast,
    Nvidia,
    Ports,
    RingStage,
    find_ports,
    hear_ourselves,
    kept_choices,
    nvidia_of,
    ring_of,
    shape_of,
)
from together.errors import BadSetting, BrokenModel
from together.jsonfile import write_json
from together.planning.problem import Link, ModelSize, NodeProfile, Problem
from together.settings import Settings
from together.types import LayerRange, ModelRef, Plan, StagePlan, Threads
from together.view import NoteKind, ServingState
from together.weights.find import BUNDLED

GB = 10**9
CPU = Device("torch", "cpu", "AMD EPYC", 16 * 10**9, 12 * 10**9)
CUDA = Device("torch", "cuda:0", "NVIDIA H200", 140 * 10**9, 139 * 10**9)
PROFILE = DeviceProfile(7.1, 0.8, 27.5, 21e9, 0.16e12, 1.2e9, 380 * 10**6)
GPU = Nvidia(("NVIDIA H200",), "580.95.05")
HEALTHY = Facts(
    version="0.1.0",
    system="Linux",
    processor="x86_64",
    emulated=False,
    libraries={"torch": "2.13.0+cpu"},
    backend="torch",
    backend_trouble="",
    nvidia=None,
    devices=(CPU,),
    memory=SharedOut(16 * GB, 4 * GB, 2 * GB, 3 * GB, 7 * GB, (NodeHere("studio", 3 * GB), NodeHere("mini", 0))),
    busy_percent=3.0,
    shape=MeasuredShape("llama-3.2-1b", 16, "bf16", b""),
    measured=(Measured("torch/cpu", PROFILE),),
    disk=Disk("/home/me/.cache/together", 10**12, 10**11),
    ports=Ports("127.0.0.1", 8765, True, (47600, 47615)),
    multicast=Multicast(True, False),
    app=None,
)


def neighbour(name: str, state: NodeState = NodeState.READY, cause: str = "", version: str = "0.1.0") -> NodeStatus:
    return NodeStatus(name, name, "", Endpoint((), 1), 1, state, cause, version=version)


RING = App(
    "http://127.0.0.1:8765",
    nodes=(neighbour("studio"), neighbour("mini")),
    links=(Link("studio", "mini", 2.0),),
    ring=(RingStage("studio", LayerRange(0, 8), 30.0, Threads(1, 2)), RingStage("mini", LayerRange(8, 16), 8.0)),
    place="studio",
)


NOTES = (
    AppNote("mini", NoteKind.MEMORY, "other programs on mini need 0.5 GB: unload toy"),
    AppNote("studio", NoteKind.LINK, "studio is on Wi-Fi"),
)


def sentences(**changes: Any) -> list[str]:
    return [str(problem) for problem in problems(replace(HEALTHY, **changes))]


# --- decisions --------------------------------------------------------------------------------------------------------


def test_a_healthy_machine_has_no_problem() -> None:
    assert sentences() == []
    assert sentences(app=RING) == []


def test_a_gpu_with_a_cpu_build_of_torch() -> None:
    (found,) = sentences(nvidia=GPU)
    assert found.startswith(
        "NVIDIA H200 is not used, as torch 2.13.0+cpu is a build for CPUs alone: run python3 launch"
    )


def test_a_gpu_with_a_plain_build_on_windows_is_one_for_cpus() -> None:
    (found,) = sentences(nvidia=GPU, system="Windows", libraries={"torch": "2.13.0"})
    assert "is a build for CPUs alone" in found


def test_a_gpu_that_a_cuda_build_cannot_use() -> None:
    (found,) = sentences(nvidia=GPU, libraries={"torch": "2.13.0+cu130"})
    assert found.startswith("NVIDIA H200 is there and torch 2.13.0+cu130 cannot use it: update the NVIDIA driver")


def test_a_gpu_with_a_driver_that_is_too_old() -> None:
    (found,) = sentences(nvidia=Nvidia((), "470.82.01"))
    assert found.startswith("an NVIDIA GPU is not used, as the driver is too old")
    assert "which is 470.82.01" in found


def test_a_gpu_that_is_used_or_not_wanted_is_no_problem() -> None:
    assert sentences(nvidia=GPU, devices=(CUDA, CPU), libraries={"torch": "2.13.0+cu130"}) == []
    assert sentences(nvidia=GPU, backend="checksum") == []


def test_apple_silicon_without_mlx() -> None:
    mac = {"system": "Darwin", "processor": "arm64"}
    (found,) = sentences(**mac)
    assert found.startswith("this is Apple Silicon and MLX")
    assert sentences(**mac, libraries={"mlx": "0.32.4"}) == []
    assert sentences(system="Darwin") == []  # an Intel Mac
    assert sentences(processor="aarch64") == []


def test_an_emulated_python_comes_first_and_alone() -> None:
    (found,) = sentences(system="Darwin", emulated=True)
    assert found.startswith("this Python is built for x86_64 and runs under emulation")
    assert "arm64" in found


def test_little_memory_unless_it_is_ours() -> None:
    (found,) = sentences(memory=SharedOut(16 * GB, 13 * GB, 2 * GB, 0, GB, ()))
    assert found == "only 1.0 GB of 16.0 GB memory can be used for layers: close other programs"
    assert sentences(memory=SharedOut(16 * GB, 6 * GB, 2 * GB, 8 * GB, 0, (NodeHere("studio", 8 * GB),))) == []


def test_a_full_disk() -> None:
    (found,) = sentences(disk=Disk("/models", 10**12, 10**9))
    assert found.startswith("only 1.0 GB are free on the disk of /models: delete")


def test_devices_that_were_not_found_or_measured() -> None:
    (found,) = sentences(devices=(), measured=(), backend_trouble="no torch here")
    assert found.startswith("no device can be used (no torch here): run python3 launch.py")
    (found,) = sentences(measured=(Measured("torch/cpu", trouble="it took too long"),))
    assert found.startswith("torch/cpu was not measured (it took too long)")


def test_no_free_ports() -> None:
    (found,) = sentences(ports=Ports("127.0.0.1", 8765, True, None))
    assert "TOGETHER_NODE_PORT" in found
    assert sentences(ports=Ports("127.0.0.1", 8765, False, (47616, 47631))) == []  # the page takes the next one


def test_silent_multicast() -> None:
    (found,) = sentences(multicast=Multicast(False, True, "no record came back"))
    assert found.startswith("multicast is silent on this network (no record came back), so")
    assert "--peer host:port" in found


def test_a_link_slower_than_the_stage_it_feeds() -> None:
    slow = replace(RING, links=(Link("mini", "studio", 12.0),))
    (found,) = sentences(app=slow)
    assert (
        "the link from studio to mini takes 12.0 ms for each token, longer than the 8.0 ms of the layers 8:16" in found
    )
    assert "cable" in found
    assert sentences(app=replace(slow, ring=slow.ring[::-1], place="mini")) == []  # 12 ms into 30 ms of layers
    assert sentences(app=replace(slow, ring=())) == []


def test_the_way_from_a_head_without_layers_counts() -> None:
    away = replace(RING, links=(*RING.links, Link("this machine", "studio", 40.0)), place="this machine")
    (found,) = sentences(app=away)
    assert "the link from this machine to studio takes 40.0 ms" in found


def test_machines_that_do_not_reach_each_other() -> None:
    (found,) = sentences(app=replace(RING, links=(Link("studio", "mini", None),)))
    assert found.startswith("studio and mini do not reach each other: open the ports")


def test_nodes_that_failed_or_are_of_another_version() -> None:
    nodes = (neighbour("studio", NodeState.FAILED, "layers 0:8: out of memory"), neighbour("mini", NodeState.IDLE))
    other = "mini runs an older together, 0.0.9 where this app is 0.1.0"
    notes = (AppNote("mini", NoteKind.VERSION, other),)
    assert sentences(app=replace(RING, nodes=nodes, notes=notes)) == [
        "node studio has failed: layers 0:8: out of memory",
        other,
    ]


def test_an_app_whose_links_were_not_measured() -> None:
    (found,) = sentences(app=replace(RING, notes=NOTES))
    assert found == "other programs on mini need 0.5 GB: unload toy"
    (found,) = sentences(app=App("http://127.0.0.1:1", trouble="it went away"))
    assert "were not measured (it went away)" in found


# --- facts ------------------------------------------------------------------------------------------------------------


def test_nvidia_is_read_from_either_source() -> None:
    listed = "580.95.05, NVIDIA H200\n580.95.05, NVIDIA L4\n"
    assert nvidia_of(listed, "") == Nvidia(("NVIDIA H200", "NVIDIA L4"), "580.95.05")
    kernel = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27\n"
    assert nvidia_of("NVIDIA-SMI has failed", kernel) == Nvidia((), "470.82.01")
    assert nvidia_of("", "") is None


def test_the_shape_is_a_models_or_a_known_one(tmp_path: Path) -> None:
    usual = shape_of(None, Settings(dtype="fp16"))
    assert (usual.model, usual.layers, usual.dtype) == ("llama-3.2-1b", 16, "fp16")
    toy = shape_of(make_checksum_model(tmp_path / "toy"), Settings())
    assert (toy.model, toy.layers, toy.dtype) == ("toy", 4, "fp32")
    assert shape_of(BUNDLED, Settings()).dtype == "fp32"
    with pytest.raises(BadSetting, match="no dtype 'int3'"):
        shape_of(None, Settings(dtype="int3"))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(BrokenModel):
        shape_of(tmp_path, Settings())


def test_ports_that_are_taken_are_seen(tmp_path: Path) -> None:
    settings = cluster_settings(tmp_path)
    with socket.socket() as page, socket.socket() as node:
        for taken in (page, node):
            taken.bind(("127.0.0.1", 0))
            taken.listen()
        found = find_ports(replace(settings, port=page.getsockname()[1]))
        assert not found.page_is_free
        assert found.nodes == (settings.node_port, settings.node_port + 15)
        found = find_ports(replace(settings, node_port=node.getsockname()[1]))
        assert found.nodes is not None
        assert found.nodes[0] > node.getsockname()[1]


async def test_our_own_record_is_heard_on_loopback(tmp_path: Path) -> None:
    found = await hear_ourselves(cluster_settings(tmp_path), seconds=PATIENCE)
    assert (found.heard, found.network, found.trouble) == (True, False, "")


async def test_nothing_is_heard_in_no_time(tmp_path: Path) -> None:
    found = await hear_ourselves(cluster_settings(tmp_path), seconds=0)
    assert not found.heard
    assert "no record of our own came back" in found.trouble


def test_stages_are_named_as_links_name_them() -> None:
    cuts = (0, 8, 12, 16, 20)
    ids, names = ["aaaa1", "bbbb2", "cccc3", "dddd4"], ["studio", "twin-bbbb", "mini", "gone"]
    ranges = [LayerRange(*pair) for pair in pairwise(cuts)]
    stages = tuple(StagePlan(i, "torch", "cpu", layers, 0) for i, layers in zip(ids, ranges, strict=True))
    loaded = [
        StageStatus(ring, 0, "", "toy", 20, ranges[1], "torch/cpu", StageState.READY, threads=Threads(count, count))
        for ring, count in (("ring", 1), ("another", 2))
    ]
    nodes = tuple(
        replace(neighbour(name), id=i, stages=tuple(loaded) if i == ids[1] else ())
        for i, name in zip(ids, names, strict=True)
    )
    plan = Plan(ModelRef("toy", "", "", 20), stages, 10, 1, "fp32")
    status = AppStatus(nodes, AppServing(ServingState.READY, "toy", plan, "ring", ""), "", "", (), "")
    places = ("studio", "twin-bbbb", "mini/cpu")
    profiles = tuple(NodeProfile(place, 2.0, 1.0, ms_per_head=5.0, max_layers=20) for place in places)
    problem = Problem(ModelSize((1.0,) * 20), profiles)
    found = ring_of(status, problem)
    assert [stage.layers for stage in found] == ranges
    assert [(stage.place, stage.ms) for stage in found] == [
        ("studio", 17.0),
        ("twin-bbbb", 9.0),
        ("mini/cpu", 9.0),
        ("gone", 0.0),
    ]
    assert [stage.threads for stage in found] == [None, Threads(1, 1), None, None]
    assert ring_of(replace(status, serving=replace(status.serving, plan=None)), problem) == ()


# --- what it says -----------------------------------------------------------------------------------------------------


def shown(facts: Facts) -> str:
    out = io.StringIO()
    show(facts, problems(facts), Console(file=out, width=200))
    return out.getvalue()


def test_memory_as_it_is_written_adds_up() -> None:
    text = shown(HEALTHY)
    assert "16.0 GB: 4.0 used by other programs, 2.0 kept free for them, 3.0 given to layers, 7.0 left" in text
    assert "studio 3.0 GB, mini (no layers)" in text
    uneven = SharedOut(100 * GB, 12_340_000_000, 10_040_000_000, 33_340_000_000, 44_280_000_000, ())
    text = shown(replace(HEALTHY, memory=uneven))
    assert "100.0 GB: 12.4 used by other programs, 10.0 kept free for them, 33.3 given to layers, 44.3 left" in text
    assert "nodes here" not in text


def test_everything_is_shown() -> None:
    text = shown(
        replace(HEALTHY, app=RING, nvidia=GPU, devices=(CUDA, CPU), measured=(Measured("torch/cuda:0", PROFILE),))
    )
    for words in (
        "torch 2.13.0+cpu",
        "580.95.05, NVIDIA H200",
        "100.0 of 1000.0 GB free",
        "nodes from 47600 to 47615",
        "heard its own record",
        "torch/cuda:0 NVIDIA H200",
        "ms a layer",
        "7.1",
        "21",
        "0.16",
        "1.2",
        "studio – mini",
        "8:16",
        "1 (2 for prompts)",
        "nothing is wrong",
    ):
        assert words in text


def test_what_the_app_says_of_machines_is_shown_once() -> None:
    text = shown(replace(HEALTHY, app=replace(RING, notes=NOTES)))
    assert text.count("studio is on Wi-Fi") == text.count("other programs on mini need 0.5 GB: unload toy") == 1
    assert text.index("studio is on Wi-Fi") < text.index("to fix:") < text.index("other programs on mini")


def test_kernels_that_were_tried_are_shown(tmp_path: Path) -> None:
    """Of the build that was loaded last; files that are broken, or something else's, are passed over."""
    assert "kernels by trial" not in shown(HEALTHY)
    folder = tmp_path / "kernels"
    for age, build in enumerate(("new", "old")):
        file = folder / f"{build}.json"
        write_json(file, KeptChoices(build, {f"few rows, {build}": str(age)}))
        os.utime(file, (1000 - age, 1000 - age))
    (folder / "broken.json").write_text("{")
    found = kept_choices(tmp_path)
    assert [choices.build for choices in found] == ["new", "old"]
    assert "few rows, new: 0" in shown(replace(HEALTHY, kernels=found))
    assert kept_choices(tmp_path / "none") == ()


def test_strangers_names_are_text() -> None:
    evil = neighbour("[red]x\x1b[31m", NodeState.IDLE)
    text = shown(replace(HEALTHY, app=replace(RING, nodes=(evil,))))
    assert "[red]x" in text
    assert "\x1b" not in text


def test_what_is_not_known_is_said() -> None:
    text = shown(replace(HEALTHY, measured=(Measured("torch/cpu", replace(PROFILE, disk_bytes_per_s=0.0)),)))
    assert "unknown" in text
    assert "not measured" in shown(replace(HEALTHY, measured=(Measured("torch/cpu", trouble="broken"),)))


def test_a_measurement_that_others_disturbed_is_called_so_and_is_no_problem() -> None:
    facts = replace(HEALTHY, measured=(Measured("torch/cpu", PROFILE, busy=0.48),))
    assert "other programs used 48% of the processors" in shown(facts)
    assert problems(facts) == ()
    assert "of the processors" not in shown(HEALTHY)


def test_json_has_facts_and_problems() -> None:
    facts = replace(HEALTHY, nvidia=GPU)
    answer = json.loads(doctor_json(facts, problems(facts)))
    assert answer["ok"] is False
    assert answer["facts"]["measured"][0]["profile"]["ms_per_layer"] == 7.1
    assert answer["problems"][0]["fix"].startswith("run python3 launch.py")
