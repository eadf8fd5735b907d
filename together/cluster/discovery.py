"""How nodes and heads find each other: zeroconf records, and introductions where multicast does not reach.

Both are hints from strangers: bounded in number and length, never rendered, and replaced by what a node itself says
over Watch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address

from zeroconf import InterfaceChoice, IPVersion, NonUniqueNameException, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from together.cluster_types import Endpoint
from together.errors import BadSetting, NotAllowed, TogetherError
from together.ring.rpc import Broadcast, Peer
from together.sentences import NOTHING, Sentence, say
from together.settings import Settings
from together.trust.credentials import Credentials, is_plain
from together.types import LayerRange
from together.wording import reason_of

log = logging.getLogger(__name__)

SERVICE = "_together._tcp.local."
MOST_RECORDS = 256  # a flood of fake nodes ends here
MOST_LOCKED = 32  # machines that are shown as locked
MOST_TEXT = 200
CLOCKS_APART = 86_400.0  # seconds that a record may be old, or the clocks of two homes may differ
MET_LIFE = 30.0  # seconds that an introduction counts
MOST_MET = 64


class Introductions:
    """Where nodes say they are; `changed` is notified of each new one."""

    def __init__(self, changed: Broadcast) -> None:
        self._changed = changed
        self._heard: dict[Endpoint, float] = {}  # event loop times

    def add(self, node: Endpoint, to: str, peer: Peer) -> None:
        """Count for MET_LIFE seconds from now. Raises BadSetting, naming `to`, for one too many.

        A member introduces itself alone, and is at one place: NotAllowed for another one's id.
        """
        if peer.id is not None:
            if node.id != peer.id:
                raise NotAllowed("a node introduces itself, not another one, to {name}", name=to)
            for older in [known for known in self._heard if known.id == node.id and known != node]:
                del self._heard[older]
        known = node in self.current()
        if not known and len(self._heard) >= MOST_MET:
            message = "{name} was told of {most} nodes within {seconds:.0f} s; try again in a moment"
            raise BadSetting(message, name=to, most=MOST_MET, seconds=MET_LIFE)
        self._heard[node] = asyncio.get_running_loop().time()
        if not known:
            self._changed.notify()

    def current(self) -> tuple[Endpoint, ...]:
        oldest = asyncio.get_running_loop().time() - MET_LIFE
        self._heard = {node: at for node, at in self._heard.items() if at > oldest}
        return tuple(self._heard)


Tell = Callable[[Sentence], None]  # says a sentence to the person at this process's terminal


def log_it(sentence: Sentence) -> None:
    """The `Tell` of a process that no person looks at."""
    log.info("%s", sentence)


class Addressed:
    """What a person hears of addresses: once that one they named does not answer yet, or that one refuses, and why."""

    def __init__(self, named: Iterable[Endpoint], every: float, tell: Tell) -> None:
        """`every` seconds each is tried again."""
        self._named = frozenset(named)
        self._every = every
        self.tell = tell
        self._said: dict[Endpoint, Sentence] = {}  # NOTHING once it has answered

    def names(self, peer: Endpoint) -> bool:
        """Whether a person named it."""
        return peer in self._named

    def silent(self, peer: Endpoint) -> None:
        """One that answered before is somebody who left, which others say."""
        if peer in self._named and peer not in self._said:
            self._say(peer, say("peer_silent", peer=str(peer), seconds=self._every))

    def refused(self, peer: Endpoint, why: Sentence) -> None:
        self._say(peer, say("peer_refused", peer=str(peer), why=why))

    def answered(self, peer: Endpoint) -> None:
        if self._said.get(peer):
            self.tell(say("peer_answers", peer=str(peer)))
        if peer in self._named or peer in self._said:
            self._said[peer] = NOTHING

    def _say(self, peer: Endpoint, sentence: Sentence) -> None:
        if self._said.get(peer) != sentence:
            self._said[peer] = sentence
            self.tell(sentence)


@dataclass(frozen=True, slots=True)
class Hint:
    """What a record says about a node. `held` and `free` are ranges of `model`'s `layers` layers."""

    id: str
    cluster: str
    endpoint: Endpoint
    protocol: int
    device: str = ""
    free_memory: int = 0  # bytes
    model: str = ""
    layers: int = 0
    held: tuple[LayerRange, ...] = ()
    free: tuple[LayerRange, ...] = ()
    owner: str = ""  # as in NodeStatus

    def properties(self) -> dict[str, str]:
        """The TXT record, but for the proof of `tagged`."""
        values = {
            "id": self.id,
            "cluster": self.cluster,
            "protocol": str(self.protocol),
            "device": self.device,
            "memory": str(self.free_memory),
            "at": _whole(self.endpoint.addresses),
            "tls": "yes" if self.endpoint.id else "no",
        }
        if self.owner:
            values["owner"] = self.owner
        if self.model:
            values |= {"model": self.model, "layers": str(self.layers)}
            values |= {"held": _ranges_text(self.held), "free": _ranges_text(self.free)}
        return {key: _shortened(value) for key, value in values.items()}

    @classmethod
    def parse(cls, properties: dict[str, str], endpoint: Endpoint) -> Hint | None:
        """None for a record that is not one of ours."""
        try:
            endpoint = replace(endpoint, id=properties["id"] if properties.get("tls") == "yes" else "")
            return cls(
                id=properties["id"],
                cluster=properties["cluster"],
                endpoint=_now_at(endpoint, properties.get("at", "")),
                protocol=int(properties["protocol"]),
                device=properties.get("device", ""),
                free_memory=int(properties.get("memory", "0")),
                model=properties.get("model", ""),
                layers=int(properties.get("layers", "0")),
                held=_parse_ranges(properties.get("held", "")),
                free=_parse_ranges(properties.get("free", "")),
                owner=properties.get("owner", ""),
            )
        except (KeyError, ValueError):
            return None


