"""What the picture of the machines is drawn from."""

from __future__ import annotations

from pathlib import Path

from pydantic_core import to_json

from tests.support.checksum import QUIET, make_checksum_model
from tests.support.cluster import Node, ask, by_hand
from together.api.chat_models import machines_picture
from together.head.head import Head
from together.planning.request import PlanRequest

NODES = ("anna", "berta")


async def test_it_has_layers_memory_and_links_by_machine(cluster: tuple[Head, list[Node]], tmp_path: Path) -> None:
    head, _ = cluster
    await head.load(make_checksum_model(tmp_path / "toy", quiet_ids=QUIET, step_ms=2), by_hand("anna=0:1,berta=1:4"))
    picture = machines_picture(head, head.view())
    names = {machine.id: machine.name for machine in picture.machines}
    (ring,) = picture.rings
    assert [names[place] for place in ring.places] == ["anna", "berta"]
    assert (ring.state, ring.tokens, ring.step_ms) == ("READY", 0, 0.0)
    for machine, node in zip(picture.machines, head.view().nodes, strict=True):
        (stage,), (held,) = machine.stages, node.stages
        assert (stage.start, stage.stop, stage.total) == (held.layers.start, held.layers.stop, 4)
        assert stage.weights + stage.cache == held.memory_bytes
        assert min(stage.weights, stage.cache) > 0
        assert 0 < machine.free < machine.total
        assert stage.ms == 0
    assert picture.links == ()

    await ask(head, "Hello", 8)
    await head.plan(None, PlanRequest())
    later = machines_picture(head, head.view())
    assert later.rings[0].tokens >= 8
    assert later.rings[0].step_ms > 0
    assert all(stage.ms >= 2 for machine in later.machines for stage in machine.stages)
    (link,) = later.links
    assert {link.one, link.other} == set(names)
    assert link.ms is not None
    assert min(link.ms, link.bytes_per_s) > 0
    assert b'"anna"' in to_json(later)
