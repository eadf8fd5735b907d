"""The app's gRPC: method table, channel and server options, errors as status codes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc
import grpc.aio

from together.cluster_types import Blob, Endpoint
from together.errors import (
    BadPlan,
    BadSetting,
    BrokenModel,
    EpochRefused,
    FrameRefused,
    LoadFailed,
    Locked,
    NotAllowed,
    NotEnoughMemory,
    RingBroken,
    TogetherError,
    Unreachable,
    UnsupportedModel,
)
from together.ring import wire
from together.sentences import Sentence, template, verbatim
from together.trust.credentials import ALONE, Credentials, is_own, is_plain
from together.wording import cut


class Broadcast:
    """`notify` wakes every waiter; one that was busy meanwhile sees it by the version."""

    def __init__(self) -> None:
        self.version = 0
        self._changed = asyncio.Event()

    def notify(self) -> None:
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seen: int, timeout: float) -> int:
        """The version, once it differs from `seen` or after `timeout` seconds."""
        if self.version != seen:
            await asyncio.sleep(0)  # a caller that keeps up with every change still lets others run
        else:
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                pass
        return self.version


Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"

MESSAGE_LIMIT = 64 * 2**20  # bytes; the engine's chunks stay far below
MOST_CALLS = 512  # at once on one port
CONTROL_LIMIT = 4 * 2**20  # bytes of what a node is asked; the largest is a configuration, or what times a link
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.so_reuseport", 0),  # otherwise two nodes share a port, and each gets half of the calls
    ("grpc.keepalive_time_ms", 10_000),
    # A ping's answer waits behind all that is being sent: on 1 Mbit/s a chunk of a prompt takes many seconds.
    # Heartbeats and echoes notice a frozen or unreachable peer sooner.
    ("grpc.keepalive_timeout_ms", 60_000),
    ("grpc.http2.ping_timeout_ms", 60_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.enable_http_proxy", 0),  # local machines are not behind the shell's proxy
    ("grpc.server_handshake_timeout_ms", 10_000),  # who connects and says nothing holds no place for long
    ("grpc.max_allowed_incoming_connections", 256),
    ("grpc.use_local_subchannel_pool", 1),  # a dead peer's back-off must not delay a new link to the same address
]

# Error ↔ status; the message travels as the status detail. The first match wins in both directions.
_STATUS: list[tuple[type[TogetherError], grpc.StatusCode]] = [
    (EpochRefused, grpc.StatusCode.ALREADY_EXISTS),
    (FrameRefused, grpc.StatusCode.FAILED_PRECONDITION),
    (NotEnoughMemory, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (BrokenModel, grpc.StatusCode.DATA_LOSS),
    (UnsupportedModel, grpc.StatusCode.UNIMPLEMENTED),
    (BadPlan, grpc.StatusCode.INVALID_ARGUMENT),
    (BadSetting, grpc.StatusCode.OUT_OF_RANGE),
    (LoadFailed, grpc.StatusCode.ABORTED),
    (NotAllowed, grpc.StatusCode.PERMISSION_DENIED),
    (Locked, grpc.StatusCode.UNAUTHENTICATED),
    (Unreachable, grpc.StatusCode.UNAVAILABLE),
    (RingBroken, grpc.StatusCode.CANCELLED),
]


@dataclass(frozen=True, slots=True)
class Unary:
    """A method with one request and one answer, by their wire codecs; None stands for Empty."""

    path: str
    request: wire.Codec[Any]
    response: wire.Codec[Any] | None = None


CONNECT = Unary("/together.v1.Ring/Connect", wire.STAGE_LINK)
LOAD = Unary("/together.v1.Node/Load", wire.STAGE_ORDER, wire.STAGE_STATUS)
UNLOAD = Unary("/together.v1.Node/Unload", wire.RING_NAME)
RENEW = Unary("/together.v1.Node/Renew", wire.CALLER)
FIND = Unary("/together.v1.Node/Find", wire.MODEL_REF, wire.HOLDING)
MEET = Unary("/together.v1.Node/Meet", wire.ENDPOINT)
MEASURE = Unary("/together.v1.Node/Measure", wire.MEASURE_ORDER, wire.DEVICE_PROFILE)
REACH = Unary("/together.v1.Node/Reach", wire.LINK_ORDER, wire.LINK_SPEED)
ECHO = Unary("/together.v1.Node/Echo", wire.BLOB)
DESCRIBE = Unary("/together.v1.Store/Describe", wire.MODEL_REF, wire.BLOB)
DIGEST = Unary("/together.v1.Store/Digest", wire.UNIT_REQUEST, wire.UNIT_DIGEST)
LIST = Unary("/together.v1.Store/List", wire.BLOB, wire.BLOB)
PUSH, WATCH, READ = "/together.v1.Ring/Push", "/together.v1.Node/Watch", "/together.v1.Store/Read"  # streams


def status_of(error: TogetherError) -> grpc.StatusCode:
    """The status that carries `error`."""
    return next((code for kind, code in _STATUS if isinstance(error, kind)), grpc.StatusCode.UNKNOWN)


_REASONS = (("refused", "nothing listens there"), ("closed", "the connection ended"), ("reset", "the connection ended"))


def _reason(details: str) -> Sentence:
    """What gRPC says of a failed call, in words for a person; only its text tells these apart."""
    first = details.strip().partition("\n")[0]
    known = (template(reason) for sign, reason in _REASONS if sign in first)
    return next(known, verbatim(cut(first)) or template("no reason given"))


def error_of(error: grpc.aio.AioRpcError, peer: str) -> TogetherError:
    """A failed call to `peer` as one of our errors."""
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Unreachable("{peer} does not answer ({reason})", peer=peer, reason=_reason(error.details() or ""))
    kind = next((kind for kind, code in _STATUS if code == error.code()), TogetherError)
    return kind(verbatim(cut(error.details() or "") or f"{peer}: {error.code().name}"))


async def call(channel: grpc.aio.Channel, method: Unary, request: object, peer: str, timeout: float = 10.0) -> Any:
    """One unary call. Raises the TogetherError that the other side raised, or Unreachable."""
    stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method.path)
    try:
        answer = await stub(method.request.encode(request), timeout=timeout)
    except grpc.aio.AioRpcError as error:
        raise error_of(error, peer) from error
    except (grpc.aio.UsageError, asyncio.CancelledError) as error:  # the channel was closed before the answer
        if is_cancelled():
            raise
        raise Unreachable("{peer} is gone", peer=peer) from error
    return method.response.decode(answer) if method.response else None


def is_cancelled() -> bool:
    """Whether a CancelledError is meant for this task: gRPC also raises it when another task closes the channel."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@dataclass(frozen=True, slots=True)
