"""What a machine says of its battery and of what connects it. Files and programs stand in for other machines."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.support.stand_ins import program
from together.cluster import life
from together.cluster.life import LifeGauge, battery_left, link_kind, port_of
from together.cluster_types import LinkKind, MachineLife

PORTS = """
Hardware Port: Ethernet
Device: en5
Ethernet Address: 00:00:00:00:00:01

Hardware Port: Wi-Fi
Device: en0
Ethernet Address: 00:00:00:00:00:02

Hardware Port: Thunderbolt Bridge
Device: bridge0
Ethernet Address: 00:00:00:00:00:03
"""


@pytest.mark.parametrize(
    ("percent", "plugged", "left"),
    [(63.4, False, 65), (63.4, True, None), (63.4, None, None), (104.0, False, 100), (1.0, False, 0)],
)
def test_a_battery_is_told_while_the_machine_runs_on_it(
    monkeypatch: pytest.MonkeyPatch, percent: float, *, plugged: bool | None, left: int | None
) -> None:
    battery = SimpleNamespace(percent=percent, power_plugged=plugged)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert battery_left() == left


def test_a_system_that_tells_nothing_of_batteries_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    assert battery_left() is None

    def fails() -> None:
        raise NotImplementedError

    monkeypatch.setattr(psutil, "sensors_battery", fails)
    assert battery_left() is None
    monkeypatch.delattr(psutil, "sensors_battery")
    assert battery_left() is None


def network(folder: Path, monkeypatch: pytest.MonkeyPatch, **interfaces: str) -> None:
    """Interfaces by name with what they have of `wireless` and `device`; each has its name for an address."""
    for name, has in interfaces.items():
        for each in has.split():
            (folder / name / each).mkdir(parents=True)
    family = socket.AF_INET
    known = {name: [SimpleNamespace(family=family, address=f"at-{name}")] for name in interfaces}
    monkeypatch.setattr(life, "NETWORKS", folder)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: known)


def test_linux_knows_wifi_cables_and_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network(tmp_path, monkeypatch, wlan0="wireless device", wlp2s0="phy80211 device", eth0="device", docker0="bridge")
    assert link_kind(["at-wlan0"]) is link_kind(["at-wlp2s0"]) is LinkKind.WIFI
    assert link_kind(["at-eth0"]) is LinkKind.CABLE
    assert link_kind(["at-docker0"]) is link_kind(["elsewhere"]) is link_kind([]) is LinkKind.UNKNOWN
    assert link_kind(["at-wlan0", "at-docker0", "at-eth0"]) is LinkKind.CABLE  # others take the fastest way


def test_macos_names_its_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [port_of(name, PORTS) for name in ("en0", "en5", "en9")] == ["Wi-Fi", "Ethernet", ""]
    network(tmp_path, monkeypatch, en0="", en5="", bridge0="", utun0="")
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert link_kind(["at-en0"]) is LinkKind.UNKNOWN  # no program tells
    program(tmp_path / "bin", "networksetup", f"cat <<'END'\n{PORTS}\nEND")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    found = [link_kind([f"at-{name}"]) for name in ("en0", "en5", "bridge0", "utun0")]
    assert found == [LinkKind.WIFI, LinkKind.CABLE, LinkKind.CABLE, LinkKind.UNKNOWN]


def test_windows_names_its_interfaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network(tmp_path, monkeypatch, **{"Wi-Fi 2": "", "WLAN": "", "Ethernet": "", "vEthernet (WSL)": ""})
    monkeypatch.setattr(sys, "platform", "win32")
    found = [link_kind([f"at-{name}"]) for name in ("Wi-Fi 2", "WLAN", "Ethernet", "vEthernet (WSL)")]
    assert found == [LinkKind.WIFI, LinkKind.WIFI, LinkKind.CABLE, LinkKind.UNKNOWN]


async def test_a_gauge_looks_again_where_the_machine_moved_and_for_its_battery_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network(tmp_path, monkeypatch, wlan0="wireless", eth0="device")
    asked: list[int] = []

    def battery() -> SimpleNamespace:
        asked.append(1)
        return SimpleNamespace(percent=40.0, power_plugged=False)

    monkeypatch.setattr(psutil, "sensors_battery", battery, raising=False)
    now = [0.0]
    gauge = LifeGauge(lambda: now[0])
    assert await gauge.read(("at-wlan0",)) == MachineLife(0, 40, LinkKind.WIFI)
    assert (await gauge.read(("at-eth0",))).link is LinkKind.CABLE
    assert len(asked) == 1
    now[0] += life.BATTERY_EVERY
    await gauge.read(("at-eth0",))
    assert len(asked) == 2
