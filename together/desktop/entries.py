"""The menu as plain data: what can be done from outside of the page. Each entry is a command line; knows no shell."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from together.cluster_types import NodeState, NodeStatus
from together.desktop.app_status import AppStatus
from together.wording import count_text


class EntryState(StrEnum):
    PLAIN = "plain"
    TICKED = "ticked"  # it holds, and the entry ends it
    OFF = "off"  # it cannot be done now


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to do, as `launch.py COMMAND`; `windowed` is the command where no terminal shows what it prints."""

    name: str
    label: str
    command: tuple[str, ...]
    state: EntryState = EntryState.PLAIN
    windowed: tuple[str, ...] = ()
    lasts: bool = False  # it runs as long as the app
    ends: bool = False  # the app ends with it

    @property
    def shown(self) -> tuple[str, ...]:
        """The command of a shell with windows."""
        return self.windowed or self.command


@dataclass(frozen=True, slots=True)
class MenuState:
    """What the menu follows from; without a status no app answers."""

    status: AppStatus | None = None
    at_login: bool = False  # something starts then


def entries(seen: MenuState) -> tuple[Entry, ...]:
    """What every shell offers now, in its order."""
    status = seen.status
    if status is None:
        start = Entry("start", "Start together", ("up", "--no-browser"), lasts=True)
        return (Entry("status", status_line(None), ("status",), EntryState.OFF), start, LOGS, _login(seen))
    stops = EntryState.PLAIN if own_nodes(status) else EntryState.OFF
    return (
        Entry("status", status_line(status), ("status",), windowed=("open", "machines")),
        Entry("chat", "Open the chat", ("open", "chat")),
        Entry("machines", "Machines", ("machines",), windowed=("open", "machines")),
        Entry("start_node", "Start a node on this machine", ("nodes", "start")),
        Entry("stop_node", "Stop a node on this machine", ("nodes", "stop"), stops),
        Entry("copy_address", "Copy the address of the API", ("copy", "address")),
        Entry("copy_code", "Copy the join code", ("copy", "code")),
        LOGS,
        _login(seen),
        Entry("quit", "Quit together: stop the app", ("stop",), ends=True),
    )


def _login(seen: MenuState) -> Entry:
    state = EntryState.TICKED if seen.at_login else EntryState.PLAIN
    return Entry("login", "Start at login", ("at-login", "off" if seen.at_login else "up"), state)


LOGS = Entry("logs", "Logs", ("logs",), windowed=("logs", "--open"))


def status_line(status: AppStatus | None) -> str:
    """What runs, in one line."""
    if status is None:
        return "together is not running"
    machines = count_text(len({node.machine for node in living(status)}), "machine")
    return "; ".join([*(model.serving.sentence for model in status.models), machines])


def living(status: AppStatus) -> tuple[NodeStatus, ...]:
    return tuple(node for node in status.nodes if node.state is not NodeState.FAILED)


def own_nodes(status: AppStatus) -> tuple[NodeStatus, ...]:
    """Those that the app started on this machine."""
    return tuple(node for node in living(status) if node.owner == status.head)
