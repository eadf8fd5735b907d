"""The folder in which the nodes of a machine say what they use: nodes that share, and what others may put there."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from tests.cluster.test_grants import order
from tests.conftest import until
from tests.support.patience import PATIENCE
from together.cluster.claims import (
    LARGEST,
    LEAST,
    MEMORY,
    MOST_CLAIMS,
    MOST_NODES,
    SLACK,
    Claim,
    ClaimsFolder,
    MachineMemory,
    NodeClaims,
    NodeHere,
    SharedOut,
    claiming,
    left_over,
    shared_out,
    start_of,
)
from together.cluster.grants import STEADY, MemoryGrants
from together.cluster_types import Device
from together.errors import NotEnoughMemory
from together.models.spec import read_spec
from together.planning.memory import stage_memory
from together.settings import Settings
from together.types import LayerRange
from together.weights.find import BUNDLED

GB = 10**9
CPU = Device("checksum", "cpu", "a CPU", 64 * GB, 0)
KEY = CPU.key
ROOT = os.name == "posix" and os.geteuid() == 0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(claims=str(tmp_path / "claims"))


@pytest.fixture
def folder(settings: Settings) -> ClaimsFolder:
    return ClaimsFolder(settings)


def node(settings: Settings, name: str) -> MemoryGrants:
    return MemoryGrants.of(settings, name, (CPU,))


async def opened(settings: Settings, *names: str) -> list[MemoryGrants]:
    """Nodes that have seen one another."""
    nodes = [node(settings, name) for name in names]
    opening = [asyncio.create_task(each.open()) for each in nodes]
    while not all(task.done() for task in opening):
        await asyncio.sleep(0.01)
        look(*nodes)
    look(*nodes)
    return nodes


def look(*nodes: MemoryGrants) -> None:
    for each in nodes:
        each._look()


def record(**values: object) -> NodeClaims:
    """Of this process."""
    plain = NodeClaims("token", os.getpid(), start_of(psutil.Process()), "other", {MEMORY: 2**40})
    return replace(plain, **values)  # type: ignore[arg-type]


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose other programs neither take nor free memory: 36 GB of it are for layers."""
    memory = psutil.virtual_memory()._replace(total=60 * GB, available=42 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def test_a_small_machine_gives_what_the_bundled_model_takes_in_two_stages() -> None:
    spec, usual = read_spec(BUNDLED), Settings()
    middle, context = spec.layers // 2, min(usual.context, spec.context)
    halves = LayerRange(0, middle), LayerRange(middle, spec.layers)
    need = sum(stage_memory(spec, half, "fp32", context, usual.users, "torch") for half in halves)
    assert MachineMemory(4 * GB, 3 * GB // 2, 0, 0).left >= need


# --- nodes that share -------------------------------------------------------------------------------------------------


async def test_nodes_share_what_is_free(still: None, settings: Settings) -> None:
    (one,) = await opened(settings, "one")
    assert one.free(KEY) == one.total == 36 * GB
    one.close()
    one, other, third = await opened(settings, "one", "other", "third")
    assert [each.free(KEY) for each in (one, other, third)] == [12 * GB] * 3
    one.take(order("r", 0, 12 * GB))
    other._look()
    other.take(order("r", 0, 10 * GB))
    third._look()
    assert [each.free(KEY) for each in (one, other, third)] == [0, 2 * GB, 12 * GB]
    fourth = node(settings, "fourth")
    await fourth.open()
    for each in (one, other, third):
        each._look()
    assert [each.free(KEY) for each in (one, other, third, fourth)] == [0, 0, 7 * GB, 7 * GB]
    fourth.close()
    one.give_back(("r", 0))
    for each in (one, other, third):
        each._look()
    assert [each.free(KEY) for each in (one, other, third)] == [12 * GB, 2 * GB, 12 * GB]
    assert other.total == 12 * GB


async def test_what_is_granted_to_one_is_refused_to_the_other(still: None, settings: Settings) -> None:
    """More than one's own share may be had, where nobody has it, and only once."""
    one, other = await opened(settings, "one", "other")
    one.take(order("r", 0, 24 * GB))
    said = r"node other: needs 15\.0 GB for layers 0:4, has 12\.3 GB free; lower the context"  # and some of the reserve
    with pytest.raises(NotEnoughMemory, match=said):
        other.take(order("r", 0, 15 * GB))
    assert other.free(KEY) == 12 * GB
    other.take(order("r", 0, 12 * GB + SLACK))
    assert other.free(KEY) == 0
    one.give_back(("r", 0))
    one._look()
    other.take(order("r", 1, 20 * GB))


async def test_two_that_take_at_once_do_not_get_the_same_bytes(still: None, settings: Settings) -> None:
    """Each says what it takes before it looks; here both look at the same time, again and again."""
    nodes = await opened(settings, "one", "other")
    for _ in range(20):
        got: list[MemoryGrants] = []

        def take(each: MemoryGrants, got: list[MemoryGrants] = got) -> None:
            with suppress(NotEnoughMemory):
                each.take(order("r", 0, 24 * GB))
                got.append(each)

        threads = [threading.Thread(target=take, args=(each,)) for each in nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) <= 1
        for each in nodes:
            each.give_back(("r", 0))
            each._look()


async def test_a_new_node_waits_until_the_others_offer_less(still: None, settings: Settings) -> None:
    (old,) = await opened(settings, "old")
    new, news = node(settings, "new"), asyncio.Event()
    opening = asyncio.create_task(new.open())
    await asyncio.sleep(0.1)
    assert not opening.done()
    following = asyncio.create_task(old.follow(news.set))
    await opening
    assert news.is_set()
    assert old.free(KEY) == new.free(KEY) == 18 * GB
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_small_changes_are_none(still: None, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = await opened(settings, "one")
    memory = psutil.virtual_memory()
    near = (42 * GB + STEADY, 36 * GB), (42 * GB - STEADY, 36 * GB)
    for available, shown in (*near, (38 * GB, 32 * GB), (2 * GB, LEAST)):
        now = memory._replace(available=available)
        monkeypatch.setattr(psutil, "virtual_memory", itertools.repeat(now).__next__)
        one._look()
        assert one.free(KEY) == shown


def test_what_a_stage_uses_already_is_not_counted_twice(settings: Settings, folder: ClaimsFolder) -> None:
    """Its own pages are gone from the free memory; before it has any, or where they cannot be seen, all counts."""
    size = 500 * 10**6
    holds = f"data = bytearray({size}); data[::4096] = b'x' * len(data[::4096]); print('has it', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stage:
        assert stage.stdout is not None
        stage.stdout.readline()

        def left(pid: int) -> int:
            folder.write(record(claims=(Claim(MEMORY, size, pid),)))
            return left_over(settings)

        until(lambda: abs(left(stage.pid) - left(0) - size) < size / 10, PATIENCE, "its pages are counted once")
        stage.kill()


def test_what_a_machine_has_adds_up(still: None, settings: Settings, folder: ClaimsFolder) -> None:
    folder.write(record(token="one", name="studio", claims=(Claim(MEMORY, 10 * GB), Claim("cuda:0", 90 * GB))))
    folder.write(record(token="two", name="studio"))
    found = shared_out(settings)
    nodes = (NodeHere("studio-one", 10 * GB), NodeHere("studio-two", 0))
    assert found == SharedOut(60 * GB, others=18 * GB, kept=6 * GB, granted=10 * GB, left=26 * GB, nodes=nodes)
    folder.write(record(token="two", claims=(Claim(MEMORY, 30 * GB),)))  # another program has taken what was free
    found = shared_out(settings)
    assert (found.kept, found.granted, found.left) == (2 * GB, 40 * GB, 0)


def test_a_script_counts_as_long_as_it_runs(still: None, settings: Settings) -> None:
    with claiming(settings, "split.py", [Claim(MEMORY, 20 * GB), Claim("cuda:0", 99 * GB)]) as say_pids:
        assert shared_out(settings).nodes == (NodeHere("split.py", 20 * GB),)
        say_pids([os.getpid(), 0])
        assert shared_out(settings).granted == 20 * GB
        left = left_over(settings)
        assert left > 16 * GB  # this process uses some of it already, up to a few GB after other tests
        said = r"other.py needs 20.0 GB in this machine's memory, 1\d.\d GB are left; lower context or users"
        with pytest.raises(NotEnoughMemory, match=said), claiming(settings, "other.py", [Claim(MEMORY, 20 * GB)]):
            pass
        assert left_over(settings) == left
    assert shared_out(settings).nodes == ()


# --- what others may put there ----------------------------------------------------------------------------------------


@pytest.fixture
def hostile(folder: ClaimsFolder) -> Path:
    """A folder with a good record and all that is none."""
    good, here = record(token="good", claims=(Claim(MEMORY, 1000),)), folder.path
    folder.write(good)

    def put(token: str, **changes: object) -> None:
        (here / f"{token}.json").write_text(json.dumps(asdict(good) | {"token": token} | changes))

    for size in (-1, 2**63, 10**400, CPU.total_bytes + 1):
        put(f"size{size % 97}", claims=[{"pool": MEMORY, "size": size, "pid": 0}])
    put("many", claims=[{"pool": MEMORY, "size": 1, "pid": 1}] * (MOST_CLAIMS + 1))
    put("negative", most={MEMORY: -5})
    put("parts", claims=[{"pool": MEMORY, "size": CPU.total_bytes, "pid": 0}] * 2)
    put("dead", pid=2**22 + 1)
    put("nobody", pid=-1)
    put("huge", pid=10**30)
    put("before", started=1.0)
    put("later", started=1e300)
    put("types", most=[1, 2])
    put("text", name=7)
    put("long", name="x" * LARGEST)
    put("extra", claims=[{"pool": MEMORY, "size": "1", "pid": 0}])
    (here / "nonsense.json").write_bytes(b"\xff\x00{[")
    (here / "deep.json").write_text("[" * 30_000)
    (here / "empty.json").touch()
    (here / "folder.json").mkdir()
    if os.name == "posix":
        (here / "link.json").symlink_to(folder._file(good))
        (here / "endless.json").symlink_to("/dev/zero")
        os.mkfifo(here / "pipe.json")
    return here


async def test_nonsense_of_others_is_passed_over(hostile: Path, folder: ClaimsFolder, settings: Settings) -> None:
    (found,) = folder.nodes({MEMORY: CPU.total_bytes})
    assert found.token == "good"
    (one,) = await opened(settings, "one")
    assert one.free(KEY) > 0
    one.take(order("r", 0, 1000))
    one.close()


@pytest.mark.skipif(not ROOT, reason="only root gives files away")
def test_nobody_speaks_for_another_users_process(folder: ClaimsFolder) -> None:
    folder.write(record())
    assert len(folder.nodes({})) == 1
    os.chown(folder._file(record()), 12345, 12345)
    assert folder.nodes({}) == ()


@pytest.mark.skipif(not ROOT, reason="only root runs programs of other users")
def test_another_users_node_counts(folder: ClaimsFolder) -> None:
    with subprocess.Popen(["sleep", "600"], user=12345) as sleeper:
        theirs = record(pid=sleeper.pid, started=start_of(psutil.Process(sleeper.pid)))
        folder.write(theirs)
        assert folder.nodes({}) == ()  # this user speaks for it
        os.chown(folder._file(theirs), 12345, 12345)
        assert folder.nodes({}) == (theirs,)
        sleeper.kill()
        sleeper.wait()
        assert folder.nodes({}) == ()


def test_no_crowd_hides_ones_own_nodes_or_takes_long(folder: ClaimsFolder) -> None:
    for number in range(3 * MOST_NODES):
        folder.write(record(token=f"{number:04}"))
    assert len(folder.nodes({})) == MOST_NODES


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_nothing_is_written_through_a_link_of_somebody_else(folder: ClaimsFolder, tmp_path: Path) -> None:
    """Who reads a node's file knows the names that do not change."""
    own, precious = record(), tmp_path / "precious"
    precious.write_text("precious")
    folder.write(own)
    for name in (file.with_suffix(end) for file in (folder._file(own),) for end in (".new", ".json.new", ".part")):
        name.symlink_to(precious)
    folder._file(own).unlink()
    folder._file(own).symlink_to(precious)
    folder.write(own)
    assert precious.read_text() == "precious"
    assert folder.nodes({}) == (own,)


def test_a_file_that_is_being_written_is_no_second_node(folder: ClaimsFolder) -> None:
    folder.write(record())
    written = folder._file(record())
    written.with_name("part.new").write_bytes(written.read_bytes())
    assert folder.nodes({}) == (record(),)


@pytest.mark.skipif(os.name == "nt", reason="a folder in a file's place is another error there")
def test_what_cannot_be_put_in_its_place_leaves_nothing_behind(folder: ClaimsFolder) -> None:
    folder._file(record()).mkdir(parents=True)
    with pytest.raises(OSError, match="irectory"):
        folder.write(record())
    assert list(folder.path.iterdir()) == [folder._file(record())]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process's start is not counted from the boot")
def test_a_node_lives_on_when_the_clock_is_set(
    folder: ClaimsFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux then says that the machine, and so each of its processes, started at another time."""
    folder.write(record())
    proc = tmp_path / "proc"
    proc.mkdir()
    for name in ("self", str(os.getpid())):
        (proc / name).symlink_to(f"/proc/{name}")
    lines = Path("/proc/stat").read_text().splitlines(keepends=True)
    set_on = [f"btime {int(line.split()[1]) + 3600}\n" if line.startswith("btime") else line for line in lines]
    (proc / "stat").write_text("".join(set_on))
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(proc))
    assert folder.nodes({}) == (record(),)


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_every_user_may_write_there_and_remove_only_what_is_theirs(folder: ClaimsFolder) -> None:
    folder.write(record())
    assert folder.path.stat().st_mode & 0o7777 == 0o1777
    assert folder._file(record()).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("what", ["file", "link"])
async def test_without_the_folder_a_node_is_as_if_alone_and_says_so_once(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "taken"
    place.touch() if what == "file" else place.symlink_to(tmp_path)
    (one,) = await opened(Settings(claims=str(place)), "one")
    assert one.free(KEY) > SLACK
    one.take(order("r", 0, 1000))
    said = [line for line in caplog.records if line.levelno == logging.WARNING]
    assert len(said) == 1
    assert f"more memory may be promised than there is: {place} cannot be written" in said[0].getMessage()
    place.unlink()
    one._look()
    assert [found.name for found in ClaimsFolder(Settings(claims=str(place))).nodes({})] == ["one"]


async def test_a_file_that_was_cleaned_away_comes_back(settings: Settings, folder: ClaimsFolder) -> None:
    (one,) = await opened(settings, "one")
    for file in folder.path.iterdir():
        file.unlink()
    one._look()
    assert [found.name for found in folder.nodes({})] == ["one"]
    one.close()
    assert list(folder.path.iterdir()) == []
