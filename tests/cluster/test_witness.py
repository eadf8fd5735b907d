"""Why a process was killed, by the kernel's own word: real cgroups, real kills."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cgroups import DEVOUR, memory_cgroup, memory_root, run_out_of_memory, within
from tests.support.cluster import until
from together.cluster import supervisor
from together.cluster.cgroups import CgroupTally
from together.cluster.supervisor import KernelLog, Witness, ending, signal_name
from together.types import Fault

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say why they killed a process")
WAIT = "import sys; sys.stdin.read()"
LIMIT = 2**27


@pytest.fixture
def cgroup() -> Iterator[Path]:
    if memory_root() is None:
        pytest.skip("no memory cgroup can be made here")
    with memory_cgroup(LIMIT) as folder:
        assert folder is not None
        yield folder


@pytest.fixture(params=["log", "cgroup"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the system lets read: the kernel's log, or only what a cgroup counts."""
    if request.param == "cgroup":
        monkeypatch.setattr(supervisor, "KERNEL_LOG", "/nowhere")
    elif (log := KernelLog.open()) is None:
        pytest.skip("the kernel's log may not be read here")
    else:
        log.close()
    return str(request.param)


class Child:
    """A process in a cgroup, and its witness, which has seen it there."""

    def __init__(self, process: asyncio.subprocess.Process, watching: asyncio.Task[None], own: Witness) -> None:
        self.process, self.watching, self.witness = process, watching, own

    @classmethod
    async def start(cls, folder: Path, code: str = WAIT) -> Child:
        own = Witness()
        process = await asyncio.create_subprocess_exec(
            *within(folder), sys.executable, "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        await until(lambda: str(process.pid) in (folder / "cgroup.procs").read_text().split())
        child = cls(process, asyncio.create_task(own.watch(process.pid)), own)
        await until(lambda: own._log or own._looks)
        return child

    async def end(self) -> tuple[str, Fault]:
        await self.process.wait()
        self.watching.cancel()
        try:
            cause, fault = await ending(self.process, self.witness, "")
            return str(cause), fault
        finally:
            self.witness.close()


async def test_a_process_that_the_kernel_kills_for_memory_ran_out_of_it(cgroup: Path, source: str) -> None:
    child = await Child.start(cgroup, f"import sys; sys.stdin.read(); {DEVOUR}")
    assert child.process.stdin is not None
    child.process.stdin.close()
    cause, fault = await child.end()
    assert fault is Fault.OUT_OF_MEMORY
    assert "ended by SIGKILL: it ran out of memory" in cause
    assert ("log" if source == "log" else "cgroup") in cause


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_another_ones_lack_of_memory_is_not_this_ones(cgroup: Path, number: signal.Signals) -> None:
    """Even in the same cgroup and moment: one is killed for memory, one by hand, and the count does not say which."""
    victim = await Child.start(cgroup, f"import sys; sys.stdin.read(); {DEVOUR}")
    child = await Child.start(cgroup)
    await until(lambda: child.witness._log or all(victim.process.pid in look.members for look in child.witness._looks))
    assert victim.process.stdin is not None
    victim.process.stdin.close()
    child.process.send_signal(number)
    assert await child.end() == (f"its process was ended by {number.name}: killed from outside", Fault.KILLED)
    await victim.end()


@pytest.mark.usefixtures("source")
async def test_a_kill_elsewhere_or_before_is_not_this_ones(cgroup: Path) -> None:
    run_out_of_memory(cgroup)
    with memory_cgroup(LIMIT) as elsewhere:
        assert elsewhere is not None
        child = await Child.start(cgroup)
        run_out_of_memory(elsewhere)
        child.process.kill()
        assert await child.end() == ("its process was ended by SIGKILL: killed from outside", Fault.KILLED)


@pytest.mark.usefixtures("source")
async def test_a_crash_is_neither(cgroup: Path) -> None:
    child = await Child.start(cgroup)
    child.process.send_signal(signal.SIGSEGV)
    assert await child.end() == ("its process was ended by SIGSEGV", Fault.OTHER)


def test_a_count_proves_nothing_where_more_are_missing_than_were_killed(cgroup: Path) -> None:
    before = CgroupTally(cgroup, 0, frozenset({10, 11}))
    run_out_of_memory(cgroup)
    assert not before.proves(10)
    assert CgroupTally(cgroup, 0, frozenset({10})).proves(10)
    assert not CgroupTally(cgroup, 0, frozenset({11})).proves(10)
    assert not CgroupTally(cgroup, 0, frozenset({0, 10})).proves(10)  # who cannot be seen may be the missing one
    assert not CgroupTally(cgroup, 1, frozenset({10})).proves(10)
    assert not CgroupTally(cgroup / "gone", 0, frozenset({10})).proves(10)


def test_what_a_program_writes_into_the_log_is_no_word_of_the_kernels() -> None:
    log = KernelLog.open()
    if log is None or not os.access(supervisor.KERNEL_LOG, os.W_OK):
        pytest.skip("the kernel's log may not be read and written here")
    try:
        Path(supervisor.KERNEL_LOG).write_text("Out of memory: Killed process 4000001 (stage) total-vm:1kB\n")
        assert not asyncio.run(log.names(4000001))
    finally:
        log.close()


def test_every_signal_has_a_name() -> None:
    assert [signal_name(number) for number in (9, 15, 63)] == ["SIGKILL", "SIGTERM", "signal 63"]
