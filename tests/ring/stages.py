"""Real stage processes without a node, and the head's place in their ring with bytes instead of frames."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.cluster import GREEDY, free_port_block, until
from tests.support.patience import PATIENCE
from together.cluster.supervisor import StageProcess
from together.cluster_types import Endpoint, StageLink, StageOrder, StageState
from together.models.spec import read_spec
from together.ring import rpc, wire
from together.ring.links import Inlet, Inlets, Outlet
from together.ring.stage import Launch
from together.types import HEAD, Batch, Frame, LayerRange, ModelRef, Orders, Row, SampleRequest, StagePlan, StreamKey

HOST = "127.0.0.1"


def launches(
    folder: Path, ranges: Sequence[LayerRange], host: str = HOST, memory: int = 2**20, epoch: int = 0
) -> list[Launch]:
    """How to start one stage per range, all of one ring, which is in that epoch already."""
    model, first = read_spec(folder).ref(folder), free_port_block()
    plans = [StagePlan(f"node{i}", "checksum", "cpu", layers, memory) for i, layers in enumerate(ranges)]
    orders = [StageOrder("ring", "head", i, model, plan, "fp32", epoch=epoch) for i, plan in enumerate(plans)]
    return [
        Launch(order, str(folder), str(folder.parent), f"node{order.slot}", host, (first, first + 60))
        for order in orders
    ]


@asynccontextmanager
async def running_stages(
    folder: Path, *ranges: LayerRange, host: str = HOST, memory: int = 2**20, epoch: int = 0
) -> AsyncIterator[list[StageProcess]]:
    """READY stage processes of one ring, in order."""
    orders = launches(folder, ranges, host=host, memory=memory, epoch=epoch)
    stages = [StageProcess(launch, (host,), lambda: None) for launch in orders]
    try:
        await asyncio.gather(*(stage.start() for stage in stages))
        await until(lambda: all(stage.status.state is not StageState.LOADING for stage in stages))
        assert [stage.status.cause for stage in stages] == [""] * len(stages)
        yield stages
    finally:
        await asyncio.gather(*(stage.stop() for stage in stages))


class RawRing:
    """The head of `stages`, or of the later ones of them: every `join` begins a new epoch."""

    def __init__(self, stages: Sequence[StageProcess], host: str = HOST) -> None:
        self.epoch = 0
        self._stages = stages
        self._inlets = Inlets()
        self._server = rpc.make_server({rpc.PUSH: self._inlets.handler()})
        self._own = Endpoint((host,), rpc.bind(self._server, host, range(31_500, 32_500)))
        self._inlet = Inlet("ring")
        self._inlets.add(self._inlet)
        self._outlet: Outlet | None = None
        self._steps = itertools.count(1)

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self.leave()
        await self._server.stop(0.1)

    async def join(self, first: int = 0) -> None:
        """Connect the stages from `first` on in the next epoch, and take the place before `first`."""
        await self.leave()
        self.epoch += 1
        self._steps = itertools.count(1)
        self._inlet.expect(self.epoch, len(self._stages) - 1)
        endpoints = [endpoint for stage in self._stages if (endpoint := stage.status.endpoint)]
        for index in reversed(range(first, len(endpoints))):
            await self.connect(index, [*endpoints, self._own][index + 1])
        self._outlet = await Outlet.open(endpoints[first], StreamKey("ring", self.epoch, first + HEAD))

    async def connect(
        self,
        index: int,
        following: Endpoint,
        epoch: int | None = None,
        ring: str = "ring",
        model: ModelRef | None = None,
    ) -> None:
        endpoint, own = self._stages[index].status.endpoint, self._stages[index].launch.order.model
        assert endpoint is not None
        async with rpc.open_channel(endpoint.addresses[0], endpoint.port) as channel:
            link = StageLink(ring, self.epoch if epoch is None else epoch, index, following, model or own)
            await rpc.call(channel, rpc.CONNECT, link, f"stage {index}")

    async def send(self, data: bytes) -> None:
        assert self._outlet is not None
        await self._outlet.send(data)

    async def receive(self) -> Frame:
        async with asyncio.timeout(PATIENCE):
            arrival = await self._inlet.next()
        assert arrival.data is not None, "the last stage ended its stream"
        return wire.FRAME.decode(arrival.data)

    async def ask(self, data: bytes) -> Frame:
        """One frame's bytes in, its answer out."""
        await self.send(data)
        return await self.receive()

    async def push(self, *rows: Row, orders: Orders = Orders()) -> None:
        await self.send(wire.FRAME.encode(Frame(next(self._steps), Batch(rows, orders))))

    async def step(self, *rows: Row, orders: Orders = Orders()) -> Frame:
        await self.push(*rows, orders=orders)
        return await self.receive()

    async def generate(self, prompt: Sequence[int], count: int, sequence: int = 1) -> list[int]:
        """Greedy tokens, one step each; the sequence is dropped at the end."""
        tokens, position = list(prompt), 0
        while len(tokens) < len(prompt) + count:
            fresh = tuple(tokens[position:])
            answer = await self.step(Row(sequence, position, fresh, SampleRequest((len(fresh) - 1,), GREEDY, 1)))
            assert answer.failure is None, answer.failure
            position = len(tokens)
            tokens += [sampled.token_id for sampled in answer.results[0].sampled]
        await self.step(orders=Orders(drops=(sequence,)))
        return tokens[len(prompt) :]

    async def leave(self) -> None:
        if self._outlet is not None:
            await self._outlet.close()
            self._outlet = None


@asynccontextmanager
async def raw_ring(stages: Sequence[StageProcess], host: str = HOST) -> AsyncIterator[RawRing]:
    ring = RawRing(stages, host)
    await ring.start()
    try:
        yield ring
    finally:
        await ring.stop()
