"""Memory between a head's models: what would have to go for another one, and what a kept one may take."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace

from together.cluster.survey import Placement, Speeds
from together.errors import TogetherError
from together.head.plan import PlannedModel, plan_model, plan_of, plan_on, sizings
from together.head.service import Service
from together.planning.explain import Infeasible
from together.planning.request import PlanRequest
from together.sentences import Sentence, say

PlanBeside = Callable[[Collection[str]], Awaitable[PlannedModel | Infeasible]]  # by the rings that keep their memory


@dataclass(frozen=True, slots=True)
class Room:
    """Who would have to go, least used first, and the plan that a model would have then."""

    goers: tuple[Service, ...]
    planned: PlannedModel


async def room_for(
    plan_beside: PlanBeside, replaced: Service | None, services: Collection[Service], rings: Collection[str]
) -> Room | None:
    """Nobody where that is enough, else the least used service that is, else the fewest; None where nothing is.

    `replaced` goes anyway, kept ones never. `rings` are all that hold memory, also of one that is being loaded.
    """
    others = [service for service in services if service is not replaced]
    free = sorted((service for service in others if not service.keep), key=lambda service: service.used)
    tries = [[], *([service] for service in free), *(free[:count] for count in range(2, len(free) + 1))]
    for goers in tries:
        try:
            found = await plan_beside(frozenset(rings) - {service.serving.ring for service in goers})
        except TogetherError:  # no machine is there, or the split was made for other ones
            return None
        if isinstance(found, PlannedModel):
            return Room(tuple(goers), found)
    return None


async def plan_again(service: Service, kept: Collection[str]) -> PlannedModel | Infeasible:
    """Another plan for the users and the context that it has; `kept` as in `plan_model`.

    Equal shares first where it did not look at speeds; where these do not fit, any that do.

    Raises NotServing without a node.
    """
    plan, speeds, machines = service.loader.plan, service.speeds, service.machines

    async def by(strategy: str) -> PlannedModel | Infeasible:
        request = PlanRequest(strategy=strategy, users=plan.users, context=plan.context)
        return await plan_model(
            service.opened, request, machines.settings, machines.surveyor, speeds.at_once, kept=kept
        )

    found = await by("uniform" if speeds is Speeds.NONE else "recommend")
    return await by("recommend") if isinstance(found, Infeasible) and speeds is Speeds.NONE else found


async def remedies(room: Room) -> tuple[Sentence, ...]:
    """What a person may do so that a model fits: unload those, or move the only one elsewhere."""
    found = [say("make_room", model=service.name, size=size_of(service)) for service in room.goers]
    if len(room.goers) == 1 and (moved := await _elsewhere(room.goers[0], room.planned)) is not None:
        found.append(say("move_away", model=room.goers[0].name, shares=assigned(moved)))
    return tuple(found)


def assigned(planned: PlannedModel) -> str:
    """Its split as `--layers` takes it."""
    return shlex.quote(",".join(f"{share.node}={share.layers}" for share in planned.answer.split.shares))


def size_of(service: Service) -> int:
    """Bytes that its plan has."""
    plan = service.serving.plan
    return sum(stage.memory_bytes for stage in plan.stages) if plan else 0


async def _elsewhere(service: Service, newcomer: PlannedModel) -> PlannedModel | None:
    """Where a service could go on beside a newcomer by that plan; None where nowhere."""
    taken: dict[tuple[str, str], int] = {}
    for stage in plan_of(newcomer).stages:
        place = (stage.node, f"{stage.backend}/{stage.device}")
        taken[place] = taken.get(place, 0) + stage.memory_bytes
    return await plan_within(
        service, lambda place: place.device.free_bytes - taken.get((place.node, place.device.key), 0)
    )


async def plan_within(service: Service, free: Callable[[Placement], int]) -> PlannedModel | None:
    """A plan for a service that takes no more than `free` bytes of each place; None where none fits.

    A place's own free bytes have the service's among them. Nothing is measured. Raises NotServing without a node.
    """
    surveyor, plan = service.machines.surveyor, service.loader.plan

    def less(place: Placement) -> Placement:
        return replace(place, device=replace(place.device, free_bytes=max(free(place), 0)))

    placements = list(map(less, surveyor.reclaimed(surveyor.placements(), service.beside(service))))
    request = PlanRequest(strategy="recommend", users=plan.users, context=plan.context)
    sizing = next(sizings(service.opened, request, service.machines.settings))
    survey = await surveyor.survey(service.opened.spec, service.opened.config, sizing, Speeds.NONE, placements)
    moved = await asyncio.to_thread(plan_on, survey, service.opened, request, sizing)
    return None if isinstance(moved, Infeasible) else moved


async def plans_without(node: str, services: Sequence[Service]) -> list[PlannedModel | Infeasible]:
    """What draining that node (its id) would make of services that go one after another; nothing changes.

    Each has what those before it leave; nothing is measured. Raises NotServing where no other node is there.
    """
    found: list[PlannedModel | Infeasible] = []
    names = [f"{node} without {service.loader.ring}" for service in services]
    try:
        for index, service in enumerate(services):
            machines, moved = service.machines, {each.serving.ring for each in services[:index]}
            request = service.wanted.elsewhere(machines.settings.strategy).request
            surveyor, kept = machines.surveyor, service.beside(service) - moved
            outcome = await plan_model(service.opened, request, machines.settings, surveyor, Speeds.NONE, {node}, kept)
            if isinstance(outcome, PlannedModel):
                surveyor.promises.make(names[index], plan_of(outcome).stages)
            found.append(outcome)
    finally:
        for name, service in zip(names, services, strict=True):
            service.machines.surveyor.promises.end(name)
    return found
