"""Other programs need memory: known in time, not forgotten at once, and what a shrinking cgroup leaves is what is seen.

The cgroups are real ones, where this system lets tests make them; time is turned by hand.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cgroups import memory_cgroup, memory_root, within
from together.cluster import cgroups
from together.cluster.cgroups import stalled_share
from together.cluster.claims import MachineMemory
from together.cluster.pressure import BEGINS, CALM, LEAST, PressureGauge

GB = 2**30
TOTAL = 32 * GB
SHRINKS = """
import json, sys
from pathlib import Path
from together.cluster.claims import machine_memory, main_memory
from together.cluster.pressure import PressureGauge
gauge, told = PressureGauge(clock=lambda: 0.0), []
def look():
    memory = main_memory()
    told.append([memory.total, memory.limited, gauge.read(), gauge.read(), machine_memory(()).left])
look()
limit = Path(sys.argv[1])
limit.write_text(str(int(limit.read_text()) * 32 // 100))
look()
print(json.dumps(told))
"""


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_moment_of_little_memory_is_no_need_and_a_need_does_not_end_at_once() -> None:
    clock = Clock()
    gauge = PressureGauge(clock)
    assert [gauge.note(LEAST // 2, TOTAL, 0.0) for _ in range(BEGINS - 1)] == [0] * (BEGINS - 1)
    assert gauge.note(20 * GB, TOTAL, 0.0) == 0
    lacking = [gauge.note(LEAST // 2, TOTAL, 0.0) for _ in range(BEGINS)][-1]
    assert lacking == 2 * LEAST - LEAST // 2
    clock.now += CALM * 2
    assert gauge.note(int(1.2 * LEAST), TOTAL, 0.0) > 0  # not enough yet
    assert gauge.note(20 * GB, TOTAL, 0.0) > 0
    clock.now += CALM - 1
    assert gauge.note(20 * GB, TOTAL, 0.0) > 0
    assert gauge.note(LEAST // 2, TOTAL, 0.0) == lacking  # it was taken again
    clock.now += CALM
    assert gauge.note(20 * GB, TOTAL, 0.0) > 0  # calm only since now
    clock.now += CALM
    assert gauge.note(20 * GB, TOTAL, 0.0) == 0


def test_what_is_told_moves_in_steps() -> None:
    """A status that changes is sent to every page."""
    gauge = PressureGauge(Clock())
    told = {gauge.note(LEAST // 2 + each * 10**6, TOTAL, 0.0) for each in range(64)}
    assert len(told - {0}) <= 2


@pytest.mark.parametrize(("available", "needs"), [(LEAST * 2, True), (LEAST * 8, False)])
def test_programs_that_wait_for_memory_count_where_there_is_little_of_it(available: int, *, needs: bool) -> None:
    gauge = PressureGauge(Clock())
    lacking = [gauge.note(available, TOTAL, 0.3) for _ in range(BEGINS)][-1]
    assert bool(lacking) is needs


def test_a_machine_that_gives_layers_all_that_is_offered_lacks_nothing() -> None:
    """What plans leave to others is more than what counts as a need, on small machines and on large ones."""
    for total in (4 * GB, 8 * GB, 16 * GB, 128 * GB):
        reserve = MachineMemory(total, total * 3 // 4, 0, 0).reserve
        gauge = PressureGauge(Clock())
        assert [gauge.note(reserve, total, 0.0) for _ in range(BEGINS)][-1] == 0


def test_a_gauge_reads_this_machine() -> None:
    assert PressureGauge().read() == 0  # one look begins no need
    assert 0.0 <= stalled_share() <= 1.0


def test_a_cgroup_that_shrinks_is_the_memory_that_there_is() -> None:
    if memory_root() is None:
        pytest.skip("no memory cgroup can be made here")
    size = 400 * 2**20
    with memory_cgroup(size) as folder:
        assert folder is not None
        limit = next(file for name in ("memory.max", "memory.limit_in_bytes") if (file := folder / name).exists())
        root = Path(__file__).resolve().parents[2]
        asked = [*within(folder), sys.executable, "-c", SHRINKS, str(limit)]
        said = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        wide, narrow = json.loads(said.stdout)
    assert wide[:4] == [size, True, 0, 0]
    assert narrow[1] is True
    assert narrow[0] < size
    assert narrow[4] < wide[4]  # what layers may have follows


# --- version 2 of cgroups, by its files -------------------------------------------------------------------------------


def cgroup_files(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.procs").touch()
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")
    return folder


STAT = "anon 500\ninactive_file 30\nactive_file 20\nfile_dirty 7"


def test_the_tightest_of_all_cgroups_around_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lower of both limits of each; files that are cached can be let go; what has no limit does not count."""
    root = cgroup_files(tmp_path / "root", memory_max="max", memory_current=10**6)
    user = cgroup_files(root / "user", memory_max=900, memory_high=800, memory_current=600, memory_stat=STAT)
    own = cgroup_files(user / "own", memory_max=5000, memory_high="max", memory_current=550, memory_stat=STAT)
    found = tuple(cgroups._upwards(own))
    assert found == (own, user, root)
    monkeypatch.setattr(cgroups, "_own_cgroups", lambda: found)
    assert cgroups.tightest_room() == cgroups.CgroupRoom(800, 250)
    (user / "memory.high").write_text("620")
    assert cgroups.tightest_room() == cgroups.CgroupRoom(620, 70)
    (user / "memory.current").write_text("900")
    assert cgroups.tightest_room() == cgroups.CgroupRoom(620, 0)
    monkeypatch.setattr(cgroups, "_own_cgroups", lambda: (root,))
    assert cgroups.tightest_room() is None


def test_a_cgroup_s_own_programs_that_wait_count_before_the_machine_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = "some avg10={} avg60=0.00 avg300=0.00 total=1\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=1"
    own = cgroup_files(tmp_path / "own", memory_pressure=waits.format("12.50"))
    machine = tmp_path / "machine"
    machine.write_text(waits.format("40.00"))
    monkeypatch.setattr(cgroups, "_own_cgroups", lambda: (own,))
    assert stalled_share(machine) == 0.125
    (own / "memory.pressure").unlink()
    assert stalled_share(machine) == 0.4
    machine.write_text("nonsense")
    assert stalled_share(machine) == 0.0
    assert stalled_share(tmp_path / "nowhere") == 0.0
