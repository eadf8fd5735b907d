"""Machines that belong together, and strangers, each with a folder of its own: for tests of what is let in where."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from together.cluster_types import Endpoint
from together.ring.rpc import OPTIONS
from together.settings import Settings
from together.trust.certificates import CURVE, FROM, UNTIL, authority_key_of, derived, key_pem, named, pem
from together.trust.credentials import Credentials
from together.trust.secret import SecretFile

OPEN = "0.0.0.0"  # who listens there takes members alone, also from this machine
TLS_12 = ssl.TLSVersion.TLSv1_2


def opened(settings: Settings, **more: object) -> Settings:
    """The same, open to the network."""
    return replace(settings, host=OPEN, **more)  # type: ignore[arg-type]  # of its fields


def stranger(folder: Path, name: str = "0123456789abcdef") -> Credentials:
    """Somebody with a join code of their own."""
    SecretFile(folder / "elsewhere").get()
    return Credentials.of(folder / "elsewhere", name)


def member(settings: Settings, name: str) -> Credentials:
    return Credentials.of(settings.config_path, name)


def nameless(who: Credentials) -> Credentials:
    """A member whose certificate says nobody's name."""
    assert who.file is not None
    secret, key = who.file.get(), ec.generate_private_key(CURVE)
    own, authority = named("nobody"), named(f"together {derived(secret, 'name', 4).hex()}")
    number = x509.random_serial_number()
    certificate = x509.CertificateBuilder(authority, own, key.public_key(), number, FROM, UNTIL).sign(
        authority_key_of(secret, "authority"), hashes.SHA256()
    )
    return Credentials.given(replace(who.leaf, certificate=pem(certificate), key=key_pem(key)))


def at(endpoint: Endpoint) -> str:
    return f"{endpoint.addresses[0]}:{endpoint.port}"


@asynccontextmanager
async def knocking(
    kind: str, endpoint: Endpoint, good: Credentials, bad: Credentials
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel of somebody who must not get in: S1 of the figures to hold."""
    name = [("grpc.ssl_target_name_override", endpoint.id)]
    match kind:
        case "plain":
            channel = grpc.aio.insecure_channel(at(endpoint), options=OPTIONS)
        case "no certificate":
            only_root = grpc.ssl_channel_credentials(good.leaf.authority.encode())
            channel = grpc.aio.secure_channel(at(endpoint), only_root, options=[*OPTIONS, *name])
        case "other code":
            leaf = bad.leaf  # it believes the node's authority, and shows a certificate of its own
            keys = grpc.ssl_channel_credentials(
                good.leaf.authority.encode(), leaf.key.encode(), leaf.certificate.encode()
            )
            channel = grpc.aio.secure_channel(at(endpoint), keys, options=[*OPTIONS, *name])
        case "other node expected":
            other = [("grpc.ssl_target_name_override", "ffffffffffffffff")]
            channel = grpc.aio.secure_channel(at(endpoint), good.channel(), options=[*OPTIONS, *other])
        case _:
            raise AssertionError(kind)
    async with channel:
        yield channel


STRANGERS = ("plain", "no certificate", "other code", "other node expected")


async def handshake(endpoint: Endpoint, credentials: Credentials, most: ssl.TLSVersion) -> str:
    """The version of TLS that a client which offers at most `most` gets. Raises OSError where it gets none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=credentials.leaf.authority)
    context.minimum_version, context.maximum_version = TLS_12, most
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(endpoint.addresses[0], endpoint.port, ssl=context)
    version: str = writer.get_extra_info("ssl_object").version()
    writer.transport.abort()
    return version
