"""How machines join, at a terminal: where this one is reached, the line for the other one, who came and who left."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from together.checkout import own_release
from together.cluster.agent import Agent, Watcher
from together.cluster.discovery import Tell, log_it
from together.cluster.local import say_to_parent
from together.cluster.node import Story, run_node
from together.cluster_types import Endpoint, NodeStatus, StageState, address_text, is_address
from together.commands import USUAL, launch
from together.desktop.again import begin_anew, until_ordered
from together.desktop.logs import keep_log, note_to_parent
from together.desktop.other_page import head_of
from together.desktop.ports import moved_line
from together.desktop.show import LetGoBy, Screen, let_go_in
from together.errors import BadSetting, TogetherError
from together.head.reach import join_command, likely_first, page_address
from together.processes import stop_on_signals
from together.sentences import NOTHING, Sentence, say, verbatim
from together.settings import Settings
from together.trust.secret import SecretFile
from together.view import NoteKind
from together.wording import size_text

if TYPE_CHECKING:
    from together.head.head import Head  # which a node does not load

GRACE = 8.0  # seconds: an app that starts again, or a node whose machine sleeps for a moment, did not leave
SETTLED = 5.0  # seconds: between two networks a machine has other addresses, or none
LOOK_EVERY = 1.0


# --- addresses --------------------------------------------------------------------------------------------------------


def peers_of(texts: list[str] | None, settings: Settings, *, of_app: bool) -> tuple[Endpoint, ...]:
    """What `--peer` was given, each as another machine prints it; `of_app` is for `up`. Raises BadSetting, AppError."""
    return tuple(_peer_of(text.strip(), settings, of_app) for text in texts or ())


def _peer_of(text: str, settings: Settings, of_app: bool) -> Endpoint:
    if "://" not in text:
        return endpoint_of(text, settings.node_port)
    if of_app:
        raise BadSetting(
            "--peer {text} is an app's page, and up takes a node's address, which python3 launch.py node prints there",
            text=text,
        )
    return head_of(text, SecretFile(settings.config_path))


def endpoint_of(text: str, usual_port: int) -> Endpoint:
    """`"10.0.0.5:47600"`, `"[::1]:47600"`, `"studio"` or `"10.0.0.5"` → Endpoint. Raises BadSetting."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or is_address(text.strip("[] ")):  # an IPv6 address without a port has colons, too
        host, port = text, str(usual_port)
    host = host.strip().removeprefix("[").removesuffix("]")
    named = host and not set(host) & set(" /@[]?#") and (":" not in host or is_address(host))
    if not named or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise BadSetting("--peer {text!r} is not host:port, as 192.168.1.20:47600", text=text)
    if is_address(host) and ipaddress.ip_address(host).is_unspecified:
        raise BadSetting("--peer {text} is no machine's address; give the one that the other machine prints", text=text)
    return Endpoint((host,), int(port))


# --- what is printed at the start -------------------------------------------------------------------------------------


def app_lines(settings: Settings, head: Endpoint, page: int) -> Iterator[str]:
    """For an app that listens on the network: its page for others, and the line for another machine."""
    if settings.open_to_network:
        yield "open to this network: page and API ask for a key, and machines join with this one's code"
        if settings.plain_http:
            yield "the page is in the clear (--plain-http): let nobody reach it but a proxy of yours that encrypts"
        yield from app_reached(settings, page, head)
    elif settings.host_names:
        yield f"by the name {', '.join(settings.host_names)}, and through any proxy, page and API ask for a key"
    if settings.asks_for_keys:
        yield f"  a key for a browser or a program:   {USUAL} keys make NAME"


def app_reached(settings: Settings, page: int, head: Endpoint) -> Iterator[str]:
    """Where others find an app."""
    yield f"  page for a phone:          {page_address(settings, head, page)}"
    yield f"  on another machine, run:   {join_command(settings, head)}"
    yield from _others(likely_first(head.addresses))


def node_lines(settings: Settings, status: NodeStatus) -> Iterator[str]:
    """For a node: what it lends, and the line for the machine with the app."""
    first, last = status.ports
    lends = f"{size_text(status.memory_bytes)}, {status.devices[0].key}"
    at = likely_first(status.endpoint.addresses)[0]
    yield f"node {status.name} lends {lends} at {at}, ports {first} to {last}   (Ctrl-C stops it)"
    if not settings.open_to_network:
        yield f"only apps on this machine can use it; for other machines' apps: {launch('node --host 0.0.0.0')}"
        return
    yield "open to this network, for machines that have this one's join code and nobody else"
    yield from node_reached(settings, status.endpoint)