class Peer:
    """Who calls. `id` is the name in its certificate; None is a process of this machine, over a plain port."""

    id: str | None
    address: str

    def speaks_for(self, name: str) -> bool:
        """Whether it may say that it is `name`: on a plain port whoever says so is believed."""
        return self.id is None or self.id == name

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine, so that paths and plain ports mean to it what they mean here."""
        return self.id is None or is_own(self.address)

    def require_known(self, endpoint: Endpoint) -> None:
        """Raises NotAllowed where it names an address of which it does not say who is there: nobody announced it."""
        if not endpoint.id and not self.is_here:
            raise NotAllowed(
                "{endpoint} comes without the id of who is there, so nobody connects", endpoint=str(endpoint)
            )


HERE = Peer(None, "127.0.0.1")  # a process of this machine


def peer_of(context: grpc.aio.ServicerContext[bytes, bytes]) -> Peer:
    """`context.peer()` is gRPC's name of where a call came from, as `ipv4:192.168.1.20:54321`. Raises NotAllowed."""
    shown = context.auth_context()
    names = [*shown.get("x509_subject_alternative_name", ())]
    if not names and b"ssl" in shown.get("transport_security_type", ()):  # else it would count as one of this machine
        raise NotAllowed("a certificate without a name is nobody's")
    address = unquote(context.peer()).partition(":")[2].rpartition(":")[0].strip("[]")
    return Peer(names[0].decode() if names else None, address)


