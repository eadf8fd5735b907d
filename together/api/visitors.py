"""Who asks: the owner of a request, and whether it comes from this machine. The guard notes it with each request."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from starlette.types import Scope

from together.cluster_types import is_address
from together.requests import LOCAL, Owner

_PLACE = "together.visitor"  # in a request's scope


@dataclass(frozen=True, slots=True)
class Visitor:
    """`here`: a browser or program of this machine, which may give orders. `owner` is empty for a stranger."""

    owner: Owner
    here: bool

    @property
    def known(self) -> bool:
        return bool(self.owner)


AT_HOME = Visitor(LOCAL, here=True)
STRANGER = Visitor(Owner(""), here=False)


def note_visitor(scope: Scope, visitor: Visitor) -> None:
    scope[_PLACE] = visitor


def visitor_of(scope: Scope) -> Visitor:
    """A request that passed no guard is a stranger's."""
    visitor = scope.get(_PLACE, STRANGER)
    assert isinstance(visitor, Visitor)
    return visitor


def is_local(scope: Scope) -> bool:
    """Whether the client sits on this machine, as far as its address says."""
    client, server = scope.get("client"), scope.get("server")
    if not client:
        return False
    return is_loopback(client[0]) or bool(server and client[0] == server[0])


def is_loopback(address: str) -> bool:
    return is_address(address) and ipaddress.ip_address(address).is_loopback
