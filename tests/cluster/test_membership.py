"""A head's view of real nodes: found, frozen, killed, moved, introduced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.cluster import Node, call, cluster_settings, running_node, status_of, until
from tests.support.orders import make_order, stage_when
from tests.support.patience import PATIENCE
from together.cluster import discovery, membership
from together.cluster.local import said_to_parent
from together.cluster.membership import Membership
from together.cluster_types import Blob, Endpoint, NodeState, RingName, StageState, Strain, unique_names
from together.errors import BadSetting, Unreachable
from together.head.machines import Machines
from together.ring import rpc
from together.settings import Settings

NOWHERE = RingName("no such ring", "head")


@asynccontextmanager
async def following(settings: Settings, *nodes: Node, said: list[str] | None = None) -> AsyncIterator[Membership]:
    """`said` gets what a person at the head's terminal would be told."""
    peers, told = tuple(node.endpoint for node in nodes), [] if said is None else said
    members = Membership(settings, "head", peers, tell=lambda sentence: told.append(str(sentence)))
    task = asyncio.create_task(members.run())
    try:
        yield members
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, unlike the nodes, gets no multicast socket, as where the system forbids it."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("multicast is forbidden")

    monkeypatch.setattr(discovery, "AsyncZeroconf", refuse)


async def test_a_node_that_freezes_dies_and_moves_is_followed(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = asyncio.get_running_loop().time
    settings = cluster_settings(tmp_path, name="studio")
    with running_node(settings) as node:
        async with following(settings, node) as members:
            await until(members.living)
            (first,) = members.nodes()
            order = make_order(toy)
            await members.call(first.id, rpc.LOAD, order)
            stage = psutil.Process((await stage_when(node, settings, order, StageState.READY)).pid)

            node.freeze()
            began = clock()
            await until(lambda: not members.alive(first.id))
            assert clock() - began > settings.node_timeout - settings.heartbeat
            (lost,) = members.nodes()
            assert (lost.state, lost.cause) == (NodeState.FAILED, "lost: no sign of life for 2 s")
            with pytest.raises(Unreachable, match="node studio is not there any more"):
                await members.call(first.id, rpc.UNLOAD, NOWHERE)
            node.thaw()
            await until(lambda: members.alive(first.id), PATIENCE)
            assert members.living()[0].stages[0].pid == stage.pid

            node.kill()
            await until(lambda: not members.alive(first.id))
            cause = members.nodes()[0].cause
            assert cause.startswith("lost: ")
            assert "sign of life" not in cause  # its connection told, not its silence
            await asyncio.to_thread(stage.wait, 5)  # it left with its node

            moved = replace(settings, node_port=settings.node_port + 32)
            with running_node(moved) as again:
                await until(lambda: members.alive(first.id))
                assert members.living()[0].endpoint.port == again.port != first.endpoint.port
                again.stop()
                await until(lambda: not members.alive(first.id), PATIENCE)
                monkeypatch.setattr(membership, "REMEMBER_LOST", 0.1)
                await asyncio.sleep(0.2)
                members.changed.notify()  # as any other news would
                await until(lambda: members.nodes() == (), PATIENCE)


async def test_an_introduced_node_reaches_a_head_without_multicast(deaf: None, tmp_path: Path) -> None:
    settings, said = cluster_settings(tmp_path), list[str]()
    with running_node(settings) as first, running_node(settings, first.endpoint) as second:
        async with following(settings, first, said=said) as members:
            await until(lambda: len(members.living()) == 2)
            assert {status.endpoint.port for status in members.living()} == {first.port, second.port}
    (told,) = said
    assert "multicast fails (multicast is forbidden); name one with --peer" in told


async def test_a_node_of_another_cluster_is_never_listed(
    deaf: None, pair: list[Node], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "RETRY", 0.05)
    said = list[str]()
    async with following(replace(settings, cluster="elsewhere"), pair[0], said=said) as members:
        await until(lambda: len(said) == 2)
        await asyncio.sleep(0.3)  # several tries
        assert members.nodes() == ()
    assert said[1:] == [f"{pair[0].endpoint}: node twin is in cluster {settings.cluster}, not elsewhere"]


async def test_an_address_that_does_not_answer_yet_is_said_once_and_when_it_does(
    deaf: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "RETRY", 0.05)
    settings, said = cluster_settings(tmp_path), list[str]()
    peer = Endpoint(("127.0.0.1",), settings.node_port)
    members = Membership(settings, "head", (peer,), tell=lambda sentence: said.append(str(sentence)))
    task = asyncio.create_task(members.run())
    try:
        await until(lambda: len(said) == 2)
        assert said[1] == f"127.0.0.1:{peer.port} does not answer yet; trying every 0 s"
        with running_node(settings):
            await until(lambda: len(said) == 3)
            assert said[2:] == [f"127.0.0.1:{peer.port} answers now"]
        await until(lambda: not members.living())
        await asyncio.sleep(0.3)  # several tries
        assert len(said) == 3
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_another_head_s_address_is_no_node_s(deaf: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, said = cluster_settings(tmp_path, name="studio"), list[str]()
    machines = Machines(settings, "other")
    await machines.listen()
    peer = machines.where.endpoint
    members = Membership(settings, "head", (peer,), tell=lambda sentence: said.append(str(sentence)))
    task = asyncio.create_task(members.run())
    try:
        await until(lambda: len(said) == 2)
        assert said[1].startswith(f"{peer}: the app on studio listens there, which is no node; give the address")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await machines.close()


async def test_a_node_known_by_two_addresses_is_one_node(pair: list[Node], settings: Settings) -> None:
    async with following(settings, *pair) as members:
        await until(lambda: len(members.living()) == 2)
        twice = Endpoint(("127.0.0.1", "127.0.0.2"), pair[0].port)
        members.peers = (*members.peers, twice)
        members.changed.notify()
        await asyncio.sleep(0.5)
        assert sorted(status.id for status in members.nodes()) == sorted(
            [(await status_of(node, settings)).id for node in pair]
        )
        assert all(members.address(status.id) == "127.0.0.1" for status in members.living())


async def test_a_node_that_left_is_still_called_by_its_name(tmp_path: Path) -> None:
    settings = replace(cluster_settings(tmp_path), name="studio")
    with running_node(settings) as node:
        async with following(settings, node) as members:
            await until(members.living)
            left = members.living()[0].id
            node.stop()
            await until(lambda: not members.nodes())
            assert members.name_of(left) == "studio"
            assert members.name_of("0" * 16) == "0" * 16


async def test_names_of_those_who_left_are_not_kept_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "MOST_LEFT", 1)
    studio, mini = (replace(cluster_settings(tmp_path / name), name=name, cluster="one") for name in ("studio", "mini"))
    with running_node(studio) as first, running_node(mini) as second:
        async with following(studio, first, second) as members:
            await until(lambda: len(members.living()) == 2)
            ids = {node.name: node.id for node in members.living()}
            first.stop()
            await until(lambda: not members.alive(ids["studio"]))
            second.stop()
            await until(lambda: not members.nodes())
            assert [members.name_of(ids["studio"]), members.name_of(ids["mini"])] == [ids["studio"], "mini"]


async def test_a_call_whose_node_dies_meanwhile_is_an_error_of_ours(tmp_path: Path, toy: Path) -> None:
    settings = cluster_settings(tmp_path)
    with running_node(settings) as node:
        async with following(settings, node) as members:
            await until(members.living)
            node.freeze()
            waiting = asyncio.create_task(
                members.call(members.living()[0].id, rpc.LOAD, make_order(toy), timeout=PATIENCE)
            )
            with pytest.raises(Unreachable):
                await waiting  # the membership closes the channel under it


async def test_a_lease_that_is_not_renewed_frees_its_stages_alone(tmp_path: Path, toy: Path) -> None:
    settings = cluster_settings(tmp_path, lease=4.0)
    with running_node(settings) as node:
        ours, theirs = make_order(toy, head="head"), make_order(toy, head="gone")
        async with following(settings, node) as members:
            await until(members.living)
            for order in (ours, theirs):
                await call(node, rpc.LOAD, order)
            async with asyncio.timeout(PATIENCE):
                while len((status := await status_of(node, settings)).stages) == 2:
                    await members.renew()
            assert [stage.head for stage in status.stages] == ["head"]
            assert status.free_bytes == status.memory_bytes - ours.stage.memory_bytes
            assert len(node.stages()) == 1
            await asyncio.to_thread(node.stop)
            assert node.stages() == []
            await until(lambda: not members.living(), PATIENCE)
        assert [line for line in node.lines if said_to_parent(line) is None] == []


async def test_a_node_that_introduces_itself_to_a_head_is_followed(deaf: None, tmp_path: Path) -> None:
    settings = cluster_settings(tmp_path)
    with running_node(settings) as node:
        async with following(settings) as members:
            await members.meet(node.endpoint, rpc.HERE)
            await until(members.living)
            for port in range(1, discovery.MOST_MET):
                await members.meet(Endpoint(("127.0.0.1",), port), rpc.HERE)
            with pytest.raises(BadSetting, match=f"told of {discovery.MOST_MET} nodes"):
                await members.meet(Endpoint(("127.0.0.1",), 9999), rpc.HERE)
            await members.meet(node.endpoint, rpc.HERE)  # who is known may say so again


async def test_a_head_that_moves_reaches_its_nodes_again_and_loses_none(pair: list[Node], settings: Settings) -> None:
    async with following(settings, *pair) as members:
        await until(lambda: len(members.living()) == 2)
        nodes = [node.id for node in members.nodes()]
        channels = [member.channel for member in members._members.values()]
        asked = asyncio.create_task(members.call(nodes[0], rpc.ECHO, Blob()))
        members.reach_again()
        assert [members.alive(node) for node in nodes] == [True, True]
        await asked
        await asyncio.gather(*(members.call(node, rpc.ECHO, Blob()) for node in nodes))
        assert len(members.living()) == 2
        assert all(member.channel not in channels for member in members._members.values())


async def test_a_node_that_is_gone_when_the_head_moves_is_lost_in_time(tmp_path: Path) -> None:
    settings = cluster_settings(tmp_path)
    with running_node(settings) as node:
        async with following(settings, node) as members:
            await until(members.living)
            (status,) = members.nodes()
            members.reach_again()
            node.kill()
            await until(lambda: not members.alive(status.id))
            with pytest.raises(Unreachable, match="is not there any more"):
                await members.call(status.id, rpc.ECHO, Blob())


async def test_another_heads_node_is_used_only_where_its_address_was_given(tmp_path: Path) -> None:
    settings = cluster_settings(tmp_path, owner="another head", name="theirs")
    with running_node(settings) as theirs, running_node(replace(settings, owner="", name="free")) as free:
        async with following(settings, free) as members:
            await members.meet(theirs.endpoint, rpc.HERE)
            reached = members._followers.__contains__
            await until(lambda: members.living() and reached(theirs.endpoint))
            await asyncio.sleep(2 * settings.heartbeat)  # it has told its state by now, and again
            assert [node.name for node in members.nodes()] == ["free"]
            members.peers = (*members.peers, theirs.endpoint)
            await until(lambda: [node.name for node in members.living()] == ["free", "theirs"])
        async with following(replace(settings, owner="")) as members:
            members.head = "another head"
            await members.meet(theirs.endpoint, rpc.HERE)
            await until(lambda: "theirs" in [node.name for node in members.living()])


# --- names ------------------------------------------------------------------------------------------------------------


async def test_how_hard_a_machine_works_is_no_news(pair: list[Node], settings: Settings) -> None:
    """It differs in every beat, and whoever follows the view would wake for it."""
    status = await status_of(pair[0], settings)
    known = replace(status, strain=Strain(0.1, 0.1))
    assert not membership.is_news(known, replace(status, strain=Strain(0.9, 0.2)))
    assert membership.is_news(known, replace(known, free_bytes=known.free_bytes - 1))


def test_two_nodes_of_one_name_are_told_apart() -> None:
    nodes = {"ab12ff": "studio", "ab12fe": "studio", "cd34": "mini"}
    assert unique_names(nodes) == {"ab12ff": "studio-ab12ff", "ab12fe": "studio-ab12fe", "cd34": "mini"}
    assert unique_names({"ab12ff": "studio", "cd34": "mini"}) == {"ab12ff": "studio", "cd34": "mini"}


@given(st.dictionaries(st.text("ab-", max_size=6), st.sampled_from(["a", "b", "a-aaaa", "a-aaaaa", "b-ab"])))
def test_no_two_nodes_have_one_name(nodes: dict[str, str]) -> None:
    names = unique_names(nodes)
    assert names.keys() == nodes.keys()
    assert len(set(names.values())) == len(nodes)
