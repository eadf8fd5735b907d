"""The addresses that a node and a head give to others."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from together.cluster.identity import Whereabouts, own_addresses
from together.cluster.node import run_node
from together.cluster_types import Endpoint
from together.errors import BadSetting
from together.head.head import Head
from together.settings import load_settings

NOWHERE = "no.such.host.invalid"


async def test_a_host_without_an_address_is_named(tmp_path: Path) -> None:
    settings = load_settings({}, home=str(tmp_path), host=NOWHERE, backend="checksum", cluster="test-identity")
    with pytest.raises(BadSetting, match=r"no address for '203\.0\.113\.1'"):  # another machine's
        own_addresses("203.0.113.1")
    with pytest.raises(BadSetting, match=f"no address for '{NOWHERE}'"):
        await run_node(settings)
    with pytest.raises(BadSetting, match=f"no address for '{NOWHERE}'"):
        await Head(settings).start()


def interfaces(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """What the system says of this machine from now on."""
    said = {"eth0": [SimpleNamespace(family=socket.AF_INET, address=address) for address in ("127.0.0.1", *addresses)]}
    monkeypatch.setattr("psutil.net_if_addrs", lambda: said)


async def test_what_listens_everywhere_follows_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[Endpoint] = []
    interfaces(monkeypatch, "10.0.0.1")
    where = Whereabouts("0.0.0.0", lambda: moves.append(where.endpoint))
    where.bound(7)
    await where.look()
    assert moves == []
    for addresses in (("10.0.0.2",), ("10.0.0.2", "10.8.0.1"), ()):
        interfaces(monkeypatch, *addresses)
        await where.look()
        await where.look()
        assert where.endpoint == Endpoint(addresses or ("127.0.0.1",), 7)
    assert len(moves) == 3


async def test_what_listens_at_one_address_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    where = Whereabouts("127.0.0.1")
    interfaces(monkeypatch, "10.0.0.2")
    await where.look()
    assert where.endpoint.addresses == ("127.0.0.1",)


async def test_a_system_that_says_no_addresses_for_a_moment_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    interfaces(monkeypatch, "10.0.0.1")
    where = Whereabouts("0.0.0.0")

    def refuse() -> None:
        raise OSError("no such device")

    monkeypatch.setattr("psutil.net_if_addrs", refuse)
    await where.look()
    assert where.endpoint.addresses == ("10.0.0.1",)