def unary(methods: dict[Unary, Callable[[Any], Awaitable[Any]]]) -> dict[str, Handler]:
    """The serving side of `call`, by path: each function takes and returns decoded values."""

    def of_anybody(serve: Callable[[Any], Awaitable[Any]]) -> Callable[[Any, Peer], Awaitable[Any]]:
        return lambda request, _: serve(request)

    return unary_by({method: of_anybody(serve) for method, serve in methods.items()})


def unary_by(methods: dict[Unary, Callable[[Any, Peer], Awaitable[Any]]]) -> dict[str, Handler]:
    """The same, of functions that also take who calls."""
    return {method.path: _handler(method, serve) for method, serve in methods.items()}


def _handler(method: Unary, serve: Callable[[Any, Peer], Awaitable[Any]]) -> Handler:
    async def handle(data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        try:
            answer = await serve(method.request.decode(data), peer_of(context))
        except TogetherError as error:
            await context.abort(status_of(error), str(error))
        return method.response.encode(answer) if method.response else b""

    return grpc.unary_unary_rpc_method_handler(handle)


async def echo(blob: Blob) -> None:
    """Latency probe and liveness check."""


def open_channel(address: str, port: int, name: str = "", credentials: Credentials = ALONE) -> grpc.aio.Channel:
    """A channel to one address; nothing is sent yet. Raises Unreachable where there would be no encryption.

    `name` is that in the certificate there; it is empty for a plain port of this machine, and for that alone.
    """
    target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    if name:
        options = [*OPTIONS, ("grpc.ssl_target_name_override", name)]
        return grpc.aio.secure_channel(target, credentials.channel(), options=options)
    if not is_plain(address):
        raise Unreachable("nobody said who {address} is, so it is not spoken to", address=target)
    return grpc.aio.insecure_channel(target, options=OPTIONS)


def make_server(handlers: dict[str, Handler], limit: int = MESSAGE_LIMIT) -> grpc.aio.Server:
    """A server of `handlers` by full path, which takes messages of `limit` bytes; it has no port yet."""
    services: dict[str, dict[str, Handler]] = {}
    for path, handler in handlers.items():
        _, service, method = path.split("/")
        services.setdefault(service, {})[method] = handler
    taken = "grpc.max_receive_message_length"
    options = [*((name, value) for name, value in OPTIONS if name != taken), (taken, limit)]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MOST_CALLS)
    generic = (grpc.method_handlers_generic_handler(service, methods) for service, methods in services.items())
    server.add_generic_rpc_handlers(tuple(generic))
    return server


def bind(server: grpc.aio.Server, host: str, ports: range, credentials: Credentials = ALONE) -> int:
    """Bind the first free port of `ports`, with TLS unless `host` is loopback's own address.

    Raises BadSetting when all are taken or `host` is not ours.
    """
    keys = None if is_plain(host) else credentials.server()
    for port in ports:
        if not is_free(host, port):
            continue
        try:
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            return server.add_secure_port(address, keys) if keys else server.add_insecure_port(address)
        except RuntimeError:
            continue  # taken since we looked
    raise BadSetting(
        "no free port among {first}–{last} on {host}; stop another node or set another port",
        first=ports.start,
        last=ports.stop - 1,
        host=host,
    )


def is_free(host: str, port: int) -> bool:
    """Checked before gRPC binds, which prints an error line for a taken port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        if os.name == "posix":  # a port in TIME_WAIT is free; on Windows this option would share a port in use
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
