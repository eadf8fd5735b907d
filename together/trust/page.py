"""Certificates for browsers: an authority of its own that follows from the cluster's secret, and a leaf for a page.

A phone that installs the authority believes it. So it is none of the machines', and is bound (RFC 5280, name
constraints) to addresses, and to names that mean something in one network only: who has the join code can pose as no
bank. Networks have public addresses, too, as those of universities, so that addresses are not bound further.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from together.cluster_types import is_address
from together.trust.certificates import CURVE, FROM, UNTIL, authority_key_of, derived, key_pem, named, pem, usage

_ADDRESSES = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
_ZONES = ("local", "lan", "home.arpa", "internal", "localhost")
_BEFORE, _LEAF = datetime.timedelta(days=2), datetime.timedelta(days=390)  # phones refuse leaves of more than 398 days
_SHA256 = hashes.SHA256()


@dataclass(frozen=True, slots=True)
class PageCertificate:
    """For a page's door, as PEM; `names` are those that it is valid for."""

    names: tuple[str, ...]
    chain: str
    authority: str
    key: str = field(repr=False)

    def load_into(self, context: ssl.SSLContext) -> None:
        """What a context shows to who connects from now on. Raises OSError."""
        with tempfile.TemporaryDirectory() as folder:  # of this user alone; ssl reads files only
            file = Path(folder) / "page.pem"
            with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as stream:
                stream.write(self.key + self.chain)
            context.load_cert_chain(file)


def page_authority(secret: bytes) -> str:
    """The authority's certificate as PEM, the same on every machine of the cluster."""
    return pem(_authority(secret))


def page_certificate(secret: bytes, names: Iterable[str]) -> PageCertificate:
    """A new key, and a certificate for those of the names that the authority may speak for."""
    authority, key = _authority(secret), ec.generate_private_key(CURVE)
    able = tuple(dict.fromkeys(name for name in names if is_coverable(name)))
    now = datetime.datetime.now(datetime.UTC)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(named("together"))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now - _BEFORE + _LEAF)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in able or ("localhost",)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(_key(secret).public_key()), critical=False)
        .sign(_key(secret), _SHA256)
    )
    return PageCertificate(able, pem(leaf) + pem(authority), pem(authority), key_pem(key))


def fingerprint(authority: str) -> str:
    """As phones show it: sha256 in hex, in pairs."""
    found = x509.load_pem_x509_certificate(authority.encode()).fingerprint(_SHA256).hex().upper()
    return ":".join(found[at : at + 2] for at in range(0, len(found), 2))


def is_coverable(name: str) -> bool:
    """Whether the authority may speak for an address or a name."""
    lower = name.lower()
    return is_address(name) or any(lower == zone or lower.endswith(f".{zone}") for zone in _ZONES)


def _authority(secret: bytes) -> x509.Certificate:
    key = _key(secret)
    permitted = [*map(x509.IPAddress, _ADDRESSES), *map(x509.DNSName, _ZONES)]
    name = named(f"together {derived(secret, 'page name', 4).hex()}, page")
    return (
        x509.CertificateBuilder(name, name, key.public_key(), 1, FROM, UNTIL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(authority=True), critical=True)
        .add_extension(x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _SHA256, ecdsa_deterministic=True)  # so that all machines give the same file
    )


def _key(secret: bytes) -> ec.EllipticCurvePrivateKey:
    return authority_key_of(secret, "page authority")


def _general(name: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name)) if is_address(name) else x509.DNSName(name)
