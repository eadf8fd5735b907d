"""Certificates of a cluster: an authority that follows from its secret, and a leaf for each start of a process.

Whoever knows the secret makes the same authority, so nothing has to be sent, or signed by anybody else. The one name
of a leaf is the id of its head or node. Clocks at home are wrong: all certificates are valid for a century, and a new
secret is what ends them.
"""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from together.trust.credentials import Leaf

CURVE = ec.SECP256R1()  # gRPC takes it, and refuses Ed25519
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of the curve (SEC 2, secp256r1)
FROM = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
UNTIL = datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC)


def derived(secret: bytes, purpose: str, length: int) -> bytes:
    """Bytes for one purpose, from which neither the secret nor those of another purpose follow (RFC 5869)."""
    return HKDF(hashes.SHA256(), length, None, f"together 1 {purpose}".encode()).derive(secret)


def authority_key_of(secret: bytes, purpose: str) -> ec.EllipticCurvePrivateKey:
    """The key of an authority; those of two purposes have nothing in common."""
    # 48 bytes: what is left of them by the order is even to 2^-128
    number = int.from_bytes(derived(secret, purpose, 48), "big") % (_ORDER - 1) + 1
    return ec.derive_private_key(number, CURVE)


def make_leaf(secret: bytes, name: str) -> Leaf:
    """A new key with a certificate of the cluster's authority for `name`."""
    authority_key = authority_key_of(secret, "authority")
    authority_name = named(f"together {derived(secret, 'name', 4).hex()}")
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    authority = (
        _certificate(authority_name, authority_name, authority_key.public_key(), serial=1)
        .add_extension(constraints, critical=True)
        .add_extension(usage(authority=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    key = ec.generate_private_key(CURVE)
    leaf = (
        _certificate(named(name), authority_name, key.public_key(), x509.random_serial_number())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    return Leaf(name, pem(leaf), pem(authority), key_pem(key))


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, serial: int
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(issuer, subject, key, serial, FROM, UNTIL)


def named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(not authority, False, False, False, False, authority, False, False, False)


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """Without a password: it never lies on a disk where others read."""
    written = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return written.decode()
