"""The door of a machine: which of its addresses answers first, and whether who answers there is who it should be.

Before gRPC connects, each address is knocked at. Where TLS is spoken a handshake shows the name in the certificate: of
two machines with one address (as that of a container's bridge) the right one is taken, a member whose id nobody knows
yet gets one, and a stranger is told apart from silence.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass

import grpc.aio

from together.cluster_types import Endpoint, address_text
from together.errors import Locked, Unreachable
from together.ring import rpc
from together.sentences import template
from together.trust.credentials import ALONE, Credentials, is_plain


@dataclass(frozen=True, slots=True)
class Door:
    """One address that answered, and the name in the certificate there; empty where the port is plain."""

    address: str
    port: int
    name: str
    credentials: Credentials

    def __str__(self) -> str:
        return address_text(self.address, self.port)

    def open(self) -> grpc.aio.Channel:
        """A channel of its own; nothing is sent yet."""
        return rpc.open_channel(self.address, self.port, self.name, self.credentials)


async def find_door(
    endpoint: Endpoint, credentials: Credentials = ALONE, timeout: float = 3.0, *, by_hand: bool = False
) -> Door:
    """By the address that answers first. Raises Locked where only strangers answer, Unreachable where nobody does.

    `by_hand`: a person gave the address, so it is not known whether a port of this machine is plain.
    """
    knocks = [asyncio.create_task(_knock(address, endpoint, credentials, by_hand)) for address in endpoint.addresses]
    trouble: Unreachable | None = None
    try:
        for knock in asyncio.as_completed(knocks, timeout=timeout):
            try:
                return await knock
            except Unreachable as error:
                trouble = error
            except (OSError, ValueError, OverflowError):  # refused or late; no such name; no such port
                continue
    except TimeoutError:
        pass
    finally:
        for task in knocks:
            task.cancel()
        await asyncio.gather(*knocks, return_exceptions=True)
    raise trouble or Unreachable(
        "nothing answers at port {port} of {addresses}; is it running, and is the port open?",
        port=endpoint.port,
        addresses=endpoint.addresses or template("no address"),
    )


async def _knock(address: str, endpoint: Endpoint, credentials: Credentials, by_hand: bool) -> Door:
    plain = Door(address, endpoint.port, "", credentials)
    mine = is_plain(address) and not endpoint.id
    if mine and (credentials.alone or not by_hand):
        _, writer = await asyncio.open_connection(address, endpoint.port)
        writer.transport.abort()
        return plain
    where = address_text(address, endpoint.port)
    try:
        _, writer = await asyncio.open_connection(address, endpoint.port, ssl=credentials.context())
    except ssl.SSLCertVerificationError:
        raise Locked(
            "the machine at {address} has another join code; on the one that should change run python3 launch.py join "
            "and the other one's code",
            address=where,
        ) from None
    except ssl.SSLError:
        if mine:
            return plain
        message = "what listens at {address} is no program of together, or an old one; update it there"
        raise Locked(message, address=where) from None
    certificate = writer.get_extra_info("peercert") or {}
    writer.transport.abort()
    names = [str(value) for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    if not names or endpoint.id not in ("", *names):
        raise Unreachable("another member of the cluster answers at {address}", address=where)
    return Door(address, endpoint.port, names[0], credentials)
