"""What a test of reliability sees of a head: its engine's books, its nodes' stages, and whether all is at rest.

Knows no test.
"""

from __future__ import annotations

from tests.support.cluster import until
from tests.support.patience import PATIENCE
from together.cluster_types import StageStatus
from together.engine.engine import Engine
from together.engine.stats import EngineStats
from together.head.head import Head
from together.view import ServingState


def engine_of(head: Head) -> Engine:
    assert head.service is not None, "nothing serves"
    return head.service.engine


def books_agree(stats: EngineStats) -> bool:
    """Nobody runs or waits, and every stage said that it holds the cached prefixes and nothing else."""
    return stats.running == stats.waiting == 0 and set(stats.stage_sequences) <= {stats.cached}


async def at_rest(head: Head, seconds: float = PATIENCE) -> None:
    """Within `seconds` the books agree; then, with the cache dropped, every stage holds nothing at all."""
    engine = engine_of(head)
    await until(lambda: books_agree(engine.stats()), seconds)
    engine.drop_cache()
    await until(lambda: books_agree(engine.stats()) and engine.stats().cached == 0, seconds)


def stages_of(head: Head) -> list[StageStatus]:
    """Every stage that any node of the view holds."""
    return [stage for node in head.view().nodes for stage in node.stages]


def holds_each_layer_once(head: Head, layers: int) -> bool:
    """The serving ring's stages are all there are, and they are the model."""
    view = head.view()
    rings = {stage.ring for stage in stages_of(head)}
    held = sum(len(stage.layers) for stage in stages_of(head))
    return view.serving.state is ServingState.READY and rings == {view.serving.ring} and held == layers
