"""How nodes and heads find each other: zeroconf records, and introductions where multicast does not reach.

Both are hints from strangers: bounded in number and length, never rendered, and replaced by what a node itself says
over Watch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from zeroconf import InterfaceChoice, IPVersion, NonUniqueNameException, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from together.cluster_types import Endpoint
from together.errors import BadSetting
from together.ring.rpc import Broadcast
from together.sentences import NOTHING, Sentence, say
from together.settings import Settings
from together.types import LayerRange
from together.wording import reason_of

log = logging.getLogger(__name__)

SERVICE = "_together._tcp.local."
MOST_RECORDS = 256  # a flood of fake nodes ends here
MOST_TEXT = 200
MET_LIFE = 30.0  # seconds that an introduction counts
MOST_MET = 64


class Introductions:
    """Where nodes say they are; `changed` is notified of each new one."""

    def __init__(self, changed: Broadcast) -> None:
        self._changed = changed
        self._heard: dict[Endpoint, float] = {}  # event loop times

    def add(self, node: Endpoint, to: str) -> None:
        """Count for MET_LIFE seconds from now. Raises BadSetting, naming `to`, for one too many."""
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
        self._tell = tell
        self._said: dict[Endpoint, Sentence] = {}  # NOTHING once it has answered

    def silent(self, peer: Endpoint) -> None:
        """One that answered before is somebody who left, which others say."""
        if peer in self._named and peer not in self._said:
            self._say(peer, say("peer_silent", peer=str(peer), seconds=self._every))

    def refused(self, peer: Endpoint, why: Sentence) -> None:
        self._say(peer, say("peer_refused", peer=str(peer), why=why))

    def answered(self, peer: Endpoint) -> None:
        if self._said.get(peer):
            self._tell(say("peer_answers", peer=str(peer)))
        if peer in self._named or peer in self._said:
            self._said[peer] = NOTHING

    def _say(self, peer: Endpoint, sentence: Sentence) -> None:
        if self._said.get(peer) != sentence:
            self._said[peer] = sentence
            self._tell(sentence)


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
        """The TXT record."""
        values = {
            "id": self.id,
            "cluster": self.cluster,
            "protocol": str(self.protocol),
            "device": self.device,
            "memory": str(self.free_memory),
            "at": _whole(self.endpoint.addresses),
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
    return Endpoint(current or endpoint.addresses, endpoint.port)


def _parse_ranges(text: str) -> tuple[LayerRange, ...]:
    return tuple(LayerRange.parse(part) for part in text.split(",") if part)


class Discovery:
    """One zeroconf instance: browses, and advertises once it is given a hint."""

    def __init__(self, settings: Settings, changed: Callable[[], None], tell: Tell = log_it) -> None:
        self._settings = settings
        self._changed = changed
        self._tell = tell
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._service: AsyncServiceInfo | None = None
        self._serial = 0
        self._lookups: set[asyncio.Task[None]] = set()
        self.hints: dict[str, Hint] = {}  # by service name

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
            properties=hint.properties() | {"serial": str(self._serial)},
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
            if self.hints.pop(name, None):
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
        if hint and hint.cluster == self._settings.cluster and self.hints.get(name) != hint:
            self.hints[name] = hint
            self._changed()