def _signed(node: str, addresses: str, port: int, now: str) -> str:
    return f"{node} {addresses} {port} {now}"


def tagged(hint: Hint, credentials: Credentials) -> dict[str, str]:
    """The whole record: when it was written, and the tag that says that a member wrote it. Raises AppError."""
    properties, now = hint.properties(), str(int(time.time()))
    tag = credentials.tag(_signed(hint.id, properties["at"], hint.endpoint.port, now))
    return properties | {"time": now, "tag": tag}


def is_of_member(properties: dict[str, str], port: int, credentials: Credentials) -> bool:
    """Whether a member wrote the record, not long ago. Without a join code here only this machine's own nodes count."""
    now, at = properties.get("time", ""), properties.get("at", "")
    recent = now.isascii() and now.isdecimal() and abs(time.time() - int(now)) < CLOCKS_APART
    if not recent or not credentials.wrote(_signed(properties.get("id", ""), at, port, now), properties.get("tag", "")):
        return False
    return bool(properties.get("tag")) or all(map(is_plain, at.split(",")))


def _shortened(text: str) -> str:
    """A record's entry has at most 255 bytes, its key among them."""
    return text.encode()[:MOST_TEXT].decode(errors="ignore")


def _ranges_text(ranges: tuple[LayerRange, ...]) -> str:
    """As many whole ranges as the record has room for: half a number would be another range."""
    return _whole(str(item) for item in ranges)


def _whole(items: Iterable[str]) -> str:
    text = ",".join(items)
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT + 1].rpartition(",")[0]


def _now_at(endpoint: Endpoint, said: str) -> Endpoint:
    """Without addresses of before a move: they stay in caches for minutes, and others get them."""
    current = tuple(address for address in endpoint.addresses if address in said.split(","))
    return replace(endpoint, addresses=current or endpoint.addresses)


def _parse_ranges(text: str) -> tuple[LayerRange, ...]:
    return tuple(LayerRange.parse(part) for part in text.split(",") if part)