def node_reached(settings: Settings, node: Endpoint) -> Iterator[str]:
    """How the machine with the app finds a node."""
    addresses = likely_first(node.addresses)
    code, peer = SecretFile(settings.config_path).code(), address_text(addresses[0], node.port)
    yield f"  on the machine with the app, run:   {USUAL} join {code} up --host 0.0.0.0 --peer {peer}"
    yield from _others(addresses)


def _others(addresses: tuple[str, ...]) -> Iterator[str]:
    if addresses[1:]:
        yield f"  (this machine is also at {', '.join(addresses[1:])})"


# --- who comes and who leaves -----------------------------------------------------------------------------------------


Who = TypeVar("Who", bound=Hashable)


class Comings(Generic[Who]):
    """Says who came and who left, each once. Who is back within the grace that `see` is given never left."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._away: dict[Who, float | None] = {}  # everybody who came → since when they are away, None: they are here

    def see(self, present: Mapping[Who, Sentence], left: Callable[[Who], tuple[Sentence, float]], now: float) -> None:
        """`present`: who is here, and how to say that they came; `left`: how to say that they left, and its grace.

        `now` and the grace are seconds of a clock that only rises.
        """
        for who, joined in present.items():
            if who not in self._away:
                self._tell(joined)
            self._away[who] = None
        for who in [who for who in self._away if who not in present]:
            since = self._away[who]
            since = self._away[who] = now if since is None else since
            sentence, grace = left(who)
            if now - since >= grace:
                del self._away[who]
                self._tell(sentence)


async def tell_of_nodes(head: Head, page: int, screen: Screen) -> None:
    """Say which machines join this app and which leave, and where this one moves; runs until cancelled.

    Nodes that the app started itself are its own affair.
    """
    clock = asyncio.get_running_loop().time
    nodes, notes = _Nodes(head, Comings(screen.tell)), OnceEach[tuple[str, NoteKind]](screen.tell)
    cache, strangers = OnceEach[LetGoBy](screen.tell), OnceEach[Sentence](screen.tell)
    moves = Moves(screen, head.machines.where.endpoint, partial(app_reached, head.settings, page))
    async for view in head.changes():
        nodes.look(clock())
        moves.look(head.machines.where.endpoint, clock())
        cache.look(let_go_in(view.nodes, view.let_go))
        notes.look({(note.node, note.kind): note.text for note in view.notes})
        strangers.look({locked: locked for locked in view.locked})


@dataclass(slots=True)
class _Nodes:
    """The nodes of other machines and of other starts, as a head sees them."""

    head: Head
    comings: Comings[str]

    def look(self, now: float) -> None:
        living = self.head.machines.membership.living()
        others = [node for node in living if node.owner != self.head.id]
        self.comings.see({node.id: _joined(node) for node in others}, self._left, now)

    def _left(self, node: str) -> tuple[Sentence, float]:
        members = self.head.machines.membership
        status, name = members.status(node), members.name_of(node)
        if status is None:
            return say("node_left", node=name), 0.0
        return say("node_is_lost", node=name, cause=status.cause), GRACE


def _joined(node: NodeStatus) -> Sentence:
    device = node.devices[0].key if node.devices else "no device"
    return say("node_joined", node=node.name, memory=node.memory_bytes, device=device)


@dataclass(slots=True)
class Moves:
    """Says where this machine is once it has been there for a while, and the lines for others again."""

    screen: Screen
    said: Endpoint
    reached: Callable[[Endpoint], Iterator[str]]
    _seen: Endpoint | None = None
    _since: float = 0.0

    def look(self, at: Endpoint, now: float) -> None:
        """`now` in seconds of a clock that only rises."""
        if at != self._seen:
            self._seen, self._since = at, now
        nowhere = all(ipaddress.ip_address(address).is_loopback for address in at.addresses)
        if at == self.said or nowhere or now - self._since < SETTLED:
            return
        self.said = at
        self.screen.tell(say("now_at", addresses=likely_first(at.addresses)))
        for line in self.reached(at):
            self.screen.line(line)


# --- a node's terminal ------------------------------------------------------------------------------------------------


def run_node_here(settings: Settings, peers: tuple[Endpoint, ...], with_parent: bool) -> int:
    """A node with its terminal, or as its parent's child; the exit code. Raises TogetherError where it cannot run."""
    if not with_parent:
        screen = Screen()
        anew = asyncio.run(_run_node(settings, peers, False, partial(_story, settings, screen), screen.tell))
        screen.line("stopped, and begins anew with its new version" if anew else "stopped")
        if anew:
            begin_anew()
        return 0
    note_to_parent()
    try:
        asyncio.run(_run_node(settings, peers, True, _tell_parent, log_it))
    except TogetherError as error:
        print(say_to_parent(str(error)), flush=True)
        return 1
    return 0


