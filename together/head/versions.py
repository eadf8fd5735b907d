"""Machines that run another version of the program than this head, as notes for page, `status` and terminals."""

from __future__ import annotations

from collections.abc import Iterable

from together.checkout import Release, own_release
from together.cluster_types import NodeState, NodeStatus
from together.sentences import Sentence, say
from together.view import MachineNote, NoteKind


def version_notes(nodes: Iterable[NodeStatus], own: Release | None = None) -> tuple[MachineNote, ...]:
    """One for each living node of another version; `own` is this program's."""
    here = own or own_release()
    return tuple(
        MachineNote(node.id, NoteKind.VERSION, _other(node, here))
        for node in nodes
        if node.version not in ("", here.version) and node.state is not NodeState.FAILED
    )


def _other(node: NodeStatus, here: Release) -> Sentence:
    there = Release(node.version, node.made)
    if there.is_older(here):
        return say("older_version", node=node.name, version=there.version, own=here.version)
    if here.is_older(there):
        return say("newer_version", node=node.name, version=there.version, own=here.version)
    return say("other_version", node=node.name, version=there.version, own=here.version)
