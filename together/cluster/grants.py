"""What a node may grant: its fair share of the machine's memory, of which all nodes together never promise more."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import psutil

from together.cluster.claims import (
    LONGEST_NAME,
    MEMORY,
    SLACK,
    Claim,
    ClaimsFolder,
    NodeClaims,
    machine_memory,
    main_memory,
    pool_of,
    start_of,
)
from together.cluster_types import Device, StageOrder
from together.errors import BadPlan, NotEnoughMemory
from together.planning.memory import process_bytes
from together.settings import Settings, parse_bytes
from together.types import StagePlan
from together.wording import reason_of

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds between looks at the free memory
NEWS_EVERY = 0.2  # seconds between looks for news of other nodes
SEEN_WITHIN = 2.0  # seconds that a new node waits to be counted by the others; one may be suspended
STEADY = 2**27  # bytes of change that are none: what is offered does not follow every program's every move

StageName = tuple[str, int]  # ring, slot


@dataclass(frozen=True, slots=True)
class Holder:
    """What one node was granted of a pool, and the most that it may be, in bytes."""

    granted: int
    most: int

    def share(self, level: int) -> int:
        return max(self.granted, min(self.most, level))


def offer(pool: int, own: Holder, others: Sequence[Holder]) -> int:
    """What `own` may still grant of a pool of so many bytes: equal shares, where who holds more keeps it.

    All offers together are at most what of the pool is granted to nobody. Granting one's offer, or a part of it, leaves
    the others' as they are.
    """
    holders = (own, *others)
    low, high = 0, max(pool, 0)
    while low < high:
        level = (low + high + 1) // 2
        if sum(holder.share(level) for holder in holders) <= pool:
            low = level
        else:
            high = level - 1
    fits = sum(holder.share(low) for holder in holders) <= pool
    return own.share(low) - own.granted if fits else 0


@dataclass(slots=True)
class MemoryGrants:
    """What each stage of this node was given of each device.

    `most` are bytes by pool, `pids` says the stages' processes. Within an `async with` block this node counts here.
    """

    node_name: str
    devices: tuple[Device, ...]
    most: dict[str, int]
    folder: ClaimsFolder
    pids: Callable[[], Mapping[StageName, int]] = dict
    _given: dict[StageName, tuple[str, int]] = field(default_factory=dict)  # device key, bytes
    _pools: dict[str, int] = field(default_factory=dict)
    _others: tuple[NodeClaims, ...] = ()
    _token: str = field(default_factory=lambda: secrets.token_hex(8))
    _started: float = field(default_factory=lambda: start_of(psutil.Process()))
    _offers: bool = False
    _written: NodeClaims | None = None
    _version: int = 0
    _alone: bool = False  # the folder cannot be written

    @classmethod
    def of(cls, settings: Settings, node_name: str, devices: tuple[Device, ...]) -> MemoryGrants:
        """`--memory` is about the first device. Raises BadSetting for one that is no size."""
        most: dict[str, int] = {}
        for device in devices:
            most[pool_of(device)] = max(device.total_bytes, most.get(pool_of(device), 0))
        if settings.memory:
            most[pool_of(devices[0])] = parse_bytes(settings.memory)
        return cls(node_name, devices, most, ClaimsFolder(settings))

    async def open(self) -> None:
        """Return once the nodes that offer memory already have heard of this one, and offer less."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + SEEN_WITHIN
        self._look()
        while any(node.offers and self._token not in node.seen for node in self._others) and clock() < deadline:
            await asyncio.sleep(NEWS_EVERY / 4)
            self._look()
        self._offers = True
        self._look()

    async def follow(self, changed: Callable[[], None]) -> None:
        """Keep the offers near the truth until cancelled; `changed` is called when they change."""
        while True:
            before = self.shown()
            self._look()
            if self.shown() != before:
                changed()
            for _ in range(round(LOOK_EVERY / NEWS_EVERY)):
                await asyncio.sleep(NEWS_EVERY)
                if self._record() != self._written or self.folder.version != self._version:
                    break

    def close(self) -> None:
        self.folder.remove(self._record())

    async def __aenter__(self) -> MemoryGrants:
        await self.open()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    @property
    def total(self) -> int:
        """This node's share of the first device, which plans use: what it was granted and what it offers."""
        key = self.devices[0].key
        return self.free(key) + self._held(key)

    def free(self, key: str) -> int:
        """What a stage there may be granted.

        A card gives nothing where main memory has no room for its stage's process. What the first one of each card
        takes of that is offered to nobody else.
        """
        device = self._device(key)
        left, own = (
            min(self._offer(pool_of(device)), device.total_bytes - self._held(key)),
            process_bytes(device.backend),
        )
        if pool_of(device) == MEMORY:
            left -= sum(process_bytes(card.backend) for card in self._cards() if not self._held(card.key))
        elif own and self._offer(MEMORY) < own:
            left = 0
        return max(left, 0)

    def free_memory(self) -> int:
        """Main memory that this node may still grant; all that is free where no device of it uses main memory."""
        own = [device.key for device in self.devices if pool_of(device) == MEMORY]
        return self.free(own[0]) if own else main_memory().available

    def has_room(self, order: StageOrder) -> bool:
        """Whether `take` would not lack memory."""
        key = f"{order.stage.backend}/{order.stage.device}"
        return all(device.key != key for device in self.devices) or self._lacking(order, key) is None

    def take(self, order: StageOrder) -> None:
        """Reserve what the order asks for. Raises BadPlan for an unknown device, NotEnoughMemory with both numbers.

        It may be more than this node's offer, as long as it was granted to nobody.
        """
        stage = order.stage
        key, known = f"{stage.backend}/{stage.device}", tuple(device.key for device in self.devices)
        if key not in known:
            message = "node {name} has no device {device}; it has {known}"
            raise BadPlan(message, name=self.node_name, device=key, known=known)
        lacking = self._lacking(order, key)
        if lacking is None:
            self._given[order.ring, order.slot] = (key, _size_of(stage))
            lacking = self._lacking(order, key)  # again, now that the others can see it
        if lacking is not None:
            self.give_back((order.ring, order.slot))
            raise NotEnoughMemory(
                "node {name}: needs {sizes:sizes 0} for layers {layers}, has {sizes:sizes 1} free; lower the context, "
                "give it fewer layers, or free memory there: unload a model or close other programs",
                name=self.node_name,
                sizes=lacking,
                layers=str(stage.layers),
            )

    def give_back(self, name: StageName) -> None:
        self._given.pop(name, None)

    def shown(self) -> tuple[Device, ...]:
        """The devices with the bytes that are free of each now."""
        return tuple(replace(device, free_bytes=self.free(device.key)) for device in self.devices)

    def _device(self, key: str) -> Device:
        return next(device for device in self.devices if device.key == key)

    def _cards(self) -> list[Device]:
        """Devices that have memory of their own."""
        return [device for device in self.devices if pool_of(device) != MEMORY]

    def _held(self, key: str) -> int:
        return sum(size for device, size in self._given.values() if device == key)

    def _offer(self, pool: str) -> int:
        own = Holder(self._record().granted(pool), self.most[pool])
        others = [Holder(node.granted(pool), node.most.get(pool, 0)) for node in self._others]
        return offer(self._pools.get(pool, 0), own, others)

    def _lacking(self, order: StageOrder, key: str) -> tuple[int, int] | None:
        """What an order needs of a pool that has too little, and what that has; None where there is enough.

        Seen now, without what this order was given already.
        """
        now, device, stage = self._look(), self._device(key), order.stage
        given = (order.ring, order.slot) in self._given
        for pool, size in _claimed(device, _size_of(stage)).items():
            had = size if given else 0
            own = self._record().granted(pool) - had
            granted = own + sum(node.granted(pool) for node in self._others)
            room = min(now[pool] + (SLACK if pool == MEMORY else 0) - granted, self.most[pool] - own)
            if pool == pool_of(device):
                room = min(room, device.total_bytes - self._held(key) + had)
            if size > room:
                return size, max(room, 0)
        return None

    def _look(self) -> dict[str, int]:
        """Say what this node was granted, then see what the others were; the sizes of the pools now."""
        self._say()
        self._version = self.folder.version
        totals = {pool_of(device): device.total_bytes for device in self.devices}
        totals[MEMORY] = psutil.virtual_memory().total
        self._others = tuple(node for node in self.folder.nodes(totals) if node.token != self._token)
        now = {pool: self._size(pool, totals[pool]) for pool in self.most}
        for pool, size in now.items():
            if pool not in self._pools or abs(size - self._pools[pool]) > STEADY:
                self._pools[pool] = size
        self._say()  # that it has seen them: what it offers is less from here on
        return now

    def _size(self, pool: str, total: int) -> int:
        """Only main memory is looked at again; a GPU's was when the node started, with what other nodes had by then."""
        if pool == MEMORY:
            return machine_memory(claim for node in (self._record(), *self._others) for claim in node.claims).pool
        if pool in self._pools:
            return self._pools[pool]
        free = next(device.free_bytes for device in self.devices if pool_of(device) == pool)
        return min(total, free + sum(node.granted(pool) for node in self._others))

    def _say(self) -> None:
        """Without the folder a node behaves as if it were alone."""
        own = self._record()
        if own == self._written and self.folder.has(own):
            return
        self._written = own
        try:
            self.folder.write(own)
            self._alone = False
        except OSError as error:
            if not self._alone:
                log.warning(
                    "other programs of together on this machine do not learn what this node uses, so more memory may "
                    "be promised than there is: %s cannot be written (%s)",
                    self.folder.path,
                    reason_of(error),
                )
            self._alone = True

    def _record(self) -> NodeClaims:
        pids, devices = self.pids(), {device.key: device for device in self.devices}
        claims = [
            Claim(pool, size, pids.get(name, 0))
            for name, (key, granted) in self._given.items()
            for pool, size in _claimed(devices[key], granted).items()
        ]
        return NodeClaims(
            token=self._token,
            pid=os.getpid(),
            started=self._started,
            name=self.node_name[:LONGEST_NAME],
            most=dict(self.most),
            claims=tuple(claims),
            offers=self._offers,
            seen=tuple(node.token for node in self._others),
        )


def _size_of(stage: StagePlan) -> int:
    """What it counts for: whatever is asked for, its process takes what it takes."""
    return max(stage.memory_bytes, process_bytes(stage.backend))


def _claimed(device: Device, size: int) -> dict[str, int]:
    """Bytes by pool that a stage of that size has: on a card, its process is in main memory, too."""
    own = process_bytes(device.backend) if pool_of(device) != MEMORY else 0
    return {pool_of(device): size} | ({MEMORY: own} if own else {})
