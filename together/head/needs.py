"""What machines need while they serve: memory for their other programs, power. What the head does, and what it tells.

Memory goes in steps, so that little is lost and nothing flaps. A node says what its machine lacks, and says so until
enough has been free for a while (`cluster/pressure.py`). As long as it does, the rings that it is part of keep no
prefixes and give back what they free; nodes end their spare processes. What is still lacking then becomes advice, which
stays the same until the machines or the plans change. A person decides: nothing that serves ends or moves by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from together.cluster.claims import MEMORY, pool_of, pool_of_name
from together.cluster.survey import Placement
from together.cluster_types import NodeStatus
from together.errors import TogetherError
from together.head.cables import cable_gain, places_of, wireless_nodes
from together.head.machines import Machines
from together.head.pace import PlannedPace
from together.head.plan import PlannedModel, plan_of
from together.head.room import assigned, plan_within
from together.head.service import Service
from together.head.services import Services
from together.sentences import Sentence, say
from together.types import DTYPE_BYTES, LayerRange, Plan
from together.view import MachineNote, NoteKind

ADVISED_AFTER = 3.0  # seconds: what caches give back is seen by then
MORE = 1.5  # times what was lacking when the advice was given: then it is thought over


@dataclass(frozen=True, slots=True)
class _Need:
    """A machine, those of its nodes that say so, what others need of it, and since when, by the clock.

    Its other nodes may have memory of their own, as containers have.
    """

    machine: str
    nodes: tuple[NodeStatus, ...]
    lacking: int
    since: float


@dataclass(frozen=True, slots=True)
class _Advised:
    """What was said of a need, and what it was made of."""

    notes: tuple[MachineNote, ...]
    basis: object
    lacking: int


@dataclass(frozen=True, slots=True)
class _Gain:
    """What cables would give a plan where these of its places are on Wi-Fi; of many machines that takes a while."""

    estimate: PlannedPace
    places: frozenset[str]
    text: Sentence


@dataclass(slots=True)
class Needs:
    """Those of one head's machines: `look` every second; `notes` are what there is to tell."""

    machines: Machines
    services: Services
    clock: Callable[[], float] = time.monotonic
    notes: tuple[MachineNote, ...] = ()
    _needs: dict[str, _Need] = field(default_factory=dict)  # by machine
    _advised: dict[str, _Advised] = field(default_factory=dict)  # by machine
    _gains: dict[str, _Gain] = field(default_factory=dict)  # by model

    async def look(self) -> None:
        self._needs = {need.machine: need for need in self._lacking()}
        served = tuple(self.services.by_name.values())
        for service in served:
            service.engine.be_lean(any(_bytes_on(service, need) for need in self._needs.values()))
        self._advised = {machine: said for machine, said in self._advised.items() if machine in self._needs}
        for need in self._needs.values():
            if self.clock() - need.since >= ADVISED_AFTER:
                await self._advise(need, [service for service in served if _bytes_on(service, need)])
        wireless = await wireless_nodes(self.machines.surveyor)
        advice = (note for said in self._advised.values() for note in said.notes)
        notes = (*advice, *self._batteries(), *self._cables(wireless))
        if notes != self.notes:
            self.notes = notes
            self.machines.membership.changed.notify()

    def _lacking(self) -> Iterator[_Need]:
        by_machine: dict[str, list[NodeStatus]] = {}
        for node in self.machines.membership.living():
            if node.life is not None and node.life.lacking:
                by_machine.setdefault(node.machine, []).append(node)
        for machine, nodes in by_machine.items():
            lacking, known = max(node.life.lacking for node in nodes if node.life), self._needs.get(machine)
            yield _Need(machine, tuple(nodes), lacking, known.since if known else self.clock())

    async def _advise(self, need: _Need, services: list[Service]) -> None:
        """Move what it lacks away from there, or else unload the model that is used least."""
        basis = tuple((service.name, service.loader.plan) for service in services), self._places()
        before = self._advised.get(need.machine)
        if before is not None and before.basis == basis and need.lacking <= MORE * before.lacking:
            return
        services.sort(key=lambda service: (service.keep, service.used))
        remedy = await self._remedy(need, services) if services else None
        notes: tuple[MachineNote, ...] = ()
        holding = [node for node in need.nodes if any(_holds(service, node) for service in services)]
        if remedy is not None and holding:  # its layers may have moved while a plan was sought
            first = holding[0]
            text = say("lacks_memory", node=first.name, size=need.lacking, remedy=remedy)
            notes = (MachineNote(first.id, NoteKind.MEMORY, text),)
        self._advised[need.machine] = _Advised(notes, basis, need.lacking)

    def _places(self) -> frozenset[str]:
        """The nodes that layers could move to: those that lack nothing."""
        needy = {node.id for need in self._needs.values() for node in need.nodes}
        return frozenset(node.id for node in self.machines.membership.living() if node.id not in needy)

    async def _remedy(self, need: _Need, services: list[Service]) -> Sentence:
        for service in services:
            if (moved := await self._moved(service, need)) is not None:
                return moved
        least = services[0]
        size = sum(stage.memory_bytes for stage in least.loader.plan.stages)
        return say("make_room", model=least.name, size=size)

    async def _moved(self, service: Service, need: _Need) -> Sentence | None:
        """The plan by which a service leaves the machine what it lacks; None where there is none."""
        left = {node.id: 0 for needy in self._needs.values() for node in needy.nodes}
        budget = max(_bytes_on(service, need) - need.lacking, 0)
        for needy in self._needs.values():  # other machines that lack memory take no more than they have
            for node in needy.nodes:
                has = _bytes_of(service, node)
                left[node.id] = min(has, budget) if needy is need else has
                budget -= left[node.id] if needy is need else 0

        def free(place: Placement) -> int:
            limited = place.node in left and pool_of(place.device) == MEMORY
            return left[place.node] if limited else place.device.free_bytes

        try:
            planned = await plan_within(service, free)
        except TogetherError:  # no machine is there
            return None
        if planned is None:
            return None
        here = {node.id for node in need.nodes}
        gone = _layers_on(service.loader.plan, here) - _layers_on(plan_of(planned), here)
        if not gone:
            return None
        to = tuple(dict.fromkeys(_takers(planned, gone)))
        return say("move_layers", count=len(gone), model=service.name, nodes=to, shares=assigned(planned))

    def _batteries(self) -> Iterator[MachineNote]:
        """Of machines that hold layers."""
        for node in self.machines.membership.living():
            held = [service.name for service in self.services.by_name.values() if _holds(service, node)]
            if held and node.life is not None and node.life.battery is not None:
                text = say("on_battery", node=node.name, left=node.life.battery, models=tuple(held))
                yield MachineNote(node.id, NoteKind.BATTERY, text)

    def _cables(self, wireless: frozenset[str]) -> Iterator[MachineNote]:
        """Where Wi-Fi costs: known of plans for which speeds were measured."""
        for service in self.services.by_name.values():
            found, plan = service.estimate, service.loader.plan
            if found is None or found.plan != plan:
                continue
            places, known = places_of(found.survey, wireless), self._gains.get(service.name)
            if known is None or known.estimate is not found or known.places != places:
                size = service.opened.spec.state_width * DTYPE_BYTES[plan.dtype]
                gain = cable_gain(service.name, found.survey.problem, found.split, places, size)
                known = self._gains[service.name] = _Gain(found, places, gain)
            if known.text:
                held = [stage.node for stage in plan.stages if stage.node in wireless]
                yield MachineNote(next(iter(held), ""), NoteKind.LINK, known.text)


def _bytes_on(service: Service, need: _Need) -> int:
    """What a service has of a machine's main memory."""
    return sum(_bytes_of(service, node) for node in need.nodes)


def _bytes_of(service: Service, node: NodeStatus) -> int:
    stages = service.loader.plan.stages
    return sum(each.memory_bytes for each in stages if each.node == node.id and pool_of_name(each.device) == MEMORY)


def _holds(service: Service, node: NodeStatus) -> bool:
    return any(stage.node == node.id for stage in service.loader.plan.stages)


def _layers_on(plan: Plan, nodes: Iterable[str]) -> set[int]:
    return {layer for stage in plan.stages if stage.node in nodes for layer in _numbers(stage.layers)}


def _numbers(layers: LayerRange) -> range:
    return range(layers.start, layers.stop)


def _takers(planned: PlannedModel, layers: set[int]) -> Iterator[str]:
    return (share.node for share in planned.answer.split.shares if layers & set(_numbers(share.layers)))
