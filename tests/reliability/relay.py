"""A router between a head and a node: passes calls on, and gives the node and its stages other, slow addresses.

Knows no test. What the head learns of the node has the ports of TCP proxies instead of the real ones, so everything
that is sent to the node or to its stages goes over one bad link.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import grpc
import grpc.aio

from tests.support.cluster import Node
from tests.support.proxy import Direction, Proxy
from together.cluster_types import Endpoint, NodeStatus
from together.ring import rpc, wire

HOST = "127.0.0.1"
STREAMS = (rpc.WATCH, rpc.READ)  # methods that answer more than once


@dataclass(slots=True)
class Relay(grpc.GenericRpcHandler):
    """Stands before one node; `endpoint` is where the head finds it."""

    node: Node
    cluster: str  # the node's; the head may be of another, and is passed on as one of this
    delay_ms: float  # one way
    bytes_per_s: float
    there: Direction = field(default_factory=Direction)
    back: Direction = field(default_factory=Direction)
    endpoint: Endpoint = field(default=Endpoint((), 0))
    _heard: bytearray | None = None
    _links: dict[int, Proxy] = field(default_factory=dict)  # by the real port
    _channel: grpc.aio.Channel | None = None
    _server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._channel = rpc.open_channel(self.node.host, self.node.port)
        self._server = grpc.aio.server(options=rpc.OPTIONS)
        self._server.add_generic_rpc_handlers((self,))
        port = self._server.add_insecure_port(f"{HOST}:0")
        await self._server.start()
        self.endpoint = self._slow(port)

    def hear(self) -> bytearray:
        """What goes over the link from now on, both ways."""
        self._heard = bytearray()
        for link in self._links.values():
            link.heard = self._heard
        return self._heard

    async def close(self) -> None:
        for link in self._links.values():
            await link.close()
        if self._server is not None and self._channel is not None:
            await self._server.stop(0)
            await self._channel.close()

    def _slow(self, port: int) -> Endpoint:
        """The slow way to a port; all of them share one link."""
        if port not in self._links:
            link = Proxy(HOST, port, self.delay_ms, self.bytes_per_s, there=self.there, back=self.back)
            link.heard = self._heard
            link.thaw()
            link.open()
            self._links[port] = link
        return Endpoint((HOST,), self._links[port].port)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> rpc.Handler | None:
        """Called by gRPC for every call."""
        method = handler_call_details.method
        assert self._channel is not None
        if method in STREAMS:
            source: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(method)

            async def stream(data: bytes, context: object) -> AsyncIterator[bytes]:
                async for answer in source(self._introduced(method, data)):
                    yield self._translated(answer) if method == rpc.WATCH else answer

            return grpc.unary_stream_rpc_method_handler(stream)
        target: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)

        async def pass_on(data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            try:
                return await target(self._introduced(method, data))
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
                raise AssertionError("abort raises") from error

        return grpc.unary_unary_rpc_method_handler(pass_on)

    def _introduced(self, method: str, data: bytes) -> bytes:
        if method not in (rpc.WATCH, rpc.RENEW.path):
            return data
        return wire.CALLER.encode(replace(wire.CALLER.decode(data), cluster=self.cluster))

    def _translated(self, data: bytes) -> bytes:
        status: NodeStatus = wire.NODE_STATUS.decode(data)
        stages = tuple(
            replace(stage, endpoint=self._slow(stage.endpoint.port) if stage.endpoint else None)
            for stage in status.stages
        )
        return wire.NODE_STATUS.encode(replace(status, endpoint=self.endpoint, stages=stages))


@asynccontextmanager
async def slow_ways(nodes: list[Node], cluster: str, delay_ms: float, bytes_per_s: float) -> AsyncIterator[list[Relay]]:
    """One bad link to each node."""
    async with AsyncExitStack() as stack:
        relays = [Relay(node, cluster, delay_ms, bytes_per_s) for node in nodes]
        for relay in relays:
            await relay.start()
            stack.push_async_callback(relay.close)
        yield relays