async def _run_node(
    settings: Settings, peers: tuple[Endpoint, ...], with_parent: bool, story: Story, tell: Tell
) -> bool:
    """Whether it is to begin anew."""
    stopping, ordered = asyncio.Event(), asyncio.Event()

    async def follow_updates() -> None:
        await until_ordered(settings.home_path)
        ordered.set()
        stopping.set()

    following = asyncio.create_task(asyncio.sleep(0) if with_parent else follow_updates())
    try:
        with stop_on_signals(stopping):
            await run_node(settings, peers, with_parent, story, stopping, tell)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return ordered.is_set()


async def _tell_parent(agent: Agent) -> None:
    said = None
    while True:
        seen, at = agent.changed.version, agent.identity.endpoint
        if at != said:
            print(say_to_parent(at), flush=True)
            said = at
        await agent.changed.wait(seen, LOOK_EVERY)


async def _story(settings: Settings, screen: Screen, agent: Agent) -> None:
    """What goes on at a node, for its terminal: which apps use it, and which layers it runs."""
    keep_log(settings.logs_path, f"node-{agent.identity.id[:8]}")
    if moved := moved_line("this node", settings.node_port, *agent.status().ports):
        screen.line(moved)
    for line in node_lines(settings, agent.status()):
        screen.line(line)
    clock, comings, runs = asyncio.get_running_loop().time, Comings[Watcher](screen.tell), Runs(screen.tell)
    reached, cache = partial(node_reached, settings), OnceEach[LetGoBy](screen.tell)
    moves, newer = Moves(screen, agent.identity.endpoint, reached), OnceEach[Watcher](screen.tell)
    while True:
        seen = agent.changed.version
        newer.look(dict(_newer(agent.watchers())))
        comings.see({watcher: _app_joined(watcher) for watcher in agent.watchers()}, _app_left, clock())
        runs.look(agent.status())
        cache.look(let_go_in((), agent.status().let_go))
        moves.look(agent.identity.endpoint, clock())
        await agent.changed.wait(seen, LOOK_EVERY)


def _newer(apps: Iterable[Watcher]) -> Iterator[tuple[Watcher, Sentence]]:
    """Apps whose program is newer than this node's, and what to do."""
    own = own_release()
    for app in apps:
        if app.release is not None and own.is_older(app.release):
            yield app, say("app_is_newer", name=app.name, version=app.release.version, own=own.version)


def _app_joined(app: Watcher) -> Sentence:
    return say("app_joined", name=app.name, page=say("app_page", url=app.page) if app.page else NOTHING)


def _app_left(app: Watcher) -> tuple[Sentence, float]:
    return say("app_left", name=app.name), GRACE


class OnceEach(Generic[Who]):
    """Says each of several things once, as long as it is there: what full caches let go, what machines need."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._said: frozenset[Who] = frozenset()

    def look(self, now: Mapping[Who, Sentence]) -> None:
        for which, sentence in now.items():
            if which not in self._said:
                self._tell(sentence)
        self._said = frozenset(now)


class Runs:
    """Says which layers a node runs, and what they wait for or suffer from, when that changes."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._said: set[tuple[str, ...]] = set()

    def look(self, status: NodeStatus) -> None:
        now = dict(_news_of(status))
        for what, sentence in now.items():
            if what not in self._said:
                self._tell(sentence)
        if self._said and not now:
            self._tell(say("runs_none"))
        self._said = set(now)


def _news_of(status: NodeStatus) -> Iterator[tuple[tuple[str, ...], Sentence]]:
    """What is new about a node where the first part is new; how long a stage waits by now is not."""
    for stage in status.stages:
        layers = str(stage.layers)
        if stage.state is StageState.READY:
            yield ("runs", layers, stage.model), say("runs_layers", layers=layers, model=stage.model)
        elif stage.waiting:
            waits = say("layers_wait", layers=layers, model=stage.model, source=stage.waiting)
            yield ("waits", layers, stage.model), waits
    if status.cause:
        yield ("cause", status.cause), verbatim(status.cause)
