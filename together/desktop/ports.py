"""Ports as a person gives them, and who has one that is taken."""

from __future__ import annotations

import psutil

from together.settings import parse_port


def page_port(text: str) -> int:
    """`--port` of `up`. Raises BadSetting."""
    return parse_port(f"--port {text}", text, "port")


def node_port(text: str) -> int:
    """`--port` of `node`. Raises BadSetting."""
    return parse_port(f"--port {text}", text, "node_port")


def moved_line(what: str, wanted: int, used: int, last: int = 0) -> str:
    """What a person is to know where another port than the wanted one is used; empty where it is that one.

    `last` is the last port used of a block that begins at `used`.
    """
    if wanted in (0, used):
        return ""
    ports = range(wanted, wanted + max(1, last - used + 1))
    holder = holder_of(ports) or "another program"
    if last:
        return f"ports {ports[0]} to {ports[-1]} are taken by {holder}; {what} uses {used} to {last}"
    return f"port {wanted} is taken by {holder}; {what} uses {used}"


def holder_of(ports: range) -> str:
    """`python3 (process 4711)`, a program that listens on one of them; empty where the system does not say."""
    try:
        held = psutil.net_connections("tcp")
        listening = [(one.pid, one.laddr) for one in held if one.pid and one.status == psutil.CONN_LISTEN]
        pids = [pid for pid, address in listening if address and address.port in ports]
        return f"{_program(psutil.Process(pids[0]))} (process {pids[0]})" if pids else ""
    except (psutil.Error, OSError):
        return ""


def _program(process: psutil.Process) -> str:
    line = process.cmdline()
    return "another together" if line[1:3] == ["-m", "together"] else process.name()
