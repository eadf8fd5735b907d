"""Whether machines that are neighbours in a ring reach each other; the head asks each of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import pairwise

from together.cluster.identity import Whereabouts
from together.cluster.membership import Membership
from together.cluster.survey import HEAD
from together.errors import TogetherError
from together.ring import rpc
from together.types import LinkOrder

log = logging.getLogger(__name__)

LINK_WITHIN = 3.0  # seconds for two neighbours to reach each other


async def cut_pairs(nodes: Sequence[str], membership: Membership, where: Whereabouts) -> dict[int, tuple[str, str]]:
    """Pairs, by their place in the ring, whose first node lives and does not reach the next one.

    `nodes` are in ring order; the last one's next is the head, which is at `where`.
    """
    pairs = list(pairwise([*nodes, HEAD]))
    reached = await asyncio.gather(*(_reaches(node, other, membership, where) for node, other in pairs))
    return {i: pair for i, pair in enumerate(pairs) if not reached[i] and membership.alive(pair[0])}


async def _reaches(node: str, other: str, membership: Membership, where: Whereabouts) -> bool:
    """Whether one node gets an answer of another, or of this head."""
    following = membership.status(other)
    if other != HEAD and following is None:
        return True  # it is gone altogether, which is another trouble
    target = following.endpoint if following else where.endpoint
    try:
        await membership.call(node, rpc.REACH_CALL, LinkOrder(target, 0), timeout=LINK_WITHIN)
    except TogetherError as error:
        log.info("%s", error)
        await where.look()
        following = membership.status(other)
        moved = target != (following.endpoint if following else where.endpoint)
        return moved and await _reaches(node, other, membership, where)  # at its new address
    return True
