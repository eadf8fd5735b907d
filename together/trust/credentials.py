"""What one process shows at its doors and to those whose doors it knocks at: mutual TLS, by the cluster's authority.

A socket that is bound to this machine's own loopback address, 127.0.0.1 or ::1, is plain: nothing off the machine
reaches it. Every other one, and so every one bound to all addresses, takes members alone, from whatever machine.
"""

from __future__ import annotations

import hmac
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from together.cluster_types import LOOPBACK
from together.errors import Unreachable
from together.trust.secret import SecretFile


def is_plain(host: str) -> bool:
    """Whether a socket bound to `host` speaks without TLS."""
    return host in LOOPBACK


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a process shows to others, as PEM: `id` is the certificate's name, `authority` what it believes."""

    id: str
    certificate: str
    authority: str
    key: str = field(repr=False)


def is_own(address: str) -> bool:
    """Whether the address is one of this machine's."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))  # fails for another machine's
    except OSError:
        return False
    return True


class Credentials:
    """Those of one head, node or stage. The certificate is made when it is first needed."""

    def __init__(self, name: str, file: SecretFile | None = None, leaf: Leaf | None = None) -> None:
        """`name` is the id of the head or node; its certificate is `leaf`, or follows from the secret in `file`."""
        self.name = name
        self.file = file
        self._leaf = leaf
        self._channel: grpc.ChannelCredentials | None = None
        self._context: ssl.SSLContext | None = None

    @classmethod
    def of(cls, folder: Path, name: str) -> Credentials:
        """By the secret in `folder`, which is made there if it has to be."""
        return cls(name, SecretFile(folder))

    @classmethod
    def given(cls, leaf: Leaf | None) -> Credentials:
        """A stage's, which has its node's certificate and never sees the secret."""
        return cls(leaf.id, leaf=leaf) if leaf is not None else ALONE

    @property
    def leaf(self) -> Leaf:
        """Raises Unreachable for a process that speaks on this machine alone, AppError where no secret can be kept."""
        if self._leaf is None:
            if self.file is None:
                raise Unreachable(
                    "this process speaks with its own machine alone, and was given the address of another"
                )
            from together.trust.certificates import make_leaf  # takes a moment to import: one machine needs none

            self._leaf = make_leaf(self.file.get(), self.name)
        return self._leaf

    @property
    def alone(self) -> bool:
        """Whether this process has nothing to show: then it finds plain doors alone."""
        return self._leaf is None and self.file is None

    def leaf_if_member(self) -> Leaf | None:
        """The certificate, unless this machine has been alone so far. Raises AppError."""
        member = self._leaf is not None or (self.file is not None and self.file.known() is not None)
        return self.leaf if member else None

    def tag(self, text: str) -> str:
        """Proof that a member wrote the text; empty on a machine that has been alone so far. Raises AppError."""
        secret = self.file.known() if self.file is not None else None
        return "" if secret is None else hmac.digest(secret, b"together record" + text.encode(), "sha256").hex()[:24]

    def wrote(self, text: str, tag: str) -> bool:
        """Whether `tag` is a member's for the text; on a machine that has been alone, whether it has none."""
        return hmac.compare_digest(self.tag(text).encode(), tag.encode())

    def renew(self) -> None:
        """The secret is another one now."""
        self._leaf, self._channel, self._context = None, None, None

    def server(self) -> grpc.ServerCredentials:
        """For a door: it opens to members alone."""
        leaf = self.leaf
        pair = (leaf.key.encode(), leaf.certificate.encode())
        return grpc.ssl_server_credentials([pair], leaf.authority.encode(), require_client_auth=True)

    def channel(self) -> grpc.ChannelCredentials:
        """For whoever knocks; the name of whom it expects is the channel's target name."""
        if self._channel is None:
            leaf = self.leaf
            self._channel = grpc.ssl_channel_credentials(
                leaf.authority.encode(), leaf.key.encode(), leaf.certificate.encode()
            )
        return self._channel

    def context(self) -> ssl.SSLContext:
        """For a look at who is behind a door, with Python's TLS: gRPC does not tell the name in a certificate."""
        if self._context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.check_hostname = False  # whoever looks reads the name
            context.load_verify_locations(cadata=self.leaf.authority)
            context.set_alpn_protocols(["h2"])
            self._context = context  # only a whole one is kept
        return self._context


ALONE = Credentials("")


class SecretWatch:
    """Whether a secret is still the one that it was: a person may join elsewhere while programs run."""

    def __init__(self, file: SecretFile) -> None:
        self._file = file
        self._stamp = self._look()
        self._secret = self._file.known()

    def changed(self) -> bool:
        """Whether it is another one since the last time that this was True. Raises AppError where it is unreadable."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        secret = self._file.known()
        self._stamp = stamp
        was, self._secret = self._secret, secret
        return was is not None and secret != was

    def _look(self) -> tuple[int, int] | None:
        try:
            status = self._file.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino
