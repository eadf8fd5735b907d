"""What a load waits for, and when it is tried again by itself: a busy moment is no reason to fail. Loads nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from together.cluster.local import LocalNodes
from together.cluster.membership import Membership
from together.cluster.survey import Surveyor
from together.errors import NotEnoughMemory, NotServing, StageLost, TogetherError, Unreachable
from together.sentences import Sentence, say
from together.types import Fault

NODES_WITHIN = 300.0  # seconds for the nodes that this head started, as long as they run
OTHERS_WITHIN = 1.0  # seconds to hear of other machines
MOST = 4  # tries in all
BREATH = 1.0  # seconds between two at least
BACK_WITHIN = 20.0  # seconds for a node that was lost to come back; then the others are planned with
PASSING = (Fault.NODE_LOST, Fault.SLOW, Fault.KILLED, Fault.OUT_OF_MEMORY)


async def wait_for_nodes(membership: Membership, local: LocalNodes, least: int) -> None:
    """For `least` nodes where so many were started here and still run, else for any one."""
    clock, changed = asyncio.get_running_loop().time, membership.changed
    began = clock()
    while len(membership.living()) < max(1, min(least, local.count)):
        if clock() - began > (NODES_WITHIN if local.count else OTHERS_WITHIN):
            return
        await changed.wait(changed.version, timeout=0.5)


@dataclass(slots=True)
class LoadRetries:
    """The tries of one load. `show` gets what is going on."""

    membership: Membership
    surveyor: Surveyor
    show: Callable[[Sentence], None]
    count: int = 1
    _first: TogetherError | None = None

    async def run(self, load: Callable[[], Awaitable[None]], serves: Callable[[], bool]) -> None:
        """Until `load` succeeds. What it raises while something `serves` is raised: that goes on."""
        while True:
            try:
                return await load()
            except (StageLost, Unreachable, NotServing, NotEnoughMemory) as error:
                if serves():
                    raise
                await self.after(error)

    async def after(self, error: TogetherError) -> None:
        """Wait until another try makes sense. Raises `error` where none does, or the one that it followed from."""
        if not self._passes(error):
            raise self._first or error
        self._first = self._first or error
        if self.count >= MOST:
            raise error
        self.count += 1
        if isinstance(error, StageLost) and error.stage and error.fault is Fault.OUT_OF_MEMORY:
            self.surveyor.shortages.learn(error.stage, error.cause)
        self.show(say("step_retry", count=self.count, most=MOST, error=error.sentence))
        await self._wait(error)

    def _passes(self, error: TogetherError) -> bool:
        """What one try lost may still be missing at the next: no node, or no room without that node."""
        if isinstance(error, StageLost):
            return error.fault in PASSING or error.joining
        if isinstance(error, Unreachable):
            return True
        lost = not (isinstance(self._first, StageLost) and self._first.fault is Fault.OUT_OF_MEMORY)
        return self._first is not None and lost and isinstance(error, NotServing | NotEnoughMemory)

    async def _wait(self, error: TogetherError) -> None:
        """For the node that was lost, or for any news of the machines."""
        clock, changed = asyncio.get_running_loop().time, self.membership.changed
        deadline = clock() + BACK_WITHIN
        await asyncio.sleep(BREATH)
        node = self._node(error)
        while node and not self.membership.alive(node) and clock() < deadline:
            await changed.wait(changed.version, timeout=BREATH)

    def _node(self, error: TogetherError) -> str:
        lost = error if isinstance(error, StageLost) else self._first
        return lost.stage.node if isinstance(lost, StageLost) and lost.stage else ""
