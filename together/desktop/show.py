"""`status` as text. Knows only the JSON of `/status`; every name in it is another machine's, so it is never markup."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

GB = 1e9


def show_status(status: dict[str, Any], url: str, console: Console) -> None:
    """Model, stages and nodes, for a person."""
    serving = status["serving"]
    console.print(Text(f"together at {url}"))
    console.print(Text(f"{serving['model'] or 'no model'}: {status['reason'] or _load(serving)}"))
    if not status["nodes"]:
        console.print("no node is there; start one with: python3 launch.py node")
        return
    table = Table("node", "state", "device", "memory free", "layers held", "address")
    for node in status["nodes"]:
        table.add_row(*(Text(text) for text in _row(node)))
    console.print(table)


def _load(serving: dict[str, Any]) -> str:
    stages = len(serving["plan"]["stages"]) if serving["plan"] else 0
    return f"ready on {stages} stages, {serving['running']} answering, {serving['waiting']} waiting"


def _row(node: dict[str, Any]) -> tuple[str, ...]:
    state = f"{node['state']}: {node['cause']}" if node["cause"] else str(node["state"])
    devices = ", ".join(device["description"] or device["name"] for device in node["devices"])
    memory = f"{node['free_bytes'] / GB:.1f} of {node['memory_bytes'] / GB:.1f} GB"
    held = ", ".join(
        f"{stage['layers']['start']}:{stage['layers']['stop']} {stage['model']}" for stage in node["stages"]
    )
    endpoint = node["endpoint"]
    return (
        node["name"],
        state,
        devices,
        memory,
        held or "none",
        f"{(endpoint['addresses'] or ['?'])[0]}:{endpoint['port']}",
    )
