"""What a node says of its own speed: measured in a child, once, kept on disk, one at a time on a machine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from backends.measuring import LIFE, QUIET, watch_others
from tests.support.checksum import make_checksum_model
from tests.support.cluster import call, cluster_settings, running_nodes
from tests.support.patience import PATIENCE
from together.cluster.measure import Finding, disk_speed
from together.cluster.profiling import LARGEST_CONFIG, Profiler, better, profile_key
from together.cluster_types import Device, DeviceProfile, MeasureOrder
from together.errors import BadSetting, LoadFailed
from together.processes import spawn
from together.ring import rpc, wire
from together.types import PackedAs, Packing

CPU = Device("checksum", "cpu", "checksum toy", 10**9, 10**9)
FOUR = Packing("affine", 4, 64)
SLOW = 20_000.0  # ms for each layer: longer than any test


@pytest.fixture
def profiler(tmp_path: Path) -> Iterator[Profiler]:
    """On a machine of its own, so that tests do not wait for each other."""
    made = Profiler("studio", secrets.token_hex(8), tmp_path / "home", (CPU,))
    yield made
    lock_of(made).unlink(missing_ok=True)


def lock_of(profiler: Profiler) -> Path:
    return Path(tempfile.gettempdir()) / f"together-{profiler.machine}-measure.lock"


@pytest.fixture
def order(tmp_path: Path) -> MeasureOrder:
    folder = make_checksum_model(tmp_path / "toy", step_ms=2)
    return MeasureOrder("checksum", "cpu", "fp32", (folder / "config.json").read_bytes())


def changed(order: MeasureOrder, **values: object) -> MeasureOrder:
    """The order with another config.json."""
    return replace(order, config=json.dumps(json.loads(order.config) | values).encode())


def kept(profiler: Profiler) -> list[Path]:
    return sorted((profiler.home / "profiles").glob("*"))


def children() -> list[psutil.Process]:
    """The measuring processes of this one."""
    return [child for child in psutil.Process().children() if "together.cluster.measure" in child.cmdline()]


async def poll(true: Callable[[], object], seconds: float = PATIENCE) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  # what is waited for is no event
            await asyncio.sleep(0.02)


# --- measuring and keeping --------------------------------------------------------------------------------------------


async def test_a_device_is_measured_and_its_answer_kept(profiler: Profiler, order: MeasureOrder) -> None:
    found = await profiler.measure(order)
    assert found.ms_per_layer > 0.4  # the toy takes 2
    assert min(found.ms_per_stage, found.ms_per_head, found.memory_bytes_per_s, found.matrix_flops_per_s) > 0
    assert 20e6 < found.overhead_bytes < 1e9  # grpc and the stage's own code are in it
    assert children() == []
    hasty = replace(profiler, patience=0.0)  # it could not ask
    assert await hasty.measure(order) == found


async def test_the_same_order_at_once_is_measured_once(profiler: Profiler, order: MeasureOrder) -> None:
    found = await asyncio.gather(*(profiler.measure(order) for _ in range(4)))
    assert len({profile.ms_per_layer for profile in found}) == 1
    assert len(kept(profiler)) == 1


async def test_what_is_measured_anew_is_kept_where_it_is_better(profiler: Profiler, order: MeasureOrder) -> None:
    known = rewrite(profiler, await profiler.find(order), ms_per_layer=77.0, busy=1.0, at=time.time())
    assert await profiler.measure(order) == known.profile
    found = await profiler.find(order, anew=True)
    assert 0 < found.profile.ms_per_layer != 77.0
    assert await profiler.find(order) == found


def rewrite(profiler: Profiler, found: Finding, ms_per_layer: float, *, busy: float, at: float) -> Finding:
    """What is kept on disk, changed."""
    (file,) = kept(profiler)
    changed = Finding(replace(found.profile, ms_per_layer=ms_per_layer), busy, at)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"found": asdict(changed)}))
    return changed


async def test_a_broken_answer_on_disk_is_measured_again(profiler: Profiler, order: MeasureOrder) -> None:
    known = await profiler.find(order)
    (file,) = kept(profiler)
    whole = json.loads(file.read_text())
    no_number = whole["found"] | {"profile": whole["found"]["profile"] | {"ms_per_layer": float("nan")}}
    no_share = whole["found"] | {"busy": "often"}
    no_finding: dict[str, object] = {"profile": {}}
    for text in ("", "{}", *(json.dumps(whole | {"found": wrong}) for wrong in (no_finding, no_number, no_share))):
        file.write_text(text)
        with pytest.raises(LoadFailed, match="took more than 0 s"):
            await replace(profiler, patience=0.0).measure(order)
    file.write_text(json.dumps(whole))
    assert await replace(profiler, patience=0.0).find(order) == known


def test_fine_tunes_of_one_shape_share_an_answer(order: MeasureOrder) -> None:
    key = profile_key(order, (CPU,))
    assert profile_key(changed(order, eos_token_id=7, max_position_embeddings=9, rope_theta=5), (CPU,)) == key


def test_what_speed_depends_on_is_in_the_key(order: MeasureOrder) -> None:
    keys = {
        profile_key(order, (CPU,)),
        profile_key(changed(order, hidden_size=16), (CPU,)),
        profile_key(changed(order, something_new=1), (CPU,)),
        profile_key(replace(order, dtype="bf16"), (CPU,)),
        profile_key(replace(order, device="cuda:0"), (CPU,)),
        profile_key(replace(order, backend="torch"), (CPU,)),
        profile_key(replace(order, packed=PackedAs(FOUR)), (CPU,)),
        profile_key(replace(order, packed=PackedAs(head=FOUR)), (CPU,)),
        profile_key(replace(order, packed=PackedAs(FOUR, exact=True)), (CPU,)),
        profile_key(replace(order, config=b"not json"), (CPU,)),
        profile_key(order, (replace(CPU, description="another processor"),)),
    }
    assert len(keys) == 11
    assert profile_key(replace(order, packed=PackedAs(exact=True)), (CPU,)) in keys  # plain weights have one mode


# --- a busy machine ---------------------------------------------------------------------------------------------------


@pytest.fixture
def busy_loops() -> Iterator[None]:
    """A quarter of the processors at least is used by programs that do nothing else."""
    count = max((psutil.cpu_count() or 1) // 4, 1)
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    yield
    for process in loops:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("busy_loops")
async def test_others_that_use_the_processors_are_noticed(profiler: Profiler, order: MeasureOrder) -> None:
    found = await profiler.find(order)
    assert found.disturbed
    assert found.busy <= 1


def test_what_we_do_ourselves_disturbs_nobody() -> None:
    data, threads = bytes(2**26), psutil.cpu_count() or 1
    others = watch_others()
    with ThreadPoolExecutor(threads) as pool:  # hashes of many bytes are computed at the same time
        list(pool.map(lambda _: hashlib.sha256(data), range(2 * threads)))
    assert 0 <= others() < 1


async def test_what_a_busy_machine_said_is_believed_for_a_while_and_a_quiet_one_for_ever(
    profiler: Profiler, order: MeasureOrder
) -> None:
    found, hasty = await profiler.find(order), replace(profiler, patience=0.0)  # it could not ask
    known = rewrite(profiler, found, ms_per_layer=77.0, busy=1.0, at=time.time() - LIFE / 2)
    assert await hasty.measure(order) == known.profile
    for wrong in (time.time() - 2 * LIFE, time.time() + 2 * LIFE):  # clocks are set back as well
        rewrite(profiler, found, ms_per_layer=77.0, busy=1.0, at=wrong)
        with pytest.raises(LoadFailed, match="took more than 0 s"):
            await hasty.measure(order)
    known = rewrite(profiler, found, ms_per_layer=77.0, busy=QUIET, at=0)
    assert await hasty.measure(order) == known.profile


def test_of_two_answers_the_undisturbed_one_is_kept_and_of_disturbed_ones_the_faster() -> None:
    profile = DeviceProfile(10.0, 1.0, 5.0, 1e9, 1e9, 1e9, 10**8)
    quiet, noisy = Finding(profile, 0.05, 1000), Finding(profile, 0.5, 1000)
    later = replace(noisy, at=2000)
    faster, slower = (replace(later, profile=replace(profile, ms_per_layer=ms)) for ms in (9.0, 11.0))
    assert better(noisy, None) == noisy
    assert better(quiet, noisy) == quiet
    assert better(replace(quiet, at=2000), quiet).at == 2000
    assert better(later, quiet) == quiet
    assert better(slower, noisy) == later  # and it is not measured again at once
    assert better(faster, noisy) == faster


# --- one at a time ----------------------------------------------------------------------------------------------------


async def test_nodes_of_a_machine_take_turns(profiler: Profiler, order: MeasureOrder) -> None:
    other = replace(profiler, home=profiler.home.with_name("other"))
    with FileLock(lock_of(profiler)):
        waiting = asyncio.create_task(other.measure(order))
        done, _ = await asyncio.wait([waiting], timeout=0.5)
        assert not done
        assert children() == []
    assert (await waiting).ms_per_layer > 0


async def test_a_lock_that_is_closed_to_us_stops_nobody(profiler: Profiler, order: MeasureOrder) -> None:
    closed = lock_of(profiler)
    closed.mkdir()
    try:
        assert (await profiler.measure(order)).ms_per_layer > 0
    finally:
        closed.rmdir()


# --- what goes wrong --------------------------------------------------------------------------------------------------


async def test_an_unknown_device_is_refused_with_what_there_is(profiler: Profiler, order: MeasureOrder) -> None:
    with pytest.raises(BadSetting, match="node studio has no device torch/cuda:3; it has checksum/cpu"):
        await profiler.measure(replace(order, backend="torch", device="cuda:3"))


async def test_a_config_that_is_too_large_is_refused(profiler: Profiler, order: MeasureOrder) -> None:
    with pytest.raises(BadSetting, match="choose another model"):
        await profiler.measure(replace(order, config=b" " * (LARGEST_CONFIG + 1)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b'{"model_type": "gpt2"}', "gpt2"),
        *((data, r"config\.json") for data in (b"\xff\xfe", b"[]", b"[" * 10**5)),
    ],
    ids=["gpt2", "no text", "a list", "deep"],
)
async def test_a_model_that_does_not_run_here_is_refused_with_the_childs_words(
    profiler: Profiler, order: MeasureOrder, config: bytes, words: str
) -> None:
    with pytest.raises(BadSetting, match=f"node studio cannot measure checksum/cpu: .*{words}"):
        await profiler.measure(replace(order, config=config))
    assert kept(profiler) == []


async def test_a_child_that_takes_too_long_is_ended(profiler: Profiler, order: MeasureOrder) -> None:
    with pytest.raises(LoadFailed, match="measuring checksum/cpu took more than 1 s"):
        await replace(profiler, patience=1.0).measure(changed(order, step_ms=SLOW))
    assert children() == []


async def test_who_no_longer_waits_ends_the_child(profiler: Profiler, order: MeasureOrder) -> None:
    waiting = asyncio.create_task(profiler.measure(changed(order, step_ms=SLOW)))
    await poll(children)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert children() == []
    assert (await profiler.measure(order)).ms_per_layer > 0  # the turn was given back


@pytest.mark.skipif(os.name != "posix", reason="signals")
async def test_a_child_that_is_killed_is_reported_as_such(profiler: Profiler, order: MeasureOrder) -> None:
    waiting = asyncio.create_task(profiler.measure(changed(order, step_ms=SLOW)))
    await poll(children)
    children()[0].kill()
    with pytest.raises(LoadFailed, match="ended by SIGKILL: killed from outside"):
        await waiting


async def test_the_child_leaves_with_its_node(order: MeasureOrder, tmp_path: Path) -> None:
    process = await spawn("together.cluster.measure", "speeds", str(tmp_path))
    assert process.stdin is not None
    slow = wire.MEASURE_ORDER.encode(changed(order, step_ms=SLOW))
    process.stdin.write(slow.hex().encode() + b"\n")
    process.stdin.close()
    async with asyncio.timeout(PATIENCE):
        assert await process.wait() == 1


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_disk_speed_leaves_nothing_behind(tmp_path: Path) -> None:
    assert 0 <= disk_speed(tmp_path, 2**22) < 1e12
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system does not let go of its cache")
def test_disk_speed_is_known_here(tmp_path: Path) -> None:
    assert disk_speed(tmp_path, 2**22) > 1e5


def test_disk_speed_of_no_folder_and_of_a_full_disk_is_unknown(tmp_path: Path) -> None:
    assert disk_speed(tmp_path / "nowhere") == 0
    assert disk_speed(tmp_path, 2**60) == 0


# --- a real node ------------------------------------------------------------------------------------------------------


async def test_a_node_measures_itself_when_asked(order: MeasureOrder, tmp_path: Path) -> None:
    with running_nodes(cluster_settings(tmp_path / "home"), "one") as (node,):
        found = await call(node, rpc.MEASURE, order)
        assert found.ms_per_layer > 0.4
        assert await call(node, rpc.MEASURE, order) == found  # to the last digit: it did not measure again
        with pytest.raises(BadSetting, match="node one has no device mlx/gpu; it has checksum/cpu"):
            await call(node, rpc.MEASURE, replace(order, backend="mlx", device="gpu"))
