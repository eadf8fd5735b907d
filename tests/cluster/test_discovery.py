"""zeroconf records on loopback: what nodes say, and what strangers may send without harm."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from zeroconf import IPVersion, Zeroconf, const
from zeroconf._dns import DNSAddress, DNSPointer, DNSService, DNSText
from zeroconf._protocol.outgoing import DNSOutgoing

from tests.support.cluster import Node, cluster_settings, status_of, until
from tests.support.orders import loaded, make_order
from tests.support.patience import PATIENCE
from together.cluster.discovery import MOST_LOCKED, MOST_RECORDS, SERVICE, Discovery, Hint, is_of_member, tagged
from together.cluster.node import make_hint
from together.cluster_types import Device, Endpoint, NodeState, NodeStatus, StageState, StageStatus
from together.models.units import missing_ranges
from together.settings import Settings
from together.trust.credentials import Credentials
from together.types import LayerRange

HERE = Endpoint(("127.0.0.1",), 4321)
PLAIN = Hint("id", "home", HERE, 1, "a CPU", 8_000)

ranges = st.tuples(st.integers(0, 200), st.integers(1, 50)).map(lambda pair: LayerRange(pair[0], sum(pair)))


@asynccontextmanager
async def discovering(settings: Settings) -> AsyncIterator[Discovery]:
    discovery = Discovery(settings, lambda: None)
    await discovery.start()
    try:
        yield discovery
    finally:
        await discovery.close()


# --- the record -------------------------------------------------------------------------------------------------------


@hypothesis(max_examples=50, deadline=None)
@given(st.text(max_size=300), st.lists(ranges, max_size=80), st.lists(ranges, max_size=80))
def test_any_record_fits_and_reads_back(model: str, held: list[LayerRange], free: list[LayerRange]) -> None:
    hint = replace(PLAIN, model=model, layers=250, held=tuple(held), free=tuple(free))
    properties = hint.properties()
    assert all(len(f"{key}={value}".encode()) <= 255 for key, value in properties.items())
    read = Hint.parse(properties, HERE)
    assert read is not None
    assert model.startswith(read.model)
    if model:
        assert (read.held, read.free) == (tuple(held)[: len(read.held)], tuple(free)[: len(read.free)])
        assert (len(held) > len(read.held)) <= (len(held) > 20)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"id": None}, {"protocol": "one"}, {"protocol": None}, {"memory": "8 GB"}, {"layers": "x"}, {"held": "4:4"}),
        *({"held": "8"}, {"free": "-1:4"}, {"held": "0:4;<img onerror=alert(1)>"}, {"free": "0:" + "9" * 5000}),
    ],
)
def test_a_record_that_is_not_ours_is_nothing(wrong: dict[str, str | None]) -> None:
    both = PLAIN.properties() | wrong
    assert Hint.parse({key: value for key, value in both.items() if value is not None}, HERE) is None


@given(st.lists(ranges, max_size=6))
@hypothesis(max_examples=50, deadline=None)
def test_missing_ranges_are_exactly_what_nobody_holds(held: list[LayerRange]) -> None:
    layers = 120
    missing = missing_ranges(layers, held)
    covered = {layer for item in held for layer in range(item.start, item.stop)}
    assert [layer for item in missing for layer in range(item.start, item.stop)] == [
        layer for layer in range(layers) if layer not in covered
    ]
    assert all(left.stop < right.start for left, right in pairwise(missing))


def test_an_address_of_before_a_move_is_none_of_a_record() -> None:
    """Caches keep it for minutes, and another machine may have it by then."""
    moved = replace(PLAIN, endpoint=Endpoint(("10.0.0.2", "10.8.0.1"), 4321))
    cached = Endpoint(("10.0.0.2", "10.0.0.1", "10.8.0.1"), 4321)
    assert Hint.parse(moved.properties(), cached) == moved
    without = {key: value for key, value in moved.properties().items() if key != "at"}  # an older version's
    assert Hint.parse(without, cached) == replace(moved, endpoint=cached)


def test_a_nodes_record_says_what_it_holds_and_what_nobody_holds() -> None:
    device = Device("checksum", "cpu", "a CPU", 10, 10)
    idle = NodeStatus("id", "studio", "m", HERE, 1, NodeState.IDLE, devices=(device,), free_bytes=8_000)
    assert make_hint(idle, "home", []) == PLAIN
    stages = tuple(
        StageStatus("ring", index, "head", "toy", 32, LayerRange(*layers), "cpu", StageState.READY)
        for index, layers in enumerate([(16, 24), (0, 8)])
    )
    other = replace(PLAIN, id="other", model="toy", layers=32, held=(LayerRange(24, 30),))
    stranger = replace(other, model="another", held=(LayerRange(8, 16),))
    stale = replace(other, id="id", held=(LayerRange(0, 32),))  # our own record, heard back
    hint = make_hint(replace(idle, stages=stages), "home", [other, stranger, stale])
    properties = hint.properties()
    assert (properties["model"], properties["layers"]) == ("toy", "32")
    assert (properties["held"], properties["free"]) == ("0:8,16:24", "8:16,30:32")


# --- real processes ---------------------------------------------------------------------------------------------------


async def test_nodes_are_found_with_what_they_are(pair: list[Node], settings: Settings) -> None:
    async with discovering(settings) as ours, discovering(replace(settings, cluster="another")) as others:
        await until(lambda: len(ours.hints) == 2)
        statuses = [await status_of(node, settings) for node in pair]
        expected = {
            f"{s.id}.{SERVICE}": Hint(s.id, settings.cluster, s.endpoint, s.protocol, s.devices[0].description, 10**9)
            for s in statuses
        }
        await until(lambda: ours.hints == expected)  # a record may be seconds behind its node
        assert others.hints == {}


async def test_a_record_follows_what_its_node_holds(pair: list[Node], settings: Settings, toy: Path) -> None:
    order = make_order(toy)
    order = replace(order, stage=replace(order.stage, layers=LayerRange(0, 3)))
    status = await status_of(pair[0], settings)
    async with discovering(settings) as discovery:

        def said() -> tuple[str, str, str]:
            hint = discovery.hints.get(f"{status.id}.{SERVICE}", PLAIN).properties()
            return hint.get("model", ""), hint.get("held", ""), hint.get("free", "")

        async with loaded(pair[0], order):
            await until(lambda: said() == ("model", "0:3", "3:4"))
        await until(lambda: said() == ("", "", ""))


async def test_goodbye_takes_the_record_away(tmp_path: Path) -> None:
    settings = cluster_settings(tmp_path)
    async with discovering(settings) as discovery:
        async with discovering(settings) as other:
            await other.advertise(replace(PLAIN, cluster=settings.cluster))
            await until(lambda: discovery.hints)
        await until(lambda: not discovery.hints, PATIENCE)


async def test_a_record_that_is_there_already_is_taken_over(tmp_path: Path) -> None:
    """As after a crash: the name is still known, with another port."""
    settings = cluster_settings(tmp_path)
    hint = replace(PLAIN, cluster=settings.cluster)
    moved = replace(hint, endpoint=Endpoint(("127.0.0.1",), 4322))
    async with discovering(settings) as first, discovering(settings) as second, discovering(settings) as reader:
        await first.advertise(hint)
        await until(lambda: hint in reader.hints.values())
        await second.advertise(moved)
        await until(lambda: moved in reader.hints.values())


# --- strangers --------------------------------------------------------------------------------------------------------


def announce(zeroconf: Zeroconf, name: str, text: bytes, port: int = 1) -> None:
    """A record as a stranger would send it."""
    out = DNSOutgoing(const._FLAGS_QR_RESPONSE | const._FLAGS_AA)
    service, host = f"{name}.{SERVICE}", f"{name}.local."
    out.add_answer_at_time(DNSPointer(SERVICE, const._TYPE_PTR, const._CLASS_IN, 60, service), 0)
    out.add_answer_at_time(DNSService(service, const._TYPE_SRV, const._CLASS_IN, 60, 0, 0, port, host), 0)
    out.add_answer_at_time(DNSText(service, const._TYPE_TXT, const._CLASS_IN, 60, text), 0)
    out.add_answer_at_time(DNSAddress(host, const._TYPE_A, const._CLASS_IN, 60, bytes([127, 0, 0, 1])), 0)
    zeroconf.send(out)


def entries(properties: dict[str, str]) -> bytes:
    lines = [f"{key}={value}".encode() for key, value in properties.items()]
    return b"".join(bytes([len(line)]) + line for line in lines)


@asynccontextmanager
async def stranger() -> AsyncIterator[Callable[..., None]]:
    zeroconf = await asyncio.to_thread(Zeroconf, interfaces=["127.0.0.1"], ip_version=IPVersion.V4Only)
    try:
        yield lambda name, text, port=1: announce(zeroconf, name, text, port)
    finally:
        await asyncio.to_thread(zeroconf.close)


async def test_malformed_records_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = cluster_settings(tmp_path)
    good = tagged(replace(PLAIN, cluster=settings.cluster), Credentials.of(tmp_path, ""))
    unheard: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unheard.append(context))
    async with discovering(settings) as discovery, stranger() as say:
        say("bytes", b"\xff\xfe\x00\x01")
        say("nothing", b"")
        say("beyond", b"\xffid=cut")
        say("latin", entries(good).replace(b"id=id", b"id=\xe9\xe9"))
        say("ranges", entries(good | {"model": "toy", "layers": "4", "held": "4:1"}))
        say("<img onerror=alert(1)>", entries(good | {"protocol": "one"}))
        say("other", entries(good | {"cluster": "another"}))
        say("zero", entries(good | {"id": "zero"}), port=0)
        say("last", entries(good | {"id": "last"}))
        await until(lambda: f"last.{SERVICE}" in discovery.hints)
        strange = {name.removesuffix("." + SERVICE) for name in discovery.hints} - {"last"}
        assert strange <= {"latin", "zero"}  # a name that nobody can pronounce and a port where nobody is
    assert unheard == []


async def test_a_flood_of_records_ends_at_a_bound(tmp_path: Path) -> None:
    settings = cluster_settings(tmp_path)
    good = tagged(replace(PLAIN, cluster=settings.cluster), Credentials.of(tmp_path, ""))
    most = 0
    async with discovering(settings) as discovery, stranger() as say:
        async with asyncio.timeout(PATIENCE):  # the system drops many
            for number in itertools.count():
                say(f"fake{number}", entries(good | {"id": f"fake{number}"}))
                await asyncio.sleep(0)
                most = max(most, len(discovery.hints), len(discovery._lookups))
                if number > 2 * MOST_RECORDS and len(discovery.hints) >= MOST_RECORDS:
                    break
        await asyncio.sleep(0.2)
        assert max(most, len(discovery.hints)) <= MOST_RECORDS


# --- members and strangers --------------------------------------------------------------------------------------------


def record(hint: Hint, credentials: Credentials, **changed: str) -> bytes:
    return entries(tagged(hint, credentials) | changed)


async def test_who_has_another_join_code_is_locked_and_pushes_out_no_member(tmp_path: Path) -> None:
    settings = cluster_settings(tmp_path)
    member, other = Credentials.of(tmp_path, "id"), Credentials.of(tmp_path / "other", "id")
    for code in (member, other):
        assert code.file is not None
        code.file.get()
    hint = replace(PLAIN, cluster=settings.cluster, endpoint=replace(HERE, port=1))
    async with discovering(settings) as discovery, stranger() as say:
        for number in range(3 * MOST_LOCKED):
            say(f"fake{number}", record(replace(hint, id=f"fake{number}"), other))
        await until(lambda: len(discovery.locked) == MOST_LOCKED)
        say("id", record(hint, member))
        await until(lambda: f"id.{SERVICE}" in discovery.hints)
        assert len(discovery.hints) == 1
        assert len(discovery.locked) <= MOST_LOCKED


@pytest.mark.parametrize(
    "changed", [{"id": "jd"}, {"at": "192.0.2.1"}, {"time": "1"}, {"time": "x"}, {"tag": ""}, {"tag": "0" * 24}, {}]
)
def test_a_record_counts_as_its_writer_made_it(changed: dict[str, str], tmp_path: Path) -> None:
    credentials = Credentials.of(tmp_path, "id")
    assert credentials.file is not None
    assert is_of_member(tagged(PLAIN, credentials), HERE.port, credentials), "one machine alone"
    credentials.file.get()
    properties = tagged(PLAIN, credentials) | changed
    assert is_of_member(properties, HERE.port, credentials) is (not changed)
    assert not is_of_member(properties, HERE.port + 1, credentials)


def test_a_record_says_nothing_of_its_person(tmp_path: Path) -> None:
    said = " ".join(tagged(PLAIN, Credentials.of(tmp_path, "id")).values())
    assert socket.gethostname() not in said
