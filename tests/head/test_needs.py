"""Other programs of a machine need memory: caches go first, then the head advises, and no answer is harmed.

Real nodes in real cgroups with limits that shrink, where this system lets tests make them.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.support.cgroups import memory_cgroup, memory_root, within
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import ask, by_hand, cluster_settings, right_answer, running_head, start_node, until
from tests.support.patience import PATIENCE
from together.cluster_types import NodeStatus
from together.head.head import Head
from together.sentences import Sentence
from together.view import NoteKind

HEAVY = 2**12  # key-value heads: 3 of 6 layers take 134 MB
OTHERS = 1500 * 2**20  # bytes of another program in the cgroup
LITTLE = 70 * 2**20  # bytes that it leaves free, less than a twentieth of all
TAKES = f"x = b'x' * {OTHERS}; print(flush=True); import sys; sys.stdin.read()"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    if memory_root() is None:
        pytest.skip("no memory cgroup can be made here")
    with memory_cgroup(2**32) as folder:
        assert folder is not None
        yield folder


@contextmanager
def other_program(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """It has OTHERS bytes, until its block ends."""
    command = [*within(folder), sys.executable, "-c", TAKES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def shrink(folder: Path) -> None:
    """To what is used now and cannot be let go, and a little more."""
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    limit, usage = next((folder / limit, folder / usage) for limit, usage in names if (folder / limit).exists())
    lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
    counts = {name: int(count) for name, count in lines}
    kept = int(usage.read_text()) - counts["inactive_file"] - counts["active_file"]
    limit.write_text(str(kept + LITTLE))


def shrunk(folder: Path) -> bool:
    """For looks until something happens: what was in use for a moment as it shrank would be free memory later."""
    shrink(folder)
    return True


@asynccontextmanager
async def crowded(home: Path, folder: Path, memory: str = "3GB", elsewhere: str = "400MB") -> AsyncIterator[Head]:
    """A head with two nodes; anna is in the cgroup, and may have a spare process with `memory`."""
    settings = cluster_settings(home, memory=elsewhere)
    nodes = [
        start_node(replace(settings, name="anna", memory=memory), within=within(folder)),
        start_node(replace(settings, name="berta")),
    ]
    try:
        for node in nodes:
            node.wait_ready()
        async with running_head(settings, *nodes) as head:
            yield head
    finally:
        for node in nodes:
            node.stop()


def node_of(head: Head, name: str) -> NodeStatus:
    return next(node for node in head.view().nodes if node.name == name)


def spares_of(head: Head, name: str) -> list[int]:
    """Stage processes of a node beside its stages."""
    stages = [stage.pid for stage in node_of(head, name).stages]
    beside = psutil.Process(psutil.Process(stages[0]).ppid()).children()
    return [process.pid for process in beside if process.pid not in stages and _is_stage(process)]


def _is_stage(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return "together.ring.stage" in process.cmdline()
    return False


def needs_of(head: Head) -> list[Sentence]:
    return [note.text for note in head.view().notes if note.kind is NoteKind.MEMORY]


def toy_in(folder: Path, name: str = "toy") -> Path:
    return make_checksum_model(
        folder / name,
        layers=6,
        quiet_ids=(*QUIET, EOS),
        step_ms=2,
        num_key_value_heads=HEAVY,
        max_position_embeddings=4096,
    )


async def test_caches_go_then_layers_are_to_move_and_a_running_answer_goes_on(tmp_path: Path, cgroup: Path) -> None:
    toy = toy_in(tmp_path)
    async with crowded(tmp_path, cgroup) as head:
        await head.load(toy, by_hand("anna=0:3,berta=3:6"))
        await ask(head, "a question whose caches are kept for the next one")
        assert head.service is not None
        stats = head.service.engine.stats
        assert stats().cached > 0
        await until(lambda: spares_of(head, "anna"))
        offered = node_of(head, "anna").free_bytes
        with other_program(cgroup):
            answer = asyncio.create_task(ask(head, tokens=250))
            await until(lambda: head.service is not None and head.service.engine.running > 0)
            await until(lambda: shrunk(cgroup) and stats().cached == 0)
            assert needs_of(head) == []  # first the caches
            await until(lambda: not spares_of(head, "anna"))
            await until(lambda: needs_of(head))
            assert node_of(head, "anna").free_bytes < offered / 4
            (need,) = needs_of(head)
            assert need.code == "lacks_memory"
            assert str(need).startswith("other programs on anna need 0.1 GB more memory than is free there: move ")
            assert " layers of toy to berta: python3 launch.py load toy --layers " in str(need)
            assert await answer == right_answer(toy, tokens=250)
            assert await ask(head, "another") == right_answer(toy, "another")
            assert stats().cached == 0
            assert needs_of(head) == [need]  # it stays as it was said
            layers = str(need).rpartition(" --layers ")[2]
            await head.load(toy, by_hand(layers))
            assert await ask(head, "another") == right_answer(toy, "another")
            held = sum(stage.memory_bytes for stage in node_of(head, "anna").stages)
            assert held < 134 * 10**6


async def test_where_no_other_machine_has_room_a_model_is_to_be_unloaded(tmp_path: Path, cgroup: Path) -> None:
    """The one that is used least; one that is to be kept comes last."""
    async with crowded(tmp_path, cgroup, "160MB", "160MB") as head:
        await head.load(toy_in(tmp_path, "kept"), by_hand("anna=0:3,berta=3:6"), keep=True)
        with other_program(cgroup):
            await until(lambda: shrunk(cgroup) and needs_of(head))
            (need,) = needs_of(head)
            assert str(need).endswith(": unload kept, which has 0.2 GB: python3 launch.py unload kept")
            await head.unload()
            await until(lambda: not needs_of(head))  # nothing of ours is there


@pytest.mark.full
async def test_a_need_ends_once_enough_is_free_for_a_while_and_caches_are_kept_again(
    tmp_path: Path, cgroup: Path
) -> None:
    toy = toy_in(tmp_path)
    async with crowded(tmp_path, cgroup) as head:
        await head.load(toy, by_hand("anna=0:3,berta=3:6"))
        with other_program(cgroup):
            await until(lambda: shrunk(cgroup) and needs_of(head))
        await until(lambda: not needs_of(head), 2 * PATIENCE)
        await ask(head, "a question whose caches are kept for the next one")
        assert head.service is not None
        assert head.service.engine.stats().cached > 0
        assert node_of(head, "anna").life is not None
