"""What a node gives away, and the agent's answers that need no process."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from tests.support.orders import make_order
from together.cluster.agent import Agent, MemoryGrants
from together.cluster.identity import Identity, claim_node_id, machine_id, own_addresses
from together.cluster_types import Device, Endpoint, NodeState, StageOrder
from together.errors import LoadFailed, NotEnoughMemory
from together.settings import Settings
from together.types import LayerRange, ModelRef, StagePlan

DEVICES = (Device("checksum", "cpu", "a CPU", 2000, 1000), Device("checksum", "big", "a card", 9000, 9000))


def grants() -> MemoryGrants:
    return MemoryGrants("studio", DEVICES, {device.key: device.free_bytes for device in DEVICES})


def order(ring: str, slot: int, size: int, device: str = "cpu") -> StageOrder:
    plan = StagePlan("", "checksum", device, LayerRange(0, 4), size)
    return StageOrder(ring, "head", slot, ModelRef("toy", "", "", 4), plan, "fp32")


requests = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 900), st.booleans()), max_size=30
)


@hypothesis(max_examples=60, deadline=None)
@given(requests)
def test_memory_is_never_promised_twice(steps: list[tuple[str, int, int, bool]]) -> None:
    book, given_away = grants(), dict[tuple[str, int], int]()
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
        assert book.free("checksum/cpu") == 1000 - sum(given_away.values()) >= 0


def test_devices_are_counted_apart() -> None:
    book = grants()
    book.take(order("r", 0, 1000))
    book.take(order("r", 1, 5000, device="big"))
    assert [device.free_bytes for device in book.shown()] == [0, 4000]
    assert book.total == 1000


async def test_a_draining_node_takes_no_new_layers(tmp_path: Path, toy: Path) -> None:
    agent = Agent(Settings(home=str(tmp_path)), Identity("id", "studio", "m", Endpoint((), 1)), grants(), draining=True)
    with pytest.raises(LoadFailed, match="node studio is draining"):
        await agent.load(make_order(toy, memory=100))
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
