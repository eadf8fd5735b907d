"""A node that its app stops: what that means for what serves, and how its layers move first, while answers go on."""

from __future__ import annotations

from contextlib import suppress

from together.cluster_types import NodeStatus, StageStatus
from together.errors import BadPlan, NotServing, TogetherError
from together.head.head import Head
from together.head.plan import PlannedModel
from together.head.room import plans_without
from together.planning.explain import Infeasible
from together.sentences import Sentence, say
from together.types import LayerRange
from together.wording import MOST, cut


def _overlap(one: LayerRange, other: LayerRange) -> bool:
    return one.start < other.stop and other.start < one.stop


def own_node(head: Head, name: str) -> NodeStatus:
    """The node of that name or id, which `head` started. Raises BadPlan where there is none."""
    own = [node for node in head.machines.membership.living() if node.owner == head.id]
    found = next((node for node in own if name in (node.id, node.name)), None)
    if found is None:
        names = tuple(node.name for node in own) or "none"
        message = "this app started no node {name}; those that it started: {names}"
        raise BadPlan(message, name=cut(name, MOST), names=names)
    return found


async def if_stopped(head: Head, name: str) -> Sentence:
    """What stopping that node would mean. Raises BadPlan for a node that `head` did not start."""
    node = own_node(head, name)
    rings: dict[str, list[StageStatus]] = {}
    for stage in node.stages:
        if stage.head == head.id:
            rings.setdefault(stage.ring, []).append(stage)
    if not rings:
        return say("stop_idle", node=node.name)
    services = [service for service in head.on(node) if service.serving.ring in rings]
    try:
        outcomes = await plans_without(node.id, services)
    except NotServing:
        outcomes = []  # no other node is there
    plans = {service.serving.ring: plan for service, plan in zip(services, outcomes, strict=False)}
    serving = {service.serving.ring for service in head.services.by_name.values()}
    found = [_meaning(node, stages, plans.get(ring), loading=ring not in serving) for ring, stages in rings.items()]
    return found[0] if len(found) == 1 else say("all", sentences=tuple(found))


def ends_a_model(meaning: Sentence) -> bool:
    """Whether a model ends by what `if_stopped` says."""
    parts = dict(meaning.values).get("sentences", ())
    inner = parts if isinstance(parts, tuple) else ()
    return meaning.code == "stop_ends" or any(isinstance(part, Sentence) and ends_a_model(part) for part in inner)


def _meaning(
    node: NodeStatus, stages: list[StageStatus], outcome: PlannedModel | Infeasible | None, *, loading: bool
) -> Sentence:
    """Of one ring's `stages` there."""
    model, layers = stages[0].model, tuple(str(stage.layers) for stage in stages)
    if loading:
        return say("stop_loading", node=node.name, model=model, layers=layers)
    if not isinstance(outcome, PlannedModel):
        return say("stop_ends", node=node.name, model=model, layers=layers)
    shares = outcome.answer.split.shares
    to = tuple(share.node for share in shares if any(_overlap(share.layers, stage.layers) for stage in stages))
    return say("stop_moves", node=node.name, model=model, layers=layers, nodes=to)


async def stop_node(head: Head, name: str) -> None:
    """End a node that `head` started; where others have room for its layers, these move first.

    Raises BadPlan for a node that `head` did not start.
    """
    node, drained = own_node(head, name), head.machines.surveyor.drained
    drained.add(node.id)
    try:
        for service in head.on(node):
            with suppress(TogetherError):  # no room for this one: the person who stops it was told
                await head.move(service)
        await head.local.stop_one(node.endpoint)
    finally:
        drained.discard(node.id)  # the next one that starts here gets its id
