"""`doctor --report`: nothing in it says whose machine it is, whatever the facts and the logs hold."""

from __future__ import annotations

import dataclasses
import getpass
import json
import socket
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import EVIL_NAME, RealApp
from tests.desktop.test_doctor import HEALTHY, PROFILE, RING, neighbour
from together.cluster_types import Device, NodeState
from together.desktop.app_status import AppNote
from together.desktop.doctor_facts import Facts, Measured, Nvidia
from together.desktop.report import ABOUT, OTHER, anonymous, complaints, report
from together.sentences import say
from together.types import LayerRange
from together.view import NoteKind

# What tells who somebody is: names, addresses, paths, texts, a join code and a key.
MARKS = (
    "Anna Schmidt",
    "annas-macbook.local",
    "192.168.178.23",
    "fe80::1234",
    "/home/anna/models/Diary",
    r"C:\\Users\\anna",
    "TG-DYC8-9YFG-Q0DN",
    "tg-0123456789abcdef",
    "grandmother writes poems",
    "anna@example.org",
)
EVERYTHING = " ".join(MARKS)


def filled(kind: Any, mark: str) -> Any:
    """A value of a type in which every text, however deep, is `mark`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is str:
        return mark
    if origin is typing.Literal:
        return arguments[0]
    if origin in (typing.Union, types.UnionType):
        return filled(next(part for part in arguments if part is not type(None)), mark)
    if origin is tuple:
        return (filled(arguments[0], mark),) * 2
    if origin is dict:
        return {filled(arguments[0], mark): filled(arguments[1], mark)}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind))
    if kind is LayerRange:
        return LayerRange(0, 1)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind(**{name: filled(hint, mark) for name, hint in typing.get_type_hints(kind).items()})
    return {int: 1, float: 1.0, bool: True, bytes: mark.encode()}[kind]


def leaks(text: str) -> list[str]:
    return [part for mark in MARKS for part in (mark, *mark.split()) if len(part) > 3 and part in text]


@pytest.mark.parametrize("mark", [*MARKS, EVERYTHING, EVERYTHING.replace(" ", "/"), f"NVIDIA {EVERYTHING} RTX 4090"])
def test_no_text_of_the_facts_is_in_it(mark: str, tmp_path: Path) -> None:
    """Every field of every fact, also those that are added later."""
    facts = filled(Facts, mark)
    assert dataclasses.asdict(facts)["app"]["nodes"][0]["name"] == mark
    assert leaks(json.dumps(report(facts, tmp_path), ensure_ascii=False)) == []


def test_what_helps_is_in_it(tmp_path: Path) -> None:
    """Who reads it sees which machine is slow, and why, without knowing which that is."""
    cause = str(say("node_silent", seconds=60.0))
    nodes = (neighbour("studio"), neighbour("mini", NodeState.FAILED, str(say("node_lost", cause="Anna left"))))
    note = AppNote("mini", NoteKind.LINK, cause)
    facts = dataclasses.replace(
        HEALTHY,
        app=dataclasses.replace(RING, nodes=nodes, notes=(note,)),
        nvidia=Nvidia(("NVIDIA GeForce RTX 4090",), "580.95.05"),
        devices=(Device("torch", "cuda:0", "NVIDIA H200", 2, 1), Device("torch", "cpu", "AMD Ryzen 9 7950X", 2, 1)),
        measured=(Measured("torch/cuda:0", PROFILE),),
        libraries={"Python": "3.12.1", "torch": "2.13.0+cu130", "gradio": "6.31.0+anna.1"},
    )
    found = report(facts, tmp_path)
    assert found["about"] == ABOUT
    shown = found["facts"]
    assert [node["name"] for node in shown["app"]["nodes"]] == ["machine 1", "machine 2"]
    assert shown["app"]["nodes"][1]["cause"] == "lost: {cause}"
    assert [note["text"] for note in shown["app"]["notes"]] == ["no sign of life for {seconds} s"]
    assert [(link["a"], link["b"], link["ms"]) for link in shown["app"]["links"]] == [("machine 1", "machine 2", 2.0)]
    assert [stage["place"] for stage in shown["app"]["ring"]] == ["machine 1", "machine 2"]
    assert shown["nvidia"] == {"gpus": ("NVIDIA GeForce RTX 4090",), "driver": "580.95.05"}
    assert [device["description"] for device in shown["devices"]] == ["NVIDIA H200", "AMD Ryzen 7950X"]
    assert shown["libraries"] == {"Python": "3.12.1", "torch": "2.13.0+cu130", "gradio": f"6.31.0+{OTHER}"}
    assert shown["measured"][0]["profile"]["ms_per_layer"] == PROFILE.ms_per_layer
    assert {"what": "node machine 2 has failed", "fix": "lost: {cause}"} in found["problems"]


def test_a_device_of_a_node_keeps_its_name() -> None:
    links = (dataclasses.replace(RING.links[0], a="studio/cuda:0", b="studio/anna"),)
    (link,) = anonymous(dataclasses.replace(HEALTHY, app=dataclasses.replace(RING, links=links))).app.links  # type: ignore[union-attr]
    assert (link.a, link.b) == ("machine 1/cuda:0", "machine 3")


AT = "2026-01-01 10:00:00,000"
TRACEBACK = f"""\
{AT} ERROR together.head.head: Anna Schmidt
  Traceback (most recent call last):
    File "/home/anna/together/together/head/head.py", line 12, in annas_function
      grandmother writes poems
    File "/home/anna/together/together/head/annas.py", line 13, in x
    File "/usr/lib/python3.12/asyncio/tasks.py", line 520, in wait_for
  ValueError: anna@example.org
{AT} INFO together.head.head: /home/anna
{AT} WARNING annas.library: 192.168.178.23
{AT} WARNING together.head.head: one
{AT} WARNING together.head.head: another
{AT} ERROR together.head.head: x
  annas.SecretError: TG-DYC8-9YFG-Q0DN
"""


def test_of_logs_it_has_where_and_how_often() -> None:
    found = complaints(TRACEBACK.splitlines())
    assert leaks(json.dumps([dataclasses.asdict(kind) for kind in found])) == []
    assert [(kind.level, kind.module, kind.count, kind.error, kind.places) for kind in found] == [
        ("WARNING", "together.head.head", 2, "", ()),
        ("ERROR", "together.head.head", 1, "ValueError", ("together/head/head.py:12",)),
        ("WARNING", OTHER, 1, "", ()),
        ("ERROR", "together.head.head", 1, "", ()),
    ]


def test_the_report_of_a_running_app(real_app: RealApp, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    order = ("doctor", "--backend", "checksum", "--model", str(real_app.home.parent / "toy"), "--report", str(file))
    done = real_app.command(*order)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote {file}: ")
    text = file.read_text(encoding="utf-8")
    found = json.loads(text)
    assert [stage["layers"] for stage in found["facts"]["app"]["ring"]] == ["0:2", "2:4"]
    assert {"machine 1", "machine 2"} <= {node["name"] for node in found["facts"]["app"]["nodes"]}
    assert "TOGETHER_HOME" in found["settings"]
    status = real_app.status()
    told = [EVIL_NAME, "hacked", str(real_app.home), str(tmp_path), status["head"]]
    told += [node[part] for node in status["nodes"] for part in ("id", "machine")]
    told += [name for name in (getpass.getuser(), socket.gethostname()) if len(name) > 4]
    assert [word for word in told if word in text] == []
    again = real_app.command(*order)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
