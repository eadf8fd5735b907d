"""What a node tells of its machine: processors in use, its own part of that, and stages that wait for the disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.patience import PATIENCE
from together.cluster.strain import StrainGauge
from together.cluster_types import Strain

SPINS = "while True: pass"
READS = """
import mmap, os, sys
with open(sys.argv[1], "rb") as file:
    size = os.fstat(file.fileno()).st_size
    while True:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
            sum(memory[place] for place in range(0, size, mmap.PAGESIZE))
"""


@contextmanager
def programs(*arguments: str, count: int = 1) -> Iterator[list[int]]:
    """Python programs that run until the block ends; their process ids."""
    processes = [subprocess.Popen([sys.executable, "-c", *arguments]) for _ in range(count)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait(PATIENCE)


def strain_when(gauge: StrainGauge, stages: list[int], true: Callable[[Strain], bool]) -> Strain:
    deadline = time.monotonic() + PATIENCE
    while not true(strain := gauge.read(stages)):
        assert time.monotonic() < deadline, strain
        time.sleep(0.2)
    return strain


def test_a_stage_s_work_is_its_node_s_own_and_another_program_s_is_not() -> None:
    gauge = StrainGauge()
    assert gauge.read([]) == Strain()  # nothing is known of the time before
    with programs(SPINS, count=psutil.cpu_count() or 1) as pids:
        others = strain_when(gauge, [], lambda strain: strain.processors > max(0.5, strain.own))
        own = strain_when(StrainGauge(), pids, lambda strain: strain.own > 0.1)
    assert own.processors >= own.own
    assert others.paged == own.paged == 0.0


def test_a_stage_that_ended_counts_no_more() -> None:
    gauge = StrainGauge()
    with programs(SPINS) as pids:
        strain_when(gauge, pids, lambda strain: strain.own > 0)
    assert isinstance(gauge.read(pids), Strain)


@pytest.mark.skipif(sys.platform != "linux", reason="drops the system's cache of a file")
def test_a_stage_that_reads_its_memory_back_from_the_disk_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(2**24))
    with file.open("rb") as written:
        os.fsync(written.fileno())
    with programs(READS, str(file)) as pids:
        assert strain_when(StrainGauge(), pids, lambda strain: strain.paged > 0).paged % 1e6 == 0


@pytest.mark.skipif(sys.platform != "linux", reason="a Linux without task accounting")
def test_where_nobody_counts_what_is_read_the_work_is_seen_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(psutil.Process, "io_counters")  # as psutil has it there
    with programs(SPINS) as pids:
        assert strain_when(StrainGauge(), pids, lambda strain: strain.own > 0).paged == 0.0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_a_figure_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="not a strain"):
        Strain(0.5, wrong)
