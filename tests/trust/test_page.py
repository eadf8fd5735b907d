"""A page's certificate: believed by who installed the authority, for names of one network, and for nothing else."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from cryptography import x509

from together.trust import page as module
from together.trust.certificates import make_leaf
from together.trust.page import PageCertificate, fingerprint, is_coverable, page_authority, page_certificate

SECRET, OTHER = bytes(range(16)), bytes(range(1, 17))
NAMES = ("192.168.1.20", "127.0.0.1", "fd00::1", "8.8.8.8", "studio.local", "studio.lan")


@asynccontextmanager
async def shown(certificate: PageCertificate) -> AsyncIterator[int]:
    """A door with this certificate; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.load_into(context)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port: int = server.sockets[0].getsockname()[1]
        yield port


async def believed(certificate: PageCertificate, name: str, authority: str) -> None:
    """Raises SSLCertVerificationError unless a strict client that knows the authority believes it for that name."""
    context = ssl.create_default_context(cadata=authority)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    async with shown(certificate) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        writer.close()


async def test_each_name_is_believed_by_who_has_the_authority_alone() -> None:
    certificate = page_certificate(SECRET, (*NAMES, "studio", "chat.example.org"))
    assert certificate.names == NAMES
    for name in NAMES:
        await believed(certificate, name, page_authority(SECRET))
    for name in ("192.168.1.21", "tower.local", "chat.example.org"):
        with pytest.raises(ssl.SSLCertVerificationError):
            await believed(certificate, name, page_authority(SECRET))
    for authority in (page_authority(OTHER), make_leaf(SECRET, "0123").authority):
        with pytest.raises(ssl.SSLCertVerificationError):
            await believed(certificate, NAMES[0], authority)


@pytest.mark.parametrize("name", ["bank.example", "com", "evillocal"])
async def test_who_has_the_join_code_can_pose_as_nobody_outside(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phone that installed the authority must not believe it for the rest of the world."""
    monkeypatch.setattr(module, "is_coverable", lambda name: True)
    forged = page_certificate(SECRET, (name,))
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        await believed(forged, name, page_authority(SECRET))


def test_all_machines_of_a_cluster_give_the_same_file() -> None:
    assert page_authority(SECRET) == page_authority(SECRET) != page_authority(OTHER)
    assert fingerprint(page_authority(SECRET)).count(":") == 31
    assert make_leaf(SECRET, "0123").authority != page_authority(SECRET)


def test_phones_take_it() -> None:
    leaf = x509.load_pem_x509_certificate(page_certificate(SECRET, NAMES).chain.encode())
    lasts = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert lasts < datetime.timedelta(days=398)
    assert leaf.not_valid_before_utc < datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


@pytest.mark.parametrize("name", ["", "evil.com", "local.evil.com", "notlocal", "é.com", "10.0.0", "studio"])
def test_what_is_not_of_one_network_is_not_covered(name: str) -> None:
    assert not is_coverable(name)
