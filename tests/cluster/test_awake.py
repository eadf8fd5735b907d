"""A machine does not fall asleep while rows run: a real process stands in for the system's own, and really ends."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import ask, by_hand, right_answer, running_cluster, until
from tests.support.stand_ins import program
from together.cluster.awake import GRACE, PROGRAMS, Awake, ProgramHold, WindowsHold, hold_of

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
INHIBITS = 'echo $$ "$@" >> {notes}; while [ "$1" != cat ]; do shift; done; exec "$@"'


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class StandIn:
    """What was started, by the notes that it leaves."""

    notes: Path

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.notes.read_text().splitlines()] if self.notes.exists() else []

    def living(self, of: int = 0) -> list[int]:
        """Those that run; only children of a process, if one is named."""
        found = []
        for pid, *_ in self.lines():
            if psutil.pid_exists(int(pid)):
                process = psutil.Process(int(pid))
                if process.status() != psutil.STATUS_ZOMBIE and of in (0, process.ppid()):
                    found.append(int(pid))
        return found


def stand_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "systemd-inhibit", script: str = INHIBITS
) -> StandIn:
    notes = folder / "notes"
    program(folder / "bin", name, script.format(notes=notes))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    return StandIn(notes)


@pytest.mark.parametrize(("system", "name"), [("linux", "systemd-inhibit"), ("darwin", "caffeinate")])
async def test_a_program_runs_while_there_is_work_and_a_little_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, name: str
) -> None:
    holder, clock = stand_in(tmp_path, monkeypatch, name), Clock()
    awake = Awake(ProgramHold(PROGRAMS[system]), clock)
    await awake.look(False)
    assert holder.lines() == []
    for _ in range(3):
        await awake.look(True)
    await until(lambda: len(holder.living()) == 1)
    clock.now += GRACE - 1
    await awake.look(False)
    assert len(holder.living()) == 1
    clock.now += 1
    await awake.look(False)
    await until(lambda: not holder.living())
    await awake.look(True)  # again
    await until(lambda: len(holder.living()) == 1)
    await awake.close()
    await until(lambda: not holder.living())
    await awake.look(False)
    await awake.close()
    assert len(holder.lines()) == 2


async def test_one_that_may_not_hold_all_holds_what_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person without the right to forbid sleep may still say that the machine is not idle."""
    refuses = 'case "$1" in *sleep*) exit 1;; esac\n' + INHIBITS
    holder, hold = stand_in(tmp_path, monkeypatch, script=refuses), ProgramHold(PROGRAMS["linux"])
    awake = Awake(hold)
    await awake.look(True)
    await until(lambda: not hold.holds)
    await awake.look(True)
    await until(lambda: len(holder.living()) == 1)
    assert holder.lines()[0][1] == "--what=idle"
    await awake.close()
    await until(lambda: not holder.living())


@pytest.mark.parametrize("script", ["", "exit 3"])
async def test_a_system_without_a_program_that_helps_does_its_work_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    counted = script and f"echo $$ >> {{notes}}; {script}"
    holder = stand_in(tmp_path, monkeypatch, script=counted) if script else StandIn(tmp_path / "notes")
    if not script:
        monkeypatch.setenv("PATH", str(tmp_path))
    awake = Awake(ProgramHold(PROGRAMS["linux"]))
    for _ in range(20):
        await awake.look(True)
        await asyncio.sleep(0.02)
    await awake.close()
    assert len(holder.lines()) <= len(PROGRAMS["linux"])  # it is not tried for ever


async def test_windows_is_told_by_its_own_call() -> None:
    said: list[int] = []
    clock = Clock()

    def set_state(state: int) -> int:
        said.append(state)
        return 0

    awake = Awake(WindowsHold(set_state), clock)
    await awake.look(True)
    clock.now += GRACE
    await awake.look(False)
    await awake.look(False)
    assert said == [0x80000001, 0x80000000]


def test_every_other_system_is_left_as_it_is() -> None:
    assert hold_of("freebsd14") is None


@pytest.mark.skipif(sys.platform != "linux", reason="the program that stands in is Linux's")
async def test_a_node_and_its_head_hold_their_machine_awake_while_they_answer_and_not_when_they_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = stand_in(tmp_path, monkeypatch)
    toy = make_checksum_model(tmp_path / "toy", layers=4, step_ms=5, quiet_ids=(*QUIET, EOS))
    async with running_cluster(tmp_path, "anna", "berta") as (head, nodes):
        await head.load(toy, by_hand("anna=0:2,berta=2:4"))
        assert not holder.living(nodes[0].process.pid)
        answer = asyncio.create_task(ask(head, tokens=120))
        await until(lambda: all(holder.living(node.process.pid) for node in nodes) and holder.living(os.getpid()))
        assert await answer == right_answer(toy, tokens=120)
        assert len(holder.lines()) == 3  # each of them one
        nodes[0].kill()
        await until(lambda: len(holder.living()) == 2)
    await until(lambda: not holder.living())