class Discovery:
    """One zeroconf instance: browses, and advertises once it is given a hint."""

    def __init__(
        self,
        settings: Settings,
        changed: Callable[[], None],
        tell: Tell = log_it,
        credentials: Credentials | None = None,
    ) -> None:
        self._settings = settings
        self._credentials = credentials or Credentials.of(settings.config_path, "")
        self._changed = changed
        self._tell = tell
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._service: AsyncServiceInfo | None = None
        self._serial = 0
        self._lookups: set[asyncio.Task[None]] = set()
        self.hints: dict[str, Hint] = {}  # of members, by service name
        self.locked: dict[str, Endpoint] = {}  # of the latest nodes with another join code, by service name

    async def start(self) -> None:
        """Begin to browse. Where multicast is forbidden, peers given by hand still work."""
        interfaces = InterfaceChoice.All if self._settings.open_to_network else ["127.0.0.1"]
        try:
            self._zeroconf = AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)
        except OSError as error:
            self._tell(say("no_multicast", error=reason_of(error)))
            return
        self._browse()

    def _browse(self) -> None:
        assert self._zeroconf is not None
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._heard])

    async def ask_again(self) -> None:
        """The join code is another one: whoever belonged here may be a stranger, and the other way round."""
        self.hints.clear()
        self.locked.clear()
        await self.rebind()

    async def rebind(self) -> None:
        """This machine's addresses changed: use the new ones, say our record there, and ask who is there."""
        if self._zeroconf is None or self._browser is None:
            await self.start()
            return
        try:
            await self._zeroconf.async_update_interfaces()
        except OSError as error:
            self._tell(say("no_multicast", error=reason_of(error)))
        await self._browser.async_cancel()
        self._browse()  # only a new one asks at once

    async def advertise(self, hint: Hint) -> None:
        """Publish or update this node's record."""
        if self._zeroconf is None:
            return
        name = f"{hint.id}.{SERVICE}"
        self._serial += 1  # a record that goes back to what it said before would not count as news
        addresses = [ip_address(address).packed for address in hint.endpoint.addresses]
        service = AsyncServiceInfo(
            SERVICE,
            name,
            hint.endpoint.port,
            addresses=addresses,
            properties=tagged(hint, self._credentials) | {"serial": str(self._serial)},
            server=f"{hint.id}.local.",
        )
        if self._service is None:
            try:
                await self._zeroconf.async_register_service(service)
            except NonUniqueNameException:  # our own record of a moment ago, before a crash
                await self._zeroconf.async_register_service(service, cooperating_responders=True)
        else:
            await self._zeroconf.async_update_service(service)
        self._service = service

    async def close(self) -> None:
        """Say goodbye, so that others forget us at once."""
        for lookup in self._lookups:
            lookup.cancel()
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._zeroconf is not None:
            await self._zeroconf.async_unregister_all_services()
            await self._zeroconf.async_close()

    def _heard(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            if self.hints.pop(name, None) or self.locked.pop(name, None):
                self._changed()
        elif name in self.hints or len(self.hints) + len(self._lookups) < MOST_RECORDS:
            task = asyncio.ensure_future(self._look_up(zeroconf, name))
            self._lookups.add(task)
            task.add_done_callback(self._lookups.discard)

    async def _look_up(self, zeroconf: Zeroconf, name: str) -> None:
        info = AsyncServiceInfo(SERVICE, name)
        if not await info.async_request(zeroconf, timeout=3000) or info.port is None:
            return
        endpoint = Endpoint(tuple(info.parsed_addresses(IPVersion.All))[:8], info.port)
        properties = {key: (value or "")[:MOST_TEXT] for key, value in info.decoded_properties.items()}
        hint = Hint.parse(properties, endpoint)
        if hint is None or hint.cluster != self._settings.cluster:
            return
        if name == f"{hint.id}.{SERVICE}" and self._is_member(properties, info.port):
            changed = self.hints.get(name) != hint or name in self.locked
            self.hints[name] = hint
            self.locked.pop(name, None)
        else:  # a flood of them pushes out others of their kind alone
            changed = self.locked.pop(name, None) != hint.endpoint or name in self.hints
            self.locked[name] = hint.endpoint
            self.hints.pop(name, None)
            if len(self.locked) > MOST_LOCKED:
                del self.locked[next(iter(self.locked))]
        if changed:
            self._changed()

    def _is_member(self, properties: dict[str, str], port: int) -> bool:
        try:
            return is_of_member(properties, port, self._credentials)
        except TogetherError as error:  # the join code cannot be read
            log.info("%s", error)
            return False
