"""What a node gives away of what its machine has, and the agent's answers that need no process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from tests.support.orders import make_order
from together.cluster.agent import Agent
from together.cluster.claims import MEMORY
from together.cluster.grants import Holder, MemoryGrants, offer
from together.cluster.identity import Identity, claim_node_id, machine_id, own_addresses
from together.cluster_types import Device, Endpoint, NodeState, StageOrder
from together.errors import LoadFailed, NotEnoughMemory
from together.planning.memory import process_bytes
from together.ring import rpc
from together.settings import Settings
from together.types import LayerRange, ModelRef, StagePlan

DEVICES = (Device("checksum", "cpu", "a CPU", 2**50, 0), Device("checksum", "big", "a card", 9000, 9000))


@pytest.fixture
def book(tmp_path: Path) -> MemoryGrants:
    """Of a node that may use 1000 bytes of main memory and all of its card."""
    return MemoryGrants.of(Settings(claims=str(tmp_path / "claims"), memory="1000B"), "studio", DEVICES)


def order(ring: str, slot: int, size: int, device: str = "cpu") -> StageOrder:
    plan = StagePlan("", "checksum", device, LayerRange(0, 4), size)
    return StageOrder(ring, "head", slot, ModelRef("toy", "", "", 4), plan, "fp32")


requests = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 900), st.booleans()), max_size=20
)


@hypothesis(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests)
def test_a_node_promises_no_memory_twice(tmp_path: Path, steps: list[tuple[str, int, int, bool]]) -> None:
    book = MemoryGrants.of(Settings(claims=str(tmp_path / "claims"), memory="1000B"), "studio", DEVICES)
    given_away = dict[tuple[str, int], int]()
    for ring, index, size, returns in steps:
        if returns or (ring, index) in given_away:
            book.give_back((ring, index))
            given_away.pop((ring, index), None)
        elif size <= 1000 - sum(given_away.values()):
            book.take(order(ring, index, size))
            given_away[ring, index] = size
        else:
            with pytest.raises(NotEnoughMemory):
                book.take(order(ring, index, size))
            book.close()
            continue
        if given_away:
            assert book.free("checksum/cpu") == 1000 - sum(given_away.values()) >= 0
    book.close()


async def test_devices_are_counted_apart(book: MemoryGrants) -> None:
    await book.open()
    book.take(order("r", 0, 1000))
    book.take(order("r", 1, 5000, device="big"))
    assert [device.free_bytes for device in book.shown()] == [0, 4000]
    assert book.total == 1000
    with pytest.raises(NotEnoughMemory, match="needs 4001 bytes for layers 0:4, has 4000 bytes free"):
        book.take(order("r", 2, 4001, device="big"))


# --- processes --------------------------------------------------------------------------------------------------------

OWN = process_bytes("torch")
MACHINE = (Device("torch", "cuda:0", "a card", 2**36, 2**36), Device("torch", "cpu", "a CPU", 2**50, 0))


def torch_order(slot: int, size: int, device: str = "cpu") -> StageOrder:
    return replace(order("r", slot, size), stage=StagePlan("", "torch", device, LayerRange(0, 4), size))


async def test_orders_of_a_byte_take_what_their_processes_take(tmp_path: Path) -> None:
    book = MemoryGrants.of(Settings(claims=str(tmp_path), memory=f"{3 * OWN + OWN // 2}B"), "studio", MACHINE[1:])
    async with book:
        for slot in range(3):
            book.take(torch_order(slot, 1))
        assert book.free("torch/cpu") == OWN // 2
        with pytest.raises(NotEnoughMemory):
            book.take(torch_order(3, 1))


async def test_a_stage_on_a_card_has_its_process_in_main_memory(tmp_path: Path) -> None:
    book = MemoryGrants.of(Settings(claims=str(tmp_path)), "studio", MACHINE)
    book.most[MEMORY] = 3 * OWN
    async with book:
        assert [device.free_bytes for device in book.shown()] == [2**36, 2 * OWN]  # its first stage has its place
        book.take(torch_order(0, 2**30, "cuda:0"))
        assert [device.free_bytes for device in book.shown()] == [2**36 - 2**30, 2 * OWN]
        book.take(torch_order(1, 2 * OWN))
        assert [device.free_bytes for device in book.shown()] == [0, 0]
        with pytest.raises(NotEnoughMemory):
            book.take(torch_order(2, 2**30, "cuda:0"))
        book.give_back(("r", 0))
        assert book.free("torch/cuda:0") == 2**36


# --- shares -----------------------------------------------------------------------------------------------------------

holders = st.builds(Holder, st.integers(0, 100), st.integers(0, 120))


def offers(pool: int, nodes: list[Holder]) -> list[int]:
    return [offer(pool, own, [*nodes[:index], *nodes[index + 1 :]]) for index, own in enumerate(nodes)]


def test_nodes_share_equally_and_keep_what_they_hold() -> None:
    assert offers(90, [Holder(0, 100)] * 3) == [30, 30, 30]
    assert offers(90, [Holder(0, 10), Holder(0, 100), Holder(0, 100)]) == [10, 40, 40]
    assert offers(90, [Holder(70, 100), Holder(0, 100), Holder(0, 100)]) == [0, 10, 10]
    assert offers(90, [Holder(95, 100), Holder(0, 100)]) == [0, 0]
    assert offers(90, [Holder(20, 100), Holder(0, 100), Holder(0, 100)]) == [10, 30, 30]
    assert offers(-5, [Holder(0, 100)]) == [0]


@given(st.integers(-50, 500), st.lists(holders, min_size=1, max_size=6))
def test_offers_never_exceed_what_is_granted_to_nobody(pool: int, nodes: list[Holder]) -> None:
    left = max(pool - sum(node.granted for node in nodes), 0)
    found = offers(pool, nodes)
    assert min(found) >= 0
    assert sum(found) <= left
    assert all(size <= max(node.most - node.granted, 0) for size, node in zip(found, nodes, strict=True))
    wanting = [node for node, size in zip(nodes, found, strict=True) if node.granted + size < node.most]
    assert left - sum(found) < len(nodes) or not wanting  # nothing is left over that somebody may have


@given(st.integers(0, 500), st.lists(holders, min_size=2, max_size=6), st.integers(0, 5), st.floats(0, 1))
def test_a_grant_within_an_offer_leaves_the_others_as_they_are(
    pool: int, nodes: list[Holder], index: int, part: float
) -> None:
    index %= len(nodes)
    before = offers(pool, nodes)
    size = int(part * before[index])
    nodes[index] = replace(nodes[index], granted=nodes[index].granted + size)
    after = offers(pool, nodes)
    assert after[index] == before[index] - size
    assert after[:index] + after[index + 1 :] == before[:index] + before[index + 1 :]


async def test_a_draining_node_takes_no_new_layers(tmp_path: Path, toy: Path, book: MemoryGrants) -> None:
    await book.open()
    agent = Agent(Settings(home=str(tmp_path)), Identity("id", "studio", "m", Endpoint((), 1)), book, draining=True)
    with pytest.raises(LoadFailed, match="node studio is draining"):
        await agent.load(make_order(toy, memory=100), rpc.HERE)
    assert agent.status().state is NodeState.DRAINING
    assert agent.status().free_bytes == 1000


# --- identity ---------------------------------------------------------------------------------------------------------


def test_node_ids_are_stable_and_one_each(tmp_path: Path) -> None:
    first, lock = claim_node_id(tmp_path)
    second, other = claim_node_id(tmp_path)
    assert first != second
    lock.release()
    again, lock = claim_node_id(tmp_path)
    assert again == first
    for held in (lock, other):
        held.release()


def test_a_damaged_id_file_gets_a_new_id(tmp_path: Path) -> None:
    first, lock = claim_node_id(tmp_path)
    lock.release()
    (tmp_path / "nodes" / "0.json").write_text("[not json")
    second, lock = claim_node_id(tmp_path)
    lock.release()
    assert len(second) == len(first) == 16
    assert second != first


def test_all_nodes_of_a_machine_know_it(tmp_path: Path) -> None:
    assert machine_id(tmp_path) == machine_id(tmp_path)


@pytest.mark.parametrize(
    ("host", "addresses"), [("127.0.0.1", ("127.0.0.1",)), ("localhost", ("127.0.0.1",)), ("::1", ("::1",))]
)
def test_addresses_of_a_server_on_one_address(host: str, addresses: tuple[str, ...]) -> None:
    assert own_addresses(host) == addresses


def test_addresses_of_a_server_on_all_of_them_are_real_ones() -> None:
    assert "0.0.0.0" not in own_addresses("0.0.0.0")
    assert own_addresses("0.0.0.0")
